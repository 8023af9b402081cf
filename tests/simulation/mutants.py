"""Planted bugs: each breaks one rule of the product, and the simulation must notice it within a few hundred seeds.

A net that has never caught anything proves nothing. A mutant is a patch of the real code, or of what a port promises,
that stands for a mistake which somebody might make. Where a second defence of the product would hide it, that defence
is left out as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import primary_agent.tap.engine
import primary_agent.tap.start
import replica_agent.baseline
import replica_agent.vm
from primary_agent.replication import Replication
from primary_agent.resync import ResyncDriver
from primary_agent.session import Session
from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.tasks import Turns
from primary_agent.tap.tracker import Tracker
from protocol.bulk import Bulk
from protocol.hrl import decode_record_header
from protocol.messages import MessageType, Received, WirePosition
from protocol.position import Position
from replica_agent.apply import Applier, Group
from replica_agent.control import Control, _take
from replica_agent.differencing import DifferencingFile
from replica_agent.disks import BaseDisks
from replica_agent.promotion import Promotion
from replica_agent.vm import ReplicaVm
from shared.tap_control import TapClient
from tests.simulation.disk import SimulatedFile, SimulatedFileSystem
from tests.simulation.hooks import replaced
from tests.simulation.options import Options, calm

Patch = tuple[Any, str, Callable[[Any], Any]]
"""Owner, attribute, and what makes its replacement from the original."""


def _nothing(original: Any) -> Any:
    """A synchronous step that is left out."""
    del original
    return lambda *_args, **_options: None


def _nothing_async(original: Any) -> Any:
    """An asynchronous step that is left out."""
    del original

    async def skipped(*_args: Any, **_options: Any) -> None:
        return None

    return skipped


def _unsynced(part: str) -> Callable[[Any], Any]:
    """Syncs of files with ``part`` in their path do nothing."""

    def make(original: Any) -> Any:
        def sync(file: SimulatedFile) -> None:
            if part in file.path:
                file.process.operation()
            else:
                original(file)

        return sync

    return make


# --- the tap ---


def flush_nosync() -> Sequence[Patch]:
    """I4: a flush is answered without the disk being synced."""
    return [(SimulatedFile, "sync", _unsynced("/srv/disks/"))]


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
        def check(loaded: Any, vm: bytes, _boot_id: str, **options: Any) -> Any:
            boot_id = loaded.state.boot_id if loaded.state is not None else ""
            return original(loaded, vm, boot_id, **options)

        return check

    return [(primary_agent.tap.start, "check_state", make)]


def no_witness() -> Sequence[Patch]:
    """R27: a disk that somebody changed while the tap was dead is taken for unchanged."""
    return [(primary_agent.tap.start, "check_witnesses", _nothing), (primary_agent.tap.start, "check_disks", _nothing)]


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

    return [(Tracker, "_end", make), *no_witness()]


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
            await replication.store.commit({"replication": _plain(record)})

        return propose

    return [(Replication, "propose", make)]


def _plain(record: Any) -> Any:
    from primary_agent.record import plain

    return plain(record)


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
        (ResyncDriver, "begin_tracking", _nothing_async),
        (ResyncDriver, "cut", make_cut),
        (Session, "_watch_tap", lambda _original: _forever),
    ]


async def _forever(_self: Any) -> None:
    await asyncio.get_running_loop().create_future()


def commit_unsettled() -> Sequence[Patch]:
    """R35: the commit does not wait until all differing blocks are durable, and the replica does not insist."""

    def make(_original: Any) -> Any:
        async def compare_disks(driver: ResyncDriver, bulk: Any, key: Any, settled: Any) -> None:
            driver.progress.enter("comparing")
            for disk, record in zip(driver._disks, driver._replication.vm.disks, strict=True):
                await driver._compare_disk(bulk, disk, record.path, key, settled[disk.index])

        return compare_disks

    return [(ResyncDriver, "_compare_disks", make), (DifferencingFile, "is_settled", lambda _: lambda _self: True)]


# --- the replica agent ---


def spool_nosync() -> Sequence[Patch]:
    """I5: received is told although the segment is only in the page cache."""
    return [(SimulatedFile, "sync", _unsynced("/spool/"))]


def spool_folder_nosync() -> Sequence[Patch]:
    """I5: received is told although the new segment's name is not durable."""

    def make(original: Any) -> Any:
        def sync_folder(files: SimulatedFileSystem, path: str) -> None:
            if path.endswith("/spool"):
                files.process.operation()
            else:
                original(files, path)

        return sync_folder

    return [(SimulatedFileSystem, "sync_folder", make)]


def ack_early() -> Sequence[Patch]:
    """I5: received is told when the seal arrives, before anything is stored."""

    def make(original: Any) -> Any:
        async def receive(control: Control) -> None:
            channel = control.channel
            take = channel.receive

            async def receive_and_tell() -> Any:
                message = await take()
                if isinstance(message, Bulk) and message.type is MessageType.SEAL:
                    header = decode_record_header(message.content())
                    position = Position(header.epoch, header.segment, header.next_entry, header.chain)
                    channel.send(Received(position=WirePosition.of(position)))
                return message

            channel.receive = receive_and_tell  # type: ignore[method-assign]
            await original(control)

        return receive

    return [(Control, "_receive", make)]


