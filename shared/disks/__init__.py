"""Extents, identity, hashing and locks of disk files."""
