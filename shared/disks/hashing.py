"""Hashes a range of a disk block by block under a session's key: what manifests are made of.

The hash is AES-GMAC with a key that no guest ever sees (I15): a universal hash, sound for telling whether two blocks
are equal in one session, whatever bytes a guest chose. It is no fingerprint: tags are compared within the session of
their key and never kept. All blocks use one nonce, since tags are compared, not authenticated: equal blocks must have
equal tags, and whoever sees the tags is inside the session and has the key as well.

A digest over the tags of a group of blocks tells in few bytes that all of them are equal. It is keyed BLAKE2b, so it is
as sound as the tags: holes count in it as the zeroes that they read as.

Where the processor has no instructions for AES, keyed BLAKE2b does the same four times faster than AES in software.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.ports import ReadableFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

HASH_NAME = "aes-256-gmac"
BLAKE2B = "blake2b-128"
HASH_NAMES = (HASH_NAME, BLAKE2B)
KEY_BYTES = 32
TAG_BYTES = 16
READ_BYTES = 256 << 10
"""Read at a time: what is hashed is still in the processor's own cache."""
DIGEST_BYTES = 16
_DIGEST_USE = b"vmreplica group"
_NONCE = bytes(12)

CPU_INFO = Path("/proc/cpuinfo")
_AES = re.compile(r"^(?:flags|Features)\s*:.*\baes\b", re.MULTILINE)

Block = bytes | bytearray | memoryview


@functools.cache
def best_hash_name() -> str:
    """The faster hash of this processor; where it can't be told, the one that most have instructions for."""
    try:
        text = CPU_INFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return HASH_NAME
    return HASH_NAME if _AES.search(text) else BLAKE2B


def _tagger(name: str, key: bytes) -> Callable[[Block], bytes]:
    """The function that makes a block's tag."""
    match name:
        case "aes-256-gmac":
            encrypt = AESGCM(key).encrypt
            return lambda block: encrypt(_NONCE, b"", block)
        case "blake2b-128":
            blake2b = hashlib.blake2b
            return lambda block: blake2b(block, key=key, digest_size=TAG_BYTES).digest()
    raise ValueError(f"no hash {name!r}; there are {', '.join(HASH_NAMES)}")


class RangeHasher:
    """Hashes under one ``key`` of 32 bytes, with blocks of ``block_size`` bytes and the hash of that ``name``."""

    __slots__ = ("_zero", "block_size", "key", "name", "tag")

    def __init__(self, key: bytes, block_size: int, name: str = HASH_NAME) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes; it must have {KEY_BYTES}")
        self.key = key
        self.block_size = block_size
        self.name = name
        self.tag = _tagger(name, key)
        """Makes the 16-byte tag of one block."""
        self._zero = self.tag(bytes(block_size))

    def zero_tags(self, length: int) -> tuple[bytes, bytes]:
        """The tags of a whole block of zeroes, and of zeroes as long as the last block of a range of ``length``."""
        rest = length % self.block_size
        return self._zero, self.tag(bytes(rest)) if rest else self._zero

    def hash_range(self, file: ReadableFile, offset: int, length: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Which blocks are wholly holes (bool, one each), and the tags of the others (u8, shape (n, 16)), in order.

        Blocks. Raises OSError where something can't be read or the file ends before the range does.
        """
        if file.size() < offset + length:
            raise OSError(errno.EIO, "the file ends before the disk does", file.path)
        count = -(-length // self.block_size)
        holes = self._holes(file, offset, length, count)
        tags = bytearray()
        buffer = memoryview(bytearray(max(self.block_size, READ_BYTES // self.block_size * self.block_size)))
        for first, end in _runs(~holes):
            at, stop = offset + first * self.block_size, min(offset + end * self.block_size, offset + length)
            while at < stop:
                chunk = buffer[: min(len(buffer), stop - at)]
                if file.read_into(at, chunk) != len(chunk):
                    raise OSError(errno.EIO, "the file ends before the disk does", file.path)
                for start in range(0, len(chunk), self.block_size):
                    tags += self.tag(chunk[start : start + self.block_size])
                at += len(chunk)
        return holes, np.frombuffer(bytes(tags), np.uint8).reshape(-1, TAG_BYTES)

    def filled(self, holes: NDArray[Any], tags: NDArray[Any], length: int) -> NDArray[Any]:
        """Tags of a range of ``length`` bytes as rows of two u64, one for each block, a hole's being that of zeroes."""
        table = np.empty((len(holes), 2), np.uint64)
        table[~holes] = tags.reshape(-1).view("<u8").reshape(-1, 2)
        if holes.any():
            whole, last = (np.frombuffer(tag, "<u8") for tag in self.zero_tags(length))
            table[holes] = whole
            if holes[-1]:
                table[-1] = last
        return table

    def digests(self, table: NDArray[Any], group: int) -> bytes:
        """The digests, DIGEST_BYTES each, of every ``group`` rows of what :meth:`filled` returned."""
        return b"".join(
            hashlib.blake2b(
                table[at : at + group].tobytes(), key=self.key, digest_size=DIGEST_BYTES, person=_DIGEST_USE
            ).digest()
            for at in range(0, len(table), group)
        )

    def detail(self, file: ReadableFile, ranges: Sequence[tuple[int, int]], size: int) -> NDArray[Any]:
        """The tags of the blocks of ``size`` bytes in ranges (offset, length), in order (u8, shape (n, 16)).

        The last block of a range may be shorter. Blocks. Raises OSError as :meth:`hash_range` does.
        """
        tags, tag = bytearray(), self.tag
        longest = max((length for _, length in ranges), default=0)
        buffer = memoryview(bytearray(min(READ_BYTES // size * size, -(-longest // size) * size)))
        for offset, length in ranges:
            for at in range(offset, offset + length, len(buffer)):
                chunk = buffer[: min(len(buffer), offset + length - at)]
                if file.read_into(at, chunk) != len(chunk):
                    raise OSError(errno.EIO, "the file ends before the disk does", file.path)
                for start in range(0, len(chunk), size):
                    tags += tag(chunk[start : start + size])
        return np.frombuffer(bytes(tags), np.uint8).reshape(-1, TAG_BYTES)

    def _holes(self, file: ReadableFile, offset: int, length: int, count: int) -> NDArray[Any]:
        """Which blocks of the range lie wholly in holes; a block that the range's end cuts off counts to its end."""
        holes = np.zeros(count, bool)
        for extent in file.extents(offset, length):
            if extent.hole:
                start, end = extent.offset - offset, extent.offset - offset + extent.length
                last = count if end == length else end // self.block_size
                holes[-(-start // self.block_size) : last] = True
        return holes


def _runs(flags: NDArray[Any]) -> list[tuple[int, int]]:
    """The runs of set flags as first and end."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
