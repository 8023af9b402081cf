"""What an answer of the replica says about a range, and which answers are none."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from primary_agent.block_map import BlockMap
from primary_agent.verify_comparing import Finding, judge
from primary_agent.verify_repair import _batches
from protocol.errors import ProtocolError
from protocol.messages import BLOCK_SIZE, GROUP_BLOCKS, VerifyAnswer, VerifyRequest
from shared.disks.leaves import (
    LEAF_BYTES,
    UNREADABLE,
    ImageDigest,
    group_digests,
    has_unreadable,
    leaf,
    leaves_of,
    zero_leaf,
)
from shared.ports import Extent
from shared.tap_control import RELOG_BYTES_MAX, RELOG_RANGES_MAX

FIRST = 128
"""The first block of the range."""


def split(leaves: bytes) -> list[bytes]:
    return [leaves[at : at + LEAF_BYTES] for at in range(0, len(leaves), LEAF_BYTES)]


def asked(ours: bytes, last: int = BLOCK_SIZE) -> VerifyRequest:
    length = (len(ours) // LEAF_BYTES - 1) * BLOCK_SIZE + last
    digests = group_digests(ours, GROUP_BLOCKS)
    return VerifyRequest(id=b"v" * 16, disk=3, offset=FIRST * BLOCK_SIZE, length=length, digests=digests)


def answered(request: VerifyRequest, theirs: bytes, **changes: Any) -> VerifyAnswer:
    """As a replica with these leaves answers."""
    step = GROUP_BLOCKS * LEAF_BYTES
    flags, told = 0, b""
    for group, at in enumerate(range(0, len(theirs), step)):
        if leaf(theirs[at : at + step]) == request.digests[group * LEAF_BYTES : (group + 1) * LEAF_BYTES]:
            flags |= 1 << group
        else:
            told += theirs[at : at + step]
    count = -(-len(theirs) // step)
    answer = VerifyAnswer(
        id=request.id,
        disk=request.disk,
        offset=request.offset,
        length=request.length,
        equal=flags.to_bytes(-(-count // 8), "little"),
        leaves=told,
    )
    return msgspec.structs.replace(answer, **changes)


def finding() -> Finding:
    return Finding({3: BlockMap(5000)}, {3: BlockMap(5000)}, {3: BlockMap(5000)})


def blocks(maps: dict[int, BlockMap]) -> set[int]:
    return {block - FIRST for first, end in maps[3].runs() for block in range(first, end)}


def test_every_block_is_judged() -> None:
    rng = random.Random(4)
    for _ in range(200):
        count = rng.choice((1, 5, 63, 64, 65, 200, 1000))
        truth = [rng.randbytes(LEAF_BYTES) for _ in range(count)]
        ours, theirs = list(truth), list(truth)
        wrong = {rng.randrange(count) for _ in range(rng.choice((0, 1, 3)))}
        here = {rng.randrange(count) for _ in range(rng.choice((0, 0, 2)))}
        there = {rng.randrange(count) for _ in range(rng.choice((0, 0, 2)))}
        for block in wrong:
            theirs[block] = rng.randbytes(LEAF_BYTES)
        for block in here:
            ours[block] = UNREADABLE
        for block in there:
            theirs[block] = UNREADABLE
        request, found = asked(b"".join(ours)), finding()
        judge(request, b"".join(ours), answered(request, b"".join(theirs)), found)
        assert blocks(found.unreadable_here) == here
        # Where neither side can read a block the digests may agree: it counts as unreadable here.
        assert blocks(found.unreadable_there) | here >= there
        assert blocks(found.different) == (wrong | there) - here


WRONG: dict[str, dict[str, Any]] = {
    "disk": {"disk": 0},
    "offset": {"offset": 0},
    "length": {"length": BLOCK_SIZE},
    "flags": {"equal": b"\0\0"},
    "flags behind the end": {"equal": b"\4"},
    "missing leaves": {"leaves": b""},
    "half a leaf": {"leaves": b"x" * 33},
    "leaves of equal groups": {"equal": b"\3", "leaves": bytes(100 * LEAF_BYTES)},
}


@pytest.mark.parametrize("case", WRONG)
def test_answer_to_something_else_is_refused(case: str) -> None:
    """R23."""
    rng = random.Random(1)
    ours = rng.randbytes(100 * LEAF_BYTES)
    request, found = asked(ours), finding()
    with pytest.raises(ProtocolError, match="VERIFY_ANSWER"):
        judge(request, ours, answered(request, rng.randbytes(100 * LEAF_BYTES), **WRONG[case]), found)
    assert not len(found.different[3])


def test_repair_is_cut_up_for_the_tap() -> None:
    scope = {0: BlockMap(5000), 3: BlockMap(700)}
    scope[0].add(3, 1000)
    for block in range(1, 700, 2):
        scope[3].add(block, block + 1)
    sizes = {0: 5000 * BLOCK_SIZE, 3: 699 * BLOCK_SIZE + 512}
    told = {0: BlockMap(5000), 3: BlockMap(700)}
    for disk, ranges in _batches(scope, sizes):
        assert 0 < len(ranges) <= RELOG_RANGES_MAX
        assert sum(length for _, length in ranges) <= RELOG_BYTES_MAX
        for offset, length in ranges:
            assert offset + length <= sizes[disk]
            told[disk].add(offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE))
    assert [list(told[disk].runs()) for disk in told] == [list(scope[disk].runs()) for disk in scope]


# --- leaves --------------------------------------------------------------------------------------------------------

SIZE = 64


class Disk:
    """A disk in memory with holes and bad blocks."""

    def __init__(self, content: bytes, holes: list[tuple[int, int]], bad: set[int]) -> None:
        self.content = content
        self.holes = holes
        self.bad = bad
        self.read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        if any(at in self.bad for at in range(offset, offset + length)):
            raise OSError(5, "bad sector")
        self.read_bytes += length
        return self.content[offset : offset + length]

    def extents(self, offset: int, length: int) -> list[Extent]:
        found: list[Extent] = []
        for at in range(offset, offset + length):
            hole = any(start <= at < end for start, end in self.holes)
            if found and found[-1].hole == hole:
                found[-1] = Extent(found[-1].offset, found[-1].length + 1, hole)
            else:
                found.append(Extent(at, 1, hole))
        return found


def test_leaves_are_those_of_the_blocks_and_holes_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.disks.leaves.READ_BYTES", 3 * SIZE)
    rng = random.Random(9)
    for _ in range(300):
        size = rng.randrange(1, 12 * SIZE)
        start = rng.randrange(0, size, SIZE)
        content, holes = bytearray(rng.randbytes(size)), []
        for _ in range(rng.randrange(3)):
            low = rng.randrange(size)
            high = rng.randrange(low, size + 1)
            holes.append((low, high))
            content[low:high] = bytes(high - low)
        bad = {rng.randrange(size)} if rng.random() < 0.3 else set()
        disk = Disk(bytes(content), holes, bad)
        leaves, data = leaves_of(disk, start, size - start, SIZE)
        wanted = []
        for at in range(start, size, SIZE):
            block = bytes(content[at : at + SIZE])
            hole = all(extent.hole for extent in disk.extents(at, len(block)))
            broken = any(at <= each < at + len(block) for each in bad) and not hole
            wanted.append(UNREADABLE if broken else leaf(block))
            assert not hole or wanted[-1] == zero_leaf(len(block))
        assert split(bytes(leaves)) == wanted
        assert has_unreadable(leaves) == (UNREADABLE in wanted)
        assert data <= size - start
        assert disk.read_bytes <= data


def test_image_digest_is_whole_or_none() -> None:
    leaves = [leaf(bytes([number])) for number in range(5)]
    whole = ImageDigest(4 * SIZE + 1, SIZE)
    whole.add(b"".join(leaves[:2]))
    assert whole.digest() is None
    whole.add(b"".join(leaves[2:]))
    assert whole.digest() == leaf(b"".join(leaves))
    broken = ImageDigest(2 * SIZE, SIZE)
    broken.add(leaves[0] + UNREADABLE)
    assert broken.digest() is None
    # The mark of an unreadable block counts only where a leaf begins.
    assert not has_unreadable(b"\0" * 31 + UNREADABLE + b"\0")
