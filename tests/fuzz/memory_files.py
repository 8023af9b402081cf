"""Files in memory that count what is read of them: a reader of a hostile file must neither loop nor take much."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from shared.ports import Buffer, Extent, FileIdentity

READ_MAX = 8 << 20
"""No single read of the product asks for more, whatever a file says about itself."""


class MemoryFile:
    """One file of a :class:`MemoryFiles`, opened."""

    def __init__(self, path: str, content: bytearray, owner: MemoryFiles) -> None:
        self.path = path
        self._content = content
        self._owner = owner

    def _count(self, length: int) -> None:
        assert 0 <= length <= READ_MAX, f"one read of {length} bytes"
        self._owner.reads += 1
        assert self._owner.reads < self._owner.reads_max, "the reader does not come to an end"

    def read(self, offset: int, length: int) -> bytes:
        self._count(length)
        return bytes(self._content[offset : offset + length])

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        view = memoryview(buffer)
        self._count(len(view))
        data = self._content[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        place = 0
        for offset, length in zip(offsets, lengths, strict=True):
            if self.read_into(offset, buffer[place : place + length]) != length:
                raise OSError(errno.EIO, "the file is too short", self.path)
            place += length

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length)

    def expect_sequential(self) -> None:
        pass

    def write_behind(self, offset: int, length: int) -> None:
        pass

    def write(self, offset: int, data: Buffer) -> None:
        if len(self._content) < offset:
            self._content.extend(bytes(offset - len(self._content)))
        self._content[offset : offset + len(data)] = data

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self.write(offset, b"".join(buffers))

    def punch_hole(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self._content))
        if offset < end:
            self._content[offset:end] = bytes(end - offset)

    def allocate(self, offset: int, length: int) -> None:
        assert offset + length <= self._owner.space, f"{offset + length} bytes were taken"
        self._content.extend(bytes(max(0, offset + length - len(self._content))))

    def truncate(self, size: int) -> None:
        del self._content[size:]
        self._content.extend(bytes(size - len(self._content)))

    def size(self) -> int:
        return len(self._content)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Pages of zeroes are holes."""
        end = offset + length
        while offset < end:
            step = min(4096 - offset % 4096, end - offset)
            yield Extent(offset, step, not any(self._content[offset : offset + step]))
            offset += step

    def identity(self) -> FileIdentity:
        return FileIdentity(device=1, inode=1, size=len(self._content), mtime_ns=0, ctime_ns=0)

    def sync(self) -> None:
        pass

    def lock(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryFiles:
    """A file system of some files. ``reads_max`` bounds the reads, ``space`` the bytes that a file may take."""

    def __init__(
        self, content: dict[str, bytes] | None = None, *, reads_max: int = 5000, space: int = 64 << 20
    ) -> None:
        self.content = {path: bytearray(data) for path, data in (content or {}).items()}
        self.reads = 0
        self.reads_max = reads_max
        self.space = space

    def lodge(self, folder: str) -> None:
        """There are no links."""

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> MemoryFile:
        if path not in self.content:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.content[path] = bytearray()
        elif exclusive:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return MemoryFile(path, self.content[path], self)

    def open_disk(self, path: str, *, write: bool = False) -> MemoryFile:
        return self.open(path, write=write)

    def exists(self, path: str) -> bool:
        return path in self.content

    def list(self, path: str) -> list[str]:
        return sorted(name.rpartition("/")[2] for name in self.content if name.rpartition("/")[0] == path)

    def make_folder(self, path: str, *, inherited: bool = False) -> None:
        pass

    def rename(self, source: str, target: str) -> None:
        if source not in self.content:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        self.content[target] = self.content.pop(source)

    def remove(self, path: str) -> None:
        self.content.pop(path, None)

    def remove_tree(self, path: str) -> None:
        for name in [name for name in self.content if name.startswith(f"{path}/")]:
            del self.content[name]

    def sync_folder(self, path: str) -> None:
        pass

    def allocated(self, path: str) -> int:
        return len(self.content.get(path, b""))

    def free_space(self, path: str) -> int:
        return self.space
