"""The tap: serves NBD, logs and writes; its own process."""
