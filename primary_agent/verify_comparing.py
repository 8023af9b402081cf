"""Asks the replica, over a connection of its own, whether its view of a cut has the leaves that this side has.

Nothing counts as equal that was not answered so, and nothing that can't be read on either side (R24).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from primary_agent.block_map import BlockMap
from primary_agent.dialing import dial, expect, name_of, open_body
from primary_agent.parts import Parts
from primary_agent.tap_link import Connection
from primary_agent.undecided import UndecidedError
from primary_agent.verify_files import LeafFile
from protocol.bulk import unpack_flags
from protocol.errors import ProtocolError
from protocol.messages import (
    BLOCK_SIZE,
    GROUP_BLOCKS,
    MAX_VERIFY_GROUPS,
    Body,
    Role,
    VerifyAnswer,
    VerifyBegin,
    VerifyCut,
    VerifyEnd,
    VerifyEnded,
    VerifyHeld,
    VerifyLost,
    VerifyReady,
    VerifyRequest,
    WirePosition,
)
from protocol.position import Position
from shared.channel import Channel
from shared.disks.leaves import LEAF_BYTES, LEAF_HASH, UNREADABLE, ImageDigest, group_digests
from shared.tasks import uninterrupted

RANGE_BLOCKS = GROUP_BLOCKS * MAX_VERIFY_GROUPS
UNANSWERED = 4
"""Requests under way."""
BEGIN_SECONDS = 60.0
HELD_SECONDS = 1000.0
"""How long the replica may take until it has applied the cut: it gives up before."""
ANSWER_SECONDS = 600.0


@dataclass(slots=True)
class Finding:
    """What a compare found, block by block of each disk."""

    different: dict[int, BlockMap]
    """Differ, or can't be read at the replica."""
    unreadable_there: dict[int, BlockMap]
    unreadable_here: dict[int, BlockMap]
    compared_bytes: int = 0
    images: dict[int, bytes] = field(default_factory=dict)
    """The digests of disks that are wholly equal, to which both sides came."""


