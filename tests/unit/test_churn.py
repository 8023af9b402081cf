"""Which regions are written most: counted from real records, in bounded memory, decaying, and each write once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from protocol.bulk import LogRecord
from protocol.entries import MAX_DISK_BYTES, EntryKind, encode_entry
from protocol.hrl import RecordKind, chain_seed, decode_record_header, encode_record
from shared.churn import HALF_LIFE_SECONDS, REGION_LEAST, REGIONS, ChurnCounter, region_bytes, written_by

VM, EPOCH, OTHER = bytes(16), bytes(range(16)), bytes(range(16, 32))
KIB, GIB = 1 << 10, 1 << 30
SIZES = {0: 10 * GIB, 3: GIB}

Write = tuple[int, EntryKind, int, int]
"""Disk, kind, offset, length."""


def batch(entry: int, *writes: Write) -> LogRecord:
    """One batch record with these writes, the first of which is entry number ``entry``."""
    table = b"".join(encode_entry(*write) for write in writes)
    payload = bytes(sum(length for _, kind, _, length in writes if kind is EntryKind.DATA))
    seed = chain_seed(VM, EPOCH)
    header, _ = encode_record(RecordKind.BATCH, EPOCH, 1, entry, 0, seed, [table, payload], len(writes))
    record = memoryview(header + table + payload)
    return LogRecord(decode_record_header(record), record)


def data(disk: int, offset: int, length: int = 4 * KIB) -> Write:
    return (disk, EntryKind.DATA, offset, length)


def note(counter: ChurnCounter, records: Sequence[LogRecord], now: float = 0.0, epoch: bytes = EPOCH) -> None:
    """As the sender does with a group of runs."""
    table = written_by(records, counter.next_entry(epoch))
    counter.note(table, SIZES, epoch, records[-1].header.next_entry, now)


def test_written_bytes_belong_to_the_region_in_which_they_begin() -> None:
    counter = ChurnCounter(0.0)
    hot = 5 * REGION_LEAST
    note(counter, [batch(0, data(0, hot), data(0, hot + KIB)), batch(2, data(3, 0), data(0, 0))])
    disk, other = counter.disks(3600.0, top=2)
    assert [(region.offset, region.length) for region in disk.regions] == [(hot, REGION_LEAST), (0, REGION_LEAST)]
    assert disk.regions[0].bytes_per_second == pytest.approx(2 * disk.regions[1].bytes_per_second)
    assert (disk.index, disk.written_regions, disk.size_bytes) == (0, 2, 10 * GIB)
    assert (other.index, other.written_regions) == (3, 1)


def test_zeroes_and_discards_do_not_cross_the_wire_and_do_not_count() -> None:
    counter = ChurnCounter(0.0)
    note(counter, [batch(0, (0, EntryKind.ZERO, 0, GIB), (0, EntryKind.DISCARD, 0, GIB), data(0, 0))])
    (disk, *_) = counter.disks(1.0, top=1)
    assert disk.bytes_per_second == pytest.approx(4 * KIB, rel=0.01)


def test_what_is_read_again_after_a_lost_link_counts_once() -> None:
    counter = ChurnCounter(0.0)
    records = [batch(0, data(0, 0)), batch(1, data(0, 0))]
    note(counter, records)
    once = counter.disks(10.0, top=1)[0].bytes_per_second
    note(counter, [*records, batch(2, data(0, 0))], now=10.0)
    assert counter.disks(10.0, top=1)[0].bytes_per_second == pytest.approx(1.5 * once, rel=0.01)
    # Another epoch's entries begin anew.
    assert counter.next_entry(OTHER) == 0


def test_a_steady_rate_is_told_as_it_is_and_an_old_one_fades() -> None:
    counter = ChurnCounter(0.0)
    for minute in range(180):
        note(counter, [batch(minute, data(0, 0, 60 * KIB))], now=60.0 * minute)
    now = 180 * 60.0
    assert counter.disks(now, top=1)[0].bytes_per_second == pytest.approx(KIB, rel=0.02)
    later = counter.disks(now + HALF_LIFE_SECONDS, top=1)[0].bytes_per_second
    assert later == pytest.approx(KIB / 2, rel=0.1)


@pytest.mark.parametrize("size", [512, REGION_LEAST, REGION_LEAST + 1, 10 * GIB, MAX_DISK_BYTES])
def test_memory_is_bounded_whatever_the_size_of_the_disk(size: int) -> None:
    region = region_bytes(size)
    assert region >= REGION_LEAST and region & (region - 1) == 0
    assert -(-size // region) <= REGIONS
    counter = ChurnCounter(0.0)
    last = (size - 1) // 512 * 512
    counter.note(written_by([batch(0, data(0, last, 512))]), {0: size}, EPOCH, 1, 0.0)
    (disk,) = counter.disks(1.0, top=REGIONS)
    (found,) = disk.regions
    assert found.offset <= last < found.offset + found.length <= size


def test_a_disk_that_grew_keeps_its_counts() -> None:
    counter = ChurnCounter(0.0)
    note(counter, [batch(0, data(3, 0))])
    counter.note(written_by([batch(1, data(3, GIB))]), {3: 2 * GIB}, EPOCH, 2, 0.0)
    (disk,) = counter.disks(1.0, top=REGIONS)
    assert [region.offset for region in disk.regions] == [0, GIB]
