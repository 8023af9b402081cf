"""What the applier takes at a time: segments, perhaps with a committed resync before them, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.position import Position
from replica_agent.replay import Source
from replica_agent.spool import SealedSegment


@dataclass(frozen=True, slots=True)
class Merge:
    """A committed resync: these sources, and the segments up to ``end`` at least, make the first point of its epoch.

    ``differences`` is the path of its differencing file, which is done with then.
    """

    sources: tuple[Source, ...]
    end: Position
    differences: str


@dataclass(slots=True)
class ApplyProgress:
    """How far the apply of a group is, in bytes of log."""

    total: int = 0
    done: int = 0
    merging: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """What is applied together."""

    segments: tuple[SealedSegment, ...]
    merge: Merge | None

    @property
    def sources(self) -> list[Source]:
        return [*(self.merge.sources if self.merge is not None else ()), *map(Source.of, self.segments)]

    @property
    def target(self) -> Position:
        return self.segments[-1].end

    @property
    def bytes(self) -> int:
        return sum(source.length for source in self.sources)
