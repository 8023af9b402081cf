"""Tests of the tap's parts, in one process."""
