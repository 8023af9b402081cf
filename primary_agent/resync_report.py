"""What an administrator is told about a VM's resyncs: the plan of the next one, the open one, and those before."""

from __future__ import annotations

from primary_agent.forecast import forecast, kind_of
from primary_agent.parts import Parts
from primary_agent.record import StartedBy
from primary_agent.scheduling import Schedule, Start
from primary_agent.starting import planned
from primary_agent.vm import PrimaryVm
from protocol.messages import ResyncKind
from shared.admin.bounds import PLAN_BLOCKS
from shared.errors import InvalidStateError
from shared.rates import duration_text
from shared.resync_runs import ResyncPlan, ResyncReport, RunHistory
from shared.schedule import moment_text
from shared.states import ReplicationState

WHOLE, IN_DOUBT = "whole disks", "what is in doubt"
_S = ReplicationState
_OPEN = (_S.RESYNCHRONIZING, _S.RESYNCHRONIZE_SUSPENDED, _S.INITIAL_REPLICATION_IN_PROGRESS)


def starts_by(parts: Parts, kind: ResyncKind, seconds: float | None = None) -> str:
    """What starts a required resync under the VM's settings, in words; ``seconds``: how long it is expected to take."""
    vm, clock = parts.replication.vm, parts.surroundings.ports.clock
    if kind is ResyncKind.INITIAL:
        return f"An administrator starts it: vmreplica initial {vm.name}."
    if kind is ResyncKind.BOUNDED:
        return "It starts by itself as soon as connectivity is healthy: what is bounded waits for nobody."
    now, zone = clock.wall(), clock.zone()
    start = planned(parts, now)
    if start.moment is None:
        return f"An administrator starts it, since {start.text}: vmreplica resume {vm.name} --resynchronize."
    when = "as soon as connectivity is healthy" if start.moment <= now else f"at {moment_text(start.moment, zone)}"
    return f"It starts by itself {when}: {start.text}.{_fit(parts, start, max(start.moment, now), seconds)}"


def _fit(parts: Parts, start: Start, moment: float, seconds: float | None) -> str:
    """Whether it fits into the window that starts it, in words; empty where no window does, or nothing is known."""
    schedule = Schedule.of(parts.replication.vm, parts.surroundings.resync)
    end = schedule.end(moment, parts.surroundings.ports.clock.zone())
    if start.by is not StartedBy.WINDOW or end is None or seconds is None:
        return ""
    left = duration_text(end - moment)
    if seconds <= end - moment:
        return f" It fits into that window, {left} of it."
    return f" It does not fit into that window, {left} of it, and goes on in the next one."


def report(vm: PrimaryVm) -> ResyncReport:
    """The answer of ``vm.resync_show``."""
    parts = vm.parts
    record, runs, kind = parts.replication.record, parts.replication.runs, kind_of(parts)
    runs.collect()
    connection = parts.tap.connection
    doubt = connection.status.doubt if connection is not None else None
    disk_bytes = sum(disk.size for disk in vm.record.disks)
    needed = bool(record.causes) or record.resync is not None or kind is ResyncKind.INITIAL
    bounded = kind is ResyncKind.BOUNDED
    size = (doubt.bytes if doubt is not None else None) if bounded else disk_bytes
    return ResyncReport(
        state=record.state.title,
        required=bool(record.causes),
        causes=list(record.causes),
        scope=(IN_DOUBT if bounded else WHOLE) if needed else "",
        scope_bytes=size if needed else None,
        disk_bytes=disk_bytes,
        starts=starts_by(parts, kind) if needed and record.state not in _OPEN else "",
        excluded=vm.record.excluded,
        run=runs.open,
        progress=parts.progress.status() if parts.progress is not None else None,
        last=runs.last,
    )


def history(vm: PrimaryVm, limit: int) -> RunHistory:
    """The answer of ``vm.resync_history``."""
    return RunHistory(runs=vm.parts.replication.runs.newest(limit))


async def plan(vm: PrimaryVm, *, sample: bool, blocks: int = PLAN_BLOCKS) -> ResyncPlan:
    """The answer of ``vm.resync_plan``; reads samples of the disks on both sides, and changes nothing.

    ``blocks`` are compared with the replica. Raises VmreplicaError.
    """
    parts = vm.parts
    record, kind = parts.replication.record, kind_of(parts)
    expected = await forecast(parts, sample=sample, blocks=blocks)
    obstacle = remedy = ""
    try:
        await vm.check_gate("initial replication" if kind is ResyncKind.INITIAL else "resynchronization")
    except InvalidStateError as error:
        obstacle, remedy = error.text, error.remedy
    return ResyncPlan(
        state=record.state.title,
        required=bool(record.causes),
        forecast=expected,
        disk_bytes=sum(disk.size for disk in vm.record.disks),
        may_start=not obstacle,
        obstacle=obstacle,
        remedy=remedy,
        starts=starts_by(parts, kind, expected.seconds),
    )
