"""Where it pays to compare differing blocks in smaller ones: which to ask about, and what then differs.

One small change makes a whole block differ, and the tags of its smaller blocks cost far less than the block. But where
changes are long runs, asking about each block would read and hash all of them once more for nothing. So short runs of
differing blocks are asked about, and of long ones only both ends and a few samples: if less than half of what the
samples hold has changed, the rest is asked about as well, else it is sent whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from primary_agent.compare import Span, differing_blocks, spans_of
from protocol.bulk import Detail, Manifest
from protocol.errors import ProtocolError
from protocol.messages import DETAIL_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONG_RUN = 16
"""Differing blocks in a row from which on only samples are asked about."""
SAMPLE_EVERY = 16
"""One block in so many of a long run is a sample."""
SPARSE = 0.5
"""Share of the samples' smaller blocks that differ, from which on asking about the others no longer pays."""


@dataclass(slots=True)
class RangeDifferences:
    """What differs in one range: found block by block, and then smaller block by smaller block where asked."""

    ours: Manifest
    different: NDArray[Any]
    """Which blocks differ, bool."""
    _small: NDArray[Any]
    """Which of the smaller blocks differ as far as known; those of a block nobody asked about differ all together."""
    _worth: NDArray[Any]
    """Which differing blocks are worth a question: data on both sides."""
    _long: NDArray[Any]
    """Which of them lie inside a long run and are no samples."""

    @classmethod
    def of(
        cls, ours: Manifest, table: NDArray[Any], theirs: Manifest, zero_tags: tuple[bytes, bytes]
    ) -> RangeDifferences:
        """Raises ProtocolError where ``theirs`` is about something else than ``ours`` (R23)."""
        different, worth = differing_blocks(ours, table, theirs, zero_tags)
        small = np.repeat(different, ours.block_size // DETAIL_BYTES)
        inside = np.zeros(len(different), bool)
        for first, end in _runs(worth):
            if end - first >= LONG_RUN:
                inside[first + 1 : end - 1] = True
                inside[first + SAMPLE_EVERY // 2 : end - 1 : SAMPLE_EVERY] = False
        return cls(ours, different, small, worth, inside)

    def first_question(self) -> NDArray[Any]:
        """Which blocks to ask about first: short runs, and the ends and samples of long ones."""
        asked: NDArray[Any] = self._worth & ~self._long
        return asked

    def second_question(self) -> NDArray[Any]:
        """Which blocks to ask about after the first answer: the insides of long runs whose samples are sparse."""
        wanted = np.zeros(len(self.different), bool)
        per = self.ours.block_size // DETAIL_BYTES
        changed = self._small.reshape(-1, per).mean(axis=1)
        for first, end in _runs(self._worth):
            inside = np.arange(first + 1, end - 1)
            held = self._long[inside]
            if held.any() and changed[inside[~held]].mean() < SPARSE:
                wanted[inside[held]] = True
        return wanted

    def ranges(self, asked: NDArray[Any]) -> list[tuple[int, int]]:
        """Offset and length of the runs of blocks that are asked about."""
        place = self.ours.offset, self.ours.length, self.ours.block_size
        return [(span.offset, span.length) for span in spans_of(asked, np.zeros(len(asked), bool), *place)]

    def answer(self, asked: NDArray[Any], ours: NDArray[Any], theirs: Detail) -> None:
        """Take an answer: our tags and theirs of the smaller blocks in ``asked``. Raises ProtocolError (R23)."""
        for field in ("id", "key_id", "round", "disk", "offset", "length"):
            if getattr(theirs, field) != getattr(self.ours, field):
                raise ProtocolError(f"DETAIL with another {field} than was asked for")
        if theirs.tags.shape != ours.shape:
            raise ProtocolError(f"DETAIL with {len(theirs.tags)} tags in place of {len(ours)}")
        places = np.flatnonzero(np.repeat(asked, self.ours.block_size // DETAIL_BYTES))
        # The disk's last block may have fewer smaller ones; what is behind its end counts as equal.
        self._small[places] = False
        self._small[places[: len(ours)]] = (ours != theirs.tags).any(axis=1)

    def spans(self) -> list[Span]:
        """What has to be sent, in order."""
        holes = np.repeat(self.ours.holes, self.ours.block_size // DETAIL_BYTES)
        return spans_of(self._small, holes, self.ours.offset, self.ours.length, DETAIL_BYTES)


def _runs(flags: NDArray[Any]) -> list[tuple[int, int]]:
    """The runs of set flags as first and end."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
