"""The audit log's files: lines are only ever added, each durable before the call returns, and chained by their digests.

Everything but :class:`AuditLog` blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from shared.admin.audit_lines import (
    CURRENT,
    LINE_MAX,
    NO_LINE,
    AuditEntry,
    AuditReport,
    ChainCheck,
    decode_line,
    digest_of,
    encode_line,
    in_order,
    older_name,
    split,
)
from shared.errors import StorageError, VmreplicaError
from shared.ports import Clock, File, FileSystem, Workers

FILES = 8
"""Files among which the log's size is parted: the oldest one goes when it is full."""
ANSWER_BYTES = 8 << 20
"""What one answer with entries may take."""
READ_TRIES = 5
"""So often a log is read whose files were rotated meanwhile."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


def read_whole(files: FileSystem, path: str) -> bytes:
    """All bytes of a file. Raises OSError or StorageError."""
    file = files.open(path)
    try:
        return file.read(0, file.size())
    finally:
        file.close()


def check_log(files: FileSystem, folder: str) -> AuditReport:
    """Follow the chain through all files of a log. Raises OSError or StorageError where one can't be read."""

    def follow(names: list[str]) -> AuditReport:
        check = ChainCheck()
        for name in names:
            if not check.follow(name, read_whole(files, f"{folder}/{name}")):
                break
        return check.report

    return _of_one_moment(files, folder, follow)


def find_entries(files: FileSystem, folder: str, *, limit: int, since: float = 0.0, vm: str = "") -> list[AuditEntry]:
    """The newest ``limit`` entries from ``since`` (seconds since the Unix epoch) on, the oldest first.

    Of one VM by name or UUID, or of all. Lines that are no entries are left out; :func:`check_log` tells of them.
    """

    def find(names: list[str]) -> list[AuditEntry]:
        found: list[AuditEntry] = []
        size = 0
        for name in reversed(names):
            for line in reversed(list(split(read_whole(files, f"{folder}/{name}")))):
                with contextlib.suppress(ValueError):
                    entry = decode_line(line)
                    if entry.time >= since and (not vm or vm in (entry.vm, entry.uuid)):
                        size += len(line)
                        if len(found) >= limit or size > ANSWER_BYTES:
                            return found[::-1]
                        found.append(entry)
        return found[::-1]

    return _of_one_moment(files, folder, find)


def _of_one_moment(files: FileSystem, folder: str, read: Callable[[list[str]], T]) -> T:
    """What ``read`` makes of the files, of which the agent that writes them may put one aside and remove one meanwhile.

    Then all are read again: a name that was listed would stand for another file, or for none.
    """
    for _ in range(READ_TRIES):
        names = in_order(files.list(folder))
        try:
            outcome = read(names)
        except FileNotFoundError:
            continue
        if in_order(files.list(folder)) == names:
            return outcome
    raise StorageError(f"The files of the audit log in {folder} change again and again.", "Try again, or read a copy.")


