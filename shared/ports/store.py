"""The real store: one SQLite database for each VM, all of an agent's on one thread of their own.

Everything is read and checked when a store is opened, and served from memory afterwards. Each row carries a checksum of
its own, so that damage is found in the row it hit; what can't be proven right is refused, never guessed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgpack

from shared.errors import InvalidStateError, NoSpaceError, StorageError, StoreDamagedError

T = TypeVar("T")

FILE_NAME = "state.db"
APPLICATION_ID = 0x564D5231
SCHEMA_VERSION = 1
EVENTS_KEPT = 10_000
EVENTS_TRIMMED = 256
"""Old events are removed so many at a time, so that not every commit pays for it."""
CHECK_BYTES = 16
REBUILD = "Put the file back from a backup, or remove the VM and enable it anew; its disks are not affected."

_SCHEMA = """
CREATE TABLE records (name TEXT PRIMARY KEY NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL);
"""


class _Row(NamedTuple):
    """A row as it lies in the database."""

    body: bytes
    checksum: bytes


class SqliteStores:
    """The stores of an agent (shared.ports.Stores)."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vmreplica-store")

    async def open(self, folder: str, *, create: bool = False) -> SqliteStore:
        """See shared.ports.Stores; raises StorageError where the volume fails."""
        path = Path(folder) / FILE_NAME
        database = await self._run(_create if create else _open, path)
        return SqliteStore(path, database, self._run)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        # A transaction that has begun ends: a cancelled caller only doesn't hear of it.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work, *args))

    def close(self) -> None:
        """End the thread after what it still has to do. Blocks."""
        self._thread.shutdown()


