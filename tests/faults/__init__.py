"""Faults of storage, memory and clock: injected into real processes, and enumerated over recorded writes."""
