"""What the replica answers to a resync's questions: tags of ranges, of smaller blocks in them, and where data is.

What can't be read never counts as equal (R24): it gets tags that no block has, so that it is sent and written anew.
All methods block and belong into a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.bulk import Detail, Manifest, block_count, encode_detail, encode_manifest, group_count, unpack_flags
from protocol.messages import DETAIL_BYTES, GROUP_BLOCKS, DetailRequest, Holes, HolesRequest, ManifestRequest, Run
from replica_agent.differencing import DifferencingFile
from replica_agent.disks import BaseDisks
from replica_agent.overlay import UnknownBlocksError
from shared.disks.hashing import DIGEST_BYTES, TAG_BYTES, RangeHasher
from shared.ports import Buffer, Random, ReadableFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_HOLES = 128
"""Runs of data that one answer about holes names at most."""
SHORT_HOLE = 16 << 20
"""A hole between two runs of data that is shorter is not told apart from them, in bytes."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers with the key of one session; ``unreadable`` takes the ranges that could not be read, in words."""

    random: Random
    disks: BaseDisks
    differences: DifferencingFile
    """Read through: what was received and would be merged is compared as well."""
    hasher: RangeHasher
    block_size: int
    reread: bool
    """What can be read of the disks is not to be trusted: every block is told to differ."""
    unreadable: list[str]

    def _file(self, disk: int) -> ReadableFile:
        return self.differences.over(disk, self.disks.file(disk))

    def manifest(self, request: ManifestRequest) -> list[Buffer]:
        """Hash the range of the newest point. Blocks. A group of blocks that can't be read is told to differ (R24): it
        is sent and written anew, which is what a disk with a bad sector needs.
        """
        file, hasher = self._file(request.disk), self.hasher
        try:
            if self.reread:
                raise OSError("the disk is not trusted")
            holes, tags = hasher.hash_range(file, request.offset, request.length)
        except OSError as error:
            holes, tags = self._hash_groups(request, error)
        count = len(holes)
        equal = np.zeros(group_count(count), bool)
        if request.digests:
            digests = hasher.digests(hasher.filled(holes, tags, request.length), GROUP_BLOCKS)
            theirs, ours = (
                np.frombuffer(each, np.uint8).reshape(-1, DIGEST_BYTES) for each in (request.digests, digests)
            )
            equal = (theirs == ours).all(axis=1)
        left_out = np.repeat(equal, GROUP_BLOCKS)[:count]
        return encode_manifest(
            Manifest(
                request.id,
                request.key_id,
                request.round,
                request.disk,
                self.block_size,
                request.offset,
                request.length,
                holes | left_out,
                tags[~left_out[~holes]],
                equal,
            )
        )

    def _hash_groups(self, request: ManifestRequest, error: OSError) -> tuple[NDArray[Any], NDArray[Any]]:
        """Hash a range group by group after an ``error``: one that can't be read has tags that no block has."""
        file, step = self._file(request.disk), GROUP_BLOCKS * self.block_size
        parts = []
        for at in range(0, request.length, step):
            offset, length = request.offset + at, min(step, request.length - at)
            try:
                if self.reread:
                    raise error
                parts.append(self.hasher.hash_range(file, offset, length))
            except OSError as problem:
                self._note_unreadable(request.disk, offset, length, problem)
                count = block_count(length, self.block_size)
                parts.append((np.zeros(count, bool), self._random_tags(count)))
        holes, tags = zip(*parts, strict=True)
        return np.concatenate(holes), np.concatenate(tags)

    def _note_unreadable(self, disk: int, offset: int, length: int, error: OSError) -> None:
        if not self.reread and not isinstance(error, UnknownBlocksError):
            self.unreadable.append(f"{length} bytes at {offset} of disk {disk}: {error}")

    def _random_tags(self, count: int) -> NDArray[Any]:
        return np.frombuffer(self.random.bytes(TAG_BYTES * count), np.uint8).reshape(count, TAG_BYTES)

    def detail(self, request: DetailRequest) -> list[Buffer]:
        """Hash the smaller blocks of what was asked about. Blocks. What can't be read is told to differ (R24)."""
        file, ranges = self._file(request.disk), asked_blocks(request, self.block_size)
        try:
            if self.reread:
                raise OSError("the disk is not trusted")
            tags = self.hasher.detail(file, ranges, DETAIL_BYTES)
        except OSError:
            tags = self._detail_one_by_one(file, request.disk, ranges)
        return encode_detail(
            Detail(
                request.id,
                request.key_id,
                request.round,
                request.disk,
                request.offset,
                request.length,
                tags,
            )
        )

    def _detail_one_by_one(self, file: ReadableFile, disk: int, ranges: list[tuple[int, int]]) -> NDArray[Any]:
        """Each of the ranges by itself after an error: one that can't be read has tags that no block has."""
        parts = []
        for offset, length in ranges:
            try:
                if self.reread:
                    raise OSError("the disk is not trusted")
                parts.append(self.hasher.detail(file, [(offset, length)], DETAIL_BYTES))
            except OSError as error:
                self._note_unreadable(disk, offset, length, error)
                parts.append(self._random_tags(-(-length // DETAIL_BYTES)))
        return np.concatenate(parts)

    def holes(self, request: HolesRequest) -> Holes:
        """Where the range is no hole, up to MAX_HOLES runs; short holes between two count as data. Blocks."""
        start, end, size = request.offset, request.offset + request.length, self.block_size
        data: list[list[int]] = []
        through = end
        try:
            if self.reread:
                raise OSError("the disk is not trusted")
            for extent in self._file(request.disk).extents(start, request.length):
                if extent.hole:
                    continue
                first = extent.offset // size * size
                stop = min(-(-(extent.offset + extent.length) // size) * size, end)
                if data and first - data[-1][1] < SHORT_HOLE:
                    data[-1][1] = stop
                elif len(data) == MAX_HOLES:
                    through = first
                    break
                else:
                    data.append([first, stop])
        except OSError:
            # Comparing the range tells what can't be read.
            data, through = [[start, end]], end
        return Holes(
            id=request.id,
            round=request.round,
            key_id=request.key_id,
            disk=request.disk,
            offset=start,
            length=through - start,
            data=[Run(disk=request.disk, offset=first, length=stop - first) for first, stop in data],
        )


def asked_blocks(request: DetailRequest, block_size: int) -> list[tuple[int, int]]:
    """Offset and length of the blocks that are asked about. Raises ProtocolError."""
    flags = unpack_flags(request.blocks, block_count(request.length, block_size), "DETAIL_REQUEST")
    return [
        (request.offset + at, min(block_size, request.length - at))
        for at in (np.flatnonzero(flags) * block_size).tolist()
    ]
