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

_NOTE = struct.Struct("<BB6xQQ16s16s")
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
    replica that stands later stands where this log never was. ``catch_up``: an unclean stop began it. ``log_epoch`` is
    that of the log whose place the map has taken; it is another than ``epoch`` where the map was in force already when
    that log was begun. What the log of a later epoch knows is not in the map.
    """

    force: Force = Force.NONE
    catch_up: bool = False
    base_segment: int = 0
    end_segment: int = 0
    epoch: bytes = bytes(16)
    log_epoch: bytes = bytes(16)

    def encode(self) -> bytes:
        segments = self.base_segment, self.end_segment
        return _NOTE.pack(self.force, self.catch_up, *segments, self.epoch, self.log_epoch)

    @classmethod
    def decode(cls, note: bytes) -> DirtyNote:
        if len(note) != _NOTE.size:
            return cls()
        force, catch_up, *known = _NOTE.unpack(note)
        return cls(Force(force), bool(catch_up), *known) if force in tuple(Force) else cls()


class DirtyMap:
    """The dirty map of one VM. Calls raise OSError where the file can't be written; then it proves nothing more."""

    def __init__(self, map_file: MapFile) -> None:
        self.file = map_file
        self.note = DirtyNote.decode(map_file.note)
        self.unsynced = self.note.force is not Force.NONE
        """Whether something was written since the last sync began."""
        self.broken = False
        """Whether writing or syncing it failed: from then on it proves nothing."""
        if self.note.force is Force.NONE:
            # What a clearing that was interrupted left behind means nothing.
            map_file.clear_all()

    @property
    def in_force(self) -> bool:
        return self.note.force is not Force.NONE and not self.broken

    def is_complete(self, log_epoch: bytes) -> bool:
        """Whether all that the log of this epoch knew is in the map, so that the log is not needed any more."""
        return self.in_force and self.note.force is Force.COMPLETE and self.note.log_epoch == log_epoch

    def take_up(self, log_epoch: bytes, *, tracks: bool, older: bool) -> None:
        """At a start: what counts of the note is what agrees with the tap's state, which may be older or newer.

        ``tracks``: the state says that the map has taken the place of the log of ``log_epoch``. ``older``: it says that
        the map was in force when that epoch began. Only memory is changed: the next note that is written says it.
        """
        note = self.note
        if note.force is Force.NONE or ((tracks or note.force is Force.COMPLETE) and note.log_epoch == log_epoch):
            return
        if not older:
            # Of a tracking before, or of a loss that did not take place, since nothing was changed without the log.
            self._forget()
        elif note.log_epoch == log_epoch:
            # The same; but the older map that it went on from was complete, and its bits are all there.
            self.note = replace(note, force=Force.COMPLETE, log_epoch=note.epoch)

    def reaches(self, log_epoch: bytes, base_segment: int) -> bool:
        """Whether a log that begins behind ``base_segment`` leaves no gap behind the map's base."""
        return base_segment <= (self.note.base_segment if self.note.epoch == log_epoch else 0)

    def note_catch_up(self) -> None:
        """An unclean stop has added to a map that is complete."""
        self._write_note(replace(self.note, catch_up=True))

    def begin(self, epoch: bytes, base_segment: int, end_segment: int, *, catch_up: bool) -> None:
        """From now on the map tracks. One that is in force already keeps its older base."""
        note = self.note
        if note.force is Force.NONE:
            note = DirtyNote(Force.OPEN, catch_up, base_segment, end_segment, epoch, epoch)
        else:
            end = max(note.end_segment, end_segment) if note.epoch == epoch else note.end_segment
            catch_up = note.catch_up or catch_up
            note = replace(note, force=Force.OPEN, catch_up=catch_up, end_segment=end, log_epoch=epoch)
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
        if not self.in_force or epoch != self.note.epoch:
            return False
        try:
            return (segment, chain) in self.cuts()
        except OSError:
            # What can't be read is not proven.
            return False

    def cuts(self) -> list[tuple[int, bytes]]:
        """Segment and chain of the cuts that are kept."""
        return [(segment, chain) for segment, chain in _CUT.iter_unpack(self.file.read_annex())]

    def complete(self) -> None:
        """Everything that the log knew is in the map, and durable. Durable itself with the next sync."""
        self._write_note(replace(self.note, force=Force.COMPLETE))

    def sync(self) -> None:
        """Blocks. Raises OSError: never retried as if it had worked (R17)."""
        self.unsynced = False
        try:
            self.file.sync()
        except OSError:
            self.broken = True
            raise

    def void(self) -> None:
        """The map proves nothing any more, for the disks changed in ways that nobody tracked.

        Its bits stay in the file until the note that says so is durable, or else the tap's state.
        """
        if self.in_force:
            with suppress(OSError):
                self.drop()
            self._forget()

    def _forget(self) -> None:
        self.note = DirtyNote()
        self.file.clear_all()

    def drop(self) -> None:
        """The replica has everything: the map is not in force any more. The bits are cleared by :meth:`clear`.

        Both slots say so, lest damage to one bring back what the other said before.
        """
        self._write_note(DirtyNote())
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

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.broken = True
            raise
        finally:
            # After the write: a sync that began before it does not cover it.
            self.unsynced = True
