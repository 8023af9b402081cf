"""Which marks and which version of a definition belong to which cut, and which of them are still needed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.position import Lineage, Position
from replica_agent.record import CompanionsRecord, ConsistentRecord, DefinitionRecord

MARKS_MAX = 1024
VERSIONS_MAX = 256
"""Marks, and versions of a definition, that are kept at most; of more the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The order of cuts over epochs: that of the lineage, then by number. An epoch that is not in it comes first."""

    order: dict[bytes, int]

    @classmethod
    def of(cls, lineage: Lineage) -> Ranks:
        return cls({step.epoch: number for number, step in enumerate(lineage)})

    def knows(self, epoch: bytes) -> bool:
        return epoch in self.order

    def of_cut(self, epoch: bytes, segment: int) -> tuple[int, int]:
        return self.order.get(epoch, -1), segment


def is_marked(record: CompanionsRecord, position: Position) -> bool:
    """Whether the cut is on record as application-consistent: exactly that one, by its chain."""
    return any(mark.position.position == position for mark in record.marks)


def needed_marks(marks: Sequence[ConsistentRecord], points: Sequence[Position], ranks: Ranks) -> list[ConsistentRecord]:
    """Marks of points, of cuts that come after the newest point, and of an epoch that is not committed yet."""
    newest = max((ranks.of_cut(point.epoch, point.segment) for point in points), default=(-1, -1))
    return [
        mark
        for mark in marks
        if mark.position.position in points
        or not ranks.knows(mark.position.epoch)
        or ranks.of_cut(mark.position.epoch, mark.position.segment) > newest
    ]


def definition_of(
    versions: Sequence[DefinitionRecord], cut: Position, ranks: Ranks
) -> tuple[DefinitionRecord, bool] | None:
    """The newest version that is not from after the cut; else the oldest of all, and True. None where there is none."""
    if not versions:
        return None
    wanted = ranks.of_cut(cut.epoch, cut.segment)
    ranked = [(ranks.of_cut(version.epoch, version.segment), at) for at, version in enumerate(versions)]
    before = [each for each in ranked if each[0] <= wanted]
    if before:
        return versions[max(before)[1]], False
    return versions[min(ranked)[1]], True


def needed_definitions(
    versions: Sequence[DefinitionRecord], points: Sequence[Position], ranks: Ranks
) -> list[DefinitionRecord]:
    """The versions that points have, those of cuts to come, and the one that came last."""
    if not versions:
        return []
    newest = max((ranks.of_cut(point.epoch, point.segment) for point in points), default=(-1, -1))
    needed = {id(found[0]) for point in points if (found := definition_of(versions, point, ranks)) is not None}
    return [
        version
        for version in versions
        if id(version) in needed or version is versions[-1] or ranks.of_cut(version.epoch, version.segment) > newest
    ]
