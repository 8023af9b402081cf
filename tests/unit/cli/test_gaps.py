"""One VM or agent that does not answer costs its own part of an answer, and no other's."""

from __future__ import annotations

import json
from typing import Any

from shared.admin import verbs as admin
from shared.admin.audit_lines import AuditEntry
from shared.admin.verbs import AuditAnswer
from shared.errors import InvalidStateError, StorageError, UnreachableError
from shared.events import EventId, make_event
from shared.measures import Statistics
from shared.status import VmStatus, to_plain
from tests.unit.cli.conftest import Command
from tests.unit.cli.samples import NOW, UUID, healthy, replica

DB = "8c4bb1a0-5a3e-4b8e-9c3a-aaaaaaaaaaaa"
UNDONE = InvalidStateError("The failover of db is still being undone.", "It goes on by itself.")


def two() -> list[VmStatus]:
    return [healthy(), healthy(name="db", uuid=DB)]


def event(text: str) -> dict[str, Any]:
    return {"id": 1, "vm": "web", "uuid": UUID, **make_event(EventId.CONNECTED, text, time=NOW)}


def test_events_of_one_vm_are_missing(vmreplica: Command) -> None:
    primary = vmreplica.agent(vms=two())
    told = {"vm": "db", "uuid": DB, "code": UNDONE.code, "exit_code": 4, "text": UNDONE.text, "remedy": UNDONE.remedy}
    primary.answers[admin.EVENTS] = {"events": [event("first")], "missing": [told]}
    primary.answers[admin.AGENT_EVENTS] = {"events": [event("own")]}
    ran = vmreplica("events")
    assert [line.split()[-1] for line in ran.lines] == ["first", "own"]
    assert ran.err.splitlines() == [
        "vmreplica: Without the events of db at the primary: The failover of db is still being undone.",
        "  It goes on by itself.",
    ]
    assert ran.code == InvalidStateError.exit_code
    as_json = vmreplica("events", "--json")
    value = json.loads(as_json.out)
    assert [each["text"] for each in value["events"]] == ["first", "own"]
    assert value["unreachable"] == []
    assert value["missing"] == [
        {"name": "db", "uuid": DB, "role": "primary", "code": "invalid_state", "text": UNDONE.text,
         "remedy": UNDONE.remedy}
    ]  # fmt: skip
    assert as_json.code == InvalidStateError.exit_code


def test_events_of_one_agent_are_missing(vmreplica: Command) -> None:
    primary, other = vmreplica.agent(), vmreplica.agent("replica", [replica()])
    primary.answers[admin.EVENTS] = StorageError("The events can't be read.", "Look at the volume.")
    other.answers[admin.EVENTS] = {"events": [event("second")]}
    for arguments in (("events",), ("events", "web")):
        ran = vmreplica(*arguments)
        assert [line.split()[-1] for line in ran.lines] == ["second"]
        assert ran.err.splitlines() == ["vmreplica: The events can't be read.", "  Look at the volume."]
        assert ran.code == StorageError.exit_code
    other.stop()
    ran = vmreplica("events", "web")
    assert (ran.code, ran.out) == (StorageError.exit_code, "")


def test_agent_that_can_not_be_reached_is_told(vmreplica: Command) -> None:
    primary = vmreplica.agent()
    primary.answers[admin.EVENTS] = {"events": [event("first")]}
    primary.answers[admin.MEASURE] = to_plain(Statistics())
    primary.answers[admin.AUDIT] = to_plain(AuditAnswer(folder="/state", entries=[]))
    (vmreplica.folder / "replica.sock").write_bytes(b"")
    for verb in ("events", "measure", "audit", "get"):
        ran = vmreplica(verb)
        assert ran.out
        assert ran.err.startswith(f"vmreplica: The agent of {vmreplica.folder}/replica.sock does not run")
        assert ran.code == UnreachableError.exit_code
        as_json = vmreplica(verb, "--json")
        assert [each["code"] for each in json.loads(as_json.out)["unreachable"]] == ["unreachable"]
        assert as_json.code == UnreachableError.exit_code


def test_measure_and_churn_of_one_vm_are_missing(vmreplica: Command) -> None:
    primary = vmreplica.agent(vms=two())

    def answer(params: dict[str, Any]) -> Any:
        return UNDONE if params["vm"] == DB else to_plain(Statistics(successful_replication_count=7))

    primary.answers[admin.MEASURE] = answer
    ran = vmreplica("measure")
    assert "  replicated      7 cuts" in ran.lines
    assert ran.err.startswith("vmreplica: Without the statistics of db at the primary: The failover of db is still")
    assert ran.code == InvalidStateError.exit_code
    value = json.loads(vmreplica("measure", "--json").out)
    assert [each["name"] for each in value["vms"]] == ["web"]
    assert [each["name"] for each in value["missing"]] == ["db"]
    alone = vmreplica("measure", "db")
    assert (alone.code, alone.out, alone.err.splitlines()[0]) == (4, "", f"vmreplica: {UNDONE.text}")

    primary.answers[admin.CHURN] = lambda params: (
        UNDONE if params["vm"] == DB else {"name": "web", "uuid": UUID, "disks": []}
    )
    ran = vmreplica("churn")
    assert ran.lines[1].split()[0] == "web"
    assert ran.err.startswith("vmreplica: Without the churn of db at the primary:")
    assert ran.code == InvalidStateError.exit_code


def test_record_of_orders_of_one_agent_is_missing(vmreplica: Command) -> None:
    primary, other = vmreplica.agent(), vmreplica.agent("replica", [replica()])
    primary.answers[admin.AUDIT] = StorageError("The record can't be read.", "Look at the volume.")
    entry = AuditEntry(seq=1, time=NOW, role="replica", verb="vm.set", result="ok", previous="0" * 64)
    other.answers[admin.AUDIT] = to_plain(AuditAnswer(folder="/state", entries=[entry]))
    ran = vmreplica("audit")
    assert "vm.set" in ran.out
    assert ran.err.splitlines() == ["vmreplica: The record can't be read.", "  Look at the volume."]
    assert ran.code == StorageError.exit_code
