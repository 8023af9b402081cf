"""Drives a resync or an initial replication: tracking from a fresh log, compare, differing blocks, commit.

The order of the steps is the safety of the whole (R6-R10, R33-R35): the epoch is durable here before the tap starts
tracking it; the tap tracks it before any block is read; all ranges are settled at the replica before the cut that ends
the compare; the log up to that cut is received there before the commit; and the proposed end is durable here before
the commit is sent. Every step can be interrupted: a later session goes on where this one stopped; if the log was lost
meanwhile in another round (:mod:`primary_agent.rounds`), or, where nothing names what was written, anew under another
id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import structlog

from primary_agent.comparing import Comparing, SessionKey
from primary_agent.conclusions import Replan
from primary_agent.dialing import Dialled, dial, expect, open_body
from primary_agent.kept_scope import drop, is_to_be_kept, keep, late_scope
from primary_agent.precedence import Precedence
from primary_agent.progress import COMMITTING, STARTING, TRACKED_WRITES, TRACKING_BEGUN, ResyncProgress
from primary_agent.record import ResyncRecord
from primary_agent.replication import Replication
from primary_agent.rounds import forget_map, unsettle_messages
from primary_agent.scope import both_scopes, read_reversed, read_scope
from primary_agent.streaming import CutLedger, LogSender
from primary_agent.surroundings import Surroundings
from primary_agent.tap_link import Connection, TapLink
from protocol.errors import ProtocolError
from protocol.hrl import Geometry
from protocol.messages import (
    BLOCK_SIZE,
    Body,
    Commit,
    Committed,
    ResyncBegin,
    ResyncKind,
    ResyncReady,
    Role,
    Run,
    Unsettled,
    WirePosition,
)
from protocol.position import Position
from shared.disks.hashing import HASH_NAME, RangeHasher
from shared.errors import StorageError, VmreplicaError
from shared.map_file import Range
from shared.ports import Address
from shared.tap_control import Tracking
from shared.tasks import together

log = structlog.get_logger(__name__)


class TrackingLost(VmreplicaError):
    """Tracking of the resync's epoch was lost: it starts anew (R10)."""

    code = "tracking_lost"


