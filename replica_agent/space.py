"""Room on the replica's volumes: what is missing is named in bytes."""

from __future__ import annotations

import errno

from shared.errors import NoSpaceError
from shared.ports import File, FileSystem
from shared.rates import size_text

GROW_FIRST = 64 << 10
GROW_LAST = 64 << 20
"""The smallest and the largest step, in bytes, in which a file takes space ahead."""
PLENTY = 16
"""Space is taken ahead only where there is so many times as much."""


def no_space(volume: str, missing: int) -> NoSpaceError:
    """The error for a volume that lacks ``missing`` bytes."""
    return NoSpaceError(
        f"The volume of {volume} has too little room: {missing} bytes ({size_text(missing)}) are missing.",
        "Free space on it, or enlarge it; replication goes on by itself.",
    )


def require_room(files: FileSystem, folder: str, needed: int, reserve: int) -> int:
    """The bytes that may be used on the volume of ``folder`` beside ``reserve``. Blocks.

    Raises NoSpaceError where they are fewer than ``needed``.
    """
    free = files.free_space(folder) - reserve
    if free < needed:
        raise no_space(folder, needed - free)
    return free


def grow(files: FileSystem, folder: str, file: File, space: int, end: int, reserve: int) -> int:
    """Take space for ``file``, which has ``space`` bytes of it, up to ``end``; returns what it then has. Blocks.

    Where there is plenty more is taken ahead, in steps that double: writing into a file that has its space is faster.
    Raises NoSpaceError.
    """
    needed = end - space
    free = require_room(files, folder, needed, reserve)
    ahead = max(needed, min(max(space, GROW_FIRST), GROW_LAST))
    if ahead > free // PLENTY:
        ahead = needed
    try:
        file.allocate(space, ahead)
    except OSError as error:
        raise space_error(error, folder, needed) from error
    return space + ahead


def space_error(error: OSError, volume: str, needed: int) -> Exception:
    """``error`` itself, or NoSpaceError where that is what it says."""
    return no_space(volume, needed) if error.errno in (errno.ENOSPC, errno.EDQUOT) else error
