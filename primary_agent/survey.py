"""What of a resync's scope is no hole, and a sample of it that is read and hashed to measure how fast that goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from primary_agent.record import DiskRecord
from shared.disks.hashing import RangeHasher
from shared.map_file import Range
from shared.ports import FileSystem

SAMPLE_BYTES = 64 << 20
SAMPLE_CHUNK = 1 << 20
EXTENTS_KEPT = 4096
"""More extents than that are thinned: a sample needs no more, and a disk may have millions of them."""


@dataclass(slots=True)
class Survey:
    """What lies in a scope: its bytes, and those of them that are no holes."""

    scope_bytes: int = 0
    read_bytes: int = 0
    extents: list[tuple[str, Range]] = field(default_factory=list)
    """Path and range of those that are no holes, in order; evenly thinned where there are very many."""
    _step: int = 1
    _seen: int = 0

    def add(self, path: str, extent: Range) -> None:
        """Take in one more extent that is no hole."""
        self.read_bytes += extent[1]
        if self._seen % self._step == 0:
            self.extents.append((path, extent))
            if len(self.extents) > EXTENTS_KEPT:
                del self.extents[1::2]
                self._step *= 2
        self._seen += 1

    @property
    def thinned(self) -> bool:
        """Whether extents were left out."""
        return self._step > 1

    def pieces(self, wanted: int = SAMPLE_BYTES) -> Iterator[tuple[str, Range]]:
        """Chunks spread evenly over what is no hole, together at most about ``wanted`` bytes."""
        kept = sum(length for _, (_, length) in self.extents)
        stride = max(SAMPLE_CHUNK, -(-kept * SAMPLE_CHUNK // max(wanted, 1)))
        seen, due = 0, 0
        for path, (offset, length) in self.extents:
            while due < seen + length:
                at = due - seen
                yield path, (offset + at, min(SAMPLE_CHUNK, length - at))
                due += stride
            seen += length


def survey(files: FileSystem, disks: Sequence[DiskRecord], scope: dict[int, list[Range]]) -> Survey:
    """Look up what of the scope is no hole. Blocks. Raises OSError or StorageError."""
    found = Survey()
    for disk in disks:
        file = files.open_disk(disk.path)
        try:
            for offset, length in scope[disk.index]:
                found.scope_bytes += length
                for extent in file.extents(offset, length):
                    if not extent.hole:
                        found.add(disk.path, (extent.offset, extent.length))
        finally:
            file.close()
    return found


def hash_sample(files: FileSystem, found: Survey, hasher: RangeHasher) -> int:
    """Read and hash a sample as the compare does; the bytes of it. Blocks. Raises OSError or StorageError."""
    count = 0
    for path, (offset, length) in found.pieces():
        file = files.open_disk(path)
        try:
            hasher.hash_range(file, offset, length)
        finally:
            file.close()
        count += length
    return count
