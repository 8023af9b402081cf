"""Parts of the sentence that says how a VM's replication is (shared.health): how far something is, what is held."""

from __future__ import annotations

from shared.planning import ResyncCause
from shared.rates import duration_text
from shared.states import PlannedStep, ReplicationState
from shared.status import VmStatus


def initial_words(status: VmStatus, state: ReplicationState) -> str:
    """How far an initial replication is."""
    if state is ReplicationState.READY_FOR_INITIAL_REPLICATION:
        return "has not been started"
    if state is ReplicationState.WAITING_FOR_INITIAL_REPLICATION:
        return "waits for its time"
    return f"is not complete{percent_text(status)}"


def prepared_words(status: VmStatus) -> str:
    """How far the preparation of a planned failover is, at the primary."""
    where = status.peer_host or "the replica"
    if status.planned is not None and status.planned.step == PlannedStep.CONFIRMED:
        return f"{where} has everything, and the VM's disks take no writes here"
    return f"the answer of {where} is waited for, and the VM's disks take no writes here"


def percent_text(status: VmStatus) -> str:
    """How much of a compare is done, in brackets; empty where that is not known."""
    progress = status.progress
    if progress is None or not progress.total_bytes:
        return ""
    return f" ({100 * progress.done_bytes // progress.total_bytes} % compared)"


def behind_text(status: VmStatus) -> str:
    """What the replica has."""
    where = "this replica" if status.role == "replica" else f"the replica at {status.peer_host or 'its host'}"
    if any(cause.code == ResyncCause.REVERSED for cause in status.causes):
        # However recent that is, it is not what the primary had then.
        return f"{where} has what was on its own disks until the compare is done"
    if status.lag_seconds is None:
        return f"{where} has not told its newest point"
    return f"{where} holds everything up to {duration_text(status.lag_seconds)} ago"
