"""The real file system: names, folders and volumes on Linux; shared.ports.files has the files themselves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator

from shared.ports.devices import is_device, open_device
from shared.ports.files import FILE_MODE, FOLDER_MODE, RealFile
from shared.ports.ownership import require_own_file, require_own_folder, require_owner
from shared.ports.regular import require_regular

Judge = Callable[[str, os.stat_result], None]


class RealFileSystem:
    """The files of this host (shared.ports.FileSystem)."""

    def __init__(self, disks_of: int | None = None) -> None:
        """``disks_of``: the user, by number, whose files alone are opened as disks; None: anybody's, and devices."""
        self._disks_of = disks_of

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> RealFile:
        return self._open(path, write, create, exclusive, require_own_file)

    def _open(self, path: str, write: bool, create: bool, exclusive: bool, judge: Judge) -> RealFile:
        flags = os.O_RDWR if write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | (os.O_EXCL if exclusive else 0)
        try:
            # Without O_NONBLOCK the opening of a FIFO would wait for its other end.
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, FILE_MODE)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                require_regular(path, os.lstat(path).st_mode)
            raise
        try:
            state = os.fstat(descriptor)
            require_regular(path, state.st_mode)
            judge(path, state)
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        except BaseException:
            os.close(descriptor)
            raise
        return RealFile(path, descriptor, write=write)

    def open_disk(self, path: str, *, write: bool = False) -> RealFile:
        if self._disks_of is not None:
            return self._open(path, write, False, False, self._judge_disk)
        if is_device(path):
            return RealFile(path, open_device(path, write=write), write=write, device=True)
        # It belongs to whoever runs the VM.
        return self._open(path, write, False, False, lambda _path, _state: None)

    def _judge_disk(self, path: str, state: os.stat_result) -> None:
        assert self._disks_of is not None
        require_owner(path, state, self._disks_of)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def list(self, path: str) -> list[str]:
        try:
            with _folder(path) as descriptor:
                return sorted(os.listdir(descriptor))
        except FileNotFoundError:
            return []

    def make_folder(self, path: str, *, inherited: bool = False) -> None:
        parent = os.path.dirname(os.path.abspath(path))
        if inherited:
            _require_no_foreign_link(parent)
        try:
            os.mkdir(path, FOLDER_MODE)
        except FileExistsError:
            require_own_folder(path, os.lstat(path), owner=os.lstat(parent).st_uid if inherited else None)
        except FileNotFoundError:
            if not parent or os.path.lexists(parent):
                raise
            self.make_folder(parent, inherited=inherited)
            self.make_folder(path, inherited=inherited)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_tree(self, path: str) -> None:
        if os.path.lexists(path):
            shutil.rmtree(path)

    def sync_folder(self, path: str) -> None:
        with _folder(path) as descriptor:
            os.fsync(descriptor)

    def allocated(self, path: str) -> int:
        try:
            state = os.lstat(path)
        except FileNotFoundError:
            return 0
        return state.st_blocks * 512 if stat.S_ISREG(state.st_mode) else 0

    def free_space(self, path: str) -> int:
        volume = os.statvfs(path)
        return volume.f_bavail * volume.f_frsize


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    """A descriptor of the folder itself: a symbolic link in its place is refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        require_own_folder(path, os.lstat(path))
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _require_no_foreign_link(path: str) -> None:
    """Whose folder it is may be another user's, and lead to his folders only. Raises StorageError."""
    with contextlib.suppress(FileNotFoundError):
        state = os.lstat(path)
        if stat.S_ISLNK(state.st_mode) and state.st_uid not in (0, os.geteuid()):
            require_own_folder(path, state)
