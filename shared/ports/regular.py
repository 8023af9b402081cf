"""Refuses what is no regular file, and says what it is."""

from __future__ import annotations

import stat

from shared.errors import StorageError


def require_regular(path: str, mode: int) -> None:
    """Raises StorageError where ``mode`` (of os.stat) is not that of a regular file."""
    if not stat.S_ISREG(mode):
        raise StorageError(
            f"{path} is {kind_of(mode)}, not a regular file.",
            "Name the file itself; nothing else is opened in its place.",
            code="not_a_file",
        )


def kind_of(mode: int) -> str:
    """What a mode (of os.stat) is that of, in words."""
    for test, name in (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return name
    return "of an unknown kind"
