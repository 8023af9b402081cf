"""Puts a fresh store in the place of a damaged or missing one, which is kept aside under a dated name.

A crash at any moment leaves the damaged store, or none (which is damage as well), or the fresh one with all its
records: never one without records, which would pass for a creation that was interrupted. And never one database with
the write-ahead log of the other: the old database goes first, then its log, and only when both are gone for good does
the fresh one get the name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence

from shared.errors import StorageError
from shared.ports.store_file import Change, StoreFile

STAGED = "state.rebuilding"
"""The folder, beside the store, in which the fresh one is made."""
_PARTS = ("", "-wal", "-shm", "-journal")


def rebuild(path: str, change: Change, events: Sequence[bytes], now: float) -> str:
    """Make the store at ``path`` anew with these records and events; the path of what was kept aside, or empty.

    Blocks. Raises NoSpaceError or StorageError; what was there is then still there, or kept aside.
    """
    folder = os.path.dirname(path)
    staged = os.path.join(folder, STAGED)
    fresh = StoreFile(os.path.join(staged, os.path.basename(path)))
    try:
        shutil.rmtree(staged, ignore_errors=True)
        os.mkdir(staged, 0o700)
        fresh.create()
        try:
            fresh.commit(change, events, now)
        finally:
            fresh.close()
        _require_closed(fresh.path)
        sync(fresh.path)
        sync(staged)
        aside = _put_aside(path, now)
        os.rename(fresh.path, path)
        sync(folder)
    except OSError as error:
        raise StorageError(f"The state {path} can't be made anew: {error}.", "See to its volume.") from error
    with contextlib.suppress(OSError):
        os.rmdir(staged)
    return aside


def _require_closed(path: str) -> None:
    """Everything is in the database itself. Raises StorageError where a write-ahead log was left."""
    if os.path.lexists(f"{path}-wal"):
        raise StorageError(f"The fresh state {path} could not be closed in order.", "See to its volume.")


def _put_aside(path: str, now: float) -> str:
    base = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}"
    target, number = base, 1
    while any(os.path.lexists(target + part) for part in _PARTS):
        number += 1
        target = f"{base}-{number}"
    moved = ""
    for part in _PARTS:
        if os.path.lexists(path + part):
            os.rename(path + part, target + part)
            sync(os.path.dirname(path))
            moved = target
    return moved


def sync(path: str) -> None:
    """Make a file, or the names in a folder, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
