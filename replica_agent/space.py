"""Room on the replica's volumes: what is missing is named in bytes."""

from __future__ import annotations

import errno

from shared.errors import NoSpaceError
from shared.ports import FileSystem
from shared.rates import size_text


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


def space_error(error: OSError, volume: str, needed: int) -> Exception:
    """``error`` itself, or NoSpaceError where that is what it says."""
    return no_space(volume, needed) if error.errno in (errno.ENOSPC, errno.EDQUOT) else error
