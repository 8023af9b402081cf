"""Reads one HRL file: in runs of verified records, or whole with the kind of its end.

Everything here blocks and is meant for workers. Nothing is returned that was not verified against the chain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from protocol.bulk import LogRecord
from protocol.chain import Cursor
from protocol.errors import LogError
from protocol.hrl import (
    FILE_HEADER_BYTES,
    MAX_RECORD,
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    FileHeader,
    RecordHeader,
    RecordKind,
    decode_file_header,
    decode_record_header,
)
from protocol.position import Position
from shared.ports import File

# One run is one LOG frame at most, and always has room for the largest record.
RUN_BYTES = MAX_RECORD
# One read brings several runs: where it cuts a record off, that one is read again.
WINDOW_BYTES = 4 << 20
SCAN_BYTES = 4 << 20
ALIGNMENT = 8

_ALONE = frozenset({RecordKind.SEAL, RecordKind.END_OF_FILE})
_NAME = re.compile(r"(\d{8})\.hrl")


def log_file_name(sequence: int) -> str:
    """The name of the log file with this number: 8 digits and ``.hrl``."""
    return f"{sequence:08d}.hrl"


def log_file_sequence(name: str) -> int | None:
    """The number in a log file's name, None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def read_file_header(file: File) -> FileHeader:
    """The header of a log, spool or differencing file. Raises LogError."""
    return decode_file_header(file.read(0, FILE_HEADER_BYTES))


# --- runs ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """Whole, verified, consecutive records of one file.

    Either segment and batch records (and settled ones), or exactly one seal or one end-of-file record: ``data`` is the
    payload of one LOG or SEAL frame. ``position`` is the one after the last record; ``offset`` and ``end`` are where
    the run lies in its file.
    """

    data: memoryview
    records: list[LogRecord]
    position: Position
    offset: int
    end: int

    @property
    def kind(self) -> RecordKind:
        """The kind of the last record: SEAL and END_OF_FILE stand alone."""
        return self.records[-1].header.kind

    @property
    def sealed(self) -> bool:
        return self.kind is RecordKind.SEAL


class RecordReader:
    """Reads a file's records from ``offset`` on, where ``cursor`` stands; both move with every run.

    ``run_bytes`` bounds a run; it is never less than the largest record.
    """

    def __init__(
        self, file: File, cursor: Cursor, offset: int = FILE_HEADER_BYTES, *, run_bytes: int = RUN_BYTES
    ) -> None:
        self.file = file
        self.cursor = cursor
        self.offset = offset
        self._run_bytes = max(run_bytes, MAX_RECORD)
        self._window = memoryview(b"")
        """What was read from ``offset`` on: runs are views of it, and many small segments do not cost a read each."""

    def run(self, end: int) -> Run | None:
        """The next run before offset ``end``, at which a record must end; None at ``end``.

        Costs one read at most. Raises LogError, and stays, where the next record is not valid; valid ones before it
        come out first.
        """
        start = self.offset
        if start >= end:
            return None
        view = self._window[: end - start]
        if not _begins_with_whole_record(view):
            wanted = min(max(self._run_bytes, WINDOW_BYTES), end - start)
            view = self._window = memoryview(self.file.read(start, wanted))
        records: list[LogRecord] = []
        at = 0
        try:
            while at < len(view) or not records:
                header = decode_record_header(view, at, at=start + at)
                alone = header.kind in _ALONE
                if records and (alone or at + header.length > self._run_bytes):
                    break
                if header.length > len(view) - at:
                    raise LogError(start + at, "short", f"{len(view) - at} bytes left of a record of {header.length}")
                record = view[at : at + header.length]
                self.cursor.follow(header, record, at=start + at)
                records.append(LogRecord(header, record))
                at += header.length
                if alone:
                    break
        except LogError:
            # Also raised where the read cut off the last record, which then is the first of the next run.
            if not records:
                self._window = memoryview(b"")
                raise
        self.offset = start + at
        self._window = self._window[at:]
        return Run(view[:at], records, self.cursor.position, start, self.offset)

    def runs(self, end: int) -> Iterator[Run]:
        """All runs before ``end``."""
        while (run := self.run(end)) is not None:
            yield run


def _begins_with_whole_record(view: memoryview) -> bool:
    return RECORD_HEADER_BYTES <= len(view) >= RECORD_HEADER_BYTES + int.from_bytes(view[8:12], "little")


# --- scanning ------------------------------------------------------------------------------------------------------


class EndKind(StrEnum):
    """How the valid part of a file ends."""

    CLEAN = "clean"
    """Nothing follows: zeroes, or the end of the range that was to be read."""
    END_OF_FILE = "end-of-file"
    """An end-of-file record: the log goes on in the next file."""
    TORN = "torn"
    """What follows is not the next record, and no later record of this log lies behind it."""
    DAMAGED = "damaged"
    """What follows is not the next record, but ``later`` is one that was written after it."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where a record lies in its file, and its header."""

    offset: int
    header: RecordHeader