class ResyncDriver:
    """One session's work on the open resync of a VM. ``answers`` brings RESYNC_READY and COMMITTED."""

    def __init__(
        self,
        surroundings: Surroundings,
        replication: Replication,
        resync: ResyncRecord,
        address: Address,
        dialled: Dialled,
        tap: TapLink,
        connection: Connection,
        progress: ResyncProgress,
        answers: asyncio.Queue[Body],
        *,
        settled: Callable[[], None],
        precedence: Precedence,
    ) -> None:
        """``settled`` is called whenever the replica has made a range durable."""
        self.resync = resync
        self.progress = progress
        self._surroundings = surroundings
        self._ports = surroundings.ports
        self._replication = replication
        self._address = address
        self._dialled = dialled
        self._tap = tap
        self._connection = connection
        self._answers = answers
        self._disks: list[Geometry] = [disk.geometry for disk in replication.vm.disks]
        self._note_settled = settled
        self._precedence = precedence
        self._told_doubt: dict[int, list[Range]] = {}
        """What the replica told to be in doubt on its side."""
        initial = resync.kind is ResyncKind.INITIAL
        self._pacer = surroundings.pacing.pacer(lambda: replication.vm, initial=initial, precedence=precedence)

    # --- steps -----------------------------------------------------------------------------------------------------

    async def begin_tracking(self) -> None:
        """Have the tap track the resync's epoch; what was written before is on the disks then (R6)."""
        self.progress.enter(STARTING, "starting a fresh log")
        status = await self._connection.client.begin(self.resync.epoch)
        self._connection.adopt(status, self._ports.clock.monotonic())
        self._tap.changed.notify()
        if not self._connection.tracks(self.resync.epoch):
            raise TrackingLost(f"The tap could not begin to track: tracking is {status.tracking}.")
        self.progress.reached(TRACKING_BEGUN)
        await self._drop_scopes(self.resync)

    async def compare(self) -> None:
        """Begin at the replica, and bring all differing blocks there; returns when all of them are durable."""
        self.progress.enter(STARTING, "beginning at the replica")
        self.progress.count(self._dialled.channel)
        scope = await self._scope()
        key = self._fresh_key()
        settled = await self._begin(key)
        if self.resync.kind is ResyncKind.BOUNDED:
            scope = both_scopes(both_scopes(scope, await self._reversed()), self._told_doubt)
        token = self._dialled.channel.session.token
        body = open_body(self._replication, self._connection, role=Role.BULK, token=token)
        bulk = (await dial(self._surroundings, self._address, body)).channel
        self.progress.count(bulk)
        comparing = Comparing(
            self._surroundings,
            self._replication,
            self.resync,
            bulk,
            key,
            self.progress,
            settled=self._note_settled,
            pacer=self._pacer,
        )
        try:
            await together(comparing.run(settled, scope), self._precedence.watch(self.progress))
        except BaseException:
            bulk.abort("the compare was interrupted")
            raise
        await bulk.close("all ranges are settled")

    async def commit(self, sender: LogSender, ledger: CutLedger, end: Position) -> None:
        """When the log up to cut ``end`` is received, commit; returns when the replica confirmed. The sender holds."""
        self.progress.enter(TRACKED_WRITES, "sending what was written meanwhile")
        await sender.sent_through(end.segment)
        while ledger.received != end:
            await ledger.changed.wait()
        self.progress.enter(COMMITTING)
        await self._check_tracking()
        await self._replication.propose(end)
        self._dialled.channel.send(Commit(id=self.resync.id, round=self.resync.round, end=WirePosition.of(end)))
        committed = await self._answers.get()
        expect(committed, Committed)
        assert isinstance(committed, Committed)
        if committed.id != self.resync.id or committed.end.position() != end:
            raise ProtocolError("COMMITTED is about another resync or end than was sent")
        await self._drop_scopes(None)

    async def cut(self) -> Position:
        """The cut that ends the compare."""
        sealed = (await self._connection.client.cut("resync")).position()
        if sealed.epoch != self.resync.epoch:
            raise TrackingLost("The tap tracks another epoch than that of the resynchronization.")
        return sealed

    async def _check_tracking(self) -> None:
        """Ask the tap itself whether tracking held through all awaits (R10)."""
        status = await self._tap.refresh()
        if status.tracking is not Tracking.ON or status.epoch != self.resync.epoch.hex():
            raise TrackingLost(f"Tracking is {status.tracking} for the resynchronization's epoch.")

    def _fresh_key(self) -> SessionKey:
        return SessionKey(self._ports.random.bytes(16), RangeHasher(self._ports.random.bytes(32), BLOCK_SIZE))

    async def _begin(self, key: SessionKey) -> dict[int, list[Run]]:
        """RESYNC_BEGIN and its answer, and what has to be unsettled first: the settled ranges of each disk."""
        resync = self.resync
        self._dialled.channel.send(
            ResyncBegin(
                id=resync.id,
                kind=resync.kind,
                round=resync.round,
                epoch=resync.epoch,
                parent=resync.parent,
                parent_segment=resync.parent_segment,
                hash=HASH_NAME,
                key_id=key.id,
                key=key.hasher.key,
                block_size=BLOCK_SIZE,
            )
        )
        settled = await self._ready(key)
        if settled is None:
            await self._unsettle()
            settled = await self._ready(key)
        if settled is None:
            raise ProtocolError("RESYNC_READY wants to be told again what was written before this round")
        await self._keep_scope()
        await forget_map(self._tap, self._connection, self.resync)
        return settled

    async def _keep_scope(self) -> None:
        """In a late round of a bounded resync: what bounds it is durable with the agent, and on record."""
        if not is_to_be_kept(self.resync) or self._connection.status.doubt is None:
            return
        run, tap, vm = self._ports.workers.run, self._tap, self._replication.vm.vm
        try:
            await run(keep, self._ports.files, tap.folder, tap.vm_folder, vm, self._disks, self.resync)
        except (OSError, StorageError) as error:
            # Then the tap keeps its map, and this round compares all of it again.
            log.warning("what bounds a resync can't be kept", vm=self._replication.vm.name, reason=str(error))
            return
        self.resync = msgspec.structs.replace(self.resync, kept_round=self.resync.round)
        await self._replication.change_resync(self.resync)
        await self._drop_scopes(self.resync)

    async def _drop_scopes(self, resync: ResyncRecord | None) -> None:
        with contextlib.suppress(OSError):
            await self._ports.workers.run(drop, self._ports.files, self._tap.vm_folder, resync)

    async def _ready(self, key: SessionKey) -> dict[int, list[Run]] | None:
        """What the replica has settled, in one or more messages; None where it wants to hear first what changed."""
        settled: dict[int, list[Run]] = {disk.index: [] for disk in self._disks}
        doubt: dict[int, list[Range]] = {disk.index: [] for disk in self._disks}
        more = True
        while more:
            ready = await self._answers.get()
            expect(ready, ResyncReady)
            assert isinstance(ready, ResyncReady)
            if (ready.id, ready.round, ready.key_id) != (self.resync.id, self.resync.round, key.id):
                raise ProtocolError("RESYNC_READY is about another resync, round or key than was begun")
            if ready.unsettle:
                return None
            for run in ready.settled:
                if run.disk not in settled:
                    raise ProtocolError(f"RESYNC_READY names disk {run.disk}, which the VM does not have")
                settled[run.disk].append(run)
            for run in ready.doubt if isinstance(ready.doubt, list) else ():
                doubt[self._judged(run)].append((run.offset, run.length))
            more = ready.more
        self._told_doubt = doubt
        return settled

    def _judged(self, run: Run) -> int:
        """The disk of a range in doubt. Raises ProtocolError unless it is one of whole blocks."""
        size, end = {disk.index: disk.size for disk in self._disks}.get(run.disk, 0), run.offset + run.length
        if not run.length or end > size or run.offset % BLOCK_SIZE or (end % BLOCK_SIZE and end != size):
            raise ProtocolError(f"RESYNC_READY doubts {run.length} bytes at {run.offset} of disk {run.disk}")
        return run.disk

    async def _unsettle(self) -> None:
        """Tell the replica what was written in the rounds before; returns when it is durable there (R32)."""
        if self._connection.status.doubt is None:
            # Nothing names any more what was written before this round: all is compared, under another id.
            await self._replication.update(resync=None)
            raise Replan("the session is planned anew")
        self.progress.enter(STARTING, "telling what changed since the last round")
        for message in unsettle_messages(self.resync, await self._doubtful()):
            self._dialled.channel.send(message)
            await self._dialled.channel.drain()
        answer = await self._answers.get()
        expect(answer, Unsettled)
        assert isinstance(answer, Unsettled)
        if (answer.id, answer.round) != (self.resync.id, self.resync.round):
            raise ProtocolError("UNSETTLED is about another resync or round than was told")

    async def _scope(self) -> dict[int, list[Range]]:
        """The ranges that have to be compared: whole disks, or what the tap's dirty map leaves in doubt (R28)."""
        if self.resync.kind is not ResyncKind.BOUNDED:
            return {disk.index: [(0, disk.size)] for disk in self._disks}
        if not self.resync.kept_round:
            return await self._doubtful()
        try:
            return await late_scope(self._ports, self._tap, self._connection, self._replication.vm, self.resync)
        except StorageError as error:
            # Whole disks are compared, under another id.
            await self._replication.tell_restart(error.text)
            await self._replication.update(resync=None)
            raise Replan("the session is planned anew") from error

    async def _doubtful(self) -> dict[int, list[Range]]:
        """What the tap's dirty map names."""
        folder, vm = self._tap.folder, self._replication.vm.vm
        return await self._ports.workers.run(read_scope, self._ports.files, folder, vm, self._disks)

    async def _reversed(self) -> dict[int, list[Range]]:
        """Where this side differed from the cut that both have already when it was promoted (R41)."""
        reversal = self._replication.record.reversal
        if reversal is None or not reversal.mapped:
            return {}
        folder, vm = self._tap.vm_folder, self._replication.vm.vm
        try:
            return await self._ports.workers.run(read_reversed, self._ports.files, folder, vm, self._disks)
        except StorageError as error:
            # Nothing else names that: whole disks are compared, under another id.
            await self._replication.tell_restart(error.text)
            await self._replication.update(resync=None, reversal=None)
            raise Replan("the session is planned anew") from error
