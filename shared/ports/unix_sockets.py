"""Unix sockets: a listening one that replaces only a dead one and is never open to more than it should be.

Also who is at the other end of a connection, as the kernel noted it when the connection was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterator

import structlog

from shared.errors import ForbiddenError, InvalidStateError, StorageError, UnreachableError, UsageError
from shared.ports import Address, Peer
from shared.ports.beneath import parent_of, socket_at
from shared.ports.users import group_id

PATH_MAX = 107
BACKLOG = 128
RETRY_SECONDS = 0.02
FOLDER_LOCK_TRIES = 250
GROUPS_MAX = 256
"""Supplementary groups read of a peer; a process with more counts as having none."""

# Access lists as acl(5) and Linux' posix_acl_xattr.h have them: tag, permissions, number of the user or group.
_ACL_ATTRIBUTE = "system.posix_acl_access"
_ACL_VERSION = 2
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER_OBJ, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x01, 0x04, 0x08, 0x10, 0x20
_ACL_NOBODY = 0xFFFFFFFF
_ACL_READ_WRITE = 6

_log = structlog.get_logger(__name__)

_SO_PEERGROUPS = 59
_UCRED = struct.Struct("iII")
_CLOSED_TO_ALL = 0o177


def credentials(connection: socket.socket, path: str) -> Peer:
    """User, group, process and supplementary groups of the process that connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * GROUPS_MAX)
    except OSError:
        groups = b""
    return Peer(
        address=path,
        uid=uid,
        gid=gid,
        pid=pid,
        groups=tuple(group for (group,) in struct.iter_unpack("=I", groups)),
    )


async def connect_unix(path: str) -> socket.socket:
    """A connected socket. Raises UnreachableError where nobody answers, ForbiddenError where we may not ask."""
    _check_length(path)
    connection = _unix_socket()
    try:
        while True:
            try:
                with _reached(path) as there:
                    connection.connect(there)
                return connection
            except BlockingIOError:
                # The queue of the listening socket is full; the kernel does not tell when it is no longer.
                await asyncio.sleep(RETRY_SECONDS)
    except OSError as error:
        connection.close()
        if isinstance(error, PermissionError):
            raise ForbiddenError(
                f"You may not use the socket {path}.", "Become root, or join the group that owns it."
            ) from error
        raise UnreachableError(
            f"Nobody answers at {path}: {error.strerror}.", "Is the service that owns it running?"
        ) from error
    except StorageError as error:
        connection.close()
        raise UnreachableError(error.text, error.remedy) from error
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _reached(path: str) -> Iterator[str]:
    """A path to the socket. In a folder that another user can change it leads to what is there, and not by a link."""
    with parent_of(path) as place:
        if not place.is_others:
            yield path
            return
    with socket_at(path) as (_place, there):
        yield there


async def bind_unix(address: Address) -> socket.socket:
    """A bound and listening socket with the address's mode and group.

    A socket that nobody serves any more is replaced. Raises UsageError for a path that is something else or
    is not usable, and InvalidStateError where another process serves it.
    """
    path = address.unix_path
    _check_length(path)
    try:
        async with _folder_lock(path):
            _remove_stale(path)
            return _bind(address)
    except OSError as error:
        raise UsageError(
            f"The socket {path} can't be made: {error.strerror}.", "Make its folder, and let us write there."
        ) from error


def _bind(address: Address) -> socket.socket:
    path = address.unix_path
    listening = _unix_socket()
    try:
        before = os.umask(_CLOSED_TO_ALL)
        try:
            listening.bind(path)
        finally:
            os.umask(before)
        with socket_at(path) as (_place, made):
            if address.group:
                _give(path, made, address.group)
            os.chmod(made, address.mode)
            if address.other_groups:
                _admit_groups(path, made, address.mode, [_group(name) for name in address.other_groups])
        # Nobody can connect before this.
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _give(path: str, made: str, group: str) -> None:
    """Make it the group's. A service that runs with that group needs no right for it, nor the system call."""
    number = _group(group)
    if os.stat(made).st_gid == number:
        return
    try:
        os.chown(made, -1, number)
    except PermissionError as error:
        raise UsageError(
            f"We may not give the socket {path} to the group {group}.",
            f"Run the service with it: `systemctl edit` its unit, and set Group={group} in [Service].",
        ) from error


def _admit_groups(path: str, made: str, mode: int, groups: list[int]) -> None:
    """Let further groups connect, by an access list: a file has one group alone.

    A file system without access lists leaves them out, which is told; that is safe, and rare below /run.
    """
    entries = [(_ACL_USER_OBJ, mode >> 6 & 7, _ACL_NOBODY), (_ACL_GROUP_OBJ, mode >> 3 & 7, _ACL_NOBODY)]
    entries += [(_ACL_GROUP, _ACL_READ_WRITE, group) for group in sorted(set(groups))]
    entries += [(_ACL_MASK, _ACL_READ_WRITE, _ACL_NOBODY), (_ACL_OTHER, mode & 7, _ACL_NOBODY)]
    value = struct.pack("<I", _ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)
    try:
        os.setxattr(made, _ACL_ATTRIBUTE, value)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        _log.warning("only one group can use the socket: its file system has no access lists", path=path)


def _group(name: str) -> int:
    number = group_id(name)
    if number is None:
        raise UsageError(f"There is no group {name} to own a socket.", f"Make it with: groupadd {name}")
    return number


def _check_length(path: str) -> None:
    length = len(os.fsencode(path))
    if not 0 < length <= PATH_MAX:
        raise UsageError(f"The path of the socket {path} has {length} bytes.", f"At most {PATH_MAX} are possible.")


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} exists and is no socket.", "Remove it, or configure another path.")
    with socket_at(path) as (place, there), _unix_socket() as probe:
        try:
            probe.connect(there)
        except ConnectionRefusedError:
            os.unlink(place.name, dir_fd=place.folder)
            return
        except BlockingIOError:
            pass
    raise InvalidStateError(f"Another process serves the socket {path}.", "Stop it, or configure another path.")


def _unix_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.setblocking(False)
    return made


@contextlib.asynccontextmanager
async def _folder_lock(path: str) -> AsyncIterator[None]:
    """Between two that start at once, the second must not take the first one's fresh socket for a dead one."""
    folder = os.path.dirname(path) or "."
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(FOLDER_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(RETRY_SECONDS)
        else:
            raise InvalidStateError(f"Another process keeps the folder {folder} locked.", "Find and stop it.")
        yield
    finally:
        os.close(descriptor)