class AuditLog:
    """One agent's log in its ``folder``, of about ``limit`` bytes in all."""

    def __init__(self, files: FileSystem, workers: Workers, clock: Clock, folder: str, *, limit: int) -> None:
        self.folder = folder
        self._files = files
        self._workers = workers
        self._clock = clock
        self._file_bytes = max(limit // FILES, LINE_MAX)
        self._writing = asyncio.Lock()
        self._last: tuple[int, str] | None = None
        """Number and digest of the last line; None as long as they were not read."""
        self._first_seq = 1
        """Of the file that is written to."""

    async def append(self, role: str, verb: str, **fields: Any) -> tuple[AuditEntry, str]:
        """Add an entry; returns it and the digest of its line once it is durable. Raises OSError or VmreplicaError."""
        # Whoever is cancelled meanwhile must not leave a line that is written and not counted.
        return await asyncio.shield(asyncio.ensure_future(self._append_in_turn(role, verb, fields)))

    async def check(self) -> AuditReport:
        """See :func:`check_log`."""
        async with self._writing:
            return await self._workers.run(check_log, self._files, self.folder)

    async def find(self, *, limit: int, since: float, vm: str) -> list[AuditEntry]:
        """See :func:`find_entries`."""
        return await self._workers.run(lambda: find_entries(self._files, self.folder, limit=limit, since=since, vm=vm))

    # --- writing, on a worker but for the counting -------------------------------------------------------------------

    async def _append_in_turn(self, role: str, verb: str, fields: dict[str, Any]) -> tuple[AuditEntry, str]:
        async with self._writing:
            return await self._append(role, verb, fields)

    async def _append(self, role: str, verb: str, fields: dict[str, Any]) -> tuple[AuditEntry, str]:
        if self._last is None:
            removed = await self._workers.run(self._open)
            if removed:
                text = f"{removed} bytes of an entry that was not written to its end were removed."
                await self._add(role, "audit.mended", {"result": "ok", "text": text})
        return await self._add(role, verb, fields)

    async def _add(self, role: str, verb: str, fields: dict[str, Any]) -> tuple[AuditEntry, str]:
        assert self._last is not None
        seq, previous = self._last
        time = round(self._clock.wall(), 3)
        entry = AuditEntry(seq=seq + 1, time=time, role=role, verb=verb, previous=previous, **fields)
        line = encode_line(entry)
        await self._workers.run(self._write, line + b"\n", entry.seq)
        digest = digest_of(line)
        self._last = (entry.seq, digest)
        return entry, digest

    def _open(self) -> int:
        """Find the end of the chain; the bytes of a torn line that were removed behind it."""
        self._files.make_folder(self.folder)
        last, removed = (0, NO_LINE), 0
        for name in reversed(in_order(self._files.list(self.folder))):
            content = read_whole(self._files, f"{self.folder}/{name}")
            whole = content.rpartition(b"\n")[0]
            if name == CURRENT:
                removed = len(content) - (len(whole) + 1 if whole else 0)
                if removed:
                    self._cut(len(content) - removed)
                self._first_seq = _seq_of(next(split(content), b"")) or 0
            line = whole.rpartition(b"\n")[2]
            if line:
                last = (_seq_of(line), digest_of(line))
                break
        self._first_seq = self._first_seq or last[0] + 1
        self._last = last
        return removed

    def _cut(self, size: int) -> None:
        file = self._files.open(f"{self.folder}/{CURRENT}", write=True)
        try:
            file.truncate(size)
            file.sync()
        finally:
            file.close()

    def _write(self, line: bytes, seq: int) -> None:
        if len(line) > LINE_MAX:
            raise StorageError(f"An entry of {len(line)} bytes is too large for the audit log.")
        path = f"{self.folder}/{CURRENT}"
        file = self._files.open(path, write=True, create=True)
        try:
            size = file.size()
            if size and size + len(line) > self._file_bytes:
                file.close()
                file = self._rotate(path)
                size = 0
            self._write_at_end(file, size, line)
            if size == 0:
                self._first_seq = seq
                self._files.sync_folder(self.folder)
        finally:
            file.close()

    def _write_at_end(self, file: File, size: int, line: bytes) -> None:
        try:
            file.write(size, line)
            file.sync()
        except OSError:
            # A part of it would be taken for damage.
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise

    def _rotate(self, path: str) -> File:
        """Put the full file aside, and remove the oldest ones."""
        self._files.rename(path, f"{self.folder}/{older_name(self._first_seq)}")
        file = self._files.open(path, write=True, create=True, exclusive=True)
        older = in_order(self._files.list(self.folder))[:-1]
        for name in older[: -(FILES - 1)]:
            self._files.remove(f"{self.folder}/{name}")
        return file


def _seq_of(line: bytes) -> int:
    """The number of the entry in a line, 0 where it has none: then the chain shows that it was changed."""
    try:
        return decode_line(line).seq
    except ValueError:
        return 0


def problem_of(error: Exception, folder: str) -> str:
    """What an administrator is told about a log that could not be written."""
    if isinstance(error, VmreplicaError):
        text = error.text
    elif isinstance(error, TimeoutError):
        text = "It takes too long."
    else:
        text = f"{getattr(error, 'strerror', None) or error}."
    return f"The audit log in {folder} can't be written. {text} Orders are carried out all the same, and logged."
