"""The real file system: names, folders and volumes on Linux; shared.ports.files has the files themselves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator

from shared.ports.beneath import Place, parent_of
from shared.ports.devices import is_device, open_device
from shared.ports.files import FILE_MODE, FOLDER_MODE, RealFile
from shared.ports.ownership import require_own_file, require_own_folder, require_owner
from shared.ports.regular import require_regular

Judge = Callable[[Place, os.stat_result], None]


class RealFileSystem:
    """The files of this host (shared.ports.FileSystem)."""

    _disks_of: int | None = None
    _lodged: tuple[str, ...] = ()

    def __init__(self, disks_of: int | None = None) -> None:
        """``disks_of``: the user, by number, whose files alone are opened as disks; None: anybody's, and devices.

        With it every path counts as one that may lead through folders of his (``lodge``).
        """
        self._disks_of = disks_of

    def lodge(self, folder: str) -> None:
        if folder not in self._lodged:
            self._lodged += (folder,)

    @contextlib.contextmanager
    def _at(self, path: str) -> Iterator[Place]:
        if self._disks_of is None and not self._is_lodged(path):
            yield Place(path)
        else:
            with parent_of(path) as place:
                yield place

    def _is_lodged(self, path: str) -> bool:
        return any(path == folder or path.startswith(f"{folder}/") for folder in self._lodged)

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> RealFile:
        return self._open(
            path, write, create, exclusive, lambda place, state: require_own_file(path, state, place.folder)
        )

    def _open(self, path: str, write: bool, create: bool, exclusive: bool, judge: Judge) -> RealFile:
        flags = os.O_RDWR if write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | (os.O_EXCL if exclusive else 0)
        # Without O_NONBLOCK the opening of a FIFO would wait for its other end.
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        with self._at(path) as place:
            try:
                descriptor = os.open(place.name, flags, FILE_MODE, dir_fd=place.folder)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    require_regular(path, place.state().st_mode)
                raise
            try:
                state = os.fstat(descriptor)
                require_regular(path, state.st_mode)
                judge(place, state)
                flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
            except BaseException:
                os.close(descriptor)
                raise
        return RealFile(path, descriptor, write=write)

    def open_disk(self, path: str, *, write: bool = False) -> RealFile:
        if self._disks_of is None and not self._is_lodged(path) and is_device(path):
            return RealFile(path, open_device(path, write=write), write=write, device=True)

        def judge(place: Place, state: os.stat_result) -> None:
            # Else it belongs to whoever runs the VM.
            owner = self._disks_of if self._disks_of is not None else place.host
            if owner is not None:
                require_owner(path, state, owner)

        return self._open(path, write, False, False, judge)

    def exists(self, path: str) -> bool:
        try:
            with self._at(path) as place:
                place.state()
        except (OSError, ValueError):
            return False
        return True

    def list(self, path: str) -> list[str]:
        try:
            with self._folder(path) as descriptor:
                return sorted(os.listdir(descriptor))
        except FileNotFoundError:
            return []

    def make_folder(self, path: str, *, inherited: bool = False) -> None:
        parent = os.path.dirname(os.path.abspath(path))
        if inherited:
            _require_no_foreign_link(parent)
        try:
            with self._at(path) as place:
                try:
                    os.mkdir(place.name, FOLDER_MODE, dir_fd=place.folder)
                except FileExistsError:
                    above = os.lstat(parent) if place.folder is None else os.fstat(place.folder)
                    require_own_folder(path, place.state(), owner=above.st_uid if inherited else None)
        except FileNotFoundError:
            if not parent or os.path.lexists(parent):
                raise
            self.make_folder(parent, inherited=inherited)
            self.make_folder(path, inherited=inherited)

    def rename(self, source: str, target: str) -> None:
        with self._at(source) as old, self._at(target) as new:
            os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._at(path) as place:
            os.unlink(place.name, dir_fd=place.folder)

    def remove_tree(self, path: str) -> None:
        if self.exists(path):
            with self._at(path) as place:
                shutil.rmtree(place.name, dir_fd=place.folder)

    def sync_folder(self, path: str) -> None:
        with self._folder(path) as descriptor:
            os.fsync(descriptor)

    def allocated(self, path: str) -> int:
        try:
            with self._at(path) as place:
                state = place.state()
        except FileNotFoundError:
            return 0
        return state.st_blocks * 512 if stat.S_ISREG(state.st_mode) else 0

    def free_space(self, path: str) -> int:
        # Nothing but a number comes of a link.
        volume = os.statvfs(path)
        return volume.f_bavail * volume.f_frsize

    @contextlib.contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """A descriptor of the folder itself: a symbolic link in its place is refused."""
        with self._at(path) as place:
            try:
                descriptor = os.open(
                    place.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder
                )
            except NotADirectoryError:
                require_own_folder(path, place.state())
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
