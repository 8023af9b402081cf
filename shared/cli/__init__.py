"""The vmreplica command."""
