"""What one side of a failover wrote of a VM that the other one has not: the report before a split brain is resolved."""

from __future__ import annotations

import msgspec

from shared.map_file import Range

RANGES_TOLD = 1000
"""Ranges of a disk that are told one by one."""


class DiskDifferences(msgspec.Struct, kw_only=True):
    """One disk: the bytes of all ranges, in blocks of 64 KiB, and the first of them as offset and length in bytes."""

    index: int
    path: str = ""
    bytes: int = 0
    range_count: int = 0
    ranges: list[Range] = []


class Differences(msgspec.Struct, kw_only=True):
    """The result of ``vm.differences``. ``common`` is the cut that both sides have, as far as this side knows it;
    ``reason`` says why whole disks may differ, and is empty where the ranges are all.
    """

    name: str
    uuid: str
    role: str
    common: str = ""
    reason: str = ""
    disks: list[DiskDifferences] = []


def disks_of(paths: dict[int, str], ranges: dict[int, list[Range]]) -> list[DiskDifferences]:
    """The report of each disk."""
    return [
        DiskDifferences(
            index=index,
            path=path,
            bytes=sum(length for _, length in ranges.get(index, ())),
            range_count=len(ranges.get(index, ())),
            ranges=ranges.get(index, [])[:RANGES_TOLD],
        )
        for index, path in sorted(paths.items())
    ]
