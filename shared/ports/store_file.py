"""One database file: records and events, each with its own checksum, all of it verified when it is opened.

SQLite in WAL mode with ``synchronous=FULL`` makes a transaction whole and durable. What it does not notice, such
as a flipped bit inside a row, a row that vanished or a page that fell back to an older version, the checksums
find: every row has one, and a summary row counts the rows and holds the XOR of all records' checksums. (Frames of
the write-ahead log that rot between a crash and the next start are SQLite's to judge: it ends at the first.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from shared.errors import NoSpaceError, StorageError, StoreDamagedError
from shared.ports.ownership import require_own_file
from shared.ports.store_rows import (
    DIGEST_BYTES,
    VERSION,
    Summary,
    decode,
    encode,
    event_digest,
    record_digest,
    summary_digest,
    xor,
)

APPLICATION_ID = 0x766D7270
"""``vmrp`` in the header of the file: what ``file`` and we know it by."""
EVENTS_MAX = 10_000
"""The newest events that are kept."""

_REBUILD = (
    "Nothing was changed. Restore the folder from a backup of exactly this moment, or remove the VM here, enable"
    " it again and let it resynchronize; the disks themselves are not affected."
)

_CHECKED = "body BLOB NOT NULL, digest BLOB NOT NULL"
_TABLES = {
    "summary": f"CREATE TABLE summary (one INTEGER PRIMARY KEY, {_CHECKED})",
    "records": f"CREATE TABLE records (name TEXT PRIMARY KEY, {_CHECKED}) WITHOUT ROWID",
    "events": f"CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, {_CHECKED})",
}

Change = dict[str, bytes | None]
"""Names of records with their new bodies; None deletes one."""


class StoreFile:
    """One database; all methods block and belong to one thread. ``version`` is that of the store it has to be."""

    def __init__(self, path: str, version: int = VERSION) -> None:
        self.path = path
        self.version = version
        self.bodies: dict[str, bytes] = {}
        """The records as they were when the file was opened."""
        self._digests: dict[str, bytes] = {}
        self._summary = Summary(version=version)
        self._database: sqlite3.Connection | None = None
        self._failure: str | None = None

    # --- opening ---

    def create(self) -> None:
        """Make a fresh store; it appears under its name only when it is complete and durable."""
        if os.path.lexists(self.path):
            raise StoreDamagedError(f"There is a state in {self.path} already.", "A new one is not put over it.")
        unfinished = f"{self.path}.unfinished"
        with self._storage_errors("created"):
            for leftover in (unfinished, f"{unfinished}-wal", f"{unfinished}-journal", f"{self.path}-wal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(leftover)
            os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            database = _connect(unfinished)
            try:
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {self.version}")
                database.execute("BEGIN IMMEDIATE")
                for statement in _TABLES.values():
                    database.execute(statement)
                _write_summary(database, self._summary)
                database.execute("COMMIT")
            finally:
                database.close()
            _sync(unfinished)
            os.rename(unfinished, self.path)
            folder = os.path.dirname(self.path)
            _sync(folder)
            _sync(os.path.dirname(folder))
        self.open()

    def open(self) -> None:
        """Open the existing store and verify all of it; raises StoreDamagedError and StorageError."""
        self._require_file()
        database = None
        try:
            database = _connect(self.path)
            self._verify(database)
        except BaseException as error:
            if database is not None:
                with contextlib.suppress(sqlite3.Error):
                    database.close()
            self.bodies.clear()
            self._digests.clear()
            if not isinstance(error, Exception) or isinstance(error, StoreDamagedError):
                raise
            raise self._refusal(error) from error
        self._database = database

    def _require_file(self) -> None:
        try:
            state = os.lstat(self.path)
        except FileNotFoundError as error:
            raise StoreDamagedError(f"The state {self.path} is missing.", _REBUILD) from error
        except OSError as error:
            raise StorageError(f"The state {self.path} can't be read: {error.strerror}.") from error
        if not stat.S_ISREG(state.st_mode):
            raise StoreDamagedError(f"The state {self.path} is not a regular file.", "Remove what is there.")
        require_own_file(self.path, state)

    def _verify(self, database: sqlite3.Connection) -> None:
        application, version = (_pragma(database, name) for name in ("application_id", "user_version"))
        if application != APPLICATION_ID:
            raise StoreDamagedError(
                f"{self.path} is no state of vmreplica (application id {application}).",
                "Another program's file, or damage. " + _REBUILD,
            )
        if version != self.version:
            _refute_version(database, self.version, version)
            if version < self.version:
                raise OlderStoreError(version, self.path)
            raise StoreDamagedError(
                f"{self.path} has version {version}; this program knows {self.version}.",
                "Start the version of vmreplica that wrote it, or a newer one.",
                code="store_newer",
            )
        for (answer,) in database.execute("PRAGMA integrity_check"):
            if answer != "ok":
                raise _Damage(f"SQLite's check says: {answer}")
        if dict(database.execute("SELECT name, sql FROM sqlite_schema")) != _TABLES:
            raise _Damage("its tables are not those that were made")
        self._summary = _read_summary(database, self.version)
        self._verify_records(database)
        self._verify_events(database)

    def _verify_records(self, database: sqlite3.Connection) -> None:
        total = bytes(DIGEST_BYTES)
        for name, body, digest in database.execute("SELECT name, body, digest FROM records"):
            if not isinstance(name, str) or not isinstance(body, bytes) or digest != record_digest(name, body):
                raise _Damage(f"the record {name!r} has a wrong checksum")
            decode(body)
            self.bodies[name] = body
            self._digests[name] = digest
            total = xor(total, digest)
        if (len(self.bodies), total) != (self._summary.records, self._summary.records_digest):
            raise _Damage(f"{self._summary.records} records were stored, and {len(self.bodies)} others are found")

    def _verify_events(self, database: sqlite3.Connection) -> None:
        expected = self._summary.first_event
        for identity, time, body, digest in database.execute("SELECT id, time, body, digest FROM events ORDER BY id"):
            if identity != expected:
                raise _Damage(f"event {expected} is missing")
            if not isinstance(body, bytes) or digest != event_digest(identity, time, body):
                raise _Damage(f"event {identity} has a wrong checksum")
            if not isinstance(decode(body), dict):
                raise _Damage(f"event {identity} is no event")
            expected += 1
        if expected != self._summary.last_event + 1:
            raise _Damage(f"event {expected} is missing")

    def _refusal(self, error: Exception) -> StorageError | StoreDamagedError:
        """What an exception while opening means: the surroundings, or damage."""
        if isinstance(error, sqlite3.Error) and _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageError(
                f"The state {self.path} is in use by another process.",
                "Stop the other agent, or the tool that has it open.",
                code="store_in_use",
            )
        return StoreDamagedError(f"The state {self.path} is damaged: {error}.", _REBUILD)

    # --- committing ---

    def commit(self, change: Change, events: Sequence[bytes], time: float) -> None:
        """One transaction; raises NoSpaceError or StorageError, and from then on always StorageError."""
        if self._failure is not None:
            raise StorageError(
                f"The state {self.path} takes no more changes since one failed: {self._failure}.",
                "See to the volume, then restart the agent: it reads again what is durable.",
            )
        assert self._database is not None
        summary, digests = self._after(change, len(events))
        with self._storage_errors("changed"):
            self._database.execute("BEGIN IMMEDIATE")
            self._write_records(change, digests)
            self._write_events(events, time, summary)
            _write_summary(self._database, summary)
            self._database.execute("COMMIT")
        self._summary = summary
        for name, digest in digests.items():
            if digest is None:
                self._digests.pop(name, None)
            else:
                self._digests[name] = digest

    def _after(self, change: Change, events: int) -> tuple[Summary, dict[str, bytes | None]]:
        """The summary after a change, and the new checksums of the records that it touches."""
        count, total = self._summary.records, self._summary.records_digest
        digests: dict[str, bytes | None] = {}
        for name, body in change.items():
            if (old := self._digests.get(name)) is not None:
                total, count = xor(total, old), count - 1
            digests[name] = None if body is None else record_digest(name, body)
            if (digest := digests[name]) is not None:
                total, count = xor(total, digest), count + 1
        last = self._summary.last_event + events
        summary = Summary(
            version=self.version,
            commits=self._summary.commits + 1,
            records=count,
            records_digest=total,
            first_event=max(self._summary.first_event, last - EVENTS_MAX + 1),
            last_event=last,
        )
        return summary, digests

    def _write_records(self, change: Change, digests: dict[str, bytes | None]) -> None:
        assert self._database is not None
        for name, body in change.items():
            if body is None:
                self._database.execute("DELETE FROM records WHERE name = ?", (name,))
            else:
                self._database.execute(
                    "INSERT OR REPLACE INTO records (name, body, digest) VALUES (?, ?, ?)",
                    (name, body, digests[name]),
                )

    def _write_events(self, events: Sequence[bytes], time: float, summary: Summary) -> None:
        assert self._database is not None
        for identity, body in enumerate(events, self._summary.last_event + 1):
            self._database.execute(
                "INSERT INTO events (id, time, body, digest) VALUES (?, ?, ?, ?)",
                (identity, time, body, event_digest(identity, time, body)),
            )
        if summary.first_event != self._summary.first_event:
            self._database.execute("DELETE FROM events WHERE id < ?", (summary.first_event,))

    def copy_to(self, path: str) -> None:
        """Make a whole copy of the open store at ``path``, durable. Raises StorageError or NoSpaceError."""
        assert self._database is not None
        with self._storage_errors("copied"):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(path)) as copy:
                self._database.backup(copy)
            _sync(path)

    def bring_forward(self, change: Change, version: int) -> None:
        """Change records and version in one transaction; the store is to be opened anew then. Raises StorageError."""
        assert self._database is not None
        self.version = version
        summary, digests = self._after(change, 0)
        with self._storage_errors("brought forward"):
            self._database.execute("BEGIN IMMEDIATE")
            self._write_records(change, digests)
            _write_summary(self._database, summary)
            self._database.execute(f"PRAGMA user_version = {version}")
            self._database.execute("COMMIT")

    def events(self, limit: int, after: int) -> list[tuple[int, bytes]]:
        """Identity and body of the newest ``limit`` events above ``after``, oldest first; raises StorageError."""
        assert self._database is not None
        try:
            rows = self._database.execute(
                "SELECT id, time, body, digest FROM events WHERE id > ? ORDER BY id DESC LIMIT ?",
                (after, max(limit, 0)),
            ).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"The events in {self.path} can't be read: {error}.") from error
        for identity, time, body, digest in rows:
            if digest != event_digest(identity, time, body):
                raise StoreDamagedError(f"Event {identity} in {self.path} has a wrong checksum.", _REBUILD)
        return [(identity, body) for identity, _, body, _ in reversed(rows)]

    def close(self) -> None:
        """Close the file; what was committed is durable already."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    @contextlib.contextmanager
    def _storage_errors(self, done: str) -> Iterator[None]:
        """Turn the errors of SQLite and the system into ours; whatever it was, no later commit may follow."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._failure = str(error)
            with contextlib.suppress(sqlite3.Error):
                if self._database is not None and self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            text = f"The state {self.path} can't be {done}: {error}."
            if _code(error) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
                raise NoSpaceError(text, "Make room on its volume, then restart the agent.") from error
            raise StorageError(text, "See to its volume, then restart the agent.") from error


class OlderStoreError(StoreDamagedError):
    """The store was written by an older version, and is to be brought forward."""

    code = "store_older"

    def __init__(self, version: int, path: str) -> None:
        super().__init__(f"{path} has version {version}, from which this program can't go on.", _REBUILD)
        self.version = version


class _Damage(Exception):
    """What a check found; the text says which row."""


def _write_summary(database: sqlite3.Connection, summary: Summary) -> None:
    body = encode(asdict(summary))
    database.execute(
        "INSERT OR REPLACE INTO summary (one, body, digest) VALUES (1, ?, ?)", (body, summary_digest(body))
    )


def _read_summary(database: sqlite3.Connection, version: int) -> Summary:
    rows = database.execute("SELECT body, digest FROM summary").fetchall()
    if len(rows) != 1 or not isinstance(rows[0][0], bytes) or rows[0][1] != summary_digest(rows[0][0]):
        raise _Damage("the summary has a wrong checksum")
    summary = Summary(**decode(rows[0][0]))
    if summary.version != version:
        raise _Damage(f"its header says version {version}, its summary {summary.version}")
    return summary


def _refute_version(database: sqlite3.Connection, ours: int, version: int) -> None:
    """No checksum covers the header's version: where the summary is ours it is the header that is damaged."""
    try:
        _read_summary(database, ours)
    except (sqlite3.Error, _Damage, TypeError):
        return
    raise _Damage(f"its header says version {version}, its summary {ours}")


def _connect(path: str) -> sqlite3.Connection:
    """Open for writing, never creating; the file is ours alone until it is closed."""
    database = sqlite3.connect(
        f"file:{quote(path)}?mode=rw", uri=True, isolation_level=None, timeout=0, check_same_thread=True
    )
    try:
        # Without a second process there is no need for the shared memory file.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA cell_size_check = ON")
        database.execute("PRAGMA mmap_size = 0")
        database.execute("PRAGMA cache_size = -256")
        database.execute("PRAGMA synchronous = FULL")
        if (mode := _pragma(database, "journal_mode = WAL")) != "wal":
            raise _Damage(f"its journal mode is {mode}, not wal")
        # Takes the lock, and shows whether the file can be written at all.
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    except BaseException:
        database.close()
        raise
    return database


def _pragma(database: sqlite3.Connection, text: str) -> Any:
    return database.execute(f"PRAGMA {text}").fetchone()[0]


def _code(error: Exception) -> int | None:
    """SQLite's primary error code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
