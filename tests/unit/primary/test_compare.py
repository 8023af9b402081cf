"""Which blocks differ, and that what is sent makes the replica's range equal to ours, whatever is a hole where."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primary_agent.compare import (
    RANGE_BYTES,
    BlocksPayload,
    BlocksReader,
    Pieces,
    Span,
    check_scope,
    differing_blocks,
    spans_of,
    unsettled_runs,
)
from protocol.bulk import Manifest, decode_blocks, group_count
from protocol.compression import decompress
from protocol.entries import EntryKind
from protocol.errors import ProtocolError
from protocol.hrl import MAX_PAYLOAD
from protocol.messages import BLOCK_SIZE, Run
from shared.errors import StorageError
from shared.ports import Extent, File
from shared.ports.file_system import RealFileSystem

SIZE = 64
"""Block size of these tests; the code takes any."""
ID = b"i" * 16


def tag(block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=16).digest()


def manifest(content: bytes, holes: set[int], *, offset: int = 0, size: int = SIZE) -> Manifest:
    """The manifest of a range as an agent makes it: holes have no tag, and their content is zeroes."""
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    tags = b"".join(tag(block) for number, block in enumerate(blocks) if number not in holes)
    flags = np.array([number in holes for number in range(len(blocks))])
    table = np.frombuffer(tags, np.uint8).reshape(-1, 16)
    equal = np.zeros(group_count(len(blocks)), bool)
    return Manifest(ID, b"k" * 16, 1, 0, size, offset, len(content), flags, table, equal)


def zero_tags(length: int, size: int = SIZE) -> tuple[bytes, bytes]:
    last = length % size or size
    return tag(bytes(size)), tag(bytes(last))


def differing_spans(ours: Manifest, theirs: Manifest, zero: tuple[bytes, bytes]) -> list[Span]:
    """The spans of differing blocks, as they are without a second level."""
    table = ours.by_block()
    table[ours.holes] = np.frombuffer(zero[0], "<u8")
    if ours.holes[-1]:
        table[-1] = np.frombuffer(zero[1], "<u8")
    different, worth = differing_blocks(ours, table, theirs, zero)
    assert not (worth & (~different | ours.holes | theirs.holes)).any()
    return spans_of(different, ours.holes, ours.offset, ours.length, ours.block_size)


block_kinds = st.sampled_from(["hole", "zero", "a", "b"])
ranges = st.lists(st.tuples(block_kinds, block_kinds), min_size=1, max_size=40)


def side(kinds: list[str], last: int) -> tuple[bytes, set[int]]:
    parts = [bytes(SIZE) if kind in ("hole", "zero") else kind.encode() * SIZE for kind in kinds]
    parts[-1] = parts[-1][:last]
    return b"".join(parts), {number for number, kind in enumerate(kinds) if kind == "hole"}


@given(ranges, st.integers(1, SIZE), st.booleans())
@settings(deadline=None)
def test_what_is_sent_makes_the_replica_equal_and_nothing_more(
    kinds: list[tuple[str, str]], last: int, compress: bool
) -> None:
    """I1, R45: a hole on one side is zeroes, and equal blocks are not sent."""
    ours, our_holes = side([kind for kind, _ in kinds], last)
    theirs, their_holes = side([kind for _, kind in kinds], last)
    spans = differing_spans(manifest(ours, our_holes), manifest(theirs, their_holes), zero_tags(len(ours)))
    sent = sum(span.length for span in spans)
    differing = [
        len(ours[at : at + SIZE]) for at in range(0, len(ours), SIZE) if ours[at : at + SIZE] != theirs[at : at + SIZE]
    ]
    assert sent == sum(differing)
    for span in spans:
        first = span.offset // SIZE
        assert span.hole is (first in our_holes)
    assert apply(theirs, spans, ours, compress=compress) == ours


def apply(theirs: bytes, spans: list[Span], ours: bytes, *, compress: bool) -> bytes:
    """The replica's range after the payloads for ``spans`` were written to it."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"compare-{os.getpid()}.raw"
    path.write_bytes(ours)
    file = RealFileSystem().open(str(path))
    result = bytearray(theirs)
    try:
        reader = BlocksReader(file, 0, spans, SIZE, ID, 1, compress)
        while (payload := reader.next()) is not None:
            write(result, payload)
    finally:
        file.close()
        path.unlink()
    return bytes(result)


def write(disk: bytearray, payload: BlocksPayload) -> None:
    content = b"".join(payload.pieces)
    if payload.raw_length is not None:
        content = decompress(content, payload.raw_length)
    blocks = decode_blocks(content, {0: len(disk)})
    assert blocks.id == ID
    at = 0
    for entry in blocks.table:
        offset, length = int(entry["offset"]), int(entry["length"])
        if entry["kind"] == EntryKind.ZERO:
            disk[offset : offset + length] = bytes(length)
        else:
            disk[offset : offset + length] = blocks.payload[at : at + length]
            at += length


