"""Recorded bytes of wire and log, and what builds them again."""
