"""Stores in SQLite: one small database for each VM, all of them on one thread of their own.

``shared.ports.store_file`` keeps the promises of one file; here stands the asyncio side: a value is encoded when
``commit`` is called, the thread commits in that order, and what ``get`` serves follows when it is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from shared.errors import InvalidStateError, StorageError
from shared.ports import Clock
from shared.ports.ownership import require_own_folder
from shared.ports.store_file import Change, StoreFile
from shared.ports.store_migrating import open_store
from shared.ports.store_rebuilding import rebuild
from shared.ports.store_rows import decode, encode

T = TypeVar("T")

STATE_FILE = "state.db"


class SqliteStores:
    """The stores of an agent (shared.ports.Stores), below folders that the agent made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vmreplica-store")
        self._open: dict[str, SqliteStore] = {}

    async def open(self, folder: str, *, create: bool = False) -> SqliteStore:
        """Open or create ``folder/state.db`` and verify all of it; one of an older version is brought forward.

        Raises StoreDamagedError for a state that is damaged, missing, foreign or from a newer version, or that
        exists where it was to be created, and StorageError where the volume or another process is in the way, or
        somebody else could have put it there.
        """
        await self.run(_require_own, folder)
        path = os.path.join(os.path.realpath(folder), STATE_FILE)  # noqa: ASYNC240
        if path in self._open:
            raise InvalidStateError(f"The store {path} is open already.")
        file = await self.run(_create if create else open_store, path)
        store = SqliteStore(self, file, self._clock)
        self._open[path] = store
        return store

    async def rebuild(self, folder: str, records: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> str:
        """See shared.ports.Stores. Raises NoSpaceError or StorageError."""
        path = os.path.join(os.path.realpath(folder), STATE_FILE)  # noqa: ASYNC240
        if path in self._open:
            raise InvalidStateError(f"The store {path} is open.")
        change: Change = {name: encode(value) for name, value in records.items()}
        encoded = [encode(event) for event in events]
        return await self.run(rebuild, path, change, encoded, self._clock.wall())

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run ``work`` on the stores' thread, to its end even if the caller is cancelled."""
        return await asyncio.shield(asyncio.wrap_future(self.submit(work, *arguments)))

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Queue ``work`` for the stores' thread; it is done in the order of these calls."""
        return self._thread.submit(work, *arguments)

    def forget(self, file: StoreFile) -> None:
        """The file may be opened again."""
        self._open.pop(file.path, None)

    async def close(self) -> None:
        """Close all stores and end the thread."""
        for store in list(self._open.values()):
            await store.close()
        self._thread.shutdown()


class SqliteStore:
    """One VM's durable state (shared.ports.Store).

    After a commit that failed, whether it is durable is unknown: the store then refuses every further one, and
    ``get`` goes on to serve what was committed before. Opening it again tells.
    """

    def __init__(self, stores: SqliteStores, file: StoreFile, clock: Clock) -> None:
        self._stores = stores
        self._file = file
        self._clock = clock
        self._bodies = dict(file.bodies)
        self._closed = False

    def get(self, name: str) -> Any:
        body = self._bodies.get(name)
        return None if body is None else decode(body)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._bodies if name.startswith(prefix))

    def commit(self, changes: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> Coroutine[Any, Any, None]:
        """See shared.ports.Store.

        Raises TypeError or ValueError at once for a value that is not plain, StorageError or NoSpaceError where
        the volume fails, and StorageError after such a failure.
        """
        change: Change = {name: None if value is None else encode(value) for name, value in changes.items()}
        encoded = [encode(event) for event in events]
        self._require_open()
        future = self._stores.submit(self._file.commit, change, encoded, self._clock.wall())
        done = asyncio.wrap_future(future)
        done.add_done_callback(lambda outcome: self._committed(outcome, change))
        return _outcome(done)

    def _committed(self, outcome: asyncio.Future[None], change: Change) -> None:
        if outcome.cancelled() or outcome.exception() is not None:
            return
        for name, body in change.items():
            if body is None:
                self._bodies.pop(name, None)
            else:
                self._bodies[name] = body

    async def events(self, *, limit: int, after: int = 0) -> list[dict[str, Any]]:
        self._require_open()
        rows = await self._stores.run(self._file.events, limit, after)
        return [{**decode(body), "id": identity} for identity, body in rows]

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                await self._stores.run(self._file.close)
            finally:
                self._stores.forget(self._file)

    def _require_open(self) -> None:
        if self._closed:
            raise StorageError(f"The store {self._file.path} is closed.")


def _create(path: str) -> StoreFile:
    file = StoreFile(path)
    file.create()
    return file


async def _outcome(done: asyncio.Future[None]) -> None:
    await asyncio.shield(done)


def _require_own(folder: str) -> None:
    """Raises StorageError for a folder that is none, or of others. One that is missing shows when it is opened."""
    with contextlib.suppress(FileNotFoundError):
        require_own_folder(folder, os.lstat(folder))
