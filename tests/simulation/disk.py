"""Simulated files: a page cache over durable pages; power loss keeps, drops or tears what was not synced."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence

from shared.errors import DiskInUseError
from shared.ports import Buffer, Extent, FileIdentity
from tests.simulation.loop import Process, fingerprint

PAGE = 4096
SECTOR = 512
UNLIMITED = 1 << 60
ZERO_PAGE = bytes(PAGE)


class Inode:
    """One file's content: ``data`` is what programs see, ``durable`` what would survive power loss.

    ``data`` holds only the front of the file that was ever written; behind it, up to ``size``, are zeroes.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = 0
        self.data = bytearray()
        self.allocated: set[int] = set()
        self.dirty: set[int] = set()
        self.spoiled: set[int] = set()
        """Pages that count as clean although a sync of them failed."""
        self.durable: dict[int, bytes] = {}
        self.durable_size = 0
        self.mtime_ns = 0
        self.durable_mtime_ns = 0
        self.locked_by: SimulatedFile | None = None

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        with memoryview(self.data) as view:
            return bytes(view[offset:end]).ljust(end - offset, b"\0")

    def write(self, offset: int, data: Buffer) -> None:
        end = offset + len(data)
        if len(self.data) < end:
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data
        self.size = max(self.size, end)

    def zero(self, offset: int, end: int) -> None:
        known = min(end, len(self.data))
        if offset < known:
            self.data[offset:known] = bytes(known - offset)

    def cut(self, size: int) -> None:
        del self.data[size:]
        self.size = size

    def image(self) -> bytes:
        """The whole content as programs see it."""
        return self.read(0, self.size)

    def sync(self) -> None:
        with memoryview(self.data) as view:
            for index in self.dirty:
                self.durable[index] = bytes(view[index * PAGE : (index + 1) * PAGE])
        self.spoiled -= self.dirty
        self.dirty.clear()
        self.durable_size = self.size
        self.durable_mtime_ns = self.mtime_ns

    def fail_sync(self) -> None:
        """As after a failed fsync on Linux: the pages count as clean, though they never got to the disk."""
        self.spoiled |= self.dirty
        self.dirty.clear()

    def is_durable(self, end: int | None = None) -> bool:
        """Whether power loss would change nothing, before offset ``end`` where one is given."""
        if end is None:
            return not self.dirty and not self.spoiled and self.durable_size == self.size
        return self.durable_size >= end and all(index * PAGE >= end for index in self.dirty | self.spoiled)

    def lose_power(self, rng: random.Random) -> None:
        """Each dirty page was written back, was not, or was torn at a sector, independently."""
        if rng.random() < 0.5:
            self.durable_size = self.size
        for index in sorted(self.dirty):
            fate = rng.random()
            if fate < 0.45:
                continue
            page = self.read(index * PAGE, PAGE).ljust(PAGE, b"\0")
            if fate > 0.9:
                cut = SECTOR * rng.randrange(1, PAGE // SECTOR)
                page = page[:cut] + self.durable.get(index, ZERO_PAGE).ljust(PAGE, b"\0")[cut:]
            self.durable[index] = page
            self.durable_mtime_ns = self.mtime_ns
        self.dirty.clear()
        self.spoiled.clear()
        self.size = self.durable_size
        self.durable = {index: page for index, page in self.durable.items() if page and index * PAGE < self.size}
        self.data = bytearray()
        for index, page in sorted(self.durable.items()):
            self.data.extend(bytes(max(0, index * PAGE - len(self.data))))
            self.data.extend(page)
        del self.data[self.size :]
        self.allocated = {index for index in self.allocated if index * PAGE < self.size}
        self.allocated.update(index for index, page in self.durable.items() if page != ZERO_PAGE)
        self.mtime_ns = self.durable_mtime_ns


Change = dict[str, Inode | None]


class Volume:
    """The files of one host, with the faults that are switched on for it."""

    def __init__(self, rng: random.Random, wall: Callable[[], float], capacity: int = UNLIMITED) -> None:
        self.rng = rng
        self.wall = wall
        self.capacity = capacity
        self.entries: dict[str, Inode] = {}
        self.durable_entries: dict[str, Inode] = {}
        self.pending: list[Change] = []
        self.folders: set[str] = set()
        self.numbers = 0
        self.cold = 0.0
        """The share of reads that the page cache can't serve at once."""
        self.fault: Callable[[str, str], int] = lambda _operation, _path: 0
        """Called with operation and path; returns the errno with which the operation fails, or 0."""
        self.on_sync: Callable[[Process, str], None] = lambda _process, _path: None
        """Called at the beginning of every sync of a file or folder."""

    def lose_power(self) -> None:
        for change in self.pending[: self.rng.randint(0, len(self.pending))]:
            self._apply(self.durable_entries, change)
        self.pending.clear()
        self.entries = dict(self.durable_entries)
        for inode in {inode.number: inode for inode in self.entries.values()}.values():
            inode.lose_power(self.rng)
            inode.locked_by = None

    def change(self, names: Change) -> None:
        """Link names (or unlink, where None) in one atomic step; durable once a folder it touched is synced."""
        self._apply(self.entries, names)
        self.pending.append(names)

    def sync_folder(self, path: str) -> None:
        """Settle the changes in this folder, and before each what happened earlier to the same names."""
        folder = path.rstrip("/")
        wanted: set[str] = set()
        settled: list[Change] = []
        left: list[Change] = []
        for names in reversed(self.pending):
            if any(name in wanted or name.rpartition("/")[0] == folder for name in names):
                wanted.update(names)
                settled.append(names)
            else:
                left.append(names)
        for names in reversed(settled):
            self._apply(self.durable_entries, names)
        self.pending = left[::-1]

    @staticmethod
    def _apply(entries: dict[str, Inode], names: Change) -> None:
        for path, inode in names.items():
            if inode is None:
                entries.pop(path, None)
            else:
                entries[path] = inode

    def used(self) -> int:
        """Bytes that the files take."""
        inodes = {inode.number: inode for inode in self.entries.values()}.values()
        return sum(len(inode.allocated) for inode in inodes) * PAGE

    def take(self, inode: Inode, pages: range, path: str) -> None:
        """Allocate pages of a file, or raise ENOSPC."""
        if self.capacity < UNLIMITED:
            added = sum(page not in inode.allocated for page in pages) * PAGE
            if added and self.used() + added > self.capacity:
                raise OSError(errno.ENOSPC, "simulated volume is full", path)
        inode.allocated.update(pages)

    def create(self) -> Inode:
        self.numbers += 1
        return Inode(self.numbers)


def _pages(offset: int, length: int) -> range:
    """The pages that a range touches."""
    return range(offset // PAGE, (offset + length - 1) // PAGE + 1) if length > 0 else range(0)


class SimulatedFile:
    """An open file of a process (shared.ports.File)."""

    def __init__(self, volume: Volume, process: Process, path: str, inode: Inode, write: bool) -> None:
        self.volume = volume
        self.process = process
        self.path = path
        self.inode = inode
        self.writable = write
        self.closed = False

    def _enter(self, operation: str, *details: int) -> None:
        self.process.operation(*details)
        if self.closed:
            raise OSError(errno.EBADF, "file is closed", self.path)
        number = self.volume.fault(operation, self.path)
        if number:
            raise OSError(number, f"simulated failure of {operation}", self.path)

    def _enter_change(self, operation: str, *details: int) -> None:
        if not self.writable:
            raise OSError(errno.EBADF, "file is open for reading only", self.path)
        self._enter(operation, *details)

    def read(self, offset: int, length: int) -> bytes:
        self._enter("read")
        return self.inode.read(offset, length)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        data = self.read(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        place = 0
        for offset, length in zip(offsets, lengths, strict=True):
            if self.read_into(offset, buffer[place : place + length]) != length:
                raise OSError(errno.EIO, "the file is too short", self.path)
            place += length

    def read_cached(self, offset: int, length: int) -> bytes | None:
        if self.volume.cold and self.volume.rng.random() < self.volume.cold:
            return None
        return self.read(offset, length)

    def expect_sequential(self) -> None:
        """Costs nothing and changes nothing."""

    def write_behind(self, offset: int, length: int) -> None:
        """Proves nothing, so that nothing is durable by it; what was written may be lost or kept as before."""

    def write(self, offset: int, data: Buffer) -> None:
        if self.process.dies_next():
            # A fatal signal may interrupt a write between two pages.
            kept = self.volume.rng.randrange(0, len(data) + 1, PAGE)
            self._put(offset, bytes(data)[:kept])
        self._enter_change("write", offset, fingerprint(data))
        self._put(offset, data)

    def _put(self, offset: int, data: Buffer) -> None:
        pages = _pages(offset, len(data))
        self.volume.take(self.inode, pages, self.path)
        self.inode.write(offset, data)
        self._changed(pages)

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self.write(offset, b"".join(buffers))

    def _changed(self, pages: range) -> None:
        self.inode.dirty.update(pages)
        self.inode.mtime_ns = int(self.volume.wall() * 1e9)

    def punch_hole(self, offset: int, length: int) -> None:
        self._enter_change("punch", offset, length)
        inode = self.inode
        end = min(offset + length, inode.size)
        if end <= offset:
            return
        inode.zero(offset, end)
        whole = range(-(-offset // PAGE), end // PAGE if end < inode.size else -(-end // PAGE))
        inode.allocated.difference_update(whole)
        self._changed(_pages(offset, end - offset))

    def write_zeroes(self, offset: int, length: int) -> None:
        self._enter_change("zero", offset, length)
        end = min(offset + length, self.inode.size)
        pages = _pages(offset, end - offset)
        self.volume.take(self.inode, pages, self.path)
        self.inode.zero(offset, end)
        self._changed(pages)

    def allocate(self, offset: int, length: int) -> None:
        self._enter_change("allocate", offset, length)
        self.volume.take(self.inode, _pages(offset, length), self.path)
        self.inode.size = max(self.inode.size, offset + length)
        self.inode.mtime_ns = int(self.volume.wall() * 1e9)

    def truncate(self, size: int) -> None:
        self._enter_change("truncate", size)
        inode = self.inode
        if size < inode.size:
            first = size // PAGE
            inode.dirty.update(_pages(size, len(inode.data) - size))
            inode.allocated = {page for page in inode.allocated if page < first or (page == first and size % PAGE)}
            inode.cut(size)
        inode.size = size
        inode.mtime_ns = int(self.volume.wall() * 1e9)

    def size(self) -> int:
        self.process.operation()
        return self.inode.size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._enter("extents")
        allocated, size = self.inode.allocated, self.inode.size
        end = offset + length
        position = offset
        while position < end:
            hole = position >= size or position // PAGE not in allocated
            stop = position
            while stop < end and (stop >= size or stop // PAGE not in allocated) == hole:
                stop = end if stop >= size else min(size, (stop // PAGE + 1) * PAGE)
            stop = min(stop, end)
            yield Extent(position, stop - position, hole)
            position = stop

    def identity(self) -> FileIdentity:
        self._enter("stat")
        inode = self.inode
        return FileIdentity(1, inode.number, inode.size, inode.mtime_ns, inode.mtime_ns)

    def sync(self) -> None:
        self.process.operation()
        self.volume.on_sync(self.process, self.path)
        try:
            self._enter("sync")
        except OSError:
            self.inode.fail_sync()
            raise
        self.inode.sync()

    def lock(self) -> None:
        self._enter_change("lock")
        holder = self.inode.locked_by
        if holder not in (None, self) and not holder.process.dead:
            raise DiskInUseError(f"{self.path} is in use by another process.", "Stop that process first.")
        self.inode.locked_by = self

    def close(self) -> None:
        self.closed = True
        if self.inode.locked_by is self:
            self.inode.locked_by = None


class SimulatedFileSystem:
    """The files of a host as one of its processes sees them (shared.ports.FileSystem)."""

    def __init__(self, volume: Volume, process: Process) -> None:
        self.volume = volume
        self.process = process

    def lodge(self, folder: str) -> None:
        """There are no links."""

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> SimulatedFile:
        self.process.operation()
        number = self.volume.fault("open", path)
        if number:
            raise OSError(number, "simulated failure of open", path)
        inode = self.volume.entries.get(path)
        if inode is not None and create and exclusive:
            raise FileExistsError(errno.EEXIST, "file exists", path)
        if inode is None:
            if not create or path.rpartition("/")[0] not in self.volume.folders:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            inode = self.volume.create()
            self.volume.change({path: inode})
        return SimulatedFile(self.volume, self.process, path, inode, write)

    def open_disk(self, path: str, *, write: bool = False) -> SimulatedFile:
        return self.open(path, write=write)

    def exists(self, path: str) -> bool:
        self.process.operation()
        return path in self.volume.entries or path.rstrip("/") in self.volume.folders

    def list(self, path: str) -> list[str]:
        self.process.operation()
        prefix = path.rstrip("/") + "/"
        start = len(prefix)
        known = (name for names in (self.volume.entries, self.volume.folders) for name in names)
        return sorted({name[start:].partition("/")[0] for name in known if name.startswith(prefix)} - {""})

    def make_folder(self, path: str, *, inherited: bool = False) -> None:
        # Folders are durable at once: losing one would only hide files that are lost with it.
        self.process.operation()
        parts = path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            self.volume.folders.add("/" + "/".join(parts[:count]))

    def rename(self, source: str, target: str) -> None:
        self.process.operation()
        number = self.volume.fault("rename", source)
        if number:
            raise OSError(number, "simulated failure of rename", source)
        inode = self.volume.entries.get(source)
        if inode is not None:
            self.volume.change({source: None, target: inode})
        elif source in self.volume.folders:
            self._rename_folder(source, target)
        else:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)

    def _rename_folder(self, source: str, target: str) -> None:
        """All that is in it has another name at once; durable when the folder is synced in which it is."""
        volume = self.volume
        known = [*volume.durable_entries, *(path for names in volume.pending for path in names), *volume.entries]
        # Also what was removed from it and may come back: nothing does where it was.
        moved: Change = {path: None for path in (source, *known) if f"{path}/".startswith(f"{source}/")}
        for path in list(moved):
            if path in volume.entries:
                moved[f"{target}{path.removeprefix(source)}"] = volume.entries[path]
        volume.change(moved)
        inside = {folder for folder in volume.folders if f"{folder}/".startswith(f"{source}/")}
        volume.folders = (volume.folders - inside) | {f"{target}{folder.removeprefix(source)}" for folder in inside}

    def remove(self, path: str) -> None:
        self.process.operation()
        if path in self.volume.entries:
            self.volume.change({path: None})

    def remove_tree(self, path: str) -> None:
        self.process.operation()
        prefix = path.rstrip("/") + "/"
        for entry in [entry for entry in self.volume.entries if entry.startswith(prefix)]:
            self.volume.change({entry: None})
        self.volume.folders = {folder for folder in self.volume.folders if not (folder + "/").startswith(prefix)}

    def sync_folder(self, path: str) -> None:
        self.process.operation()
        self.volume.on_sync(self.process, path)
        self.process.operation()
        number = self.volume.fault("sync_folder", path)
        if number:
            raise OSError(number, "simulated failure of sync", path)
        self.volume.sync_folder(path)

    def allocated(self, path: str) -> int:
        self.process.operation()
        inode = self.volume.entries.get(path)
        return len(inode.allocated) * PAGE if inode is not None else 0

    def free_space(self, path: str) -> int:
        self.process.operation()
        return max(0, self.volume.capacity - self.volume.used())
