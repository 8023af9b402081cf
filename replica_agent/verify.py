"""A verify connection: holds a view of one cut, while applying goes on, and tells in which blocks it differs (R46).

From the announcement of a verify until its cut is known nothing is applied that was received later, so that the cut
can't be passed over; then applying stops at exactly that cut until the view is held. Where the view can't be had, or is
lost, the primary is told so, and nothing counts as equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from protocol.errors import ProtocolError
from protocol.messages import (
    BLOCK_SIZE,
    GROUP_BLOCKS,
    MAX_VERIFY_GROUPS,
    Body,
    ErrorCode,
    ImageDigest,
    VerifyAnswer,
    VerifyBegin,
    VerifyCut,
    VerifyEnd,
    VerifyEnded,
    VerifyHeld,
    VerifyLost,
    VerifyReady,
    VerifyRequest,
)
from protocol.position import Position
from replica_agent.control import Control
from replica_agent.finishing import finish
from replica_agent.history import Reading
from replica_agent.layers import PointReader
from replica_agent.marks import put_proof
from replica_agent.parts import VmParts
from shared.channel import Channel
from shared.disks.leaves import LEAF_BYTES, LEAF_HASH, group_digests, has_unreadable, leaves_of
from shared.disks.leaves import ImageDigest as ImageSum
from shared.errors import NotFoundError
from shared.events import EventId
from shared.ports import Extent
from shared.tasks import together
from shared.undo_log import UndoDamagedError

VERIFIES_AT_ONCE = 2
"""VMs of which views are held at the same time."""
HOLD_SECONDS = 60.0
"""Applying is held up at most so long for the primary to name its cut."""
REACH_SECONDS = 900.0
"""So long it may take until that cut is received and applied."""
PENDING_MAX = 4
"""Requests that were not answered."""
GROUP_BYTES = BLOCK_SIZE * GROUP_BLOCKS
RANGE_BYTES = GROUP_BYTES * MAX_VERIFY_GROUPS
HASHERS = 2
"""Parts of a range that are hashed at the same time."""


class _Lost(Exception):
    """The verify can't be decided."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class PointImage:
    """One disk of a point (shared.disks.leaves.Readable)."""

    reader: PointReader
    disk: int

    def read(self, offset: int, length: int) -> bytes:
        return self.reader.read(self.disk, offset, length)

    def extents(self, offset: int, length: int) -> Iterable[Extent]:
        return self.reader.extents(self.disk, offset, length)


