"""Reads a recovery point from its beginning to its end, and compares it with what a verify recorded of its cut.

The primary can't record what its disks are at every cut: it would have to read them for each. A verify does read both
sides at one cut, and where they are equal the replica keeps the digests with that point (:mod:`replica_agent.marks`).
So a point of such a cut can be proven for as long as it is kept; of any other its digests can only be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from protocol.messages import BLOCK_SIZE
from protocol.position import Position
from replica_agent.finishing import finish
from replica_agent.history import Reading
from replica_agent.marks import note_read, proof_of
from replica_agent.parts import VmParts
from replica_agent.point_disks import point_text
from replica_agent.record import PositionRecord, ProofRecord
from replica_agent.verify import PointImage
from shared.disks.leaves import ImageDigest, leaves_of
from shared.errors import InvalidStateError, VmreplicaError
from shared.events import EventId
from shared.point_status import ImageProof, PointProof
from shared.status import Cause, CutStatus

STEP_BYTES = 4 << 20
"""So much is read and hashed at a time."""
LEVELS = {"wrong": "error", "undecided": "warning"}

View = Callable[[Position | None], Awaitable[Reading]]


@dataclass(slots=True)
class Prover:
    """Reads points of one VM, one at a time. ``view`` begins to read one."""

    parts: VmParts
    view: View
    status: PointProof | None = None
    """The one that is being read, or was last."""
    _task: asyncio.Task[None] | None = None
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self, describe: Callable[[Position], CutStatus], position: Position | None) -> PointProof:
        """Begin to read a point, by default the newest, or join whoever reads it.

        Raises InvalidStateError while another is read, and what beginning to read raises.
        """
        async with self._starting:
            reading = await self.view(position)
            point, status = point_text(reading.position), self.status
            if status is not None and status.running:
                await self.parts.history.end(reading)
                if status.point == point:
                    return status
                raise InvalidStateError(
                    f"Another point of {self._name} is being read, {status.point}.",
                    f"Wait for it, or end it with `vmreplica prove {self._name} --stop`.",
                )
            self.status = PointProof(
                point=point,
                cut=describe(reading.position),
                started_time=self.parts.ports.clock.wall(),
                running=True,
                total_bytes=sum(self.parts.ledger.disks_at(reading.position).values()),
            )
            self._task = asyncio.ensure_future(self._run(reading, self.status))
            return self.status

    async def stop(self) -> None:
        """End the one that runs, if any."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    @property
    def _name(self) -> str:
        return self.parts.ledger.vm.name

    async def _run(self, reading: Reading, status: PointProof) -> None:
        try:
            record = proof_of(self.parts.ledger.points, PositionRecord.of(reading.position))
            disks = sorted(self.parts.ledger.disks_at(reading.position).items())
            images = [await self._digest(reading, disk, size, status) for disk, size in disks]
            judge(status, images, record, reading.reader.failed, self._name)
        except asyncio.CancelledError:
            self._end(status, "undecided", "It was ended before the point was read to its end.")
            raise
        except (OSError, VmreplicaError) as error:
            self._end(status, "undecided", f"The point can't be read: {error}", "Run it again.")
        finally:
            status.running = False
            status.ended_time = self.parts.ports.clock.wall()
            await finish(self._finish(reading, status))

    def _end(self, status: PointProof, outcome: str, text: str, remedy: str = "") -> None:
        status.outcome, status.text, status.remedy = outcome, text, remedy

    async def _finish(self, reading: Reading, status: PointProof) -> None:
        await self.parts.history.end(reading)
        text = f"Recovery point {status.point} was read: {status.text}"
        images = {str(image.disk): image.digest for image in status.images}
        level = LEVELS.get(status.outcome, "")
        cause = None
        if status.outcome == "wrong":
            told = f"Recovery point {status.point} of {self._name} is wrong: {status.text}"
            cause = Cause(code="point_wrong", text=told, remedy=status.remedy, time=self.parts.ports.clock.wall())
        async with self.parts.ledger.transaction() as draft:
            if status.outcome in ("wrong", "proven"):
                note_read(draft, reading.position, cause)
            draft.event(EventId.POINT_READ, text, cause=status.outcome, level=level, images=images)

    async def _digest(self, reading: Reading, disk: int, size: int, status: PointProof) -> tuple[int, bytes | None]:
        """The digest of one disk; None where a part can't be read."""
        image, source = ImageDigest(size, BLOCK_SIZE), PointImage(reading.reader, disk)
        for offset in range(0, size, STEP_BYTES):
            length = min(STEP_BYTES, size - offset)
            # Guests and replication come first.
            leaves, _ = await finish(self.parts.ports.background.run(leaves_of, source, offset, length, BLOCK_SIZE))
            image.add(leaves)
            status.done_bytes += length
        return disk, image.digest()


def judge(
    status: PointProof,
    images: list[tuple[int, bytes | None]],
    record: ProofRecord | None,
    failed: str,
    name: str,
) -> None:
    """What came of reading a point: ``images`` are the digests found, ``failed`` why the point is gone meanwhile."""
    recorded = {image.disk: image.digest for image in record.images} if record is not None else {}
    status.recorded_time = record.time if record is not None else None
    status.images = [
        ImageProof(
            disk=disk,
            digest=digest.hex() if digest is not None else "",
            recorded=recorded[disk].hex() if disk in recorded else "",
        )
        for disk, digest in images
    ]
    unread = [disk for disk, digest in images if digest is None]
    wrong = [disk for disk, digest in images if digest is not None and recorded.get(disk, digest) != digest]
    if failed:
        status.outcome, status.text, status.remedy = "undecided", failed, "Choose another point."
    elif wrong:
        status.outcome = "wrong"
        status.text = f"Disk {wrong[0]} is not what it was on both sides when a verify compared them at this cut."
        status.remedy = f"Do not use this point. Check the volume, then run `vmreplica verify {name}` at the primary."
    elif unread:
        status.outcome, status.text = "undecided", f"A part of disk {unread[0]} can't be read."
        status.remedy = "Check the volume."
    elif len(recorded) < len(images):
        status.outcome = "unrecorded"
        status.text = "It can be read to its end; no verify compared both sides at this cut, so nothing was recorded."
        status.remedy = (
            f"Run `vmreplica verify {name}` at the primary, and pin the point of its cut: that one can be proven."
        )
    else:
        status.outcome, status.text = "proven", "Every disk is what it was on both sides when a verify compared them."
