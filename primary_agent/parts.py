"""The parts of one replicated VM that its session, its orders and its status share."""

from __future__ import annotations

import asyncio
import math
import uuid
from dataclasses import dataclass, field

import msgspec

from primary_agent.dialing import Dialled, name_of
from primary_agent.observing import TapObserver
from primary_agent.precedence import Precedence
from primary_agent.progress import MERGING, ResyncProgress
from primary_agent.record import ResyncRecord
from primary_agent.replication import COMPARING, Replication
from primary_agent.sampling import Sampled
from primary_agent.scheduling import backs_off
from primary_agent.surroundings import Surroundings
from primary_agent.tap_link import TapLink
from protocol.errors import ProtocolError
from protocol.messages import Body, CutMarked, DefinitionKept, DefinitionWanted, ResyncKind
from protocol.position import NO_EPOCH, Position
from protocol.session import Message
from shared.churn import DAY_SECONDS, ChurnCounter, ChurnReport
from shared.handover import HandOver
from shared.planning import ResyncCause
from shared.ports import Address
from shared.rates import RateMeter
from shared.status import Cause
from shared.tap_control import DiskStatus, Tracking
from shared.tasks import Signal

STREAMING_SECONDS = 60.0
"""The rate at which the log is streamed is that of so many seconds."""
PROOF_SECONDS, PROOF_WAIT_SECONDS = 0.2, 1.0
"""Between two looks for a session whose exchange proves connectivity, and how long they go on."""


@dataclass(slots=True)
class LinkState:
    """The connection to the replica, for status and gate. Times are seconds since the Unix epoch."""

    dialled: Dialled | None = None
    """The open session's connection; None while there is none."""
    since: float | None = None
    last_error: str = ""
    last_error_code: str = ""
    retryable: bool = True
    attempts: int = 0
    next_attempt: float | None = None
    """Monotonic seconds; None while an attempt is under way."""
    damaged: int = 0
    """How many sessions ended because data was damaged on its way."""
    poke: Signal = field(default_factory=Signal)
    """Notified to try again at once."""

    def healthy(self) -> bool:
        """Whether connectivity is proven in both directions right now (I20)."""
        return self.dialled is not None and self.dialled.channel.healthy()

    async def proven(self, seconds: float = PROOF_WAIT_SECONDS) -> bool:
        """Whether an exchange that is made now gets to the replica and back (I20).

        A session that is planned anew ends, and that is no outage: the next one, dialled at once, is asked then, and so
        is the one that a poke called for. It is waited for so many seconds, and no longer than until an attempt failed.
        """
        for attempt in range(max(1, math.ceil(seconds / PROOF_SECONDS))):
            dialled = self.dialled
            if dialled is not None:
                if await dialled.channel.prove() and self.dialled is dialled:
                    return True
                if self.dialled is dialled and not dialled.channel.closed:
                    return False
            elif attempt > 0 and self.next_attempt is not None:
                return False
            await asyncio.sleep(PROOF_SECONDS)
        return False