def base_nosync() -> Sequence[Patch]:
    """I6: a point is declared although the disks that hold it are not synced."""
    return [(BaseDisks, "sync", _nothing)]


def differencing_nosync() -> Sequence[Patch]:
    """R9: a resync commits although its differencing file is not durable."""
    return [(DifferencingFile, "_sync", _nothing)]


def apply_unmarked() -> Sequence[Patch]:
    """I6: the disks are changed while the newest point is still said to be the one before."""

    def make(original: Any) -> Any:
        async def apply(applier: Applier, group: Group) -> None:
            from replica_agent.record import PositionRecord

            if group.merge is None and applier.ledger.replication.applying is None:
                # In memory only, so that the step which says it durably is left out.
                applier.ledger.replication.applying = PositionRecord.of(group.target)
            await original(applier, group)

        return apply

    return [(Applier, "_apply", make)]


def expose_early() -> Sequence[Patch]:
    """R7: the merge leaves out what was written during the compare."""

    def make(original: Any) -> Any:
        def sources(group: Group) -> Any:
            found = original.fget(group)
            return found[: len(group.merge.sources)] if group.merge is not None and group.merge.sources else found

        return property(sources)

    return [(Group, "sources", make)]


def no_overlay() -> Sequence[Patch]:
    """R8: a resync writes its blocks straight into the disks."""

    def make(original: Any) -> Any:
        def resync(**fields: Any) -> Any:
            opened = original(**fields)
            opened.in_place = True
            return opened

        return resync

    return [(replica_agent.baseline, "OpenResync", make)]


def recycle_early() -> Sequence[Patch]:
    """I6: the spool is given back before the disks that it leads to are durable."""
    groups: dict[int, Group] = {}

    def make_apply(original: Any) -> Any:
        async def apply(applier: Applier, group: Group) -> None:
            groups[id(applier)] = group
            await original(applier, group)

        return apply

    def make_sync(original: Any) -> Any:
        def sync(applier: Applier) -> None:
            assert applier.spool is not None
            applier._give_back(applier.spool, groups[id(applier)])
            original(applier)

        return sync

    return [(Applier, "_apply", make_apply), (Applier, "_sync", make_sync)]


def apply_over_gap() -> Sequence[Patch]:
    """I11: a segment is taken and applied although the one before it could not be."""

    def make(_original: Any) -> Any:
        def spool(control: Control) -> Any:
            parts = control._parts
            return parts.resync.tracked if parts.resync is not None else parts.applier.spool

        return spool

    return [(Applier, "_follows", lambda _original: lambda _applier, _segment: True), (Control, "_spool", make)]


def promote_applied_only() -> Sequence[Patch]:
    """I5: a failover forgets what was acknowledged and not applied yet."""

    def make(original: Any) -> Any:
        return lambda promotion: promotion.parts.applier.applied or original(promotion)

    return [(Promotion, "_newest_cut", make)]


def no_fence() -> Sequence[Patch]:
    """I8: the replica serves its old primary although it was promoted."""
    return [(ReplicaVm, "judge", _nothing), (ReplicaVm, "_end_sessions_for_failover", _nothing_async)]


def export_not_preserved() -> Sequence[Patch]:
    """I1: an apply overwrites what an export still shows."""

    def make(original: Any) -> Any:
        def write(disks: BaseDisks, writes: Any) -> None:
            watchers, disks.watchers = disks.watchers, ()
            try:
                original(disks, writes)
            finally:
                disks.watchers = watchers

        return write

    return [(BaseDisks, "write", make)]


def no_redo() -> Sequence[Patch]:
    """I6: an apply that a crash interrupted is not done again."""

    def make(original: Any) -> Any:
        async def recover(parts: Any) -> None:
            if parts.ledger.replication.applying is not None and parts.ledger.resync is None:
                async with parts.ledger.transaction() as draft:
                    draft.replication.applied = draft.replication.applying
                    draft.replication.applying = None
            await original(parts)

        return recover

    return [(replica_agent.vm, "recover", make)]


def sync_retried() -> Sequence[Patch]:
    """R17: a sync that failed is tried again, and believed."""

    def make(original: Any) -> Any:
        def sync(file: SimulatedFile) -> None:
            try:
                original(file)
            except OSError:
                original(file)

        return sync

    return [(SimulatedFile, "sync", make)]


def session_behind_promotion() -> Sequence[Patch]:
    """I8: a session may begin while a failover is being decided, and goes on behind it."""

    def make(original: Any) -> Any:
        async def decide(promotion: Promotion) -> bool:
            promotion.deciding = _OpenDoor()
            decided: bool = await original(promotion)
            return decided

        return decide

    return [(Promotion, "decide", make)]


