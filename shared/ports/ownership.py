"""Refuses files and folders that somebody else could change, or put in the place of ours."""

from __future__ import annotations

import contextlib
import os
import stat

from shared.errors import StorageError
from shared.ports.regular import kind_of, require_regular
from shared.ports.users import user_name

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
HOST_LEVELS = 3
"""A tap's folder, the VM's, and the one of all VMs."""


def require_own_folder(path: str, state: os.stat_result, *, owner: int | None = None) -> None:
    """Raises StorageError unless it is a folder of ours or of root's, in which nobody else may make or remove files.

    ``owner`` is a user whose it may be as well.
    """
    if not stat.S_ISDIR(state.st_mode):
        raise StorageError(
            f"{path} is {kind_of(state.st_mode)}, not a folder.",
            "Name the folder itself; nothing else is used in its place.",
            code="not_a_folder",
        )
    if state.st_uid not in (0, os.geteuid(), owner):
        raise _foreign(path, state.st_uid)
    # Where the sticky bit is set, others can add what is then refused as theirs, and remove nothing.
    if state.st_mode & OTHERS_MAY_WRITE and not state.st_mode & stat.S_ISVTX:
        raise StorageError(
            f"Others may write in {path} (mode {stat.S_IMODE(state.st_mode):04o}).",
            f"Look through what is in it, then: chmod go-w {path}",
            code="unsafe_mode",
        )


def require_own_file(path: str, state: os.stat_result, folder: int | None = None) -> None:
    """Raises StorageError unless a file is ours, root's, or whose folder it is in; ``folder`` is a descriptor of that.

    Who owns the folder could do anything anyway, and root reads the files of the service.
    """
    if not _is_trusted(path, state, folder):
        raise _foreign(path, state.st_uid)


def require_own_settings(path: str) -> None:
    """Raises StorageError unless nobody but root and this program's user can have written the file at ``path``."""
    folder = os.path.dirname(path)
    try:
        require_own_folder(folder, os.stat(folder))
        state = os.stat(path)
    except OSError as error:
        text = f"{error.filename} can't be read: {error.strerror}."
        raise StorageError(text, f"docs/config.md says what {path} is for.") from error
    require_regular(path, state.st_mode)
    if state.st_uid not in (0, os.geteuid()):
        raise _foreign(path, state.st_uid)
    if state.st_mode & OTHERS_MAY_WRITE:
        raise StorageError(
            f"Others may write {path} (mode {stat.S_IMODE(state.st_mode):04o}).",
            f"Look through it, then: chmod go-w {path}",
            code="unsafe_mode",
        )


def require_copy(path: str, copy: str, *, folder: bool) -> int:
    """Raises StorageError unless ``path`` is a folder, or a file, of the user whom the folder ``copy`` belongs to.

    Neither a symbolic link nor another name for a file of somebody else's passes as his. The size of a file, in bytes.
    """
    try:
        owner, state = os.lstat(copy).st_uid, os.lstat(path)
    except OSError as error:
        raise StorageError(f"{error.filename} can't be used: {error.strerror}.", "Look at what is there.") from error
    if not folder:
        require_regular(path, state.st_mode)
    elif not stat.S_ISDIR(state.st_mode):
        raise StorageError(
            f"{path} is {kind_of(state.st_mode)}, not a folder.", "Look who put it there.", code="not_a_folder"
        )
    if state.st_uid != owner:
        names = [user_name(uid) or f"user {uid}" for uid in (state.st_uid, owner)]
        raise StorageError(
            f"{path} belongs to {names[0]}, and the copy {copy} to {names[1]}.",
            "A disk of a copy belongs to the replica agent's user. Find out who put it there.",
            code="foreign_owner",
        )
    return state.st_size


def require_owner(path: str, state: os.stat_result, owner: int) -> None:
    """Raises StorageError unless a file is ``owner``'s: whoever can change a path gets at his own files only."""
    if state.st_uid != owner:
        whose, theirs = (user_name(uid) or f"user {uid}" for uid in (state.st_uid, owner))
        raise StorageError(
            f"{path} belongs to {whose}, and the folder of its tap to {theirs}: only a file of that user is its disk.",
            f"If it is a disk of that VM: chown {theirs} {path}. Else look who changed the tap's configuration.",
            code="foreign_owner",
        )


def host_of(folder: str) -> int | None:
    """The user other than root, by number, who decides what is in a tap's folder; None where there is none.

    Who owns one of the folders above can put another one in the place of those below at any moment, also one of root's:
    so the outermost counts.
    """
    places = [os.path.abspath(folder)]
    while len(places) < HOST_LEVELS:
        places.insert(0, os.path.dirname(places[0]))
    for place in places:
        with contextlib.suppress(OSError):
            # Of a link as well, whatever it leads to.
            for state in (os.lstat(place), os.stat(place)):
                if state.st_uid != 0:
                    return state.st_uid
    return None


def _is_trusted(path: str, state: os.stat_result, folder: int | None) -> bool:
    if state.st_uid in (0, os.geteuid()):
        return True
    above = os.stat(os.path.dirname(path) or ".") if folder is None else os.fstat(folder)
    return state.st_uid == above.st_uid


def _foreign(path: str, uid: int) -> StorageError:
    ours = user_name(os.geteuid()) or os.geteuid()
    return StorageError(
        f"{path} belongs to {user_name(uid) or f'user {uid}'}, not to {ours}, which this program runs as.",
        f"Find out who put it there. If it is ours: chown {ours} {path}",
        code="foreign_owner",
    )
