"""Real files: complete reads and writes, holes, extents and locks on Linux."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from shared.errors import InvalidStateError
from shared.ports import Buffer, Extent, FileIdentity
from shared.ports.devices import claim_device, device_identity, device_size, seek_in_device
from shared.ports.kernel import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
    is_full_in_memory,
    is_tmpfs,
    start_writeback,
)
from shared.ports.locks import lock_disk

FILE_MODE = 0o600
FOLDER_MODE = 0o700
IOV_MAX = 1024
"""Buffers that one pwritev takes."""
ZERO_CHUNK = bytes(1 << 20)
"""What is written, again and again, where zeroes have to be written as bytes."""
DATA_RUN_USES = 1024
"""Questions about extents that are answered from a run of data that is known already."""
RACED_STEP = 4096
"""Bytes taken as data where an extent changed between two questions about it."""

Judge = Callable[[str, os.stat_result], None]

_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})


class RealFile:
    """An open regular file or block ``device`` (shared.ports.File). Errors carry the path."""

    def __init__(self, path: str, descriptor: int, *, write: bool, device: bool = False) -> None:
        self.path = path
        self._descriptor = descriptor
        self._write = write
        self._device = device
        self._locked = False
        self._nowait = True
        self._in_memory = False
        self._unsupported: set[int] = set()
        self._data_run = (0, 0, 0)
        """Beginning and end of the run of data that was found last, and how often it may still be used."""

    def __repr__(self) -> str:
        return f"RealFile({self.path!r})"

    # --- reading ---

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
            if len(data) in (length, 0):
                return data
            pieces = [data]
            done = len(data)
            while done < length and (data := os.pread(self._descriptor, length - done, offset + done)):
                pieces.append(data)
                done += len(data)
        except OSError as error:
            self._raise(error)
        return b"".join(pieces)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        length = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        try:
            done = os.preadv(self._descriptor, [buffer], offset)
            if done in (length, 0):
                return done
            with memoryview(buffer) as whole, whole.cast("B") as view:
                while done < length:
                    with view[done:] as rest:
                        count = os.preadv(self._descriptor, [rest], offset + done)
                    if count == 0:
                        break
                    done += count
        except OSError as error:
            self._raise(error)
        return done

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        place = 0
        for offset, length in zip(offsets, lengths, strict=True):
            if self.read_into(offset, buffer[place : place + length]) != length:
                raise OSError(errno.EIO, f"the file ends before {offset + length}", self.path)
            place += length

    def read_cached(self, offset: int, length: int) -> bytes | None:
        if not self._nowait:
            return self.read(offset, length) if self._in_memory else None
        buffer = bytearray(length)
        try:
            done = os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
            if done == length:
                return bytes(buffer)
            with memoryview(buffer) as view:
                while done < length:
                    with view[done:] as rest:
                        count = os.preadv(self._descriptor, [rest], offset + done, os.RWF_NOWAIT)
                    if count == 0:
                        break
                    done += count
                return bytes(view[:done])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self._raise(error)
        self._nowait = False
        self._in_memory = is_tmpfs(self._descriptor)
        return self.read_cached(offset, length)

    def expect_sequential(self) -> None:
        # Advice: whatever refuses it reads as before.
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    # --- writing ---

    def write(self, offset: int, data: Buffer) -> None:
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        try:
            done = os.pwrite(self._descriptor, data, offset)
            if done == length:
                return
            with memoryview(data) as whole, whole.cast("B") as view:
                while done < length:
                    with view[done:] as rest:
                        done += _some(os.pwrite(self._descriptor, rest, offset + done))
        except OSError as error:
            self._raise(error)

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        for start in range(0, len(buffers), IOV_MAX):
            offset += self._write_vector(offset, buffers[start : start + IOV_MAX])

    def _write_vector(self, offset: int, buffers: Sequence[Buffer]) -> int:
        """Write at most IOV_MAX buffers; their bytes."""
        sizes = [buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers]
        total = sum(sizes)
        try:
            done = os.pwritev(self._descriptor, buffers, offset)
        except OSError as error:
            self._raise(error)
        if done < total:
            start = 0
            for buffer, size in zip(buffers, sizes, strict=True):
                if start + size > done:
                    skip = max(0, done - start)
                    with memoryview(buffer) as whole, whole.cast("B") as view, view[skip:] as rest:
                        self.write(offset + start + skip, rest)
                start += size
        return total

    def write_behind(self, offset: int, length: int) -> None:
        start_writeback(self._descriptor, offset, length)

    # --- space ---

    def punch_hole(self, offset: int, length: int) -> None:
        self._zero(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._zero(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)

    def _zero(self, mode: int, offset: int, length: int) -> None:
        self._data_run = (0, 0, 0)
        length = min(offset + length, self.size()) - offset
        if length > 0 and not self._fallocate(mode, offset, length):
            self._write_zero_bytes(offset, length)

    def allocate(self, offset: int, length: int) -> None:
        if length <= 0 or self._device or self._fallocate(0, offset, length):
            return
        # Without fallocate only writing takes space, and data must stay what it is.
        for extent in list(self._extents(offset, offset + length)):
            if extent.hole:
                self._write_zero_bytes(extent.offset, extent.length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Whether the file system could do it."""
        if mode in self._unsupported:
            return False
        try:
            fallocate(self._descriptor, mode, offset, length)
        except OSError as error:
            if self._device and error.errno == errno.EINVAL:
                # A part of one of its sectors: bytes can be written there all the same.
                return False
            if error.errno not in _UNSUPPORTED:
                self._raise(error)
            self._unsupported.add(mode)
            return False
        return True

    def _write_zero_bytes(self, offset: int, length: int) -> None:
        with memoryview(ZERO_CHUNK) as zeroes:
            for start in range(offset, offset + length, len(ZERO_CHUNK)):
                with zeroes[: min(len(ZERO_CHUNK), offset + length - start)] as chunk:
                    self.write(start, chunk)

    def truncate(self, size: int) -> None:
        self._data_run = (0, 0, 0)
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._raise(error)

    def size(self) -> int:
        return device_size(self._descriptor) if self._device else os.fstat(self._descriptor).st_size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See shared.ports.File. A hole that was made through another descriptor lately may still show as data.

        The kernel looks for a hole far past the range, which costs too much for each: within the last run of data it
        is not asked again. Reading a hole as data is never wrong.
        """
        if length and is_full_in_memory(self._descriptor, offset + length):
            return iter([Extent(offset, length, False)])
        start, end, uses = self._data_run
        known = end if start <= offset < end and uses else None
        self._data_run = (start, end, uses - (known is not None))
        return self._extents(offset, offset + length, known)

    def _extents(self, offset: int, end: int, known_hole: int | None = None) -> Iterator[Extent]:
        """The extents up to ``end``, the first being data up to ``known_hole`` if that is given."""
        data = offset if known_hole is not None or offset >= end else min(self._seek(offset, os.SEEK_DATA), end)
        while offset < end:
            if data > offset:
                yield Extent(offset, data - offset, True)
                offset = data
            start = offset
            while data == offset < end:
                hole = known_hole or self._seek(offset, os.SEEK_HOLE)
                known_hole = None
                if hole > offset:
                    self._data_run = (start, hole, DATA_RUN_USES)
                # Else somebody punched here between the two questions.
                offset = min(hole if hole > offset else offset + RACED_STEP, end)
                data = min(self._seek(offset, os.SEEK_DATA), end) if offset < end else end
            if offset > start:
                yield Extent(start, offset - start, False)

    def _seek(self, offset: int, whence: int) -> int:
        """The next data or hole at or after ``offset``; the largest offset where there is none."""
        try:
            if self._device:
                return seek_in_device(offset, whence, self.size())
            return os.lseek(self._descriptor, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return (1 << 63) - 1 if whence == os.SEEK_DATA else offset
            self._raise(error)

    # --- identity, durability, locks ---

    def identity(self) -> FileIdentity:
        if self._device:
            return device_identity(self._descriptor)
        state = os.fstat(self._descriptor)
        return FileIdentity(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._raise(error)

    def lock(self) -> None:
        if not self._write:
            raise InvalidStateError(f"{self.path} is open for reading only and can't be locked.")
        if not self._locked:
            if self._device:
                claim_device(self._descriptor, self.path)
            lock_disk(self._descriptor, self.path)
            self._locked = True

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _raise(self, error: OSError) -> NoReturn:
        if error.filename is None:
            error.filename = self.path
        raise error


def _some(count: int) -> int:
    """A transfer of no byte at all would be repeated for ever."""
    if count == 0:
        raise OSError(errno.EIO, "a write stored no byte")
    return count
