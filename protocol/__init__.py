"""Bytes to messages and back: the wire and the HRL. No I/O, no clock, no threads."""
