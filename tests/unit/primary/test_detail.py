"""The second level: what is asked about, and that what is sent makes the replica's range equal, with nothing more."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from primary_agent.compare import HOLE_BYTES, RANGE_BYTES, Piece, Pieces, Span, holes_between
from primary_agent.detail import LONG_RUN, SAMPLE_EVERY, RangeDifferences
from protocol.bulk import Detail, Manifest, group_count
from protocol.errors import ProtocolError
from protocol.messages import BLOCK_SIZE, DETAIL_BYTES, GROUP_BLOCKS, Run
from shared.disks.hashing import RangeHasher
from shared.ports import File
from shared.ports.file_system import RealFileSystem

ID, KEY_ID = b"i" * 16, b"k" * 16


@contextmanager
def opened(path: Path, content: bytes) -> Iterator[File]:
    path.write_bytes(content)
    file = RealFileSystem().open(str(path))
    try:
        yield file
    finally:
        file.close()


class Sides:
    """Two contents as both sides hash them, and how much was asked."""

    def __init__(self, folder: Path, ours: bytes, theirs: bytes) -> None:
        self.hasher = RangeHasher(random.randbytes(32), BLOCK_SIZE)
        self.ours, self.theirs, self.folder = ours, theirs, folder
        self.asked: list[int] = []

    def manifest(self, file: File, length: int) -> Manifest:
        holes, tags = self.hasher.hash_range(file, 0, length)
        equal = np.zeros(group_count(len(holes)), bool)
        return Manifest(ID, KEY_ID, 1, 0, BLOCK_SIZE, 0, length, holes, tags, equal)

    def spans(self) -> list[Span]:
        length = len(self.ours)
        with opened(self.folder / "ours", self.ours) as ours, opened(self.folder / "theirs", self.theirs) as theirs:
            mine = self.manifest(ours, length)
            table = self.hasher.filled(mine.holes, mine.tags, length)
            found = RangeDifferences.of(mine, table, self.manifest(theirs, length), self.hasher.zero_tags(length))
            for question in (found.first_question, found.second_question):
                asked = question()
                self.asked.append(int(asked.sum()))
                if asked.any():
                    ranges = found.ranges(asked)
                    tags = self.hasher.detail(theirs, ranges, DETAIL_BYTES)
                    answer = Detail(ID, KEY_ID, 1, 0, 0, length, tags)
                    found.answer(asked, self.hasher.detail(ours, ranges, DETAIL_BYTES), answer)
            return found.spans()


def sent(spans: list[Span]) -> int:
    return sum(span.length for span in spans)


def changed(content: bytes, places: list[int], length: int = 1) -> bytes:
    result = bytearray(content)
    for place in places:
        for at in range(place, place + length):
            result[at] ^= 0x55
    return bytes(result)


def apply(theirs: bytes, ours: bytes, spans: list[Span]) -> bytes:
    result = bytearray(theirs)
    for span in spans:
        result[span.offset : span.offset + span.length] = ours[span.offset : span.offset + span.length]
    return bytes(result)


def test_scattered_bytes_cost_small_blocks(tmp_path: Path) -> None:
    ours = random.randbytes(40 * BLOCK_SIZE)
    places = [3 * BLOCK_SIZE + 5, 17 * BLOCK_SIZE + DETAIL_BYTES, 17 * BLOCK_SIZE + 9 * DETAIL_BYTES]
    sides = Sides(tmp_path, ours, changed(ours, places))
    spans = sides.spans()
    assert [span.offset for span in spans] == [place // DETAIL_BYTES * DETAIL_BYTES for place in places]
    assert sent(spans) == 3 * DETAIL_BYTES
    assert sides.asked == [2, 0]


def test_a_long_run_is_sent_whole_after_a_few_samples(tmp_path: Path) -> None:
    blocks = 4 * LONG_RUN
    ours = random.randbytes((blocks + 2) * BLOCK_SIZE)
    theirs = changed(ours, [BLOCK_SIZE + DETAIL_BYTES], blocks * BLOCK_SIZE - 2 * DETAIL_BYTES)
    sides = Sides(tmp_path, ours, theirs)
    spans = sides.spans()
    # Both ends are looked at closely, so not even their equal parts are sent.
    assert spans == [Span(BLOCK_SIZE + DETAIL_BYTES, blocks * BLOCK_SIZE - 2 * DETAIL_BYTES, False)]
    assert sides.asked == [2 + blocks // SAMPLE_EVERY, 0]


def test_a_long_run_of_sparse_changes_is_asked_about_wholly(tmp_path: Path) -> None:
    blocks = 3 * LONG_RUN
    ours = random.randbytes(blocks * BLOCK_SIZE)
    sides = Sides(tmp_path, ours, changed(ours, [number * BLOCK_SIZE + 77 for number in range(blocks)]))
    assert sent(sides.spans()) == blocks * DETAIL_BYTES
    assert sum(sides.asked) == blocks
    assert sides.asked[1] > 0


@pytest.mark.parametrize("seed", range(12))
def test_whatever_differs_the_replica_becomes_equal(tmp_path: Path, seed: int) -> None:
    """I1, R45: data, zeroes and short ends on either side."""
    rng = random.Random(seed)
    length = rng.randrange(1, 60) * BLOCK_SIZE + rng.choice([0, 512, 5000, BLOCK_SIZE - 1])
    ours, theirs = bytearray(rng.randbytes(length)), bytearray(length)
    theirs[:] = ours
    for side in (ours, theirs):
        for _ in range(rng.randrange(12)):
            at, size = rng.randrange(length), rng.choice([1, 4096, BLOCK_SIZE, 20 * BLOCK_SIZE])
            end = min(at + size, length)
            side[at:end] = bytes(end - at) if rng.random() < 0.4 else rng.randbytes(end - at)
    spans = Sides(tmp_path, bytes(ours), bytes(theirs)).spans()
    result = apply(bytes(theirs), bytes(ours), spans)
    same = result == bytes(ours)
    assert same
    assert all(first.offset + first.length <= second.offset for first, second in pairwise(spans))


def test_nothing_is_asked_where_one_side_is_zero(tmp_path: Path) -> None:
    ours = random.randbytes(2 * BLOCK_SIZE) + bytes(2 * BLOCK_SIZE)
    sides = Sides(tmp_path, ours, bytes(2 * BLOCK_SIZE) + random.randbytes(2 * BLOCK_SIZE))
    assert sent(sides.spans()) == 4 * BLOCK_SIZE
    assert sides.asked == [0, 0]


@pytest.mark.parametrize("field", ["id", "key_id", "round", "disk", "offset", "length", "tags"])
def test_a_detail_of_another_scope_is_refused(tmp_path: Path, field: str) -> None:
    """R23."""
    ours = random.randbytes(4 * BLOCK_SIZE)
    sides = Sides(tmp_path, ours, changed(ours, [1]))
    with opened(tmp_path / "a", sides.ours) as mine, opened(tmp_path / "b", sides.theirs) as other:
        manifest = sides.manifest(mine, len(ours))
        table = sides.hasher.filled(manifest.holes, manifest.tags, len(ours))
        zero = sides.hasher.zero_tags(len(ours))
        found = RangeDifferences.of(manifest, table, sides.manifest(other, len(ours)), zero)
        asked = found.first_question()
        tags = sides.hasher.detail(mine, found.ranges(asked), DETAIL_BYTES)
    answer = Detail(ID, KEY_ID, 1, 0, 0, len(ours), tags)
    values: dict[str, Any] = {
        "id": b"x" * 16,
        "key_id": b"x" * 16,
        "round": 2,
        "disk": 1,
        "offset": 4096,
        "length": 1,
        "tags": tags[1:],
    }
    with pytest.raises(ProtocolError, match=field):
        found.answer(asked, tags, replace(answer, **{field: values[field]}))


# --- soundness -----------------------------------------------------------------------------------------------------


def colliding_blocks() -> tuple[bytes, bytes]:
    """Two blocks with equal xxh3, made without a search.

    Each lane adds the product of the two halves of its 8 bytes XORed with the public secret; where one half of that is
    0, the product is 0 whatever the other half is. The bytes themselves are added to the neighbouring lane, so what one
    stripe gains there, another one of the same kilobyte gives back.
    """
    secret = bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b532ea371644897a20df94e3819ef46a9deacd8a8"
        "fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb17"
        "0ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    )
    first = bytearray(random.Random(5).randbytes(BLOCK_SIZE))
    second = bytearray(first)
    delta = 12345
    for stripe, sign in ((2, 1), (5, -1)):
        at = stripe * 64
        (low,) = struct.unpack_from("<I", secret, stripe * 8)
        high = 1_000_000
        struct.pack_into("<II", first, at, low, high)
        struct.pack_into("<II", second, at, low, high + sign * delta)
    return bytes(first), bytes(second)


def test_blocks_with_equal_xxh3_are_found_and_sent(tmp_path: Path) -> None:
    """I15, A18: a guest chose the bytes on the two sides; the key it can't know."""
    ours, theirs = colliding_blocks()
    assert ours != theirs
    assert xxhash.xxh3_128_digest(ours) == xxhash.xxh3_128_digest(theirs)
    assert xxhash.xxh3_64_digest(ours) == xxhash.xxh3_64_digest(theirs)
    same = random.randbytes(BLOCK_SIZE)
    spans = Sides(tmp_path, same + ours + same, same + theirs + same).spans()
    result = apply(same + theirs + same, same + ours + same, spans)
    equal = result == same + ours + same
    assert equal
    assert spans == [Span(BLOCK_SIZE, DETAIL_BYTES, False)]


