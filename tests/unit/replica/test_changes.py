"""Tests that planned writes have the same effect as the entries one by one, with fewer calls."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LogError
from protocol.hrl import Geometry, RecordHeader, decode_record_header
from replica_agent.changes import Write, data_ranges, gather, merge_ranges, plan_writes
from tests.unit.replica.logs import Change, Tap, random_changes, write, zero

DISKS = (Geometry(0, 64 << 10, b"a" * 16), Geometry(3, 32 << 10, b"b" * 16))
SIZES = {disk.index: disk.size for disk in DISKS}


def batches_of(data: bytes) -> list[tuple[int, RecordHeader]]:
    found, at = [], 0
    while at < len(data):
        header = decode_record_header(data, at)
        found.append((at, header))
        at += header.length
    return found


def planned(*batches: list[Change]) -> tuple[list[Write], dict[int, bytearray], Tap]:
    """The planned writes, the content that they make of empty disks, and the tap with the true content."""
    tap = Tap(DISKS)
    tap.open()
    data = b"".join(tap.batch(*changes) for changes in batches)
    writes = list(plan_writes(gather(batches_of(data), memoryview(data), SIZES)))
    content = {disk.index: bytearray(disk.size) for disk in DISKS}
    for disk, offset, length, pieces in writes:
        new = bytes(length) if pieces is None else b"".join(pieces)
        assert len(new) == length
        content[disk][offset : offset + length] = new
    return writes, content, tap


@given(st.integers(0, 1 << 32), st.integers(1, 6))
def test_effect_is_that_of_the_entries_in_order(seed: int, count: int) -> None:
    rng = random.Random(seed)
    _, content, tap = planned(*([*random_changes(rng, DISKS)] for _ in range(count)))
    assert content == tap.content


def test_neighbours_in_buffer_and_on_disk_are_one_piece() -> None:
    writes, _, _ = planned([write(0, 4096 * n, bytes([n]) * 4096) for n in range(8)])
    assert [(w.disk, w.offset, w.length) for w in writes] == [(0, 0, 8 * 4096)]
    assert writes[0].pieces is not None
    assert len(writes[0].pieces) == 1


def test_neighbours_on_disk_from_several_batches_are_one_write() -> None:
    writes, content, tap = planned(
        [write(0, 8192, b"c" * 4096)], [write(0, 4096, b"b" * 4096), write(0, 0, b"a" * 4096)]
    )
    assert [(w.disk, w.offset, w.length) for w in writes] == [(0, 0, 12288)]
    assert content == tap.content


def test_replaced_entries_are_not_written() -> None:
    writes, content, tap = planned(*([write(0, 4096, bytes([n]) * 4096)] for n in range(20)))
    assert len(writes) == 1
    assert content == tap.content


def test_zeroes_and_discards_are_joined_and_have_no_pieces() -> None:
    writes, _, _ = planned([zero(3, 0, 4096), zero(3, 4096, 8192, discard=True)])
    assert writes == [Write(3, 0, 12288, None)]


def test_overlap_keeps_the_order() -> None:
    writes, content, tap = planned([write(0, 4096, b"x" * 8192), write(0, 0, b"y" * 8192), zero(0, 6144, 512)])
    assert [w.offset for w in writes] == [4096, 0, 6144]
    assert content == tap.content


def test_no_batches_no_writes() -> None:
    assert list(plan_writes(gather([], memoryview(b""), SIZES))) == []


def test_entry_outside_its_disk_is_refused() -> None:
    tap = Tap((Geometry(0, 1 << 20, b"a" * 16),))
    tap.open()
    data = tap.batch(write(0, 60 << 10, b"x" * 8192))
    with pytest.raises(LogError, match="outside disk 0"):
        gather(batches_of(data), memoryview(data), SIZES)


def test_entry_of_an_unknown_disk_is_refused() -> None:
    tap = Tap((Geometry(7, 1 << 20, b"a" * 16),))
    tap.open()
    data = tap.batch(write(7, 0, b"x" * 512))
    with pytest.raises(LogError, match="disk 7"):
        gather(batches_of(data), memoryview(data), SIZES)


def test_payload_that_is_shifted_between_two_records_is_refused() -> None:
    """The sum over all batches fits, that of each one does not."""
    tap = Tap(DISKS)
    tap.open()
    first, second = tap.batch(write(0, 0, b"x" * 1024)), tap.batch(write(0, 4096, b"y" * 512))
    data = first + second
    batches = batches_of(data)
    (one, header_one), (two, header_two) = batches
    lying = [
        (one, dataclasses.replace(header_one, body_length=header_one.body_length - 512)),
        (two, dataclasses.replace(header_two, body_length=header_two.body_length + 512)),
    ]
    with pytest.raises(LogError, match="add up"):
        gather(lying, memoryview(data), SIZES)


def test_data_ranges_are_merged_for_each_disk() -> None:
    tap = Tap(DISKS)
    tap.open()
    data = tap.batch(
        write(0, 4096, b"x" * 4096), write(0, 0, b"x" * 4096), write(0, 16384, b"x" * 512), zero(0, 20480, 4096),
        write(3, 512, b"x" * 512),
    )  # fmt: skip
    ranges = data_ranges(gather(batches_of(data), memoryview(data), SIZES).table)
    assert {disk: rows.tolist() for disk, rows in ranges.items()} == {0: [[0, 8192], [16384, 16896]], 3: [[512, 1024]]}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12))
def test_merged_ranges_cover_the_same_bytes(ranges: list[tuple[int, int]]) -> None:
    import numpy as np

    rows = np.array([(start, start + length) for start, length in ranges], np.int64).reshape(-1, 2)
    merged = merge_ranges(rows).tolist()
    covered = {byte for start, length in ranges for byte in range(start, start + length)}
    assert {byte for start, end in merged for byte in range(start, end)} == covered
    assert all(before[1] < after[0] for before, after in itertools.pairwise(merged))
