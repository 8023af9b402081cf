"""Progress of a resync or initial replication: what was compared, differed, was sent, and how long it will take."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.hrl import Geometry
from protocol.messages import ResyncKind
from shared.channel import Channel
from shared.rates import RateMeter
from shared.status import DiskProgress, ProgressStatus

STARTING = "starting"
WAITING = "waiting"
COMPARING = "comparing"
TRACKED_WRITES = "tracked writes"
COMMITTING = "committing"
MERGING = "merging"


@dataclass(slots=True)
class ResyncProgress:
    """Outlives sessions, so that an interrupted resync shows what it did before as well."""

    id: bytes
    kind: ResyncKind
    epoch: bytes
    started_time: float
    disks: dict[int, DiskProgress]
    phase: str = STARTING
    text: str = ""
    rate: RateMeter = field(default_factory=RateMeter)
    _wire_bytes: int = 0
    _channels: list[tuple[Channel, int]] = field(default_factory=list)

    @classmethod
    def of(
        cls, identity: bytes, kind: ResyncKind, epoch: bytes, disks: list[Geometry], started: float
    ) -> ResyncProgress:
        parts = {disk.index: DiskProgress(index=disk.index, total_bytes=disk.size) for disk in disks}
        return cls(identity, kind, epoch, started, parts)

    def enter(self, phase: str, text: str = "") -> None:
        self.phase = phase
        self.text = text

    def begin_disk(self, index: int, total_bytes: int) -> None:
        """A session takes up a disk, of which so much is to be compared in all."""
        self.disks[index].total_bytes = total_bytes

    def settled_before(self, index: int, left: int) -> None:
        """What is settled need not be compared again, the rest, ``left`` bytes, counts anew."""
        disk = self.disks[index]
        disk.settled_bytes = disk.compared_bytes = disk.total_bytes - left

    def note(self, now: float) -> None:
        """Take a sample for the rate (monotonic seconds)."""
        self.rate.add(now, self.compared_bytes)

    def count(self, channel: Channel) -> None:
        """Count what goes over ``channel`` from now on."""
        self._channels.append((channel, _traffic(channel)))

    def settle(self) -> None:
        """The session has ended: keep what its channels carried."""
        self._wire_bytes = self.wire_bytes
        self._channels.clear()

    @property
    def wire_bytes(self) -> int:
        """Bytes on the wire for this work, both ways."""
        return self._wire_bytes + sum(_traffic(channel) - before for channel, before in self._channels)

    @property
    def compared_bytes(self) -> int:
        return sum(disk.compared_bytes for disk in self.disks.values())

    def status(self) -> ProgressStatus:
        """As shown."""
        disks = list(self.disks.values())
        total = sum(disk.total_bytes for disk in disks)
        compared = self.compared_bytes
        comparing = self.phase == COMPARING
        return ProgressStatus(
            kind=self.kind.value,
            phase=self.phase,
            text=self.text,
            started_time=self.started_time,
            total_bytes=total,
            done_bytes=compared,
            compared_bytes=compared,
            different_bytes=sum(disk.different_bytes for disk in disks),
            sent_bytes=sum(disk.sent_bytes for disk in disks),
            wire_bytes=self.wire_bytes,
            rate_bytes_per_second=self.rate.per_second() if comparing else None,
            seconds_left=self.rate.seconds_left(total - compared) if comparing else None,
            disks=disks,
        )


def _traffic(channel: Channel) -> int:
    return channel.bytes_sent + channel.bytes_received