class Asking:
    """One verify's connection to the replica."""

    def __init__(self, channel: Channel, identity: bytes) -> None:
        self._channel = channel
        self._id = identity

    @classmethod
    async def open(cls, parts: Parts, connection: Connection) -> Asking:
        """Connect, and have the replica pass over no cut that is sealed from now on. Raises UndecidedError."""
        dialled = parts.link.dialled
        if dialled is None:
            raise UndecidedError("There is no connection to the replica.")
        token = dialled.channel.session.token
        body = open_body(parts.replication, connection, role=Role.VERIFY, token=token)
        channel = (await dial(parts.surroundings, parts.address, body)).channel
        asking = cls(channel, parts.surroundings.ports.random.bytes(16))
        try:
            channel.send(VerifyBegin(id=asking._id, hash=LEAF_HASH, block_size=BLOCK_SIZE))
            expect(await asking._receive(BEGIN_SECONDS), VerifyReady)
        except BaseException:
            channel.abort("the verify ended")
            raise
        return asking

    def name(self, cut: Position) -> None:
        """Have the replica hold a view of exactly this cut."""
        self._channel.send(VerifyCut(id=self._id, cut=WirePosition.of(cut)))

    async def held(self, cut: Position) -> None:
        """Returns when it does. Raises UndecidedError."""
        held = await self._receive(HELD_SECONDS)
        expect(held, VerifyHeld)
        assert isinstance(held, VerifyHeld)
        if held.cut.position() != cut:
            raise ProtocolError("VERIFY_HELD is about another cut")

    async def compare(
        self,
        parts: Parts,
        leaves: LeafFile,
        sizes: dict[int, int],
        scope: dict[int, BlockMap] | None,
        compared: Callable[[int], None],
    ) -> Finding:
        """Compare the blocks in ``scope`` (whole disks for None); ``compared`` is told the bytes.

        Raises UndecidedError.
        """
        blocks = {disk: -(-size // BLOCK_SIZE) for disk, size in sizes.items()}
        chosen = scope if scope is not None else {disk: BlockMap(count, full=True) for disk, count in blocks.items()}
        different, there, here = ({disk: BlockMap(count) for disk, count in blocks.items()} for _ in range(3))
        finding = Finding(different, there, here)
        sums = {disk: ImageDigest(size, BLOCK_SIZE) for disk, size in sizes.items()}
        run = parts.surroundings.ports.workers.run
        asked: deque[tuple[VerifyRequest, bytes]] = deque()
        for disk, first, end in _pieces(chosen):
            length = min(end * BLOCK_SIZE, sizes[disk]) - first * BLOCK_SIZE
            ours, digests = await uninterrupted(run(_read, leaves, disk, first, end - first))
            sums[disk].add(ours)
            request = VerifyRequest(id=self._id, disk=disk, offset=first * BLOCK_SIZE, length=length, digests=digests)
            if len(asked) == UNANSWERED:
                await self._take(*asked.popleft(), finding, compared)
            self._channel.send(request)
            asked.append((request, ours))
            await self._channel.drain()
        while asked:
            await self._take(*asked.popleft(), finding, compared)
        self._channel.send(VerifyEnd(id=self._id))
        ended = await self._receive(ANSWER_SECONDS)
        expect(ended, VerifyEnded)
        assert isinstance(ended, VerifyEnded)
        if scope is None:
            theirs = {image.disk: image.digest for image in ended.images}
            for disk in sizes:
                self._prove(disk, sums[disk].digest(), theirs.get(disk), finding)
        return finding

    def _prove(self, disk: int, ours: bytes | None, theirs: bytes | None, finding: Finding) -> None:
        """The digests have to say what the blocks say."""
        blocks_agree = not any(
            len(found[disk]) for found in (finding.different, finding.unreadable_there, finding.unreadable_here)
        )
        if blocks_agree != (ours is not None and ours == theirs):
            told = "is equal" if blocks_agree else "differs"
            raise UndecidedError(f"Block by block disk {disk} {told}, and its digests say otherwise.", "Report it.")
        if ours is not None and blocks_agree:
            finding.images[disk] = ours

    async def close(self) -> None:
        """Let the view go."""
        await self._channel.close("the verify has ended")

    def abort(self) -> None:
        self._channel.abort("the verify ended")

    # --- answers ---------------------------------------------------------------------------------------------------

    async def _receive(self, seconds: float) -> Body:
        try:
            async with asyncio.timeout(seconds):
                message = await self._channel.receive()
        except TimeoutError:
            raise UndecidedError(f"The replica did not answer within {seconds:g} s.") from None
        if not isinstance(message, Body) or getattr(message, "id", None) != self._id:
            raise ProtocolError(f"{name_of(message)} about another verify", code="stale")
        if isinstance(message, VerifyLost):
            raise UndecidedError(message.text, code=message.code)
        return message

    async def _take(
        self, request: VerifyRequest, ours: bytes, finding: Finding, compared: Callable[[int], None]
    ) -> None:
        answer = await self._receive(ANSWER_SECONDS)
        expect(answer, VerifyAnswer)
        assert isinstance(answer, VerifyAnswer)
        judge(request, ours, answer, finding)
        finding.compared_bytes += request.length
        compared(request.length)


def judge(request: VerifyRequest, ours: bytes, answer: VerifyAnswer, finding: Finding) -> None:
    """Put into ``finding`` what the answer says. Raises ProtocolError where it does not answer the request."""
    asked = (request.disk, request.offset, request.length)
    if (answer.disk, answer.offset, answer.length) != asked:
        raise ProtocolError("VERIFY_ANSWER is about another range than was asked about")
    count, groups = len(ours) // LEAF_BYTES, len(request.digests) // LEAF_BYTES
    equal = np.array(unpack_flags(answer.equal, groups, "VERIFY_ANSWER"), bool)
    told = np.flatnonzero(~np.repeat(equal, GROUP_BLOCKS)[:count])
    if len(answer.leaves) != len(told) * LEAF_BYTES:
        raise ProtocolError(f"VERIFY_ANSWER has {len(answer.leaves)} bytes of leaves for {len(told)} blocks")
    mine = np.frombuffer(ours, np.uint8).reshape(-1, LEAF_BYTES)
    theirs = np.frombuffer(answer.leaves, np.uint8).reshape(-1, LEAF_BYTES)
    missing = np.frombuffer(UNREADABLE, np.uint8)
    first = request.offset // BLOCK_SIZE
    unread_here = (mine == missing).all(axis=1)
    # Of a group that is told to be equal, a block that can't be read here is not.
    for block in np.flatnonzero(unread_here).tolist():
        finding.unreadable_here[request.disk].add(first + block, first + block + 1)
    unread_there = (theirs == missing).all(axis=1)
    differs = (mine[told] != theirs).any(axis=1) & ~unread_here[told]
    for block in told[unread_there].tolist():
        finding.unreadable_there[request.disk].add(first + block, first + block + 1)
    for block in told[differs].tolist():
        finding.different[request.disk].add(first + block, first + block + 1)


def _pieces(chosen: dict[int, BlockMap]) -> Iterator[tuple[int, int, int]]:
    for disk in sorted(chosen):
        for first, end in chosen[disk].pieces(RANGE_BLOCKS):
            yield disk, first, end


def _read(leaves: LeafFile, disk: int, first: int, count: int) -> tuple[bytes, bytes]:
    """The leaves, and the digests of their groups. Blocks."""
    ours = leaves.read(disk, first, count)
    return ours, group_digests(ours, GROUP_BLOCKS)
