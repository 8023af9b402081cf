"""Bugs to plant on the primary's host: in the tap and in the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import primary_agent.tap.engine
import primary_agent.tap.start
from primary_agent.compare import unsettled_runs
from primary_agent.comparing import Comparing
from primary_agent.record import plain
from primary_agent.replication import Replication
from primary_agent.resync import ResyncDriver
from primary_agent.run_journal import RunJournal
from primary_agent.session import Session
from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.tasks import Turns
from primary_agent.tap.tracker import Tracker
from protocol.position import Position
from replica_agent.resync import OpenResync
from shared.tap_control import TapClient
from tests.simulation.disk import SimulatedFile
from tests.simulation.mutants_kit import Patch, forever, nothing, nothing_async, unsynced

# --- the tap ---


def flush_nosync() -> Sequence[Patch]:
    """I4: a flush is answered without the disk being synced."""
    return [(SimulatedFile, "sync", unsynced("/srv/disks/"))]


def no_recovery_reread() -> Sequence[Patch]:
    """R26: after a kill the last batch, which may be on the disk in part, is not logged anew."""
    return [(Tracker, "log_anew", lambda _original: lambda *_args: iter(()))]


def no_write_ahead() -> Sequence[Patch]:
    """R31: the disk is written before the log; what the disk's times tell would give it away after a kill."""

    def make(_original: Any) -> Any:
        def perform(engine: TapEngine, disk: Disk, batch: Any) -> None:
            clock = engine._ports.clock
            failed = disk.write(batch, clock.monotonic() + 10, clock.monotonic, engine._is_slow)
            # One more moment at which a kill may come.
            engine._ports.files.exists("/")
            engine._finish(disk, batch, engine._log(disk, batch), failed)

        return perform

    quiet = (primary_agent.tap.engine, "QUIET_NS", lambda _original: 1 << 62)
    return [(TapEngine, "_perform", make), quiet, *no_witness()]


def answer_early() -> Sequence[Patch]:
    """I2: a write is answered before it has its place in the log."""

    def make(original: Any) -> Any:
        def mutate(engine: TapEngine, disk: Disk, batch: Any) -> None:
            asyncio.get_running_loop().call_soon(original, engine, disk, batch)

        return mutate

    return [(TapEngine, "mutate", make)]


def no_turns() -> Sequence[Patch]:
    """R1: changes do not wait for a long zeroing before them."""
    return [(Turns, "busy", lambda _original: property(lambda _turns: False, lambda _turns, _value: None))]


def no_drain() -> Sequence[Patch]:
    """R6: an epoch begins while a change is on its way to the disk."""

    def make(_original: Any) -> Any:
        async def take(_turns: Turns, work: Any) -> None:
            await work()

        return take

    return [(Turns, "take", make)]


def same_boot() -> Sequence[Patch]:
    """R16, R26: after power loss the tap believes that its page cache has survived."""

    def make(original: Any) -> Any:
        del original
        return lambda _state, _boot_id: False

    return [(primary_agent.tap.start, "lost_power", make)]


def no_witness() -> Sequence[Patch]:
    """R27: a disk that somebody changed while the tap was dead is taken for unchanged."""
    return [(primary_agent.tap.start, "check_witnesses", nothing), (primary_agent.tap.start, "check_disks", nothing)]


def lost_not_marked() -> Sequence[Patch]:
    """I3: the loss of tracking is only known in memory, and the log that misses writes stays.

    What a disk's times tell would give it away after a kill, so that is left out as well.
    """

    def make(_original: Any) -> Any:
        def end(tracker: Tracker, tracking: Any, loss: Any) -> None:
            tracker.log = None
            tracker.tracking, tracker.loss = tracking, loss
            tracker._forget_cuts()

        return end

    no_map = (Tracker, "_take_to_map", lambda _original: lambda _tracker, _loss: False)
    return [(Tracker, "_end", make), no_map, *no_witness()]


# --- the primary agent ---


def release_early() -> Sequence[Patch]:
    """I5: log is released that the replica has not acknowledged."""

    def make(original: Any) -> Any:
        async def release(client: TapClient, epoch: bytes, segment: int) -> None:
            sealed = (await client.status()).sealed
            await original(client, epoch, sealed.segment if sealed is not None else segment)

        return release

    return [(TapClient, "release", make)]


def propose_unstored() -> Sequence[Patch]:
    """R33: the commit is sent before the primary has it on record."""

    def make(original: Any) -> Any:
        async def propose(replication: Replication, end: Position) -> None:
            record = replication.record
            await original(replication, end)
            await replication.store.commit({"replication": plain(record)})

        return propose

    return [(Replication, "propose", make)]


def track_late() -> Sequence[Patch]:
    """R6: tracking starts only when the compare is over, so that writes meanwhile are in nobody's log."""
    original_begin = ResyncDriver.begin_tracking

    def make_cut(original: Any) -> Any:
        async def cut(driver: ResyncDriver) -> Position:
            await original_begin(driver)
            position: Position = await original(driver)
            return position

        return cut

    return [
        (ResyncDriver, "begin_tracking", nothing_async),
        (ResyncDriver, "cut", make_cut),
        (Session, "_watch_tap", forever),
    ]


def commit_unsettled() -> Sequence[Patch]:
    """R35: the commit does not wait until all differing blocks are durable, and the replica does not insist."""

    def make(_original: Any) -> Any:
        async def compare_disks(driver: Comparing, settled: Any, scope: Any) -> None:
            driver.progress.enter("comparing")
            for disk, record in zip(driver._disks, driver._replication.vm.disks, strict=True):
                runs = list(unsettled_runs(disk.size, settled[disk.index], scope[disk.index]))
                await driver._compare_disk(disk, record.path, runs)

        return compare_disks

    return [(Comparing, "_compare_disks", make), (OpenResync, "judge_commit", nothing)]


def run_written_later() -> Sequence[Patch]:
    """I16: a resync's record is not written in the transaction that begins or ends it, but in a later one."""

    def make(original: Any) -> Any:
        def changes(journal: RunJournal, *arguments: Any) -> dict[str, Any]:
            run = journal.open
            original(journal, *arguments)
            for late in (run, journal.open):
                if late is not None:
                    journal._unwritten[late.number] = late
            return {}

        return changes

    return [(RunJournal, "changes", make)]