class VerifyConnection:
    """Serves one verify connection from its OPENED to its end."""

    def __init__(self, parts: VmParts, control: Control, channel: Channel) -> None:
        self.channel = channel
        self.ended = asyncio.Event()
        """Set when nothing of this connection runs any more."""
        self._parts = parts
        self._control = control
        self._sizes = parts.disks.sizes
        self._messages: asyncio.Queue[Body] = asyncio.Queue(PENDING_MAX + 1)
        self._id: bytes | None = None
        self._lost = False
        self._reading: Reading | None = None
        self._images: dict[int, ImageSum] = {}
        self._next: dict[int, int] = {}
        self._told = False
        self._differs = False
        """Whether a group of blocks was not the same on both sides."""

    def belongs_to(self, control: Control) -> bool:
        return self._control is control

    async def run(self) -> None:
        """Serve until the connection ends; raises what ended it."""
        try:
            await together(self._receive(), self._work())
        finally:
            await finish(self._let_go())

    async def _receive(self) -> None:
        while True:
            message = await self.channel.receive()
            assert isinstance(message, Body)
            if self._messages.full():
                raise ProtocolError(f"more than {PENDING_MAX} requests of a verify are not answered")
            self._messages.put_nowait(message)

    async def _work(self) -> None:
        while True:
            try:
                if self._id is not None and self._reading is None and not self._lost:
                    message = await self._next_in_time()
                else:
                    message = await self._messages.get()
                await self._take(message)
            except _Lost as loss:
                self._lost = True
                assert self._id is not None
                await finish(self._let_go())
                self.channel.send(VerifyLost(id=self._id, code=loss.code, text=loss.text))
            await self.channel.drain()

    async def _next_in_time(self) -> Body:
        """The cut: applying must not be held up for ever."""
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                return await self._messages.get()
        except TimeoutError:
            raise _Lost("no_cut", f"The primary named no cut within {HOLD_SECONDS:g} s.") from None

    async def _take(self, message: Body) -> None:
        match message:
            case VerifyBegin():
                self._begin(message)
                return
            case VerifyCut() | VerifyRequest() | VerifyEnd():
                if message.id != self._id:
                    raise ProtocolError(f"{type(message).__name__} is about another verify", code=ErrorCode.STALE)
            case _:
                raise ProtocolError(f"{type(message).__name__} is not expected here", code="state")
        if self._lost:
            # It was sent before the loss was known.
            return
        match message:
            case VerifyCut():
                await self._hold(message.cut.position())
                self.channel.send(VerifyHeld(id=message.id, cut=message.cut))
            case VerifyRequest():
                await self._answer(message)
            case VerifyEnd():
                await finish(self._keep_proof())
                self._end(message.id)
                await finish(self._let_go())

    # --- the view --------------------------------------------------------------------------------------------------

    def _begin(self, message: VerifyBegin) -> None:
        if message.hash != LEAF_HASH or message.block_size != BLOCK_SIZE:
            raise ProtocolError(f"a verify with the hash {message.hash!r} and blocks of {message.block_size} bytes")
        self._id = message.id
        self._images = {disk: ImageSum(size, BLOCK_SIZE) for disk, size in self._sizes.items()}
        self._next = dict.fromkeys(self._sizes, 0)
        applier, verifying = self._parts.applier, self._parts.surroundings.verifying
        self._check()
        if len(verifying - {self._parts.vm}) >= VERIFIES_AT_ONCE:
            raise _Lost("busy", f"The replica holds views of {len(verifying)} other VMs for a verify already.")
        verifying.add(self._parts.vm)
        assert applier.spool is not None
        applier.ceiling.cut = applier.spool.received
        self.channel.send(VerifyReady(id=message.id))

    def _check(self) -> None:
        """Raises _Lost where the disks are no recovery point, or not trusted to be one."""
        record, applier = self._parts.ledger.replication, self._parts.applier
        if record.suspect is not None:
            raise _Lost("not_trusted", f"The replica's disks are not trusted: {record.suspect.text}")
        if record.causes:
            raise _Lost("resync_required", f"The replica requires a resynchronization: {record.causes[-1].text}")
        if self._parts.ledger.promotion is not None:
            raise _Lost("promoted", "The VM was failed over to the replica.")
        if self._parts.resync is not None or applier.merge is not None:
            raise _Lost("resyncing", "The replica is being resynchronized, or merges what it received.")
        if applier.spool is None or applier.applied is None:
            raise _Lost("no_point", "The replica has no recovery point.")

    async def _hold(self, cut: Position) -> None:
        """Hold a view of the point at ``cut``, once it is reached."""
        applier = self._parts.applier
        before = applier.ceiling.cut
        passed = before is not None and cut.segment <= before.segment and not self._is_prepared(cut)
        if before is None or cut.epoch != before.epoch or passed:
            raise _Lost("other_cut", f"The replica stands at {before}, and can't verify cut {cut}.")
        applier.ceiling.cut = cut
        applier.changed.notify()
        try:
            async with asyncio.timeout(REACH_SECONDS):
                while not applier.ceiling.stops(applier.applied):
                    self._check()
                    await applier.changed.wait()
        except TimeoutError:
            why = f": {applier.problem.text}" if applier.problem is not None else "."
            raise _Lost("not_reached", f"The replica did not come to cut {cut} in {REACH_SECONDS:g} s{why}") from None
        self._check()
        if applier.applied != cut:
            raise _Lost("other_cut", f"The replica came to cut {applier.applied}, which is not {cut}.")
        try:
            self._reading = await self._parts.history.read(cut)
        except (NotFoundError, UndoDamagedError, OSError) as error:
            raise _Lost("point_lost", f"The replica has no view of cut {cut}: {error}") from error
        if self._reading is None:
            raise _Lost("point_lost", "The replica's disks change without an undo log.")
        self._release()

    def _is_prepared(self, cut: Position) -> bool:
        """Whether that is the last cut for as long as a planned failover is prepared: no other can be waited for."""
        prepared = self._parts.ledger.prepared
        return prepared is not None and prepared.cut.position == cut == self._parts.applier.applied

    def _release(self) -> None:
        """Applying goes on as far as it can."""
        self._parts.applier.ceiling.cut = None
        self._parts.applier.changed.notify()

    async def _let_go(self) -> None:
        if self._id is None:
            return
        self._release()
        self._parts.surroundings.verifying.discard(self._parts.vm)
        reading, self._reading = self._reading, None
        if reading is not None:
            await self._parts.history.end(reading)

    # --- answers ---------------------------------------------------------------------------------------------------

    async def _answer(self, request: VerifyRequest) -> None:
        count = self._check_range(request)
        leaves = await finish(self._hash(request.disk, request.offset, request.length))
        assert self._reading is not None
        if self._reading.reader.failed:
            raise _Lost("point_lost", self._reading.reader.failed)
        if has_unreadable(leaves) and not self._told:
            self._told = True
            text = f"A part of disk {request.disk} can't be read, within {request.length} bytes at {request.offset}."
            await self._parts.ledger.note(EventId.DAMAGED, text, cause="unreadable")
        if self._next[request.disk] == request.offset:
            self._images[request.disk].add(leaves)
            self._next[request.disk] += request.length
        ours = np.frombuffer(group_digests(leaves, GROUP_BLOCKS), np.uint8).reshape(-1, LEAF_BYTES)
        equal = (ours == np.frombuffer(request.digests, np.uint8).reshape(-1, LEAF_BYTES)).all(axis=1)
        self._differs = self._differs or not equal.all()
        step = GROUP_BLOCKS * LEAF_BYTES
        told = [leaves[group * step : (group + 1) * step] for group in range(count) if not equal[group]]
        self.channel.send(
            VerifyAnswer(
                id=request.id,
                disk=request.disk,
                offset=request.offset,
                length=request.length,
                equal=np.packbits(equal, bitorder="little").tobytes(),
                leaves=b"".join(told),
            )
        )

    def _check_range(self, request: VerifyRequest) -> int:
        """The number of its groups. Raises ProtocolError."""
        size = self._sizes.get(request.disk)
        end = request.offset + request.length
        where = f"{request.length} bytes at {request.offset} of disk {request.disk}"
        if size is None or not 0 < request.length <= RANGE_BYTES or end > size:
            raise ProtocolError(f"VERIFY_REQUEST for {where}")
        if request.offset % BLOCK_SIZE or (end % BLOCK_SIZE and end != size):
            raise ProtocolError(f"VERIFY_REQUEST for {where}, which is no run of blocks")
        count = -(-request.length // GROUP_BYTES)
        if len(request.digests) != count * LEAF_BYTES:
            raise ProtocolError(f"VERIFY_REQUEST with {len(request.digests)} bytes of digests for {where}")
        return count

    async def _hash(self, disk: int, offset: int, length: int) -> bytearray:
        assert self._reading is not None
        image, run = PointImage(self._reading.reader, disk), self._parts.ports.workers.run
        step = max(BLOCK_SIZE, -(-length // HASHERS // BLOCK_SIZE) * BLOCK_SIZE)
        parts = await asyncio.gather(
            *(
                run(leaves_of, image, at, min(step, offset + length - at), BLOCK_SIZE)
                for at in range(offset, offset + length, step)
            )
        )
        return bytearray().join(leaves for leaves, _ in parts)

    def _digests(self) -> dict[int, bytes]:
        """Those of the disks that were walked to their end, and could be read."""
        found = {disk: image.digest() for disk, image in self._images.items()}
        return {disk: digest for disk, digest in found.items() if digest is not None}

    async def _keep_proof(self) -> None:
        """Put on record what the disks are at this cut, where both sides were the same."""
        digests = self._digests()
        if self._reading is not None and len(digests) == len(self._sizes) and not self._differs:
            # Group by group the primary's leaves had the digests that ours have: its images were these.
            async with self._parts.ledger.transaction() as draft:
                put_proof(draft, self._reading.position, digests)

    def _end(self, identity: bytes) -> None:
        images = [ImageDigest(disk=disk, digest=digest) for disk, digest in self._digests().items()]
        self.channel.send(VerifyEnded(id=identity, images=images))
