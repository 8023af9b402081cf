"""Events as entries of systemd's journal: which fields they have. docs/operations.md tells how to ask for them."""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from shared.log import PRIORITIES
from shared.telling import Told

IDENTIFIER = "vmreplica"
NAMESPACE = UUID("5f0c0a3e-5c1d-5c0e-9a55-0d1f3e7b9c21")
"""What the MESSAGE_IDs of events are made in: a number has the same one for ever."""


def message_id(number: int) -> str:
    """The MESSAGE_ID of an event's number: the UUID (version 5) of its decimal digits in NAMESPACE."""
    return uuid5(NAMESPACE, str(number)).hex


def entry_of(told: Told, role: str) -> dict[str, str]:
    """The fields of an entry; those that an event does not have are left out."""
    event = told.event
    subject = told.vm or f"{role} agent"
    fields = {
        "MESSAGE": f"{subject}: {event['text']}",
        "MESSAGE_ID": message_id(event["event"]),
        "PRIORITY": str(PRIORITIES.get(event["level"], 6)),
        "SYSLOG_IDENTIFIER": f"{IDENTIFIER}-{role}",
        "VMREPLICA_EVENT": str(event["event"]),
        "VMREPLICA_NAME": event["name"],
        "VMREPLICA_LEVEL": event["level"],
        "VMREPLICA_ROLE": role,
        "VMREPLICA_VM": told.vm,
        "VMREPLICA_UUID": told.uuid,
        "VMREPLICA_BEFORE": event.get("before", ""),
        "VMREPLICA_AFTER": event.get("after", ""),
        "VMREPLICA_CAUSE": event.get("cause", ""),
        "VMREPLICA_DATA": json.dumps(event["data"], default=str) if event.get("data") else "",
    }
    return {name: value for name, value in fields.items() if value}
