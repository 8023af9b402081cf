"""The primary's durable records of resyncs, held against the record whose changes they have to follow."""

from __future__ import annotations

from primary_agent.run_journal import PREFIX
from shared.events import EventId
from shared.resync_runs import COMMITTED
from shared.states import ReplicationState
from tests.simulation.hosts import Host
from tests.simulation.oracle import Violation
from tests.simulation.services import StoreContent


def rounds_of(host: Host) -> int:
    """How often a resync went on in another round, as the agent of that host put it on record."""
    events = (event for content in host.contents.values() for event in content.events)
    return sum(event["event"] == EventId.RESYNC_ROUND for event in events)


def check_runs(content: StoreContent | None) -> None:
    """A run is open exactly while a resync is, and the last that committed is the baseline's: at every moment (I16)."""
    record = content.record("replication") if content is not None else None
    if content is None or record is None:
        return
    runs = [content.record(name) for name in sorted(content.records) if name.startswith(PREFIX)]
    if any(run["result"] == "" for run in runs[:-1]):
        raise Violation("I16: a run is open on record although a later one was begun")
    found = runs[-1]["id"] if runs and runs[-1]["result"] == "" else None
    failed_over = ReplicationState(record["state"]) is ReplicationState.FAILED_OVER
    resync = None if failed_over or record["resync"] is None else record["resync"]["id"].hex()
    if found != resync:
        raise Violation(f"I16: the open resync is {resync}, and the run on record {found}")
    committed = [run["epoch"] for run in runs if run["result"] == COMMITTED]
    if committed and committed[-1] != record["epoch"].hex():
        raise Violation(f"I16: the baseline is {record['epoch'].hex()}, and the last committed run's {committed[-1]}")