@dataclass(slots=True)
class ScanResult:
    """What a file holds: its valid records, where and how they end.

    ``end`` is the offset after the last valid record, where ``cursor`` stands. For a torn or damaged end ``reason``
    is LogError's word for what is there, and ``text`` says it to people.
    """

    records: list[Located]
    end: int
    cursor: Cursor
    kind: EndKind
    reason: str = ""
    text: str = ""
    later: Located | None = None

    @property
    def position(self) -> Position:
        return self.cursor.position


def scan_file(
    file: File,
    *,
    cursor: Cursor | None = None,
    offset: int = FILE_HEADER_BYTES,
    end: int | None = None,
    visit: Callable[[int, LogRecord], None] | None = None,
    keep: bool = True,
) -> ScanResult:
    """Verify a file from ``offset`` (where ``cursor`` stands; by default the header's place) up to ``end``.

    ``visit`` sees every valid record with its offset, and may raise LogError to judge it invalid; ``keep`` keeps
    their headers. Raises LogError only for a file header that is not valid.
    """
    if cursor is None:
        cursor = Cursor.of_file(read_file_header(file))
    size = file.size() if end is None else end
    records: list[Located] = []
    reader = RecordReader(file, cursor.copy(), offset, run_bytes=SCAN_BYTES)
    cursor = cursor.copy()
    at = offset
    try:
        for run in reader.runs(size):
            for record in run.records:
                if visit is not None:
                    visit(at, record)
                cursor.step(record.header)
                if keep:
                    records.append(Located(at, record.header))
                at += record.header.length
            if run.kind is RecordKind.END_OF_FILE:
                return ScanResult(records, at, cursor, EndKind.END_OF_FILE)
    except LogError as error:
        later = find_later(file, cursor, at + ALIGNMENT, size)
        if later is not None:
            return ScanResult(records, at, cursor, EndKind.DAMAGED, error.reason, error.text, later)
        kind = EndKind.CLEAN if error.reason == "end" or at == size else EndKind.TORN
        return ScanResult(records, at, cursor, kind, error.reason, error.text)
    return ScanResult(records, at, cursor, EndKind.CLEAN)


def find_later(file: File, cursor: Cursor, offset: int, end: int) -> Located | None:
    """The first record between ``offset`` and ``end`` that was written after ``cursor``'s place in the same log.

    Only headers are looked at: right magic and checksum, same epoch, and segment and entry beyond the cursor's. A
    recycled file's old records have lower numbers or another epoch.
    """
    while offset + RECORD_HEADER_BYTES <= end:
        window = memoryview(file.read(offset, min(SCAN_BYTES, end - offset)))
        if len(window) < RECORD_HEADER_BYTES:
            return None
        found = _find_later_in(window, cursor, offset)
        if found is not None:
            return found
        offset += len(window) - RECORD_HEADER_BYTES + ALIGNMENT
        offset -= offset % ALIGNMENT
    return None


def _find_later_in(window: memoryview, cursor: Cursor, offset: int) -> Located | None:
    data = bytes(window) if not isinstance(window.obj, bytes) else window.obj
    at = data.find(RECORD_MAGIC)
    while at >= 0:
        if (offset + at) % ALIGNMENT == 0:
            try:
                header = decode_record_header(data, at, at=offset + at)
            except LogError:
                pass
            else:
                if header.epoch == cursor.epoch and _is_beyond(header, cursor):
                    return Located(offset + at, header)
        at = data.find(RECORD_MAGIC, at + 1)
    return None


def _is_beyond(header: RecordHeader, cursor: Cursor) -> bool:
    if header.segment != cursor.segment:
        return header.segment > cursor.segment
    # In a differencing file (segment 0) settled records take no numbers, and no file is recycled.
    return header.entry > cursor.entry or (header.segment == 0 and header.entry == cursor.entry)
