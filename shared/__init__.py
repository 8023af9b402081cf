"""What both agents stand on."""
