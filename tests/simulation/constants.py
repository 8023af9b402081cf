"""What is alike in all runs: names, places and times of the VM and of both hosts."""

from __future__ import annotations

import uuid

DISKS = 2
VM = "vm"
VM_ID = str(uuid.UUID("11111111-2222-4333-8444-555555555555"))
PORT = 8475
STORAGE = "/srv/replicas"
REPLICA_FOLDER = f"{STORAGE}/{VM_ID}"
REPLICA_RUNTIME = "/run/replica"
RESERVE = 256 << 10
"""Bytes that the replica keeps free on its volume."""
PRIMARY_STATE = "/var/lib/primary"
PRIMARY_STORE = f"{PRIMARY_STATE}/vms/{VM_ID}"
DISK_FOLDER = "/srv/disks"
HEARTBEAT = 1.0
DEAD_AFTER = 4.0
MAX_STEPS = 3_000_000
