"""The durable record of each run of a resync: begun, counted and ended with the changes of state that it follows.

Whether a run is open is not decided here: it is open while the replication's record has a resync, and what ends it is
read off the change that takes the resync away. Its record is written in the transaction of that change, of the events
of its steps, and now and then between them, so that a lost agent loses what was counted in the last seconds and
nothing else. What is in memory is ahead of the store for the length of one commit; a commit that fails ends the VM's
tasks, and the next ones begin from the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from primary_agent.progress import ResyncProgress
from primary_agent.record import ReplicationRecord, ResyncRecord
from shared.events import EventId
from shared.ports import Clock, Store
from shared.resync_runs import (
    CANCELLED,
    COMMITTED,
    FAILED_OVER,
    RESTARTED,
    Forecast,
    Interruption,
    Run,
    RunDisk,
    RunStep,
)
from shared.states import ReplicationState

PREFIX = "resync-run/"
STARTER = "resync-starter"
RUNS_KEPT = 50
STEPS_KEPT = 256
INTERRUPTIONS_KEPT = 32
WRITE_SECONDS = 10.0
"""What was counted of an open run is written down at least so often while a session works on it."""
MERGED = "merged"
ROUND_BEGUN = "another round"
_CHECKED = "sizes checked"
_DISK_STEPS = {EventId.RESYNC_STARTED: "compare begun", EventId.RESYNC_COMPARED: "compare ended"}
_WORKING = (ReplicationState.RESYNCHRONIZING, ReplicationState.INITIAL_REPLICATION_IN_PROGRESS)
_SUSPENDED = (ReplicationState.SUSPENDED, ReplicationState.RESYNCHRONIZE_SUSPENDED)


class RunJournal:
    """The runs of one VM; ``open`` is the one under way, ``last`` the newest that ended."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.open: Run | None = None
        self.last: Run | None = None
        self._store = store
        self._clock = clock
        self._starter = str(store.get(STARTER) or "")
        self._progress: ResyncProgress | None = None
        self._base: Run | None = None
        """The open run's counts before the present progress."""
        self._steps_taken = 0
        self._unwritten: dict[int, Run] = {}
        self._written_at = clock.monotonic()
        self._names = store.names(PREFIX)
        self._load()

    def _load(self) -> None:
        for name in reversed(self._names[-2:]):
            run = _run_of(self._store.get(name))
            if run is not None and not run.result and self.open is None and self.last is None:
                self.open = run
                self.interrupt("the agent ended", at=run.kept_time)
            elif run is not None and self.last is None:
                self.last = run

    # --- what is told ----------------------------------------------------------------------------------------------

    def newest(self, limit: int) -> list[Run]:
        """The newest runs, the newest first, as they stand now."""
        self.collect()
        fresh = {run.number: run for run in (self.last, self.open) if run is not None}
        runs = (fresh.get(_number(name)) or _run_of(self._store.get(name)) for name in self._names[::-1][:limit])
        return [run for run in runs if run is not None]

    # --- what is noted ---------------------------------------------------------------------------------------------

    def changes(self, after: ReplicationRecord, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """What has to be written with a change of the record to ``after`` and its events."""
        changes: dict[str, Any] = {}
        suspended = ""
        for event in events:
            if event["event"] == EventId.STATE_CHANGED and event["after"] in {state.title for state in _WORKING}:
                self._starter = changes[STARTER] = str(event["cause"])
            if event["event"] == EventId.STATE_CHANGED and event["after"] in {state.title for state in _SUSPENDED}:
                suspended = str(event["cause"])
        self.see(events)
        resync = after.resync if after.state is not ReplicationState.FAILED_OVER else None
        if self.open is not None and (resync is None or resync.id.hex() != self.open.id):
            self._end(_result(self.open, after))
        if resync is not None and self.open is None:
            changes |= self._begin(resync)
        if self.open is not None and resync is not None:
            self._take(resync, after)
            if suspended and after.state in _SUSPENDED:
                self.interrupt(f"suspended: {suspended}")
        return changes | self.pending()

    def see(self, events: Iterable[dict[str, Any]]) -> None:
        """Steps that show as events."""
        self.collect()
        for event in events:
            if self.open is not None and (name := _DISK_STEPS.get(event["event"])) is not None:
                data = dict(event["data"])
                self._step(self.open, RunStep(name=name, time=event["time"], disk=data.pop("disk", None), data=data))

    def follow(self, progress: ResyncProgress) -> None:
        """Count what ``progress`` shows from now on, if it is that of the open run."""
        if self.open is None or progress is self._progress or progress.id.hex() != self.open.id:
            return
        self.collect()
        self._progress, self._steps_taken = progress, 0
        self._base = msgspec.structs.replace(self.open)

    def forecast(self, forecast: Forecast) -> None:
        """Put on record what the open run was expected to cost."""
        if self.open is not None:
            self.open.forecast = forecast
            self._unwritten[self.open.number] = self.open

    def interrupt(self, reason: str, *, at: float | None = None) -> None:
        """The open run stands still from now on (or since ``at``), unless it did before."""
        self.collect()
        run = self.open
        if run is None or (run.interruptions and run.interruptions[-1].resumed_time is None):
            return
        time = self._clock.wall() if at is None else at
        run.interruptions = _bounded([*run.interruptions, Interruption(time=time, reason=reason)], INTERRUPTIONS_KEPT)
        run.interruption_count += 1
        self._unwritten[run.number] = run

    def merged(self, epoch: bytes) -> None:
        """The replica's disks are at a cut of this epoch."""
        run = self.last
        if run is None or run.result != COMMITTED or run.epoch != epoch.hex():
            return
        if not any(step.name == MERGED for step in run.steps):
            self._step(run, RunStep(name=MERGED, time=self._clock.wall()))

    def collect(self) -> None:
        """Bring the open run up to what its progress shows."""
        run, progress, base = self.open, self._progress, self._base
        if run is None or progress is None or base is None:
            return
        before = {disk.index: disk for disk in base.disks}
        run.disks = [_sum(before.get(index), disk) for index, disk in sorted(progress.work.items())]
        run.wire_bytes = base.wire_bytes + progress.wire_bytes
        run.active_seconds = base.active_seconds + progress.active_seconds
        run.compare_seconds = base.compare_seconds + progress.compare_seconds
        for time, step in progress.steps[self._steps_taken :]:
            self._step(run, RunStep(name=step, time=time))
        self._steps_taken = len(progress.steps)
        still = run.interruptions[-1] if run.interruptions else None
        active = progress.activated_time
        if still is not None and still.resumed_time is None and active is not None and active >= still.time:
            still.resumed_time = active
            self._unwritten[run.number] = run

    # --- what is written -------------------------------------------------------------------------------------------

    def pending(self) -> dict[str, Any]:
        """The records that a transaction takes along."""
        self.collect()
        now = self._clock.wall()
        if self.open is not None:
            self._unwritten[self.open.number] = self.open
        changes: dict[str, Any] = {}
        for number, run in self._unwritten.items():
            run.kept_time = now
            changes[_name(number)] = msgspec.to_builtins(run)
        self._unwritten.clear()
        self._written_at = self._clock.monotonic()
        return changes

    def due(self) -> dict[str, Any]:
        """The records that must not wait for another transaction."""
        self.collect()
        active = self._progress is not None and self._progress.active
        old = self._clock.monotonic() - self._written_at >= WRITE_SECONDS
        return self.pending() if self._unwritten or (self.open is not None and active and old) else {}

    # --- inner parts -----------------------------------------------------------------------------------------------

    def _begin(self, resync: ResyncRecord) -> dict[str, Any]:
        now = self._clock.wall()
        number = 1 + (_number(self._names[-1]) if self._names else 0)
        self.open = Run(
            number=number,
            id=resync.id.hex(),
            epoch=resync.epoch.hex(),
            kind=resync.kind.value,
            started_time=now,
            started_by=self._starter,
            steps=[RunStep(name=_CHECKED, time=now)],
        )
        self._progress = self._base = None
        names = [*self._names, _name(number)]
        self._names = names[-RUNS_KEPT:]
        return dict.fromkeys(names[:-RUNS_KEPT])

    def _take(self, resync: ResyncRecord, after: ReplicationRecord) -> None:
        """Kind, causes and rounds may change while it is open."""
        assert self.open is not None
        if resync.round > self.open.rounds:
            self._step(self.open, RunStep(name=ROUND_BEGUN, time=self._clock.wall(), data={"round": resync.round}))
        self.open.kind, self.open.epoch, self.open.rounds = resync.kind.value, resync.epoch.hex(), resync.round
        known = {(cause.code, cause.text) for cause in self.open.causes}
        fresh = [cause for cause in after.causes if (cause.code, cause.text) not in known]
        self.open.causes = [*self.open.causes, *fresh]

    def _end(self, result: str) -> None:
        self.collect()
        run = self.open
        assert run is not None
        run.result, run.ended_time = result, self._clock.wall()
        self.open, self.last = None, run
        self._unwritten[run.number] = run
        self._progress = self._base = None

    def _step(self, run: Run, step: RunStep) -> None:
        run.steps = _bounded([*run.steps, step], STEPS_KEPT)
        self._unwritten[run.number] = run


def _result(run: Run, after: ReplicationRecord) -> str:
    if after.epoch.hex() == run.epoch:
        return COMMITTED
    if after.state is ReplicationState.FAILED_OVER:
        return FAILED_OVER
    return RESTARTED if after.resync is not None or after.state in _WORKING else CANCELLED


def _sum(before: RunDisk | None, work: RunDisk) -> RunDisk:
    if before is None:
        return msgspec.structs.replace(work)
    counts = {
        name: getattr(before, name) + getattr(work, name)
        for name in RunDisk.__struct_fields__
        if name not in ("index", "scope_bytes")
    }
    return RunDisk(index=work.index, scope_bytes=work.scope_bytes, **counts)


def _bounded(items: list[Any], most: int) -> list[Any]:
    """The first and the last of them: what began it, and what is going on."""
    return items if len(items) <= most else [*items[: most // 2], *items[-most // 2 :]]


def _name(number: int) -> str:
    return f"{PREFIX}{number:012}"


def _number(name: str) -> int:
    return int(name.removeprefix(PREFIX))


def _run_of(plain: Any) -> Run | None:
    """The run as it was kept; None where it can't be read, since no history is worth a VM that does not start."""
    try:
        return None if plain is None else msgspec.convert(plain, Run)
    except msgspec.ValidationError:
        return None
