"""Tests of the replica agent's rooms, on real files."""
