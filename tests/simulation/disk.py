"""Simulated files: a page cache over durable pages, unsynced pages that power loss keeps, drops or tears, and faults."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence

from shared.errors import DiskInUseError
from shared.ports import Buffer, Extent, FileIdentity
from tests.simulation.loop import Process

PAGE = 4096
SECTOR = 512


class Inode:
    """One file's content: ``cache`` is what programs see, ``durable`` what would survive power loss."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.cache = bytearray()
        self.allocated: set[int] = set()
        self.dirty: set[int] = set()
        self.durable: dict[int, bytes] = {}
        self.durable_size = 0
        self.durable_allocated: set[int] = set()
        self.mtime_ns = 0
        self.durable_mtime_ns = 0
        self.locked_by: SimulatedFile | None = None

    def page(self, index: int) -> bytes:
        return bytes(self.cache[index * PAGE : (index + 1) * PAGE]).ljust(PAGE, b"\0")

    def sync(self) -> None:
        for index in self.dirty:
            if index in self.allocated:
                self.durable[index] = self.page(index)
                self.durable_allocated.add(index)
            else:
                self.durable.pop(index, None)
                self.durable_allocated.discard(index)
        self.dirty.clear()
        self.durable_size = len(self.cache)
        self.durable_mtime_ns = self.mtime_ns

    def lose_power(self, rng: random.Random) -> None:
        """Each dirty page was written back, was not, or was torn at a sector, independently."""
        if rng.random() < 0.5:
            self.durable_size = len(self.cache)
        size = self.durable_size
        for index in sorted(self.dirty):
            fate = rng.random()
            if fate < 0.45 or index * PAGE >= size:
                continue
            if index not in self.allocated:
                self.durable.pop(index, None)
                self.durable_allocated.discard(index)
                continue
            new = self.page(index)
            if fate > 0.9:
                cut = SECTOR * rng.randrange(1, PAGE // SECTOR)
                new = new[:cut] + self.durable.get(index, bytes(PAGE))[cut:]
            self.durable[index] = new
            self.durable_allocated.add(index)
            self.durable_mtime_ns = self.mtime_ns
        self.cache = bytearray(size)
        for index, data in self.durable.items():
            start = index * PAGE
            if start < size:
                self.cache[start : start + PAGE] = data[: max(0, size - start)]
        del self.cache[size:]
        self.allocated = {index for index in self.durable_allocated if index * PAGE < size}
        self.mtime_ns = self.durable_mtime_ns
        self.dirty.clear()


class Volume:
    """The files of one host, with the faults that are switched on for it."""

    def __init__(self, rng: random.Random, wall: Callable[[], float], capacity: int = 1 << 40) -> None:
        self.rng = rng
        self.wall = wall
        self.capacity = capacity
        self.entries: dict[str, Inode] = {}
        self.durable_entries: dict[str, Inode] = {}
        self.pending: list[dict[str, Inode | None]] = []
        self.folders: set[str] = set()
        self.numbers = 0
        self.fault: Callable[[str, str], int] = lambda _operation, _path: 0
        self.on_sync: Callable[[Process, str], None] = lambda _process, _path: None

    def lose_power(self) -> None:
        for change in self.pending[: self.rng.randint(0, len(self.pending))]:
            self._settle(change)
        self.pending.clear()
        self.entries = dict(self.durable_entries)
        for inode in {id(inode): inode for inode in self.entries.values()}.values():
            inode.lose_power(self.rng)
            inode.locked_by = None

    def change(self, names: dict[str, Inode | None]) -> None:
        """Link names (or unlink, where None) in one atomic step; durable once a folder it touched is synced."""
        self._apply(self.entries, names)
        self.pending.append(names)

    def sync_folder(self, path: str) -> None:
        folder = path.rstrip("/")
        synced = [names for names in self.pending if any(name.rpartition("/")[0] == folder for name in names)]
        self.pending = [names for names in self.pending if names not in synced]
        for names in synced:
            self._settle(names)

    def _settle(self, names: dict[str, Inode | None]) -> None:
        self._apply(self.durable_entries, names)

    @staticmethod
    def _apply(entries: dict[str, Inode], names: dict[str, Inode | None]) -> None:
        for path, inode in names.items():
            if inode is None:
                entries.pop(path, None)
            else:
                entries[path] = inode

    def used(self) -> int:
        inodes = {id(inode): inode for inode in self.entries.values()}.values()
        return sum(len(inode.allocated) * PAGE for inode in inodes)

    def create(self) -> Inode:
        self.numbers += 1
        return Inode(self.numbers)


class SimulatedFile:
    """An open file of a process (shared.ports.File)."""

    def __init__(self, volume: Volume, process: Process, path: str, inode: Inode, write: bool) -> None:
        self.volume = volume
        self.process = process
        self.path = path
        self.inode = inode
        self.writable = write
        self.closed = False
        process.on_death.append(self._unlock)

    def _enter(self, operation: str) -> None:
        self.process.operation()
        if self.closed:
            raise OSError(errno.EBADF, "file is closed", self.path)
        number = self.volume.fault(operation, self.path)
        if number:
            raise OSError(number, f"simulated failure of {operation}", self.path)

    def read(self, offset: int, length: int) -> bytes:
        self._enter("read")
        return bytes(self.inode.cache[offset : offset + length])

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        self._enter("read")
        data = self.inode.cache[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._enter("write")
        if not self.writable:
            raise OSError(errno.EBADF, "file is open for reading only", self.path)
        inode = self.inode
        end = offset + len(data)
        if len(inode.cache) < end:
            inode.cache.extend(bytes(end - len(inode.cache)))
        inode.cache[offset:end] = data
        self._touch(offset, len(data), True)

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self.write(offset, b"".join(bytes(piece) for piece in buffers))

    def _touch(self, offset: int, length: int, allocate: bool) -> None:
        if length == 0:
            return
        pages = range(offset // PAGE, (offset + length - 1) // PAGE + 1)
        if allocate:
            self.inode.allocated.update(pages)
        self.inode.dirty.update(pages)
        self.inode.mtime_ns = int(self.volume.wall() * 1e9)

    def punch_hole(self, offset: int, length: int) -> None:
        self._enter("punch")
        end = min(offset + length, len(self.inode.cache))
        if end <= offset:
            return
        self.inode.cache[offset:end] = bytes(end - offset)
        self._touch(offset, end - offset, False)
        whole = range(-(-offset // PAGE), end // PAGE if end < len(self.inode.cache) else -(-end // PAGE))
        self.inode.allocated.difference_update(whole)

    def write_zeroes(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.inode.cache))
        self.write(offset, bytes(max(0, end - offset)))

    def allocate(self, offset: int, length: int) -> None:
        self._enter("allocate")
        if self.volume.used() + length > self.volume.capacity:
            raise OSError(errno.ENOSPC, "simulated volume is full", self.path)
        end = offset + length
        if len(self.inode.cache) < end:
            self.inode.cache.extend(bytes(end - len(self.inode.cache)))
        self._touch(offset, length, True)

    def truncate(self, size: int) -> None:
        self._enter("truncate")
        cache = self.inode.cache
        if size < len(cache):
            del cache[size:]
            first = -(-size // PAGE)
            gone = {page for page in self.inode.allocated if page >= first}
            self.inode.allocated -= gone
            self.inode.dirty |= gone
        else:
            cache.extend(bytes(size - len(cache)))
        self.inode.mtime_ns = int(self.volume.wall() * 1e9)

    def size(self) -> int:
        self._enter("stat")
        return len(self.inode.cache)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._enter("extents")
        end = min(offset + length, len(self.inode.cache))
        position = offset
        while position < end:
            hole = position // PAGE not in self.inode.allocated
            stop = position
            while stop < end and (stop // PAGE not in self.inode.allocated) == hole:
                stop = (stop // PAGE + 1) * PAGE
            stop = min(stop, end)
            yield Extent(position, stop - position, hole)
            position = stop

    def identity(self) -> FileIdentity:
        self._enter("stat")
        inode = self.inode
        return FileIdentity(1, inode.number, len(inode.cache), inode.mtime_ns, inode.mtime_ns)

    def sync(self) -> None:
        self._enter("sync")
        self.volume.on_sync(self.process, self.path)
        self.process.operation()
        self.inode.sync()

    def lock(self) -> None:
        self._enter("lock")
        if self.inode.locked_by not in (None, self):
            raise DiskInUseError(f"{self.path} is in use by another process.", "Stop that process first.")
        self.inode.locked_by = self

    def _unlock(self) -> None:
        if self.inode.locked_by is self:
            self.inode.locked_by = None

    def close(self) -> None:
        self.closed = True
        self._unlock()


class SimulatedFileSystem:
    """The files of a host as one of its processes sees them (shared.ports.FileSystem)."""

    def __init__(self, volume: Volume, process: Process) -> None:
        self.volume = volume
        self.process = process

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> SimulatedFile:
        self.process.operation()
        number = self.volume.fault("open", path)
        if number:
            raise OSError(number, "simulated failure of open", path)
        inode = self.volume.entries.get(path)
        if inode is not None and exclusive:
            raise FileExistsError(errno.EEXIST, "file exists", path)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            inode = self.volume.create()
            self.volume.change({path: inode})
        return SimulatedFile(self.volume, self.process, path, inode, write or create)

    def exists(self, path: str) -> bool:
        self.process.operation()
        return path in self.volume.entries or path.rstrip("/") in self.volume.folders

    def list(self, path: str) -> list[str]:
        self.process.operation()
        prefix = path.rstrip("/") + "/"
        names = {entry[len(prefix) :].split("/")[0] for entry in self.volume.entries if entry.startswith(prefix)}
        names |= {folder[len(prefix) :].split("/")[0] for folder in self.volume.folders if folder.startswith(prefix)}
        return sorted(name for name in names if name)

    def make_folder(self, path: str) -> None:
        # Folders are durable at once: losing one would only hide files that are lost with it.
        self.process.operation()
        parts = path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            self.volume.folders.add("/" + "/".join(parts[:count]))

    def rename(self, source: str, target: str) -> None:
        self.process.operation()
        inode = self.volume.entries.get(source)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        self.volume.change({source: None, target: inode})

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
        self.volume.sync_folder(path)

    def free_space(self, path: str) -> int:
        self.process.operation()
        return max(0, self.volume.capacity - self.volume.used())