class _Database:
    """An open database and its checked content. Every method runs on the stores' thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        self.records: dict[str, bytes] = {}
        self.event_count = 0

    def load(self) -> None:
        """Read and check everything. Raises StoreDamagedError, and sqlite3.Error for what SQLite finds itself."""
        problem = self.connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise _damaged(self.path, str(problem))
        for name, body, checksum in self.connection.execute("SELECT name, body, checksum FROM records"):
            self.records[name] = _checked(self.path, f"record {name!r}", name, _Row(body, checksum))
        for number, body, checksum in self.connection.execute("SELECT id, body, checksum FROM events"):
            _checked(self.path, f"event {number}", "event", _Row(body, checksum))
            self.event_count += 1

    def commit(self, changes: dict[str, bytes | None], events: list[bytes]) -> None:
        """One durable transaction."""
        with self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            for name, body in changes.items():
                if body is None:
                    self.connection.execute("DELETE FROM records WHERE name = ?", (name,))
                else:
                    self.connection.execute(
                        "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (name, body, _checksum(name, body))
                    )
            self.connection.executemany(
                "INSERT INTO events (body, checksum) VALUES (?, ?)", [(body, _checksum("event", body)) for body in events]
            )
            self._trim(len(events))

    def _trim(self, added: int) -> None:
        self.event_count += added
        excess = self.event_count - EVENTS_KEPT
        if excess >= EVENTS_TRIMMED:
            self.connection.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?)", (excess,)
            )
            self.event_count -= excess

    def events(self, limit: int, after: int) -> list[dict[str, Any]]:
        rows = self.connection.execute(
            "SELECT id, body, checksum FROM events WHERE id > ? ORDER BY id DESC LIMIT ?", (after, limit)
        ).fetchall()
        found = []
        for number, body, checksum in reversed(rows):
            plain = _unpack(_checked(self.path, f"event {number}", "event", _Row(body, checksum)))
            found.append({**plain, "id": number})
        return found


class SqliteStore:
    """The durable state of one VM (shared.ports.Store).

    After a commit that failed for good the store is poisoned: later commits raise, ``get`` serves what is durable.
    """

    def __init__(self, path: Path, database: _Database, run: Callable[..., Any]) -> None:
        self._path = path
        self._database = database
        self._run = run
        self._records = dict(database.records)
        self._order = asyncio.Lock()
        self._failure = ""
        self._closed = False

    def get(self, name: str) -> Any:
        """See shared.ports.Store."""
        body = self._records.get(name)
        return None if body is None else _unpack(body)

    def names(self, prefix: str = "") -> list[str]:
        """See shared.ports.Store."""
        return sorted(name for name in self._records if name.startswith(prefix))

    async def commit(self, changes: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> None:
        """See shared.ports.Store; raises NoSpaceError or StorageError, after which nothing more can be committed."""
        packed = {name: None if value is None else _pack(value) for name, value in changes.items()}
        bodies = [_pack(event) for event in events]
        await asyncio.shield(asyncio.ensure_future(self._commit(packed, bodies)))

    async def _commit(self, changes: dict[str, bytes | None], events: list[bytes]) -> None:
        async with self._order:
            if self._closed:
                raise InvalidStateError(f"{self._path} is closed.")
            if self._failure:
                raise StorageError(f"{self._path} can't be written any more: {self._failure}.", "Restart the agent.")
            try:
                await self._run(self._database.commit, changes, events)
            except sqlite3.Error as error:
                self._failure = str(error)
                raise _storage_error(self._path, error) from error
            for name, body in changes.items():
                if body is None:
                    self._records.pop(name, None)
                else:
                    self._records[name] = body

    async def events(self, *, limit: int, after: int = 0) -> list[dict[str, Any]]:
        """See shared.ports.Store."""
        try:
            found: list[dict[str, Any]] = await self._run(self._database.events, limit, after)
        except sqlite3.DatabaseError as error:
            raise _damaged(self._path, str(error)) from error
        return found

    async def close(self) -> None:
        """Let the last commit end, then close the database."""
        async with self._order:
            if not self._closed:
                self._closed = True
                await self._run(self._database.connection.close)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False, timeout=0
    )
    # One process owns the file; a second agent on the same folder is refused, not waited for.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _create(path: Path) -> _Database:
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        raise StoreDamagedError(f"{path} exists already.", "It belongs to another VM or to an earlier one.") from None
    except OSError as error:
        raise StorageError(f"{path} can't be made: {error.strerror}.", "Check the volume.") from error
    try:
        connection = _connect(path)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        _sync_folder(path.parent)
    except sqlite3.Error as error:
        path.unlink(missing_ok=True)
        raise _storage_error(path, error) from error
    except OSError as error:
        connection.close()
        path.unlink(missing_ok=True)
        raise StorageError(f"{path.parent} can't be synced: {error.strerror}.", "Check the volume.") from error
    return _Database(path, connection)


def _sync_folder(path: Path) -> None:
    """Make the new file's name durable; SQLite only does that for its own journals."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open(path: Path) -> _Database:
    if not path.is_file() or path.is_symlink():
        raise StoreDamagedError(f"The state {path} is missing.", REBUILD)
    connection = None
    try:
        connection = _connect(path)
        _check_kind(path, connection)
        database = _Database(path, connection)
        database.load()
    except sqlite3.OperationalError as error:
        if connection is not None:
            connection.close()
        if "locked" in str(error):
            raise InvalidStateError(f"{path} is in use by another agent.", "Stop the other one first.") from error
        raise _damaged(path, str(error)) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if connection is not None:
            connection.close()
        raise _damaged(path, str(error)) from error
    except StoreDamagedError:
        connection.close()
        raise
    return database


def _check_kind(path: Path, connection: sqlite3.Connection) -> None:
    """Raises StoreDamagedError for a foreign database, another version, or a schema that is not ours."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise _damaged(path, "it is no state of vmreplica")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StoreDamagedError(
            f"The state {path} has version {version}; this program reads version {SCHEMA_VERSION}.",
            "Install the version of vmreplica that wrote it, or a later one.",
        )
    if version != SCHEMA_VERSION:
        raise _damaged(path, f"its version is {version}")
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")}
    if found != {"records", "events"}:
        raise _damaged(path, f"its tables are {sorted(found)}")


def _checked(path: Path, what: str, name: str, row: _Row) -> bytes:
    """The row's body, if its checksum holds. Raises StoreDamagedError."""
    if not isinstance(row.body, bytes) or not isinstance(name, str) or row.checksum != _checksum(name, row.body):
        raise _damaged(path, f"the checksum of {what} is wrong")
    return row.body


def _checksum(name: str, body: bytes) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass") + b"\0" + body, digest_size=CHECK_BYTES).digest()


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(body: bytes) -> Any:
    return msgpack.unpackb(body, raw=False, strict_map_key=False)


def _damaged(path: Path, what: str) -> StoreDamagedError:
    return StoreDamagedError(f"The state {path} is damaged: {what}.", REBUILD)


def _storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return NoSpaceError(f"The volume of {path} is full.", "Free some space and restart the agent.")
    return StorageError(f"{path} can't be written: {error}.", "Check the volume and restart the agent.")
