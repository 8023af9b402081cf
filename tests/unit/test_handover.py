"""What goes with a VM from one agent of its host to the other: ranges that lose nothing, whoever made them."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.hrl import Geometry
from shared import handover
from shared.errors import UsageError
from shared.handover import HandOver, decode_ranges, digest, encode_ranges, read_map, total, union, write_map
from shared.handover_parts import HandOverParts
from shared.map_file import Range
from shared.ports.file_system import RealFileSystem
from tests.connected import Connected

BLOCK = 64 << 10
SIZES = {0: 100 * BLOCK, 3: 40 * BLOCK + 512}
DISKS = [Geometry(index, size, bytes([index]) * 16) for index, size in SIZES.items()]
VM = bytes(range(16))

blocks = st.dictionaries(st.sampled_from(list(SIZES)), st.sets(st.integers(0, 39), max_size=30), max_size=2)


def ranges_of(chosen: dict[int, set[int]]) -> dict[int, list[Range]]:
    return {disk: [(number * BLOCK, BLOCK) for number in sorted(numbers)] for disk, numbers in chosen.items()}


def covered(ranges: dict[int, list[Range]]) -> set[tuple[int, int]]:
    return {
        (disk, at // BLOCK)
        for disk, found in ranges.items()
        for offset, length in found
        for at in range(offset, offset + length, BLOCK)
    }


@given(blocks, blocks)
def test_ranges_come_back_and_unions_have_both(first: dict[int, set[int]], second: dict[int, set[int]]) -> None:
    ours, theirs = ranges_of(first), ranges_of(second)
    assert covered(decode_ranges(encode_ranges(ours), DISKS)) == covered(ours)
    both = union(ours, theirs)
    assert covered(both) == covered(ours) | covered(theirs)
    assert total(both) == BLOCK * len(covered(both)), "no byte twice"


@settings(max_examples=25)
@given(blocks)
def test_too_many_ranges_name_more_and_never_less(chosen: dict[int, set[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "RANGES_MAX", 4)
        found = decode_ranges(encode_ranges(ranges_of(chosen)), DISKS)
    assert covered(found) >= covered(ranges_of(chosen))
    assert sum(map(len, found.values())) <= 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no zlib",
        zlib.compress(b"short"),
        zlib.compress(bytes(18)),
        zlib.compress((7).to_bytes(2, "little") + bytes(8) + (512).to_bytes(8, "little")),
        zlib.compress(bytes(2) + SIZES[0].to_bytes(8, "little") + (512).to_bytes(8, "little")),
        encode_ranges({0: [(0, BLOCK)]})[:-1],
    ],
    ids=["empty", "garbage", "length", "no length", "no such disk", "behind the end", "cut off"],
)
def test_what_are_no_ranges_of_these_disks_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="not valid"):
        decode_ranges(data, DISKS)


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(UsageError, match="length is not possible"):
        decode_ranges(zlib.compress(bytes(handover.PLAIN_MAX + 18)), DISKS)


def test_ranges_are_kept_as_a_map(tmp_path: object) -> None:
    path = f"{tmp_path}/doubt.map"
    ranges = {0: [(BLOCK, 2 * BLOCK)], 3: [(40 * BLOCK, 512)]}
    write_map(RealFileSystem(), path, VM, DISKS, ranges)
    assert read_map(RealFileSystem(), path, VM, DISKS) == ranges


def test_parts_of_another_or_torn_hand_over_are_not_taken() -> None:
    data = encode_ranges({0: [(0, BLOCK)]})
    handed = HandOver(
        id="0" * 32,
        vm=VM.hex(),
        name="web",
        to="replica",
        disks=[handover.HandedDisk(index=0, uuid="1" * 32, path="/d", size=SIZES[0], export="disk0")],
        epoch="2" * 32,
        ranges_bytes=len(data),
        ranges_digest=digest(data),
    )
    parts, command = HandOverParts(), client()
    parts.add(command, handed.vm, 0, data[:5])
    parts.add(command, handed.vm, 5, data[5:])
    assert parts.take(command, handed) == data
    with pytest.raises(UsageError, match="not here wholly"):
        parts.take(command, handed)
    parts.add(command, handed.vm, 0, data[:5])
    with pytest.raises(UsageError, match="does not follow"):
        parts.add(command, handed.vm, 6, data[6:])
    with pytest.raises(UsageError, match="does not follow"):
        parts.add(command, "another", 5, data[5:])
    parts.add(command, handed.vm, 5, bytes(len(data) - 5))
    with pytest.raises(UsageError, match="not here wholly"):
        parts.take(command, handed)


def client() -> Any:
    return Connected()
