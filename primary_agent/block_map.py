"""A set of a disk's blocks, one bit each: what is to be read, what was touched, what differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_BYTES = 1 << 16
"""So many bytes of the map are looked at together."""


class BlockMap:
    """A set of the blocks 0 to ``blocks`` - 1."""

    __slots__ = ("_bits", "blocks")

    def __init__(self, blocks: int, *, full: bool = False) -> None:
        self.blocks = blocks
        self._bits: NDArray[Any] = np.zeros(-(-blocks // 8), np.uint8)
        if full:
            self.add(0, blocks)

    def add(self, first: int, end: int) -> None:
        """Put blocks ``first`` to ``end`` - 1 into the set."""
        end = min(end, self.blocks)
        if first >= end:
            return
        low, high = first >> 3, (end - 1) >> 3
        head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (end - 1 & 7))
        if low == high:
            self._bits[low] |= head & tail
            return
        self._bits[low] |= head
        self._bits[low + 1 : high] = 0xFF
        self._bits[high] |= tail

    def merge(self, other: BlockMap) -> None:
        """Put all blocks of ``other``, a map of the same disk, into the set."""
        self._bits |= other._bits

    def __contains__(self, block: int) -> bool:
        return bool(self._bits[block >> 3] >> (block & 7) & 1)

    def __len__(self) -> int:
        return sum(end - first for first, end in self.runs())

    def runs(self) -> Iterator[tuple[int, int]]:
        """First and end of the runs of blocks in the set, in order."""
        held: tuple[int, int] | None = None
        for at in range(0, len(self._bits), CHUNK_BYTES):
            chunk = self._bits[at : at + CHUNK_BYTES]
            if not chunk.any():
                continue
            flags = np.unpackbits(chunk, bitorder="little").astype(np.int8)
            edges = (np.flatnonzero(np.diff(flags, prepend=0, append=0)) + 8 * at).tolist()
            for first, end in zip(edges[::2], edges[1::2], strict=True):
                if held is not None and held[1] == first:
                    held = (held[0], end)
                    continue
                if held is not None:
                    yield held
                held = (first, end)
        if held is not None:
            yield held

    def pieces(self, most: int) -> Iterator[tuple[int, int]]:
        """The runs, cut up so that none has more than ``most`` blocks and each lies between two multiples of it."""
        for first, end in self.runs():
            while first < end:
                stop = min(end, (first // most + 1) * most)
                yield first, stop
                first = stop
