"""One disk behind the tap: opening and refusing it, writing changes to it, and reading what is in doubt."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

from primary_agent.tap.layered import LayeredFile, times_of
from protocol.entries import MAX_ENTRIES, MAX_PAYLOAD, EntryKind, encode_entry
from shared.errors import NotFoundError, StorageError
from shared.nbd.backend import CommandKind, Mutation, errno_of
from shared.overlay import Overlay, Phase
from shared.ports import Buffer, File, FileIdentity, FileSystem
from shared.tap_config import DISK_SIZE, TapDisk
from shared.undo_log import UndoLog

READ_BYTES = 4 * MAX_PAYLOAD
"""How much of a range in doubt is read and logged at a time."""

STEP_MIN = 64 << 20
STEP_MAX = 1 << 30
STEPS_AT_ONCE = 1024
WHILE_SECONDS = 0.02
"""A worker that zeroes comes back after this time, or a step that began before."""
_ZEROES = bytes(MAX_PAYLOAD)

Range = tuple[int, int]
"""Offset and length in bytes."""
Times = tuple[int, int]
"""mtime and ctime, in nanoseconds."""


class DiskSizeError(StorageError):
    """A disk's file has not the size that the configuration says."""

    code = DISK_SIZE


class Disk:
    """An open, locked disk and what the tap knows of it. ``slot`` is its place in the configuration."""

    def __init__(self, slot: int, config: TapDisk, file: File) -> None:
        self.slot = slot
        self.config = config
        self.index = config.index
        self.size = config.size
        self.found_size = config.size
        """The size that it was seen to have last; the tap goes on with ``size``."""
        self.larger = config.larger_size
        """The size that its file may have instead, while it is being enlarged by us; else 0."""
        self.file = file
        self.failed = ""
        """Why every FLUSH fails; empty while syncing works."""
        self.unsynced = True
        """Whether something may have been written since the last sync began."""
        self.stepping = False
        """Whether a long change is being performed by workers, so that the file changes without our counting."""
        self.writes = 0
        self.bytes_written = 0
        self.done_ns = 0
        self.mtime_ns = 0
        self.ctime_ns = 0
        self.block = False
        """Whether it is a block device: without times, and zeroing it waits for the device."""
        self.layers: LayeredFile | None = None
        """Set while it is in layers: the same as ``file``."""
        self.renamed: tuple[Times, Times] | None = None
        """Of one that has settled: times that may still be on record for it, and what it has since."""

    @classmethod
    def open(cls, files: FileSystem, slot: int, config: TapDisk) -> Disk:
        """Open and lock a disk. Blocks. Raises NotFoundError, StorageError, DiskSizeError or DiskInUseError."""
        path = config.path
        try:
            file = files.open_disk(path, write=True)
        except FileNotFoundError:
            raise NotFoundError(f"The disk {path} does not exist.", "Restore it, or correct its path.") from None
        except OSError as error:
            remedy = (
                "Make it writable for the tap's user, on a volume that is not mounted read-only. Under systemd its "
                "unit says which folders are (ReadWritePaths=, docs/install.md)."
            )
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                remedy = "Check the volume it lies on."
            raise StorageError(f"The disk {path} can't be opened for writing: {error.strerror}.", remedy) from error
        try:
            file.lock()
            disk = cls(slot, config, file)
            disk._check_size(file.identity())
        except BaseException:
            file.close()
            raise
        return disk

    def lay(self, overlay: Overlay, layers: tuple[UndoLog, ...]) -> None:
        """Put an overlay, and undo logs, over the disk. Blocks. Raises OSError."""
        note = overlay.note
        if overlay.phase is Phase.SETTLED:
            overlay.close()
            if note.base == times_of(self.file.identity()):
                self.renamed = note.told, note.base
            return
        self.file = self.layers = LayeredFile(self.config, self.file, overlay, layers)
        self.mtime_ns, self.ctime_ns = times_of(self.file.identity())

    def unlay(self, told: Times, base: Times) -> LayeredFile:
        """All has settled: from now on it is the plain disk. Returns what lay over it, to be closed."""
        assert self.layers is not None
        former, self.layers = self.layers, None
        former.left = True
        self.file, self.renamed = former.base, (told, base)
        return former

    def _check_size(self, identity: FileIdentity) -> None:
        if identity.size != self.size and not (self.larger and identity.size == self.larger):
            raise DiskSizeError(
                f"The disk {self.config.path} has {identity.size} bytes, but {self.size} are configured.",
                f"Bring back the disk of the right size ({back_to_size(self.config)}); of one that was made larger "
                "`vmreplica resize VM` takes over the new size.",
            )
        self.found_size = identity.size
        self.mtime_ns = identity.mtime_ns
        self.ctime_ns = identity.ctime_ns
        self.block = identity.block

    # --- changes ----------------------------------------------------------------------------------------------------

    def write(
        self,
        batch: Sequence[Mutation],
        slow_at: float,
        now: Callable[[], float],
        is_slow: Callable[[Disk], float],
    ) -> list[Range]:
        """Perform the changes in order, neighbours as one. Sets their errors; returns the ranges that failed.

        When it is later than ``slow_at`` before a write, ``is_slow`` is called and says when to call it again.
        """
        self.unsynced = True
        self.writes += len(batch)
        failed: list[Range] = []
        index, count = 0, len(batch)
        while index < count:
            first = batch[index]
            index += 1
            start = first.offset
            end = start + first.length
            payload = first.payload
            begin = index
            if payload is not None:
                while index < count and batch[index].offset == end and batch[index].payload is not None:
                    end += batch[index].length
                    index += 1
            self.bytes_written += end - start
            if now() > slow_at:
                slow_at = is_slow(self)
            try:
                if payload is None:
                    self.zero(first, start, first.length)
                elif index == begin:
                    self.file.write(start, payload)
                else:
                    more = [mutation.payload for mutation in batch[begin:index] if mutation.payload is not None]
                    self.file.write_many(start, [payload, *more])
            except OSError as error:
                failed.append((start, end - start))
                for mutation in (first, *batch[begin:index]):
                    mutation.error = errno_of(error)
        return failed

    def zero(self, mutation: Mutation, offset: int, length: int) -> None:
        """Do (a part of) a change without payload. Raises OSError."""
        if mutation.kind is CommandKind.ZEROES and mutation.no_hole:
            self.file.write_zeroes(offset, length)
        else:
            # Whoever trims a disk reads zeroes from then on, here as at the replica (R19).
            self.file.punch_hole(offset, length)

    def zero_for_a_while(self, mutation: Mutation, offset: int, now: Callable[[], float]) -> int:
        """Go on with a long change from ``offset`` on; the offset at which to go on next. Blocks. Raises OSError."""
        end, step = mutation.offset + mutation.length, STEP_MIN
        began_at = now()
        for _ in range(STEPS_AT_ONCE):
            length = min(step, end - offset)
            self.zero(mutation, offset, length)
            offset += length
            if offset >= end or now() - began_at > WHILE_SECONDS:
                break
            # Where there is nothing to free, a step takes no time, and there may be very many.
            step = min(2 * step, STEP_MAX)
        return offset

    # --- content that has to be logged again ------------------------------------------------------------------------

    def holds(self, offset: int, length: int, data: Buffer | None) -> bool:
        """Whether the range holds ``data``; zeroes, for None. Blocks. Raises OSError."""
        if data is not None:
            return self.file.read(offset, length) == data
        pieces = self._pieces([(offset, length)])
        return all(hole or self.file.read(start, size) == _ZEROES[:size] for start, size, hole in pieces)

    def read_anew(self, ranges: Sequence[Range]) -> Iterator[tuple[list[bytes], list[Buffer], list[int]]]:
        """The present content of ranges as entries for the log: entries, payloads, and payload bytes of each entry.

        Holes and zeroes become zero entries. One step reads about READ_BYTES. Raises OSError where the disk can't be
        read.
        """
        entries: list[bytes] = []
        payloads: list[Buffer] = []
        sizes: list[int] = []
        read = 0
        for offset, length, hole in self._pieces(ranges):
            data = b"" if hole else self.file.read(offset, length)
            if not hole and len(data) != length:
                raise OSError(errno.EIO, f"the file ends within {length} bytes at {offset}", self.config.path)
            read += len(data)
            if hole or data == _ZEROES[:length]:
                entries.append(encode_entry(self.index, EntryKind.ZERO, offset, length))
                sizes.append(0)
            else:
                entries.append(encode_entry(self.index, EntryKind.DATA, offset, length))
                sizes.append(length)
                payloads.append(data)
            if read >= READ_BYTES or len(entries) >= MAX_ENTRIES:
                yield entries, payloads, sizes
                entries, payloads, sizes, read = [], [], [], 0
        if entries:
            yield entries, payloads, sizes

    def _pieces(self, ranges: Sequence[Range]) -> Iterator[tuple[int, int, bool]]:
        """The ranges as extents, no data among them longer than an entry's payload may be."""
        for start, length in ranges:
            for extent in self.file.extents(start, length):
                if extent.hole:
                    yield extent.offset, extent.length, True
                    continue
                end = extent.offset + extent.length
                for offset in range(extent.offset, end, MAX_PAYLOAD):
                    yield offset, min(MAX_PAYLOAD, end - offset), False


def back_to_size(disk: TapDisk) -> str:
    """How a disk gets its size back, for a remedy."""
    return f"`truncate --size {disk.size} {disk.path}` sets that of a file"


def join_ranges(ranges: Sequence[Range]) -> list[Range]:
    """The same bytes as few ranges, in order."""
    joined: list[Range] = []
    for offset, length in sorted(ranges):
        if joined and offset <= sum(joined[-1]):
            start, before = joined[-1]
            joined[-1] = start, max(before, offset + length - start)
        else:
            joined.append((offset, length))
    return joined
