"""Brings a store that an older version wrote forward: a copy is kept, then one transaction does it all.

A step of ``STEPS`` takes all records of a store of its version, as plain values under their names, and returns those of
the next version; both agents' stores have one version, and a step tells them by what they hold. To change what a record
means, or to rename it, raise ``store_rows.VERSION`` and add the step; a field that is only added needs neither.

Before the first step the store, which is verified by the rules of its own version, is copied beside itself as
``state.db.v<version>-backup``: whoever has to go back to the older program puts that copy in its place
(``docs/upgrade.md``). A crash at any moment leaves the older store, or the newer one: the copy gets its name when it is
whole and durable, and the steps end in one transaction.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.errors import StorageError, StoreDamagedError
from shared.ports.store_file import Change, OlderStoreError, StoreFile
from shared.ports.store_rebuilding import sync
from shared.ports.store_rows import VERSION, decode, encode

Step = Callable[[dict[str, Any]], dict[str, Any]]

STEPS: dict[int, Step] = {}
"""From which version to the one after it. There is one version so far."""


def open_store(path: str, steps: Mapping[int, Step] = STEPS, version: int = VERSION) -> StoreFile:
    """Open the store at ``path``, brought forward to ``version`` where it is older. Blocks.

    Raises StoreDamagedError also where no step leads from its version, and StorageError where it can't be copied.
    """
    file = StoreFile(path, version)
    try:
        file.open()
    except OlderStoreError as error:
        if any(older not in steps for older in range(error.version, version)):
            raise
        _bring_forward(path, error.version, version, steps)
        file = StoreFile(path, version)
        file.open()
    return file


def backup_of(path: str, version: int) -> str:
    """Where the copy of an older store is kept."""
    return f"{path}.v{version}-backup"


def _bring_forward(path: str, version: int, target: int, steps: Mapping[int, Step]) -> None:
    older = StoreFile(path, version)
    older.open()
    try:
        before = {name: decode(body) for name, body in older.bodies.items()}
        records = _through(before, [steps[step] for step in range(version, target)], path)
        _keep(older, backup_of(path, version))
        change: Change = dict.fromkeys(before.keys() - records.keys())
        older.bring_forward(change | {name: encode(value) for name, value in records.items()}, target)
    finally:
        older.close()


def _through(records: dict[str, Any], steps: Sequence[Step], path: str) -> dict[str, Any]:
    try:
        for step in steps:
            records = step(records)
    except Exception as error:
        raise StoreDamagedError(
            f"The state {path} can't be brought forward: {type(error).__name__}: {error}.",
            "Nothing was changed. Go back to the version of vmreplica that wrote it, and report this.",
            code="store_older",
        ) from error
    return records


def _keep(store: StoreFile, backup: str) -> None:
    """Copy the store. A copy that is there already is an earlier attempt's, and whole: it is made anew all the same."""
    unfinished = f"{backup}.unfinished"
    store.copy_to(unfinished)
    try:
        os.rename(unfinished, backup)
        sync(os.path.dirname(backup))
    except OSError as error:
        raise StorageError(f"The state can't be kept as {backup}: {error}.", "See to its volume.") from error
