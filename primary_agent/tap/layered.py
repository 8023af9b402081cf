"""A disk in layers, for a promotion that can be undone: an overlay, undo logs of a newer copy, and the disk below.

It is a file like any other to the tap (shared.ports.File), so that log, maps and recovery work above it as above a
plain one. Of each byte the overlay decides where it has the block, then the oldest undo log that has it, then the
disk. Every change goes to the overlay; once the promotion is committed it goes to the disk below as well, whose other
blocks :mod:`primary_agent.tap.settling` brings there. ``docs/overlay-format.md`` tells why each order is what it is.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from shared.overlay import Overlay, Phase
from shared.overlay_map import OverlayNote, ranges_of
from shared.ports import Buffer, Extent, File, FileIdentity
from shared.tap_config import TapDisk
from shared.undo_layers import extents_in, fill, joined
from shared.undo_log import UndoLog

INLINE_LAYERS = 8
"""With more undo logs than this a read always goes to a worker: even asking them what they hold takes a while."""

WINDOW = 4 << 20
"""Bytes that are copied below at a time."""
RANGES_MAX = 512
"""Ranges that are copied at a time."""
GAP = 4 << 10
"""What lies between two ranges is copied with them if it is no more than this."""

Range = tuple[int, int]
"""Offset and end in bytes."""


class LayeredFile:
    """One disk in layers (shared.ports.File). Changes come one at a time, as for any disk of the tap."""

    def __init__(self, disk: TapDisk, base: File, overlay: Overlay, layers: tuple[UndoLog, ...]) -> None:
        self.path = disk.path
        self.base = base
        self.overlay = overlay
        self.layers = layers
        self._index = disk.index
        self._size = disk.size
        self._mask = (1 << overlay.shift) - 1
        self._phase = overlay.phase
        self._window: Range | None = None
        """What is being copied to the disk just now,"""
        self._touched: list[Range] = []
        """and what of that was changed meanwhile, or could not be written below."""
        self.missed = False
        """A change could not be made below: everything has to be copied once more."""
        self.left = False
        """The disk has settled: whoever comes from now on, having been told of this file before, gets the plain one."""
        self._users: list[None] = []
        """One for each read or sync that is under way: nothing is closed under it."""

    @property
    def phase(self) -> Phase:
        return self._phase

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        buffer = bytearray(length)
        self._users.append(None)
        try:
            if self.left:
                return self.base.read(offset, length)
            done = self._read_into(offset, memoryview(buffer))
        finally:
            self._users.pop()
        return bytes(buffer[:done]) if done < length else bytes(buffer)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        data = self.read(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_into(self, offset: int, view: memoryview) -> int:
        """Fill ``view``; fewer bytes only where a file has become shorter."""
        done = 0
        for start, end, above in self._runs(offset, len(view)):
            part = view[start - offset : end - offset]
            if above:
                count = self.overlay.data.read_into(start, part)
            else:
                count = self._read_below(start, part)
            done += count
            if count < end - start:
                break
        return done

    def _read_below(self, offset: int, view: memoryview) -> int:
        end = offset + len(view)
        gaps = fill(view, offset, self.layers, self._index, [(offset, end)]) if self.layers else [(offset, end)]
        for start, stop in gaps:
            count = self.base.read_into(start, view[start - offset : stop - offset])
            if count < stop - start:
                return start - offset + count
        return len(view)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The range as parts (offset, end) that the overlay has, and others."""
        shift, end = self.overlay.shift, offset + length
        for first, last, above in self.overlay.blocks.runs(offset >> shift, (end - 1) >> shift):
            yield max(offset, first << shift), min(end, last << shift), above

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        place = 0
        for offset, length in zip(offsets, lengths, strict=True):
            if self.read_into(offset, buffer[place : place + length]) != length:
                raise OSError(errno.EIO, f"the file ends before {offset + length}", self.path)
            place += length

    def read_cached(self, offset: int, length: int) -> bytes | None:
        parts: list[bytes] = []
        for start, end, above in self._runs(offset, length):
            if above:
                part = self.overlay.data.read_cached(start, end - start)
            elif self.layers and (
                len(self.layers) > INLINE_LAYERS or any(log.batches(self._index, start, end) for log in self.layers)
            ):
                return None
            else:
                part = self.base.read_cached(start, end - start)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def expect_sequential(self) -> None:
        self.base.expect_sequential()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._users.append(None)
        try:
            if self.left:
                return self.base.extents(offset, length)
            found = (
                [
                    extent
                    for start, end, above in self._runs(offset, length)
                    for extent in self._extents_of(start, end, above)
                ]
                if length > 0
                else []
            )
        finally:
            self._users.pop()
        return iter(joined(found))

    def _extents_of(self, start: int, end: int, above: bool) -> list[Extent]:
        if above:
            return list(self.overlay.data.extents(start, end - start))
        if not self.layers:
            return list(self.base.extents(start, end - start))
        parts, gaps = extents_in(self.layers, self._index, [(start, end)])
        parts += [extent for low, high in gaps for extent in self.base.extents(low, high - low)]
        return sorted(parts, key=lambda part: part.offset)

    # --- changing --------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer) -> None:
        self.write_many(offset, (data,))

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers)
        start, end = self._whole(offset, offset + length)
        head = self._edge(start, offset)
        tail = self._edge(offset + length, end)
        # Blocks of which only a part is written have the rest from below, and then they count as whole.
        whole = [*((head,) if head else ()), *buffers, *((tail,) if tail else ())]
        first, last = offset - len(head), offset + length + len(tail)
        self.overlay.write(first, whole, last - first)
        if self._phase is Phase.SETTLING:
            self._below(offset, length, lambda: self.base.write_many(offset, buffers))

    def _whole(self, offset: int, end: int) -> Range:
        """The blocks that a range touches."""
        return offset & ~self._mask, min((end + self._mask) & ~self._mask, self._size)

    def _edge(self, start: int, end: int) -> bytes:
        """What lies below at the edge of a block of which only the rest is changed; nothing where it is above."""
        if start == end or self.overlay.blocks.is_set(start >> self.overlay.shift):
            return b""
        content = bytearray(end - start)
        if self._read_below(start, memoryview(content)) != end - start:
            raise OSError(errno.EIO, "the file has become shorter", self.path)
        return bytes(content)

    def punch_hole(self, offset: int, length: int) -> None:
        self._zero(offset, length, keep=False)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._zero(offset, length, keep=True)

    def _zero(self, offset: int, length: int, *, keep: bool) -> None:
        end = min(offset + length, self._size)
        below = self.base.write_zeroes if keep else self.base.punch_hole
        if end <= offset:
            return
        first = (offset + self._mask) & ~self._mask
        last = end if end == self._size else end & ~self._mask
        if first >= last:
            self.write(offset, bytes(end - offset))
            return
        if offset < first:
            self.write(offset, bytes(first - offset))
        self.overlay.zero(first, last - first, keep=keep)
        if last < end:
            self.write(last, bytes(end - last))
        if self._phase is Phase.SETTLING:
            self._below(first, last - first, lambda: below(first, last - first))

    def write_behind(self, offset: int, length: int) -> None:
        self.overlay.data.write_behind(offset, length)

    def allocate(self, offset: int, length: int) -> None:
        self.overlay.data.allocate(offset, length)

    def truncate(self, size: int) -> None:
        raise OSError(errno.EINVAL, "a disk in layers keeps its size", self.path)

    def _below(self, offset: int, length: int, change: Callable[[], None]) -> None:
        """Do a change to the disk below as well; the overlay has it already, so that its failing costs no guest."""
        # Named before it is done: a copy of the same range that was read before either ends before this change, or
        # finds the range named and is made again.
        window = self._window
        if window is not None and offset < window[1] and offset + length > window[0]:
            self._touched.append((offset, offset + length))
        try:
            change()
        except OSError:
            self.missed = True

    # --- settling --------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """The disk below may be written from now on: durably on record when this returns. Blocks. Raises OSError."""
        if self._phase is Phase.OPEN:
            self.overlay.enter(msgspec.structs.replace(self.overlay.note, phase=int(Phase.SETTLING)))

    def mirror(self) -> None:
        """From this moment on every change is made below as well. After :meth:`commit`."""
        self._phase = Phase.SETTLING

    def unsettled(self) -> Iterator[list[Range]]:
        """What has to be copied below, in windows: ranges of a few MiB together, in order; some of it perhaps twice.

        Blocks. Raises OSError.
        """
        for log in self.layers:
            pieces = (piece for number in log.batches(self._index) for piece in log.batch(number).pieces(0, self._size))
            yield from _windows((piece.start, piece.end) for piece in pieces)
        yield from _windows(ranges_of(self.overlay.blocks, self.overlay.shift, self._size))

    def open_window(self, window: Sequence[Range]) -> None:
        """The ranges are going to be copied: changes between the first and the last are noted from now on.

        On the event loop.
        """
        self._window = window[0][0], window[-1][1]

    def copy(self, window: Sequence[Range]) -> None:
        """Bring what the ranges read as to the disk below. Blocks. Raises OSError."""
        for start, end in window:
            self._copy(start, end)

    def _copy(self, start: int, end: int) -> None:
        for extent in self.extents(start, end - start):
            if extent.hole:
                self.base.punch_hole(extent.offset, extent.length)
                continue
            data = self.read(extent.offset, extent.length)
            if len(data) != extent.length:
                raise OSError(errno.EIO, "the file has become shorter", self.path)
            self.base.write(extent.offset, data)
        self.base.write_behind(start, end - start)

    def close_window(self) -> None:
        """Copy once more what was changed during the copy. On the event loop: it was written just now. Raises OSError.

        After this the disk below has the whole window, and every later change of it as well.
        """
        try:
            assert self._window is not None
            low, high = self._window
            while self._touched:
                start, end = self._touched.pop()
                self._copy(max(start, low), min(end, high))
        finally:
            self.forget_window()

    def forget_window(self) -> None:
        """The copy failed. On the event loop."""
        self._window = None
        self._touched.clear()

    def settle(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The disk below has everything: durably on record when this returns, so that the layers count no more.

        Only while nothing changes the disk. Returns the note's ``told`` and ``base``. Blocks. Raises OSError.
        """
        self.base.sync()
        told, base = times_of(self.identity()), times_of(self.base.identity())
        self.overlay.enter(OverlayNote(int(Phase.SETTLED), base, told))
        return told, base

    # --- identity, durability, locks ---------------------------------------------------------------------------------

    def identity(self) -> FileIdentity:
        """That of the disk below, with the times of the overlay, which is what is written.

        As long as nobody may write below, times below that are later than they were show that somebody else did.
        """
        base = self.base.identity()
        mtime_ns, ctime_ns = times_of(self.overlay.data.identity())
        known = self.overlay.note.base
        if self._phase is Phase.OPEN and (base.mtime_ns > known[0] or base.ctime_ns > known[1]):
            mtime_ns, ctime_ns = base.mtime_ns, base.ctime_ns
        return FileIdentity(base.device, base.inode, base.size, mtime_ns, ctime_ns, base.block)

    def size(self) -> int:
        return self.base.size()

    def sync(self) -> None:
        self._users.append(None)
        try:
            if self.left:
                self.base.sync()
            else:
                self.overlay.sync()
        finally:
            self._users.pop()

    def lock(self) -> None:
        self.base.lock()

    @property
    def idle(self) -> bool:
        """Whether no read and no sync of it is under way."""
        return not self._users

    def close_layers(self) -> None:
        """Close everything but the disk below."""
        self.overlay.close()
        self.layers = ()

    def close(self) -> None:
        self.close_layers()
        self.base.close()


def times_of(identity: FileIdentity) -> tuple[int, int]:
    """mtime and ctime in nanoseconds."""
    return identity.mtime_ns, identity.ctime_ns


def _windows(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Ranges in order as windows of at most WINDOW bytes and RANGES_MAX ranges; neighbours are one."""
    window: list[Range] = []
    size = 0
    for start, end in ranges:
        while start < end:
            if size >= WINDOW or len(window) >= RANGES_MAX:
                yield window
                window, size = [], 0
            stop = min(end, start + WINDOW - size)
            if window and start <= window[-1][1] + GAP:
                first = window.pop()[0]
                window.append((first, stop))
            else:
                window.append((start, stop))
            size += stop - start
            start = stop
    if window:
        yield window
