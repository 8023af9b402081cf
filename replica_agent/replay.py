"""Replays spool and differencing files into the disks, and tells beforehand what room that takes.

Everything here blocks and belongs into a worker. Replaying is idempotent: after a crash it is simply done again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.chain import Cursor
from protocol.errors import LogError
from protocol.position import Position
from replica_agent.changes import Changes, data_ranges, gather, plan_writes
from replica_agent.disks import BaseDisks
from replica_agent.overwritten import Overwritten
from replica_agent.spool import SealedSegment
from replica_agent.walk import LogWalk, check_file, read_tables
from shared.errors import StorageError
from shared.ports import File, FileSystem

if TYPE_CHECKING:
    from numpy.typing import NDArray


class UnreadableError(StorageError):
    """A file that has to be replayed is missing, damaged, or shorter than it was."""

    code = "spool_damaged"


class UnsavedError(StorageError):
    """Something would be overwritten that no undo log has."""

    code = "unsaved"


@dataclass(frozen=True, slots=True)
class Source:
    """A file to replay: from ``start`` on it must reach ``end``, at offset ``length``."""

    path: str
    start: Cursor
    end: Position
    length: int

    @classmethod
    def of(cls, segment: SealedSegment) -> Source:
        return cls(segment.path, Cursor.at(segment.start, inside=False), segment.end, segment.length)


@dataclass(frozen=True, slots=True)
class Replay:
    """Sources that together lead from one point to another."""

    files: FileSystem
    vm: bytes
    disks: BaseDisks
    sizes: dict[int, int] | None = None
    """Of the disks that the sources may name, where they are other ones."""

    def apply(self, source: Source, saved: Overwritten | None = None) -> Generator[int]:
        """Write a source's changes to the disks, some MiB with each step; yields the bytes of log done.

        Raises UnreadableError, OSError where a disk can't be written, or UnsavedError before anything outside the
        ranges of ``saved`` is written.
        """
        for changes, done in self.read(source):
            if saved is not None and not saved.covers(changes):
                raise UnsavedError(
                    f"{source.path} changes ranges that it did not name when they were saved.", "Check the volume."
                )
            self.disks.write(plan_writes(changes))
            yield done

    def tables(self, source: Source) -> Generator[tuple[NDArray[Any], int]]:
        """The entry tables of a source, unverified (see :func:`replica_agent.walk.read_tables`), and bytes of log.

        Raises UnreadableError.
        """
        file = self._open(source)
        try:
            yield from read_tables(file, self.sizes or self.disks.sizes, source.length)
        except (LogError, OSError) as error:
            raise _unreadable(source, str(error)) from error
        finally:
            file.close()

    def room(self, sources: Sequence[Source]) -> int:
        """Bytes that the disks would grow by, at most: what data entries write into holes. Raises UnreadableError.

        Goes by the unverified tables, as ``reserve`` does: a wrong sum changes nothing that is read.
        """
        return sum(
            extent.length
            for disk, start, end in self._data(sources)
            for extent in self.disks.file(disk).extents(start, end - start)
            if extent.hole
        )

    def reserve(self, sources: Sequence[Source]) -> None:
        """Take the room for all data on the disks, whose content stays as it is. Raises OSError ENOSPC (R39).

        Goes by the unverified tables: room that is taken in a wrong place changes nothing that is read.
        """
        for disk, start, end in self._data(sources):
            self.disks.allocate(disk, start, end - start)

    def _data(self, sources: Sequence[Source]) -> Iterator[tuple[int, int, int]]:
        """Disk, start and end of the ranges that data entries write."""
        for source in sources:
            for table, _ in self.tables(source):
                for disk, ranges in data_ranges(table).items():
                    for start, end in ranges.tolist():
                        yield disk, start, end

    def read(self, source: Source) -> Generator[tuple[Changes, int]]:
        """The entries of a source, some MiB at a time, each with the bytes of log that it stands for.

        Raises UnreadableError at the latest where the source does not end as it must.
        """
        file = self._open(source)
        try:
            check_file(file, self.vm, source.start)
            walk = LogWalk(file, source.start.copy(), end=source.length)
            while chunk := walk.step():
                before = chunk.at
                yield gather(chunk.batches(), chunk.view, self.disks.sizes, at=chunk.at), walk.offset - before
            if walk.cursor.position != source.end:
                where = f"offset {walk.offset}: {walk.stopped.text if walk.stopped is not None else 'it ends here'}"
                raise _unreadable(source, f"{where}, where {source.end} must be reached")
        except (LogError, OSError) as error:
            raise _unreadable(source, str(error)) from error
        finally:
            file.close()

    def _open(self, source: Source) -> File:
        try:
            return self.files.open(source.path)
        except OSError as error:
            raise _unreadable(source, error.strerror or str(error)) from error


def _unreadable(source: Source, reason: str) -> UnreadableError:
    return UnreadableError(
        f"{source.path} can't be replayed: {reason}.",
        "A resynchronization is required: run `vmreplica resume VM --resynchronize` at the primary.",
    )
