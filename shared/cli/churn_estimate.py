"""How much of a disk changes, before anything tracks it: its blocks are hashed twice, and those that differ counted.

It works on every image and block device, and needs nobody's help. It can't see that a block was written several times,
or with what it had already: where a guest writes the same places over and over, its log will be larger than told.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from shared.errors import StorageError, UsageError

BLOCK = 64 << 10
PIECE = 64 * BLOCK
"""What is read at a time."""
SAMPLE_BYTES = 16 << 30
"""Of a disk that has more than this to read, a sample of so much is read."""
INTERVALS = (30.0, 300.0, 900.0)
HEADROOM = 1.5
"""A link that is only just fast enough on average never catches up."""
OUTAGE_SECONDS = 8 * 3600.0
"""A log should last for so long without the link: a night."""
LOG_LEAST = 1 << 30

if TYPE_CHECKING:
    Offsets = np.ndarray[tuple[int], np.dtype[np.int64]]
    Digests = np.ndarray[tuple[int], np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What two readings found. Sizes in bytes; ``seconds`` lie between the two readings of a block."""

    path: str
    size: int
    read: int
    """Bytes that were compared,"""
    scanned: int
    """of so many that are not holes."""
    changed: int
    """Bytes of the blocks that differed, projected from the sample to all where it is one."""
    grown: int
    """Bytes of blocks that were holes before."""
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return (self.changed + self.grown) / self.seconds

    @property
    def log_limit(self) -> int:
        """A limit of the log that lasts for OUTAGE_SECONDS, a whole number of GiB."""
        needed = max(LOG_LEAST, HEADROOM * OUTAGE_SECONDS * self.bytes_per_second)
        return -(-int(needed) // LOG_LEAST) * LOG_LEAST


def estimate(path: str, seconds: float, tell: Callable[[str], None] = lambda _text: None) -> Estimate:
    """Read ``path`` twice, from one beginning to the other at least ``seconds``. Changes nothing.

    Raises UsageError for what is no disk, StorageError where it can't be read.
    """
    if seconds <= 0:
        raise UsageError("--for needs a time.", "Give at least a few seconds, e.g. --for 60s.")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(
            f"{path} can't be read: {error.strerror}.", "Name a disk, as a user who may read it."
        ) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{path} is neither a file nor a block device.", "Name a VM's raw disk.")
        return _estimate(path, descriptor, seconds, tell)
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}.", "Look at the disk.") from None
    finally:
        os.close(descriptor)


def _estimate(path: str, descriptor: int, seconds: float, tell: Callable[[str], None]) -> Estimate:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    pieces = _pieces(descriptor, size)
    scanned = _bytes_of(pieces, size)
    chosen = pieces
    if scanned > SAMPLE_BYTES:
        # Whoever writes does not know which are looked at.
        rng = np.random.default_rng()
        chosen = np.sort(rng.choice(pieces, SAMPLE_BYTES // PIECE, replace=False))
    read = _bytes_of(chosen, size)
    tell(f"reading {read >> 20} MiB")
    began = time.monotonic()
    before = [_digests(descriptor, int(offset), size) for offset in chosen]
    while (left := began + seconds - time.monotonic()) > 0:
        tell(f"waiting {left:.0f} s")
        time.sleep(min(left, 1.0))
    again = time.monotonic()
    tell(f"reading {read >> 20} MiB again")
    changed = 0
    for offset, digests in zip(chosen, before, strict=True):
        changed += BLOCK * int(np.count_nonzero(_digests(descriptor, int(offset), size) != digests))
    grown = _bytes_of(np.setdiff1d(_pieces(descriptor, size), pieces), size)
    projected = int(changed * (scanned / read)) if read else 0
    return Estimate(path, size, read, scanned, projected, grown, again - began)


def _bytes_of(pieces: Offsets, size: int) -> int:
    """The bytes of pieces at these offsets; the disk's last one may be shorter."""
    return int(np.minimum(PIECE, size - pieces).sum())


def _pieces(descriptor: int, size: int) -> Offsets:
    """The offsets of the pieces of the disk that are not wholly holes, in order."""
    found = [np.zeros(0, np.int64)]
    offset = 0
    while offset < size:
        try:
            data = os.lseek(descriptor, offset, os.SEEK_DATA)
            end = min(os.lseek(descriptor, data, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                # Nothing but a hole is left.
                break
            # A block device, or a file system that does not tell holes.
            data, end = offset, size
        found.append(np.arange(data - data % PIECE, end, PIECE, dtype=np.int64))
        offset = max(end, offset + 1)
    return np.unique(np.concatenate(found))


def _digests(descriptor: int, offset: int, size: int) -> Digests:
    """A hash of each block of a piece; what was read leaves the page cache, where it is in the way of others."""
    length = min(PIECE, size - offset)
    data = memoryview(os.pread(descriptor, length, offset))
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
    return np.array([xxhash.xxh3_64_intdigest(data[at : at + BLOCK]) for at in range(0, length, BLOCK)], np.uint64)