class _OpenDoor(asyncio.Lock):
    """A lock that nobody sees locked."""

    def locked(self) -> bool:
        return False


def lost_wakeup() -> Sequence[Patch]:
    """I12: what was received is not applied if the connection ends at the wrong moment."""

    def make(_original: Any) -> Any:
        async def store(control: Control) -> None:
            while True:
                frames = await control._intake.take(1)
                async with control._parts.order:
                    spool = control._spool()
                    cuts = await control._parts.ports.workers.run(_take, spool, frames)
                for cut in cuts:
                    control._acknowledge(spool, cut)
                    control._parts.applier.changed.notify()

        return store

    return [(Control, "_store", make)]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug. ``breaks`` are the invariants and rules one of which must be seen broken.

    ``weather`` are the options under which it shows soon; all faults that it does not name stay away.
    """

    plant: Callable[[], Sequence[Patch]]
    breaks: tuple[str, ...]
    weather: dict[str, float]

    @property
    def name(self) -> str:
        return self.plant.__name__

    def options(self, seed: int) -> Options:
        """The options of a seed in this mutant's weather."""
        return calm(seed, **self.weather)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The product with that bug in it, for a while."""
        with ExitStack() as stack:
            for owner, attribute, make in self.plant():
                stack.enter_context(replaced(owner, attribute, make))
            yield


BUSY = {"write_rate": 40.0, "in_flight": 12}
TAP_KILLS = {**BUSY, "kill_tap": 1.0, "aimed": 1.0}
REPLICA_KILLS = {**BUSY, "kill_replica": 1.0, "aimed": 1.0}
REPLICA_POWER = {**BUSY, "power_replica": 0.8, "aimed": 0.5}
RESYNCS = {**BUSY, "resyncs": 0.5}
LONG_ZEROES = {**BUSY, "zeroes": 0.6, "stalls": 0.1}
IDLE_FAILOVER = {"write_rate": 4.0, "in_flight": 1, "promote_at": 3.0, "seconds": 14.0}

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(flush_nosync, ("I4",), {**BUSY, "power_primary": 0.5}),
        Mutant(no_recovery_reread, ("I1",), TAP_KILLS),
        Mutant(no_write_ahead, ("I1", "I12"), TAP_KILLS),
        Mutant(answer_early, ("I2",), {}),
        Mutant(no_turns, ("R1", "I1", "I12"), LONG_ZEROES),
        Mutant(no_drain, ("R6",), {**LONG_ZEROES, "resyncs": 2.0}),
        Mutant(same_boot, ("I1", "I12"), {**BUSY, "power_primary": 0.5}),
        Mutant(no_witness, ("I1", "I12"), {**BUSY, "kill_tap": 0.5, "foreign_edits": 1.0}),
        Mutant(lost_not_marked, ("I1", "I12"), {**TAP_KILLS, "log_errors": 0.4}),
        Mutant(release_early, ("I5",), {**BUSY, "resets": 0.5, "slow": 0.1}),
        Mutant(propose_unstored, ("I12",), {"resyncs": 2.0, "kill_primary": 2.0, "slow": 0.1, "seconds": 14.0}),
        Mutant(track_late, ("I1",), BUSY),
        Mutant(commit_unsettled, ("I1", "I6"), {**RESYNCS, "stalls": 0.02}),
        Mutant(spool_nosync, ("I5",), {}),
        Mutant(spool_folder_nosync, ("I5",), {}),
        Mutant(ack_early, ("I5",), {}),
        Mutant(base_nosync, ("I6",), REPLICA_POWER),
        Mutant(differencing_nosync, ("I6",), {**REPLICA_POWER, "resyncs": 2.0, "stalls": 0.02, "crash_at_sync": 0.05}),
        Mutant(apply_unmarked, ("I6",), {**REPLICA_POWER, **REPLICA_KILLS}),
        Mutant(expose_early, ("I1",), RESYNCS),
        Mutant(no_overlay, ("I1", "I6"), {**RESYNCS, "power_replica": 0.5}),
        Mutant(recycle_early, ("I5", "I6"), REPLICA_KILLS),
        Mutant(apply_over_gap, ("I1",), {**BUSY, "resets": 2.0, "replica_errors": 2.0}),
        Mutant(promote_applied_only, ("I5",), {**BUSY, "promote_at": 3.0, "stalls": 0.1}),
        Mutant(no_fence, ("I5", "I8", "I12"), IDLE_FAILOVER),
        Mutant(export_not_preserved, ("I1",), {**BUSY, "exports": 0.5}),
        Mutant(no_redo, ("I1", "I6"), REPLICA_KILLS),
        Mutant(sync_retried, ("I4", "I5", "I6"), {**BUSY, "replica_errors": 1.0}),
        Mutant(session_behind_promotion, ("I5", "I8", "I12"), {**IDLE_FAILOVER, "resets": 4.0, "stalls": 0.2}),
        Mutant(lost_wakeup, ("I12",), {**BUSY, "resyncs": 2.0, "resets": 2.0, "stalls": 0.2}),
    )
}
