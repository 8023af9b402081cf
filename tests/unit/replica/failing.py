"""The real file system with failures on demand: at the N-th operation, or dead for ever after it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shared.ports import Buffer, Extent, FileIdentity
from shared.ports.file_system import RealFileSystem
from shared.ports.files import RealFile


class Killed(BaseException):
    """The process is dead: nothing may catch it and go on."""


DURABLE = frozenset(
    """write write_many punch_hole write_zeroes allocate truncate sync create rename remove remove_tree
    sync_folder commit committed""".split()
)
"""Operations that change something on the disk."""


class FailingFiles(RealFileSystem):
    """Counts operations. ``die_at`` kills at that durable operation; ``fail_next`` fails one by name."""

    def __init__(self, _inner: RealFileSystem | None = None) -> None:
        self.operations = 0
        self.die_at: int | None = None
        self.dead = False
        self.died = False
        """Whether it was its ``die_at`` that it died of."""
        self.die_after_writes_to = ""
        """Dies right after the first write to a file whose name begins so."""
        self.on_death: Callable[[], object] = lambda: None
        self.fault: Callable[[str, str], int] = lambda _operation, _path: 0
        """The errno with which this operation on this path fails, or 0 (tests/faults/nth.py)."""
        self.opened: list[RealFile] = []
        self.trace: list[str] = []
        self._failing: str | None = None
        self._prefix: str | None = None
        self._prefixed = ""
        self._number = errno.EIO

    def fail_next(self, operation: str, *, number: int = errno.EIO) -> None:
        """Fail the next operation of that name."""
        self._failing, self._number = operation, number

    def fail_only(self, prefix: str, operation: str, *, number: int = errno.EIO) -> None:
        """Fail that operation on all files whose names begin so, until told to stop."""
        self._prefix, self._prefixed, self._number = prefix, operation, number

    def fail_nothing(self) -> None:
        self._failing = None
        self._prefix = None

    def close_all(self) -> None:
        """What the kernel does with a dead process's files."""
        for file in self.opened:
            file.close()

    def step(self, operation: str, path: str) -> None:
        if self.dead:
            raise Killed
        if self._prefix is not None and operation == self._prefixed:
            if path.rpartition("/")[2].startswith(self._prefix):
                raise OSError(self._number, f"failed {operation} on purpose", path)
        if operation == self._failing:
            self._failing = None
            raise OSError(self._number, f"failed {operation} on purpose", path)
        number = self.fault(operation, path)
        if number:
            raise OSError(number, f"failed {operation} on purpose", path)
        if operation in DURABLE:
            self.operations += 1
            self.trace.append(f"{operation} {path.rpartition('/')[2]}")
            if self.die_at is not None and self.operations >= self.die_at:
                self.dead = self.died = True
                self.on_death()
                raise Killed

    def wrote(self, path: str) -> None:
        prefix = self.die_after_writes_to
        if prefix and path.rpartition("/")[2].startswith(prefix):
            self.dead = self.died = True
            self.on_death()
            raise Killed

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> Any:
        self.step("create" if create else "open", path)
        if create:
            self.step("open", path)
        file = super().open(path, write=write, create=create, exclusive=exclusive)
        self.opened.append(file)
        return FailingFile(self, file)

    def exists(self, path: str) -> bool:
        self.step("exists", path)
        return super().exists(path)

    def list(self, path: str) -> list[str]:
        self.step("list", path)
        return super().list(path)

    def rename(self, source: str, target: str) -> None:
        self.step("rename", source)
        super().rename(source, target)

    def remove(self, path: str) -> None:
        self.step("remove", path)
        super().remove(path)

    def remove_tree(self, path: str) -> None:
        self.step("remove_tree", path)
        super().remove_tree(path)

    def sync_folder(self, path: str) -> None:
        self.step("sync_folder", path)
        super().sync_folder(path)

    def free_space(self, path: str) -> int:
        self.step("free_space", path)
        return super().free_space(path)


class FailingFile:
    """One file of it."""

    def __init__(self, files: FailingFiles, inner: RealFile) -> None:
        self.path = inner.path
        self._files = files
        self._inner = inner

    def _do(self, operation: str, work: Callable[..., Any], *args: Any) -> Any:
        self._files.step(operation, self.path)
        return work(*args)

    def read(self, offset: int, length: int) -> bytes:
        data: bytes = self._do("read", self._inner.read, offset, length)
        return data

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        count: int = self._do("read", self._inner.read_into, offset, buffer)
        return count

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        self._do("read", self._inner.read_ranges, offsets, lengths, buffer)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self._inner.read_cached(offset, length)

    def expect_sequential(self) -> None:
        self._inner.expect_sequential()

    def write_behind(self, offset: int, length: int) -> None:
        self._inner.write_behind(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._do("write", self._inner.write, offset, data)
        self._files.wrote(self.path)

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._do("write_many", self._inner.write_many, offset, buffers)
        self._files.wrote(self.path)

    def punch_hole(self, offset: int, length: int) -> None:
        self._do("punch_hole", self._inner.punch_hole, offset, length)
        self._files.wrote(self.path)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._do("write_zeroes", self._inner.write_zeroes, offset, length)

    def allocate(self, offset: int, length: int) -> None:
        self._do("allocate", self._inner.allocate, offset, length)

    def truncate(self, size: int) -> None:
        self._do("truncate", self._inner.truncate, size)

    def size(self) -> int:
        size: int = self._do("size", self._inner.size)
        return size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._files.step("extents", self.path)
        return self._inner.extents(offset, length)

    def identity(self) -> FileIdentity:
        identity: FileIdentity = self._do("identity", self._inner.identity)
        return identity

    def sync(self) -> None:
        self._do("sync", self._inner.sync)

    def lock(self) -> None:
        self._do("lock", self._inner.lock)

    def close(self) -> None:
        self._inner.close()
