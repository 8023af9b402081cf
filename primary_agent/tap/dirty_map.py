"""The dirty map: blocks that changed since a named cut, on record when the log can't go on (R28).

It is made ahead, as large as it ever gets. While it is in force it names its base, a cut that the replica must stand
at or after, and it is complete once everything that the log knew is in it, durably; only then may the log go. Cuts that
the replica may stand at are kept with their chain hashes, so that a position can still be proven (R34).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import IntEnum

from primary_agent.tap.disks import Disk
from shared.map_file import ANNEX_MAX, MapFile, Range
from shared.nbd.backend import Mutation

_NOTE = struct.Struct("<BB6xQQ16s")
_CUT = struct.Struct("<Q16s")
CUTS_MAX = ANNEX_MAX // _CUT.size


class Force(IntEnum):
    """Whether the map says anything. The numbers are stable."""

    NONE = 0
    OPEN = 1
    """It is filled, but what the log knows is not wholly in it yet."""
    COMPLETE = 2


@dataclass(frozen=True, slots=True)
class DirtyNote:
    """What the map says beside its bits.

    The bits name every block that changed after cut ``base_segment`` of ``epoch``. The log ended in ``end_segment``: a
    replica that stands later stands where this log never was. ``catch_up``: an unclean stop began it.
    """

    force: Force = Force.NONE
    catch_up: bool = False
    base_segment: int = 0
    end_segment: int = 0
    epoch: bytes = bytes(16)

    def encode(self) -> bytes:
        return _NOTE.pack(self.force, self.catch_up, self.base_segment, self.end_segment, self.epoch)

    @classmethod
    def decode(cls, note: bytes) -> DirtyNote:
        if len(note) != _NOTE.size:
            return cls()
        force, catch_up, base, end, epoch = _NOTE.unpack(note)
        return cls(Force(force), bool(catch_up), base, end, epoch) if force in tuple(Force) else cls()


class DirtyMap:
    """The dirty map of one VM. Calls raise OSError where the file can't be written; then it proves nothing more."""

    def __init__(self, map_file: MapFile) -> None:
        self.file = map_file
        self.note = DirtyNote.decode(map_file.note)
        self.unsynced = False
        """Whether something was written since the last sync began."""
        self.broken = False
        """Whether writing or syncing it failed: from then on it proves nothing."""
        if self.note.force is Force.NONE:
            # What a clearing that was interrupted left behind means nothing.
            map_file.clear_all()

    @property
    def in_force(self) -> bool:
        return self.note.force is not Force.NONE and not self.broken

    def note_catch_up(self) -> None:
        """An unclean stop has added to a map that is complete."""
        self._write_note(replace(self.note, catch_up=True))

    def begin(self, epoch: bytes, base_segment: int, end_segment: int, *, catch_up: bool) -> None:
        """From now on the map tracks. One that is in force already keeps its older base."""
        note = self.note
        if note.force is Force.NONE:
            note = DirtyNote(Force.OPEN, catch_up, base_segment, end_segment, epoch)
        else:
            end = max(note.end_segment, end_segment) if note.epoch == epoch else note.end_segment
            note = replace(note, force=Force.OPEN, catch_up=note.catch_up or catch_up, end_segment=end)
        self._write_note(note)

    def mark(self, disk: Disk, batch: Sequence[Mutation]) -> None:
        """The blocks of a batch are about to change: their bits are in the page cache when this returns."""
        changed = False
        for mutation in batch:
            changed |= self.file.set_range(disk.index, mutation.offset, mutation.length)
        if changed:
            self.write()

    def add(self, index: int, ranges: Iterable[Range]) -> None:
        """Set the bits of ranges of bytes; :meth:`write` brings them to the file."""
        for offset, length in ranges:
            self.file.set_range(index, offset, length)

    def write(self) -> None:
        """Bring what was set to the file's page cache."""
        self.unsynced = True
        with self._breaking():
            self.file.write()

    def keep_cuts(self, cuts: Sequence[tuple[int, bytes]]) -> None:
        """Keep segment and chain of the newest cuts of the base's epoch, beside those kept before."""
        known = dict([*self.cuts(), *cuts])
        newest = sorted(known.items())[-CUTS_MAX:]
        with self._breaking():
            self.file.write_annex(b"".join(_CUT.pack(*cut) for cut in newest))

    def knows(self, epoch: bytes, segment: int, chain: bytes) -> bool:
        """Whether the log that the map goes on from had this cut (R34)."""
        return self.in_force and epoch == self.note.epoch and (segment, chain) in self.cuts()

    def cuts(self) -> list[tuple[int, bytes]]:
        """Segment and chain of the cuts that are kept."""
        return [(segment, chain) for segment, chain in _CUT.iter_unpack(self.file.read_annex())]

    def complete(self) -> None:
        """Everything that the log knew is in the map, and durable. Durable itself with the next sync."""
        self._write_note(replace(self.note, force=Force.COMPLETE))

    def sync(self) -> None:
        """Blocks. Raises OSError: never retried as if it had worked (R17)."""
        self.unsynced = False
        with self._breaking():
            self.file.sync()

    def void(self) -> None:
        """The map proves nothing any more, for the disks changed in ways that nobody tracked."""
        if self.in_force:
            with suppress(OSError):
                self.drop()
                self.clear()

    def drop(self) -> None:
        """The replica has everything: the map is not in force any more. The bits are cleared by :meth:`clear`."""
        self._write_note(DirtyNote())

    def clear(self) -> None:
        """Clear the bits of a map whose dropping is durable."""
        self.file.clear_all()
        with self._breaking():
            self.file.write()
            self.file.write_annex(b"")

    def _write_note(self, note: DirtyNote) -> None:
        with self._breaking():
            self.file.write_note(note.encode())
        self.note = note
        self.unsynced = True

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.broken = True
            raise