def test_digests_tell_any_difference_and_take_holes_for_zeroes(tmp_path: Path) -> None:
    hasher = RangeHasher(bytes(32), BLOCK_SIZE)
    length = (GROUP_BLOCKS + 3) * BLOCK_SIZE
    content = bytes(2 * BLOCK_SIZE) + random.randbytes(length - 2 * BLOCK_SIZE)

    def digests(path: Path) -> list[bytes]:
        file = RealFileSystem().open(str(path))
        holes, tags = hasher.hash_range(file, 0, length)
        file.close()
        joined = hasher.digests(hasher.filled(holes, tags, length), GROUP_BLOCKS)
        return [joined[:16], joined[16:]]

    plain, sparse, other = (tmp_path / name for name in ("plain", "sparse", "other"))
    plain.write_bytes(content)
    with sparse.open("wb") as file:
        file.seek(2 * BLOCK_SIZE)
        file.write(content[2 * BLOCK_SIZE :])
    other.write_bytes(changed(content, [length - 1]))
    assert digests(sparse) == digests(plain)
    first, second = digests(other)
    assert first == digests(plain)[0]
    assert second != digests(plain)[1]


# --- long holes ----------------------------------------------------------------------------------------------------


def test_long_holes_are_pieces_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    size = 16 << 40
    data = 5 * HOLE_BYTES + 4096
    with path.open("wb") as plain:
        try:
            plain.truncate(size)
        except OSError:
            size = 1 << 40
            plain.truncate(size)
        plain.seek(data)
        plain.write(b"x" * 4096)
    file = RealFileSystem().open(str(path))
    pieces = Pieces(file, [(0, size)])
    found = []
    while (piece := pieces.next()) is not None:
        found.append(piece)
    file.close()
    start = data // BLOCK_SIZE * BLOCK_SIZE
    assert found[0] == Piece(0, start, True)
    assert found[1] == Piece(start, RANGE_BYTES, False)
    assert found[-1].hole
    assert sum(piece.length for piece in found) == size
    assert len(found) <= 4


