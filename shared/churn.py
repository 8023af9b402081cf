"""Which regions of a VM's disks are written most: counted from the log as it is streamed, in bounded memory.

A disk is divided into at most ``REGIONS`` regions of the same size, and each has a count that halves every
``HALF_LIFE_SECONDS``: what is written now outweighs what was. Only written data counts, which is what crosses the
wire; zeroes and discards do not. Time is an argument, in monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from protocol.entries import ENTRY_BYTES, ENTRY_DTYPE
from protocol.hrl import RECORD_HEADER_BYTES, RecordKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.bulk import LogRecord

REGIONS = 1024
REGION_LEAST = 64 << 20
HALF_LIFE_SECONDS = 3600.0
DAY_SECONDS = 86400.0


class RegionChurn(msgspec.Struct, kw_only=True):
    """A run of a disk, in bytes, and how many of its bytes are written in a second."""

    offset: int
    length: int
    bytes_per_second: float


class DiskChurn(msgspec.Struct, kw_only=True):
    """One disk: ``regions`` are those that are written most, the busiest first."""

    index: int
    path: str = ""
    size_bytes: int = 0
    region_bytes: int = 0
    bytes_per_second: float = 0.0
    written_regions: int = 0
    """Regions that were written at all since it is counted."""
    regions: list[RegionChurn] = []


class ChurnReport(msgspec.Struct, kw_only=True):
    """The answer of ``vm.churn``: rates in bytes of written data as the log has it."""

    name: str
    uuid: str
    monitoring_bytes_per_second: float | None = None
    """Of the cuts that the replica acknowledged in the monitoring interval; None before the first."""
    bytes_per_second: float = 0.0
    """Of late: what was written an hour ago counts half."""
    bytes_per_day: float = 0.0
    """If it goes on as it did in the monitoring interval, or as of late where that is not known."""
    counted_seconds: float = 0.0
    """For how long the regions have been counted: since the agent started."""
    disks: list[DiskChurn] = []


def region_bytes(size: int) -> int:
    """The size of a region of a disk of ``size`` bytes: a power of two, and no more than REGIONS of them."""
    region = REGION_LEAST
    while region * REGIONS < size:
        region *= 2
    return region


def written_by(records: Sequence[LogRecord], after: int = 0) -> NDArray[Any]:
    """Disk, offset and bytes of all data that verified records have, from entry number ``after`` on."""
    tables = []
    for each in records:
        header = each.header
        if header.kind is RecordKind.BATCH and header.entry >= after:
            tables.append(each.record[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + header.count * ENTRY_BYTES])
    return np.frombuffer(b"".join(tables), ENTRY_DTYPE)


@dataclass(slots=True)
class _Disk:
    size: int
    region: int
    counts: NDArray[Any]


@dataclass(slots=True)
class ChurnCounter:
    """Counts for one VM. ``note`` costs a few microseconds for a table of any length."""

    began: float
    streamed_bytes: int = 0
    """Bytes of log read for streaming so far; never less."""
    _disks: dict[int, _Disk] = field(default_factory=dict)
    _decayed: float = 0.0
    """When the counts were last brought down."""
    _epoch: bytes = b""
    _entry: int = 0

    def __post_init__(self) -> None:
        self._decayed = self.began

    def next_entry(self, epoch: bytes) -> int:
        """The first entry of ``epoch`` that is not counted yet: what is read again after a lost link counts once."""
        return self._entry if epoch == self._epoch else 0

    def note(self, table: NDArray[Any], sizes: Mapping[int, int], epoch: bytes, entry: int, now: float) -> None:
        """Count a table of :func:`written_by` whose records end before entry number ``entry`` of ``epoch``.

        A write belongs to the region in which it begins. ``sizes`` are those of the disks, in bytes.
        """
        if epoch != self._epoch:
            self._epoch, self._entry = epoch, 0
        self._entry = max(self._entry, entry)
        if not len(table):
            return
        self._decay(now)
        for index, size in sizes.items():
            mine = table if len(sizes) == 1 else table[table["disk"] == index]
            if not len(mine):
                continue
            disk = self._disk(index, size)
            regions = (mine["offset"] // disk.region).astype(np.int64)
            disk.counts += np.bincount(
                np.minimum(regions, len(disk.counts) - 1), weights=mine["payload"], minlength=len(disk.counts)
            )

    def _disk(self, index: int, size: int) -> _Disk:
        disk = self._disks.get(index)
        if disk is None or disk.size != size:
            region = region_bytes(size)
            counts = np.zeros(max(1, -(-size // region)))
            if disk is not None and disk.region == region:
                kept = min(len(counts), len(disk.counts))
                counts[:kept] = disk.counts[:kept]
            disk = self._disks[index] = _Disk(size, region, counts)
        return disk

    def _decay(self, now: float) -> None:
        """Bring all counts down to ``now``; a few seconds make no difference worth the work."""
        passed = now - self._decayed
        if passed < HALF_LIFE_SECONDS / 1000:
            return
        for disk in self._disks.values():
            disk.counts *= 0.5 ** (passed / HALF_LIFE_SECONDS)
        self._decayed = now

    def disks(self, now: float, top: int) -> list[DiskChurn]:
        """The rates of each disk and of its ``top`` busiest regions."""
        self._decay(now)
        seconds = _weighted_seconds(now - self.began)
        found = []
        for index, disk in sorted(self._disks.items()):
            busiest = np.argsort(-disk.counts, kind="stable")[:top].tolist()
            regions = [
                RegionChurn(
                    offset=at * disk.region,
                    length=min(disk.region, disk.size - at * disk.region),
                    bytes_per_second=float(disk.counts[at]) / seconds,
                )
                for at in busiest
                if disk.counts[at] > 0
            ]
            found.append(
                DiskChurn(
                    index=index,
                    size_bytes=disk.size,
                    region_bytes=disk.region,
                    bytes_per_second=float(disk.counts.sum()) / seconds,
                    written_regions=int(np.count_nonzero(disk.counts)),
                    regions=regions,
                )
            )
        return found


def _weighted_seconds(seconds: float) -> float:
    """So many seconds of a steady rate make up what is left of the counts of the last ``seconds``."""
    constant = HALF_LIFE_SECONDS / math.log(2)
    return constant * (1 - math.exp(-max(seconds, 1.0) / constant))