@dataclass(slots=True)
class Parts:
    """One VM: what is durable, its tap, its link, and what is only shown."""

    surroundings: Surroundings
    replication: Replication
    tap: TapLink
    link: LinkState = field(default_factory=LinkState)
    progress: ResyncProgress | None = None
    """Of the open resync; kept until its merge at the replica is over."""
    observer: TapObserver = field(default_factory=TapObserver)
    applied: Position | None = None
    applied_time: float | None = None
    """When the applied cut was sealed."""
    bypasses: list[Cause] = field(default_factory=list)
    """The ways past the tap that the last look found; it is told by the status."""
    whole: bool = False
    """The last session found that what the dirty map bounds does not fit the replica."""
    sampled: Sampled | None = None
    """What the last plan found by asking the replica."""
    precedence: Precedence = field(init=False)
    churn: ChurnCounter = field(init=False)
    """What of the disks is written most."""
    beside: asyncio.Queue[Body] = field(default_factory=asyncio.Queue)
    """What the replica answers to what goes beside the log (primary_agent.companions)."""
    streaming: RateMeter = field(default_factory=lambda: RateMeter(STREAMING_SECONDS))
    handed_over: HandOver | None = None
    """Set once the VM is let go to the replica agent of this host: nothing is done for it here any more."""

    def __post_init__(self) -> None:
        handed = self.replication.store.get("handover")
        self.handed_over = msgspec.convert(handed, HandOver) if handed is not None else None
        surroundings = self.surroundings
        self.churn = ChurnCounter(surroundings.ports.clock.monotonic())
        self.precedence = Precedence(
            surroundings.ports.clock,
            self.tap,
            lambda: backs_off(self.replication.vm, surroundings.resync),
            surroundings.pacing.watching,
        )

    def take_beside(self, message: Message) -> None:
        """An answer of the replica that is not for the session itself. Raises ProtocolError for any other message."""
        if not isinstance(message, CutMarked | DefinitionWanted | DefinitionKept):
            raise ProtocolError(f"{name_of(message)} is not expected here", code="state")
        self.beside.put_nowait(message)

    @property
    def address(self) -> Address:
        vm = self.replication.vm
        return Address(host=vm.replica_host, port=vm.replica_port, tls=True)

    def shrunk_disk(self) -> DiskStatus | None:
        """A disk that is smaller than it has to be: it can't be compared (R20)."""
        disks = self.tap.connection.status.disks if self.tap.connection is not None else []
        return next((disk for disk in disks if disk.found_size is not None and disk.found_size < disk.size), None)

    async def proven(self) -> bool:
        """Whether a resync may begin by itself: no disk has lost a part, and connectivity is proven now (I20)."""
        return self.shrunk_disk() is None and await self.link.proven() and self.shrunk_disk() is None

    def show_progress(self, resync: ResyncRecord | None, kind: ResyncKind) -> ResyncProgress:
        """The progress to show: that of the open resync, or a fresh one of that kind."""
        shown, clock = self.progress, self.surroundings.ports.clock
        if resync is None or shown is None or shown.id != resync.id:
            identity, epoch = (resync.id, resync.epoch) if resync is not None else (b"", NO_EPOCH)
            started = resync.started_time if resync is not None else clock.wall()
            kind = resync.kind if resync is not None else kind
            shown = ResyncProgress.of(identity, kind, epoch, list(self.replication.vm.geometry), started, clock)
            self.progress = shown
        if resync is not None:
            shown.epoch, shown.round = resync.epoch, resync.round
        self.replication.runs.follow(shown)
        return shown

    def settle_progress(self) -> None:
        """The session has ended: what is shown says so, or goes where the resync was cancelled."""
        if self.progress is None:
            return
        if self.progress.phase != MERGING and self.replication.state not in COMPARING:
            self.progress = None
        else:
            self.progress.settle()

    def pending_bytes(self) -> int:
        """Bytes of log that the replica has not acknowledged; all that is kept, where its place is not known."""
        connection, acked = self.tap.connection, self.replication.acked
        if connection is None:
            return 0
        log, end = connection.status.log, connection.written_end()
        if acked is None or acked.place is None or end is None or not connection.tracks(acked.position.epoch):
            return log.used
        (end_file, end_offset), (file, offset) = end, acked.place
        return max(0, (end_file - file) * log.file_bytes + end_offset - offset)

    def churn_report(self, top: int) -> ChurnReport:
        """Which disks and regions are written most, and how much."""
        clock, vm = self.surroundings.ports.clock, self.replication.vm
        paths = {disk.index: disk.path for disk in vm.disks}
        disks = self.churn.disks(clock.monotonic(), top)
        for disk in disks:
            disk.path = paths.get(disk.index, "")
        lately = sum(disk.bytes_per_second for disk in disks)
        monitored = self.replication.statistics.bytes_per_second(clock.wall())
        return ChurnReport(
            name=vm.name,
            uuid=str(uuid.UUID(bytes=vm.vm)),
            monitoring_bytes_per_second=monitored,
            bytes_per_second=lately,
            bytes_per_day=DAY_SECONDS * (lately if monitored is None else monitored),
            counted_seconds=max(0.0, clock.monotonic() - self.churn.began),
            disks=disks,
        )

    def caught_up_seconds(self) -> float | None:
        """How long sending what is pending takes at the present rate; None without a session, or where unknown."""
        return self.streaming.seconds_left(self.pending_bytes()) if self.link.dialled is not None else None

    def moved_on(self) -> bool:
        """Whether this side has, or may have, writes that the replica never acknowledged: unknown counts as yes."""
        connection, acked = self.tap.connection, self.replication.acked
        if connection is None or acked is None:
            return True
        if any(cause.code == ResyncCause.BYPASSED for cause in self.replication.record.causes):
            return True
        doubt, known = connection.status.doubt, acked.position
        if connection.alive and connection.tracking is Tracking.MAP and doubt is not None:
            # The map has all that was written since its base: where that is nothing, nothing was written since.
            since = doubt.base_epoch == known.epoch.hex() and doubt.base_segment <= known.segment
            return not (since and doubt.complete and not doubt.bytes)
        if not connection.tracks(known.epoch):
            return True
        end = connection.log_end()
        return end is None or end.entry != acked.position.entry
