"""The locks that keep two writers off one disk: ours, and those that QEMU takes on every image it opens.

QEMU locks single bytes of the image, always shared: byte 100 + n says "I use permission n", byte 200 + n
says "I share permission n with nobody". Then it asks, without taking it, for an exclusive lock on the
opposite byte of each, and gives up where somebody holds that one. We do the same as a writer that wants to be the
only one: QEMU's tools then refuse to write to the disk, to resize it, and to copy it as if it stood still; mere
looking they allow, as with any raw disk that is in use. We refuse a disk that QEMU has open for writing. Between
ourselves, an exclusive lock on everything but QEMU's bytes does.

All are open file description locks: they end with the descriptor, also at SIGKILL, and no other descriptor
of the same process that is closed takes them along.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from shared.errors import DiskInUseError, StorageError

USED_BASE = 100
UNSHARED_BASE = 200
QEMU_BYTES_END = 300

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid; a length of 0 means up to the end of all files."""


class Permission(IntEnum):
    """QEMU's block permissions; the number is the distance from the base byte."""

    CONSISTENT_READ = 0
    WRITE = 1
    WRITE_UNCHANGED = 2
    RESIZE = 3


USED = tuple(Permission)
UNSHARED = (Permission.WRITE, Permission.WRITE_UNCHANGED, Permission.RESIZE)


def lock_disk(descriptor: int, path: str) -> None:
    """Lock the disk behind a writable descriptor for the life of its open file description.

    Raises DiskInUseError, naming the holder where it can be found, and StorageError where the file system
    has no such locks. Nothing stays locked then. Locking twice through one descriptor is no error.
    """
    try:
        held = _take(descriptor)
    except OSError as error:
        _release(descriptor)
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        raise StorageError(
            f"The disk {path} can't be locked: {error.strerror}.",
            "Put it on a file system that supports open file description locks.",
        ) from error
    if held is not None:
        _release(descriptor)
        raise DiskInUseError(
            f"The disk {path} is in use: {held}{_holders(descriptor)}.",
            "Stop the program that uses it, such as its virtual machine or a qemu tool, and try again.",
        )


def _take(descriptor: int) -> str | None:
    """Take all locks; what somebody else holds, if one can't be had."""
    for start, length in ((0, USED_BASE), (QEMU_BYTES_END, 0)):
        if not _try_lock(descriptor, fcntl.F_WRLCK, start, length):
            return "it is locked as a whole"
    for permission in USED:
        if not _try_lock(descriptor, fcntl.F_RDLCK, USED_BASE + permission, 1):
            return "a byte of QEMU's image lock is locked exclusively"
    for permission in UNSHARED:
        if not _try_lock(descriptor, fcntl.F_RDLCK, UNSHARED_BASE + permission, 1):
            return "a byte of QEMU's image lock is locked exclusively"
    for permission in USED:
        if _is_held(descriptor, UNSHARED_BASE + permission):
            return f"somebody has it open and does not share the permission {permission.name.lower()}"
    for permission in UNSHARED:
        if _is_held(descriptor, USED_BASE + permission):
            return f"somebody has it open with the permission {permission.name.lower()}"
    return None


def _try_lock(descriptor: int, kind: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_held(descriptor: int, byte: int) -> bool:
    """Whether anybody but this open file description holds any lock on the byte."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _release(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def _holders(descriptor: int) -> str:
    """Names the processes that hold a lock on the file, as far as /proc shows them to us."""
    state = os.fstat(descriptor)
    named = {
        f"{_program(process)} (process {process.name})"
        for process in Path("/proc").glob("[0-9]*")
        for number in _descriptors_of_file(process, state)
        if not (int(process.name) == os.getpid() and int(number) == descriptor)
        and _has_lock(process / "fdinfo" / number)
    }
    return f", by {', '.join(sorted(named))}" if named else ""


def _descriptors_of_file(process: Path, state: os.stat_result) -> Iterator[str]:
    try:
        entries = list((process / "fd").iterdir())
    except OSError:
        return
    for entry in entries:
        try:
            other = entry.stat()
        except OSError:
            continue
        if (other.st_dev, other.st_ino) == (state.st_dev, state.st_ino):
            yield entry.name


def _has_lock(fdinfo: Path) -> bool:
    try:
        return any(line.startswith("lock:") for line in fdinfo.read_text().splitlines())
    except OSError:
        return False


def _program(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a program"