@pytest.mark.parametrize("field", ["id", "key_id", "round", "disk", "block_size", "offset", "length"])
def test_an_answer_of_another_scope_is_refused(field: str) -> None:
    """R23."""
    ours = manifest(b"a" * 256, set())
    values = {name: getattr(ours, name) for name in Manifest.__dataclass_fields__}
    values[field] = b"x" * 16 if field in ("id", "key_id") else values[field] + 1
    with pytest.raises(ProtocolError, match=field):
        check_scope(Manifest(**values), ours)


def test_payloads_are_bounded_and_neighbours_merged(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    content = os.urandom(40 * BLOCK_SIZE)
    path.write_bytes(content + bytes(4 * BLOCK_SIZE))
    file = RealFileSystem().open(str(path))
    spans = [Span(0, 40 * BLOCK_SIZE, False), Span(40 * BLOCK_SIZE, 4 * BLOCK_SIZE, True)]
    reader = BlocksReader(file, 3, spans, BLOCK_SIZE, ID, 1, False)
    payloads = []
    while (payload := reader.next()) is not None:
        payloads.append(payload)
    file.close()
    assert [payload.data_bytes for payload in payloads] == [MAX_PAYLOAD, MAX_PAYLOAD, 8 * BLOCK_SIZE]
    assert [payload.zero_bytes for payload in payloads] == [0, 0, 4 * BLOCK_SIZE]
    tables = [decode_blocks(b"".join(payload.pieces), {3: 44 * BLOCK_SIZE}).table for payload in payloads]
    assert [len(table) for table in tables] == [1, 1, 2]


def test_blocks_that_became_zeroes_are_sent_without_payload(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * SIZE + bytes(2 * SIZE) + b"y" * SIZE)
    file = RealFileSystem().open(str(path))
    payload = BlocksReader(file, 0, [Span(0, 4 * SIZE, False)], SIZE, ID, 1, False).next()
    file.close()
    assert payload is not None
    assert (payload.data_bytes, payload.zero_bytes) == (2 * SIZE, 2 * SIZE)
    table = decode_blocks(b"".join(payload.pieces), {0: 4 * SIZE}).table
    assert table["kind"].tolist() == [EntryKind.DATA, EntryKind.ZERO, EntryKind.DATA]


def test_a_block_that_cannot_be_read_is_named_and_never_equal(tmp_path: Path) -> None:
    """R24."""
    path = tmp_path / "disk"
    path.write_bytes(b"x" * SIZE)
    file = RealFileSystem().open(str(path))
    with pytest.raises(StorageError, match=f"bytes 0 to {2 * SIZE}") as caught:
        BlocksReader(file, 5, [Span(0, 2 * SIZE, False)], SIZE, ID, 1, False).next()
    file.close()
    assert "Disk 5" in caught.value.text
    assert caught.value.code == "block_unreadable"


class Full:
    """A disk without holes."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, False)


def pieces_of(size: int, settled: list[Run]) -> list[tuple[int, int]]:
    """Offset and length of what is compared of a full disk."""
    pieces = Pieces(cast(File, Full()), unsettled_runs(size, settled))
    return [(piece.offset, piece.length) for piece in iter(pieces.next, None)]


BLOCKS = st.integers(0, 5000).map(lambda number: number * BLOCK_SIZE)


@given(
    st.integers(1, 5000 * BLOCK_SIZE),
    st.lists(st.tuples(BLOCKS, BLOCKS).map(lambda pair: (min(pair), abs(pair[0] - pair[1]))), max_size=6),
)
def test_ranges_and_settled_runs_cover_the_disk_without_gap(size: int, runs: list[tuple[int, int]]) -> None:
    """R35: what is not settled is compared, each byte once."""
    settled = [Run(disk=0, offset=offset, length=length) for offset, length in runs]
    found = pieces_of(size, settled)
    assert all(0 < length <= RANGE_BYTES and offset % BLOCK_SIZE == 0 for offset, length in found)
    assert all(first + length <= second for (first, length), (second, _) in pairwise(found))
    trusted = [(offset, offset + length) for offset, length in runs if offset + length <= size]
    at = 0
    for offset, length in [*found, (size, 0)]:
        # What lies between two ranges was settled, wholly.
        while at < offset:
            end = max((end for start, end in trusted if start <= at < end), default=None)
            assert end is not None, f"byte {at} is neither settled nor compared"
            at = min(end, offset)
        at = offset + length


@pytest.mark.parametrize(
    "run",
    [
        Run(disk=0, offset=100, length=BLOCK_SIZE),
        Run(disk=0, offset=0, length=100),
        Run(disk=0, offset=0, length=4 * BLOCK_SIZE),
    ],
    ids=["unaligned offset", "unaligned end", "past the disk"],
)
def test_a_settled_run_that_is_no_run_of_blocks_is_compared_again(run: Run) -> None:
    assert pieces_of(2 * BLOCK_SIZE, [run]) == [(0, 2 * BLOCK_SIZE)]
