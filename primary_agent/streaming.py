"""Sends a VM's log over a channel while the tap writes it, and keeps account of cuts sent and acknowledged.

Reading ahead (in a worker) and sending overlap: while one group of runs, of about ``GROUP_BYTES``, is sent, the next
one is read; the channel's send queue bounds the rest. A seal is sent only when the tap has made the log up to it
durable (R34).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from primary_agent.pacing import Pacer
from primary_agent.tap_link import Connection, TapLink
from protocol.chain import body_of
from protocol.errors import ProtocolError
from protocol.hrl import RecordKind, decode_seal_body
from protocol.messages import MessageType
from protocol.position import Position
from shared.channel import Channel
from shared.churn import ChurnCounter, written_by
from shared.errors import NotFoundError
from shared.hrl_files import Run
from shared.hrl_follower import LogDamagedError, LogFollower, LogGoneError
from shared.ports import Ports
from shared.tap_control import LogPlace
from shared.tasks import Signal, together

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP_BYTES = 4 << 20
"""Bytes of log that one piece of work in a worker reads ahead."""
QUEUED_GROUPS = 1
LEASE_SECONDS = 60.0
LEASE_RENEW_SECONDS = 15.0
MAX_UNACKNOWLEDGED_CUTS = 65536

Group = list[tuple[int, Run]]
"""Runs that were read together, each with the number of the file that it lies in."""


@dataclass(frozen=True, slots=True)
class SentCut:
    """A cut whose seal was sent, or at which sending began.

    ``time_ns`` is when it was sealed (Unix epoch), ``size`` its segment's bytes in the log, ``place`` the log file and
    the offset in it at which the log goes on.
    """

    position: Position
    time_ns: int
    size: int
    place: tuple[int, int]


@dataclass(slots=True)
class CutLedger:
    """The cuts of one session: which were sent, which are acknowledged. Refuses acknowledgements of others (A25)."""

    known: Position | None = None
    """The position that the replica told when the session opened: the newest it can know without our sending."""
    unacknowledged: dict[int, SentCut] = field(default_factory=dict)
    changed: Signal = field(default_factory=Signal)
    received: Position | None = None
    """The newest cut acknowledged in this session."""

    def sent(self, cut: SentCut) -> None:
        self.unacknowledged[cut.position.segment] = cut

    def acknowledge(self, position: Position) -> list[SentCut]:
        """The cuts that ``position`` newly acknowledges, the oldest first; empty for a repetition.

        Raises ProtocolError where it is no cut that was sent, nor known to the replica before.
        """
        cut = self.unacknowledged.get(position.segment)
        if cut is None or cut.position != position:
            before = self.received or self.known
            if before is not None and before.epoch == position.epoch and position.segment <= before.segment:
                return []
            raise ProtocolError(f"RECEIVED acknowledges {position}, which was not sent", code="gap")
        newly = [sent for segment, sent in self.unacknowledged.items() if segment <= position.segment]
        for sent in newly:
            del self.unacknowledged[sent.position.segment]
        self.received = position
        self.changed.notify()
        return newly


class LogSender:
    """Sends the log of one epoch over one channel, from :meth:`seek`'s position on."""

    def __init__(
        self,
        vm: bytes,
        epoch: bytes,
        channel: Channel,
        tap: TapLink,
        connection: Connection,
        ledger: CutLedger,
        ports: Ports,
        *,
        began_at_cut: Callable[[SentCut], None],
        pacer: Pacer,
        churn: ChurnCounter,
        sizes: Callable[[], dict[int, int]],
    ) -> None:
        """``began_at_cut`` is told when the position that :meth:`seek` went to turns out to be a cut: a position alone
        does not tell. Its time is that at which the next segment began. ``churn`` counts what is read, on disks of
        ``sizes`` bytes.
        """
        self.ledger = ledger
        self.bytes_sent = 0
        """Bytes of log sent by this sender."""
        self.sent = Signal()
        """Notified after every seal sent."""
        self.last_cut: SentCut | None = None
        self._hold: int | None = None
        self._held = Signal()
        self._vm = vm
        self._epoch = epoch
        self._channel = channel
        self._tap = tap
        self._connection = connection
        self._workers = ports.workers
        self._began_at_cut = began_at_cut
        self._pacer = pacer
        self._churn = churn
        self._sizes = sizes
        self._clock = ports.clock
        self._start: Position | None = None
        self._follower = LogFollower(ports.files, connection.status.log.folder, vm)
        self._unreadable: Exception | None = None
        self._leased = 0
        self._end: tuple[int, int] = (0, 0)

    async def seek(self, position: Position | None) -> bool:
        """Go to ``position`` in the log, or to the epoch's first record for None.

        False where its chain is not in the log. A replica's position inside a segment that this log no longer holds
        in that form restarts that segment (R34); the replica then checks by the chain that it fits.
        """
        client = self._connection.client
        try:
            place = await self._locate(position)
        except NotFoundError:
            return False
        self._start = position if position == place.position.position() else None
        await self._lease(place.file)
        await self._workers.run(self._follower.seek, place.file, place.offset, place.position.position())
        end = self._connection.log_end()
        if end is not None and end.epoch == self._epoch:
            written = await client.locate(end)
            self._end = (written.file, written.offset)
        return True

    async def _locate(self, position: Position | None) -> LogPlace:
        client = self._connection.client
        if position is None:
            return await client.locate_segment(self._epoch, 1)
        try:
            return await client.locate(position)
        except NotFoundError:
            return await client.locate_segment(position.epoch, position.segment)

    async def run(self) -> None:
        """Send for ever; ends with an error or by being cancelled."""
        queue: asyncio.Queue[Group] = asyncio.Queue(QUEUED_GROUPS)
        await together(self._send(queue), self._read(queue), self._keep_lease())

    def close(self) -> None:
        """Close the log. Whoever made the sender calls it: a session may end behind ``seek`` and before ``run``."""
        self._follower.close()

    def hold_after(self, segment: int) -> None:
        """Send nothing after the seal of ``segment`` until :meth:`go_on`."""
        self._hold = segment

    def go_on(self) -> None:
        """End the hold."""
        self._hold = None
        self._held.notify()

    async def sent_through(self, segment: int) -> SentCut:
        """Wait until the seal of ``segment``, or a later one, was sent."""
        while self.last_cut is None or self.last_cut.position.segment < segment:
            await self.sent.wait()
        return self.last_cut

    # --- reading ---------------------------------------------------------------------------------------------------

    async def _read(self, queue: asyncio.Queue[Group]) -> None:
        while True:
            end = self._written_end()
            group, written = await self._workers.run(self._read_group, *end)
            if self._follower.sequence != self._leased:
                await self._lease(self._follower.sequence)
            if group:
                self._count(group, written)
                await queue.put(group)
            elif self._written_end() == end:
                await self._tap.changed.wait()

    def _count(self, group: Group, written: NDArray[Any]) -> None:
        """Count what the runs have written, and how much there was to read."""
        self._churn.streamed_bytes += sum(len(run.data) for _, run in group)
        last = group[-1][1].position
        self._churn.note(written, self._sizes(), self._epoch, last.entry, self._clock.monotonic())

    def _read_group(self, sequence: int, offset: int) -> tuple[Group, NDArray[Any]]:
        """The next runs before the written end, and what they write that was not counted yet; empty there. Blocks.

        Where reading fails, the runs before that come out first.
        """
        if self._unreadable is not None:
            raise self._unreadable
        group: Group = []
        size = 0
        try:
            while size < GROUP_BYTES and (run := self._follower.read(sequence, offset)) is not None:
                group.append((self._follower.sequence, run))
                size += len(run.data)
        except (OSError, LogDamagedError, LogGoneError) as error:
            if not group:
                raise
            self._unreadable = error
        after = self._churn.next_entry(self._epoch)
        return group, written_by([record for _, run in group for record in run.records], after)

    def _written_end(self) -> tuple[int, int]:
        """File and offset up to which the log is written."""
        told = self._connection.written_end()
        if told is not None and self._connection.epoch == self._epoch:
            self._end = max(self._end, told)
        return self._end

    async def _lease(self, sequence: int) -> None:
        await self._connection.client.lease(sequence, LEASE_SECONDS)
        self._leased = sequence

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(LEASE_RENEW_SECONDS)
            await self._lease(self._follower.sequence)

    # --- sending ---------------------------------------------------------------------------------------------------

    async def _send(self, queue: asyncio.Queue[Group]) -> None:
        while True:
            for file, run in await queue.get():
                await self._send_run(file, run)

    async def _send_run(self, file: int, run: Run) -> None:
        while self._hold is not None and run.position.segment > self._hold:
            await self._held.wait()
        await self._pacer.wire(len(run.data))
        if self._start is not None:
            self._look_at_start(self._start, file, run)
        if run.sealed:
            await self._send_seal(file, run)
        else:
            self._channel.send_bulk(MessageType.LOG, [run.data])
        self.bytes_sent += len(run.data)
        await self._channel.drain()

    def _look_at_start(self, start: Position, file: int, run: Run) -> None:
        """The first run tells whether the sender began at a cut: then it begins with the next segment's record."""
        self._start = None
        first = run.records[0].header
        if first.kind is RecordKind.SEGMENT and first.segment == start.segment + 1:
            self._began_at_cut(SentCut(start, first.time_ns, 0, (file, run.offset)))

    async def _send_seal(self, file: int, run: Run) -> None:
        header, record = run.records[0].header, run.records[0].record
        assert header.kind is RecordKind.SEAL
        seal = decode_seal_body(body_of(record))
        while self._connection.sealed_segment() < header.segment:
            await self._tap.changed.wait()
        while len(self.ledger.unacknowledged) >= MAX_UNACKNOWLEDGED_CUTS:
            await self.ledger.changed.wait()
        cut = SentCut(run.position, header.time_ns, seal.bytes, (file, run.end))
        self.ledger.sent(cut)
        self._channel.send_bulk(MessageType.SEAL, [run.data])
        self.last_cut = cut
        self.sent.notify()
