"""Epochs, lineage and positions: how far a log has got, and how two sides' histories relate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

EPOCH_BYTES = 16
CHAIN_BYTES = 16
NO_EPOCH = bytes(EPOCH_BYTES)


class Position(NamedTuple):
    """A point between two records of the HRL.

    ``epoch`` 16 bytes; ``segment`` the number of the segment, from 1; ``entry`` the VM-wide number of the next entry,
    from 0 at the start of the epoch; ``chain`` the chain hash (16 bytes) after the last record before the point (R34).
    A position whose last record is a seal is a cut: then ``segment`` is the sealed segment's number.
    """

    epoch: bytes
    segment: int
    entry: int
    chain: bytes

    def __str__(self) -> str:
        return f"{self.epoch.hex()[:8]}/{self.segment}/{self.entry}"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One step of a lineage: ``epoch`` began at cut ``parent_segment`` of ``parent`` (NO_EPOCH for the first)."""

    epoch: bytes
    parent: bytes
    parent_segment: int


Lineage = tuple[Ancestor, ...]
MAX_LINEAGE = 64


def knows(lineage: Lineage, epoch: bytes) -> bool:
    """Whether ``epoch`` is part of the lineage."""
    return any(step.epoch == epoch for step in lineage)


def extend(lineage: Lineage, step: Ancestor) -> Lineage:
    """The lineage with ``step`` as its newest epoch; the oldest steps are dropped past MAX_LINEAGE."""
    return (*lineage, step)[-MAX_LINEAGE:]
