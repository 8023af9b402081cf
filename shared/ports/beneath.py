"""Follows a path without being led elsewhere by whoever may change a folder on its way.

On the way through folders that nobody but root and this program's user can change links are followed, as an
administrator has put them there. From the first folder on that somebody else can change, nothing is: he could put one
in the place of a folder between the look at it and its use, and so have root read, write or delete what is not his
(docs/security.md). What is found is held by a descriptor of its folder, so that it stays the one that was looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from shared.errors import StorageError
from shared.ports.regular import kind_of, require_regular

LINKS_MAX = 40
"""As many as the kernel follows."""
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: ``name`` in the folder behind ``folder``; without that descriptor ``name`` is a whole path.

    ``is_others``: somebody else can change one of the folders on the way. ``host`` is the first one who owns one, by
    number, where that is neither root nor ours, and ``host_path`` is that folder.
    """

    name: str
    folder: int | None = None
    is_others: bool = False
    host: int | None = None
    host_path: str = ""

    @property
    def path(self) -> str:
        """A path for calls that take no descriptor. It follows nothing but a link called ``name``."""
        return self.name if self.folder is None else f"/proc/self/fd/{self.folder}/{self.name}"

    def descriptor(self) -> int:
        """Of what is there, to read; of whatever kind it is, it keeps nobody waiting. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(self.name, flags, dir_fd=self.folder)

    def opened(self) -> BinaryIO:
        """The regular file there, to read. Raises StorageError for anything else, and OSError."""
        file = open(self.descriptor(), "rb")
        try:
            require_regular(self.name, os.fstat(file.fileno()).st_mode)
        except BaseException:
            file.close()
            raise
        return file

    def state(self) -> os.stat_result:
        """What is there, a link as such. Raises OSError."""
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)


@contextlib.contextmanager
def parent_of(path: str, *, of: int | None = None) -> Iterator[Place]:
    """The last component of a path in its folder, which is held.

    ``of``: only this user is somebody else; by default all are but root and ours. Raises StorageError for a link that
    is not followed, and OSError.
    """
    whole = (path if path.startswith("/") else os.path.join(os.getcwd(), path)).rstrip("/")
    with contextlib.suppress(OSError):
        # A volume that is mounted on first use (autofs) would not be by descriptors of folders.
        os.lstat(whole or "/")
    above, _, name = whole.rpartition("/")
    walk = _Walk(path, of)
    try:
        walk.go(above)
        if walk.is_others and name == "..":
            raise walk.refused(name, "leads out of a folder of his")
        yield Place(name or ".", walk.folder, walk.is_others, walk.host, walk.host_path)
    except OSError as error:
        # By a descriptor the kernel was told the last component alone.
        error.filename = path
        raise
    finally:
        os.close(walk.folder)


@contextlib.contextmanager
def opened_entry(place: Place) -> Iterator[int]:
    """A descriptor of what is there itself, of whatever kind, which is neither read nor written by it."""
    descriptor = os.open(place.name, _ENTRY, dir_fd=place.folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def socket_at(path: str) -> Iterator[tuple[Place, str]]:
    """Where the socket at ``path`` is, and a path to that one itself, whatever its name leads to meanwhile.

    Raises StorageError as ``parent_of`` does, and OSError, also for what is no socket.
    """
    with parent_of(path) as place, opened_entry(place) as entry:
        state = os.fstat(entry)
        # A second name for a socket of somebody else's, where the kernel allows those to be made, is none of his.
        if not stat.S_ISSOCK(state.st_mode) or (place.is_others and state.st_nlink != 1):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path)
        yield place, by_descriptor(entry)


def remove_same(path: str, identity: tuple[int, int]) -> None:
    """Remove what has this device and inode, where that is still there. Never fails."""
    with contextlib.suppress(OSError, StorageError), parent_of(path) as place:
        state = place.state()
        if (state.st_dev, state.st_ino) == identity:
            os.unlink(place.name, dir_fd=place.folder)


def by_descriptor(descriptor: int) -> str:
    """A path that leads to what is behind the descriptor, whatever its name is by now."""
    return f"/proc/self/fd/{descriptor}"


class _Walk:
    """One way from the root on, a component at a time."""

    def __init__(self, path: str, of: int | None) -> None:
        self.path = path
        self.folder = os.open("/", _FOLDER)
        self.is_others = False
        self.host: int | None = None
        self.host_path = ""
        self._of = of
        self._links = 0

    def go(self, path: str) -> None:
        """Take the folders of ``path`` one after another. Raises StorageError, and OSError."""
        waiting = path.split("/")[::-1]
        while waiting:
            name = waiting.pop()
            if name in ("", "."):
                continue
            if name == ".." and self.is_others:
                raise self.refused(name, "leads out of a folder of his")
            entry = os.open(name, _ENTRY, dir_fd=self.folder)
            try:
                state = os.fstat(entry)
                if stat.S_ISLNK(state.st_mode):
                    target = self._follow(name, entry, state)
                    waiting.extend(target.split("/")[::-1])
                    continue
                if not stat.S_ISDIR(state.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
                self.folder, entry = entry, self.folder
                self._judge(state)
            finally:
                os.close(entry)

    def _follow(self, name: str, entry: int, state: os.stat_result) -> str:
        """Where a link leads. A folder that all may write in (a sticky one) can have one of somebody else's."""
        if self.is_others or not self._is_trusted(state):
            raise self.refused(name, f"is {kind_of(state.st_mode)}")
        self._links += 1
        if self._links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.path)
        target = os.readlink("", dir_fd=entry)
        if target.startswith("/"):
            root = os.open("/", _FOLDER)
            os.close(self.folder)
            self.folder = root
        return target

    def _judge(self, state: os.stat_result) -> None:
        if not self._is_trusted(state):
            self.is_others = True
            if self.host is None:
                self.host, self.host_path = state.st_uid, os.readlink(by_descriptor(self.folder))
        elif self._of is None and state.st_mode & OTHERS_MAY_WRITE and not state.st_mode & stat.S_ISVTX:
            self.is_others = True

    def _is_trusted(self, state: os.stat_result) -> bool:
        if self._of is not None:
            return state.st_uid != self._of
        return state.st_uid in (0, os.geteuid())

    def refused(self, name: str, what: str) -> StorageError:
        """For a component that is not followed."""
        place = os.readlink(by_descriptor(self.folder))
        return StorageError(
            f"{self.path} can't be used: {place.rstrip('/')}/{name} {what}, and somebody else may change that folder.",
            "Nothing is followed there but folders. Look who put it there, and put the folder itself in its place.",
            code="not_a_folder",
        )
