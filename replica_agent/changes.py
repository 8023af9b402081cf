"""From the batches of a log to the fewest writes that have the same effect on the disks.

Pure computation on numpy tables: no entry becomes an object of its own. The order of entries matters only where they
overlap. So a run of batches is first freed of entries that a later one replaces exactly; if what is left has no
overlaps, it is sorted by offset, and neighbours are written with one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from protocol.entries import ENTRY_BYTES, ENTRY_DTYPE, EntryKind, decode_table
from protocol.errors import LogError
from protocol.hrl import RECORD_HEADER_BYTES, RecordHeader

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Write(NamedTuple):
    """One change of one disk; ``pieces`` are the bytes in order, None where the range becomes zeroes."""

    disk: int
    offset: int
    length: int
    pieces: list[memoryview] | None


@dataclass(frozen=True, slots=True)
class Changes:
    """The entries of some batches in order: ``table`` of ENTRY_DTYPE, ``at`` where each one's payload begins in
    ``buffer``.
    """

    table: NDArray[Any]
    at: NDArray[np.int64]
    buffer: memoryview

    @property
    def data_bytes(self) -> int:
        """Payload bytes of all entries."""
        return int(self.table["payload"].sum(dtype=np.int64))


def gather(
    batches: Sequence[tuple[int, RecordHeader]], buffer: memoryview, sizes: dict[int, int], *, at: int = 0
) -> Changes:
    """The entries of ``batches``, given as offset in ``buffer`` and header, validated against the disks' ``sizes``.

    Raises LogError with the reasons of :func:`protocol.entries.decode_table`; ``at`` is where the buffer lies in its
    file.
    """
    if not batches:
        return Changes(np.empty(0, ENTRY_DTYPE), np.empty(0, np.int64), buffer)
    tables = b"".join(
        [
            buffer[offset + RECORD_HEADER_BYTES : offset + RECORD_HEADER_BYTES + header.count * ENTRY_BYTES]
            for offset, header in batches
        ]
    )
    counts = np.array([header.count for _, header in batches], np.int64)
    payloads = np.array([header.body_length for _, header in batches], np.int64) - counts * ENTRY_BYTES
    table = decode_table(tables, int(counts.sum()), len(tables) + int(payloads.sum()), sizes, at=at + batches[0][0])
    payload = table["payload"].astype(np.int64)
    firsts = np.cumsum(counts) - counts
    wrong = np.flatnonzero(np.add.reduceat(payload, firsts) != payloads)
    if wrong.size:
        raise LogError(
            at + batches[int(wrong[0])][0], "entry-count", "the entries' payloads do not add up to the record's body"
        )
    before = np.cumsum(payload) - payload
    starts = np.array([offset for offset, _ in batches], np.int64) + RECORD_HEADER_BYTES + counts * ENTRY_BYTES
    return Changes(table, before + np.repeat(starts - before[firsts], counts), buffer)


def plan_writes(changes: Changes) -> Iterator[Write]:
    """The writes that bring the disks to where ``changes`` lead, disk by disk, to be done in this order."""
    disks = changes.table["disk"]
    for disk in np.unique(disks).tolist():
        rows = np.flatnonzero(disks == disk)
        yield from _plan_disk(disk, changes.table[rows], changes.at[rows], changes.buffer)


def _plan_disk(disk: int, table: NDArray[Any], at: NDArray[np.int64], buffer: memoryview) -> Iterator[Write]:
    order = _order(table["offset"].astype(np.int64), table["length"].astype(np.int64))
    offset = table["offset"].astype(np.int64)[order]
    length = table["length"].astype(np.int64)[order]
    zero = (table["kind"] != EntryKind.DATA)[order]
    at = at[order]
    follows = (offset[1:] == offset[:-1] + length[:-1]) & (zero[1:] == zero[:-1])
    same_piece = follows & (zero[1:] | (at[1:] == at[:-1] + length[:-1]))
    first = np.flatnonzero(np.concatenate(([True], ~same_piece)))
    begins = np.concatenate(([True], ~follows))[first]
    lengths = np.add.reduceat(length, first)
    run_start, run_length, pieces = 0, 0, None
    for begin, start, size, is_zero, position in zip(
        begins.tolist(), offset[first].tolist(), lengths.tolist(), zero[first].tolist(), at[first].tolist(), strict=True
    ):
        if begin:
            if run_length:
                yield Write(disk, run_start, run_length, pieces)
            run_start, run_length = start, size
            pieces = None if is_zero else [buffer[position : position + size]]
        else:
            run_length += size
            if pieces is not None:
                pieces.append(buffer[position : position + size])
    yield Write(disk, run_start, run_length, pieces)


def _order(offset: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.intp]:
    """Which entries to write, in which order: by offset where nothing overlaps, else as they came."""
    order = np.lexsort((length, offset))
    ordered_offset, ordered_length = offset[order], length[order]
    replaced = (ordered_offset[:-1] == ordered_offset[1:]) & (ordered_length[:-1] == ordered_length[1:])
    order = order[np.concatenate((~replaced, [True]))]
    starts = offset[order]
    ends = np.maximum.accumulate(starts + length[order])
    if (starts[1:] < ends[:-1]).any():
        return np.sort(order)
    return order


def data_ranges(table: NDArray[Any]) -> dict[int, NDArray[np.int64]]:
    """For each disk the ranges that data entries of a table write, merged: rows of (offset, end), in order."""
    return table_ranges(table[table["kind"] == EntryKind.DATA])


def table_ranges(table: NDArray[Any]) -> dict[int, NDArray[np.int64]]:
    """For each disk the ranges of all entries of a table, merged: rows of (offset, end), in order."""
    found = {}
    for disk in np.unique(table["disk"]).tolist():
        rows = table[table["disk"] == disk]
        starts = rows["offset"].astype(np.int64)
        found[disk] = merge_ranges(np.stack((starts, starts + rows["length"].astype(np.int64)), axis=1))
    return found


def merge_ranges(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of (offset, end) in any order, as the fewest rows in ascending order; touching ones become one."""
    if len(ranges) == 0:
        return ranges
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ranges[:, 1])
    first = np.flatnonzero(np.concatenate(([True], ranges[1:, 0] > ends[:-1])))
    last = np.concatenate((first[1:] - 1, [len(ranges) - 1]))
    return np.stack((ranges[first, 0], ends[last]), axis=1)