def test_what_is_put_back_comes_next(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as plain:
        plain.truncate(4 * HOLE_BYTES)
    file = RealFileSystem().open(str(path))
    pieces = Pieces(file, [(0, 4 * HOLE_BYTES)])
    assert pieces.next() == Piece(0, 4 * HOLE_BYTES, True)
    pieces.put_back(0, 2 * RANGE_BYTES, ordinary=True)
    assert [pieces.next(), pieces.next(), pieces.next()] == [
        Piece(0, RANGE_BYTES, False),
        Piece(RANGE_BYTES, RANGE_BYTES, False),
        None,
    ]
    pieces.put_back(0, 2 * HOLE_BYTES, ordinary=False)
    assert pieces.next() == Piece(0, 2 * HOLE_BYTES, True)
    file.close()


def run(first: int, blocks: int, disk: int = 0) -> Run:
    return Run(disk=disk, offset=first * BLOCK_SIZE, length=blocks * BLOCK_SIZE)


def test_holes_lie_between_the_replicas_data() -> None:
    holes, data = holes_between(0, 0, 10 * BLOCK_SIZE, [run(0, 1), run(3, 2)])
    assert holes == [(BLOCK_SIZE, 3 * BLOCK_SIZE), (5 * BLOCK_SIZE, 10 * BLOCK_SIZE)]
    assert data == [(0, BLOCK_SIZE), (3 * BLOCK_SIZE, 5 * BLOCK_SIZE)]


@pytest.mark.parametrize(
    "runs",
    [
        [run(1, 1, disk=2)],
        [run(4, 2), run(1, 1)],
        [run(1, 3), run(2, 1)],
        [run(9, 2)],
        [Run(disk=0, offset=BLOCK_SIZE, length=0)],
        [Run(disk=0, offset=512, length=BLOCK_SIZE)],
        [Run(disk=0, offset=0, length=512)],
    ],
    ids=["disk", "order", "overlap", "outside", "empty", "unaligned", "part of a block"],
)
def test_an_answer_about_holes_that_lies_is_refused(runs: list[Run]) -> None:
    """A12."""
    with pytest.raises(ProtocolError, match="HOLES"):
        holes_between(0, 0, 10 * BLOCK_SIZE, runs)
