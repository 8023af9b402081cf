"""What a log, spool or differencing file holds, as plain data and as text: ``vmreplica hrl check`` and ``hrl dump``.

The data is made of dict, list, str, int and None, ready for JSON: numbers are raw with their unit in the name, bytes
are hex. The text only renders it. Readers of the JSON should ignore fields that they do not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import numpy as np

from protocol.bulk import LogRecord
from protocol.chain import body_of
from protocol.entries import ENTRY_DTYPE, MAX_DISK_BYTES
from protocol.errors import LogError
from protocol.hrl import (
    EntryKind,
    FileHeader,
    RecordHeader,
    RecordKind,
    decode_entries,
    decode_seal_body,
    decode_segment_body,
    decode_settled_body,
)
from shared.hrl_files import EndKind, ScanResult, read_file_header, scan_file
from shared.ports import FileSystem


class Verdict(StrEnum):
    """What a file is worth: its end decides."""

    SOUND = "sound"
    """Everything up to a clean end is valid."""
    TORN = "torn"
    """Valid up to a torn tail, as a crash leaves it; what is behind the last valid record was never whole."""
    DAMAGED = "damaged"
    """A record in the middle is not valid, although later ones were written: a resynchronization is required."""
    UNREADABLE = "unreadable"
    """The file header is not valid: no HRL file, or nothing in it can be trusted."""


Report = dict[str, Any]
Record = dict[str, Any]


def check(files: FileSystem, path: str) -> Report:
    """Verify the file and sum up what it holds; ``verdict`` is a Verdict. Blocks. Raises OSError."""
    return _inspect(files, path, None)


def dump(files: FileSystem, path: str, emit: Callable[[Record], None]) -> Report:
    """Like :func:`check`, and hand every valid record to ``emit`` on the way."""
    return _inspect(files, path, emit)


def _inspect(files: FileSystem, path: str, emit: Callable[[Record], None] | None) -> Report:
    file = files.open(path)
    try:
        size = file.size()
        try:
            header = read_file_header(file)
        except LogError as error:
            return _unreadable(path, size, error)
        survey = _Survey(emit)
        result = scan_file(file, visit=survey.visit, keep=False)
    finally:
        file.close()
    verdict = {EndKind.TORN: Verdict.TORN, EndKind.DAMAGED: Verdict.DAMAGED}.get(result.kind, Verdict.SOUND)
    return {
        "path": path,
        "verdict": verdict.value,
        "size_bytes": size,
        "header": _header(header),
        **survey.totals(),
        "end": _end(result),
    }


def _unreadable(path: str, size: int, error: LogError) -> Report:
    return {
        "path": path,
        "verdict": Verdict.UNREADABLE.value,
        "size_bytes": size,
        "header": None,
        "end": {"kind": None, "offset_bytes": 0, "reason": error.reason, "text": error.text, "later": None},
    }


class _Survey:
    """Looks into every valid record and sums up."""

    def __init__(self, emit: Callable[[Record], None] | None) -> None:
        self._emit = emit
        self._sizes: dict[int, int] = {}
        self._counts: Counter[str] = Counter()
        self._entries: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._segments: list[dict[str, Any]] = []
        self._settled_bytes = 0
        self._unsettled_bytes = 0

    def visit(self, offset: int, record: LogRecord) -> None:
        """Judge one record's body and count it. Raises LogError."""
        header = record.header
        detail = self._detail(header, body_of(record.record), offset)
        self._counts[header.kind.name.lower()] += 1
        if self._emit is not None:
            self._emit(_record(offset, header) | detail)

    def _detail(self, header: RecordHeader, body: memoryview, at: int) -> dict[str, Any]:
        match header.kind:
            case RecordKind.SEGMENT:
                disks = decode_segment_body(header, body, at=at)
                self._sizes = {disk.index: disk.size for disk in disks}
                self._begin(header, at, whole=True)
                return {
                    "disks": [
                        {"index": disk.index, "size_bytes": disk.size, "uuid": str(UUID(bytes=disk.uuid))}
                        for disk in disks
                    ]
                }
            case RecordKind.BATCH:
                return self._batch(header, body, at)
            case RecordKind.SEAL:
                seal = decode_seal_body(body, at=at)
                segment = self._segment(header, at)
                if segment["whole"] and seal.entries != segment["entries"]:
                    raise LogError(at, "seal", f"the seal counts {seal.entries} entries of {segment['entries']}")
                segment["sealed"] = seal.reason.name.lower()
                segment["sealed_time"] = _time(header.time_ns)
                return {"reason": seal.reason.name.lower(), "entries": seal.entries, "segment_bytes": seal.bytes}
            case RecordKind.UNDO_INDEX | RecordKind.UNDO_END:
                raise LogError(at, "order", "an undo log's record in a log")
            case RecordKind.SETTLED:
                settled = decode_settled_body(body, at=at)
                self._settled_bytes += settled.length
                return {"disk": settled.disk, "offset_bytes": settled.offset, "length_bytes": settled.length}
            case RecordKind.UNSETTLED:
                unsettled = decode_settled_body(body, at=at)
                self._unsettled_bytes += unsettled.length
                return {"disk": unsettled.disk, "offset_bytes": unsettled.offset, "length_bytes": unsettled.length}
            case RecordKind.END_OF_FILE:
                return {}

    def _batch(self, header: RecordHeader, body: memoryview, at: int) -> dict[str, Any]:
        # A file that begins inside a segment does not tell its disks before the next one.
        sizes = self._sizes or dict.fromkeys(_disks_named(header, body), MAX_DISK_BYTES)
        table = decode_entries(header, body, sizes, at=at)
        for kind in EntryKind:
            chosen = table["kind"] == kind
            self._entries[kind.name.lower()] += int(chosen.sum())
            self._bytes[kind.name.lower()] += int(table["length"][chosen].sum())
        self._segment(header, at)["entries"] += header.count
        if self._emit is None:
            return {}
        return {
            "writes": [
                {
                    "disk": disk,
                    "kind": EntryKind(kind).name.lower(),
                    "offset_bytes": offset,
                    "length_bytes": length,
                }
                for disk, kind, _flags, _payload, offset, length in table.tolist()
            ]
        }

    def _segment(self, header: RecordHeader, at: int) -> dict[str, Any]:
        if not self._segments or self._segments[-1]["number"] != header.segment:
            self._begin(header, at, whole=False)
        return self._segments[-1]

    def _begin(self, header: RecordHeader, at: int, *, whole: bool) -> None:
        self._segments.append(
            {
                "number": header.segment,
                "whole": whole,
                "offset_bytes": at,
                "first_entry": header.entry,
                "entries": 0,
                "begun_time": _time(header.time_ns) if whole else None,
                "sealed": None,
                "sealed_time": None,
            }
        )

    def totals(self) -> dict[str, Any]:
        return {
            "records": dict(self._counts),
            "entries": {kind: count for kind, count in self._entries.items() if count},
            "entry_bytes": {kind: count for kind, count in self._bytes.items() if count},
            "settled_bytes": self._settled_bytes,
            "unsettled_bytes": self._unsettled_bytes,
            "segments": self._segments,
        }


def _disks_named(header: RecordHeader, body: memoryview) -> list[int]:
    disks: list[int] = np.unique(np.frombuffer(body, ENTRY_DTYPE, header.count)["disk"]).tolist()
    return disks


def _header(header: FileHeader) -> dict[str, Any]:
    return {
        "vm": str(UUID(bytes=header.vm)),
        "sequence": header.sequence,
        "capacity_bytes": header.capacity,
        "epoch": header.epoch.hex(),
        "segment": header.segment,
        "entry": header.entry,
        "chain": header.chain.hex(),
    }


def _record(offset: int, header: RecordHeader) -> Record:
    return {
        "offset_bytes_in_file": offset,
        "length_bytes_in_file": header.length,
        "record": header.kind.name.lower(),
        "segment": header.segment,
        "entry": header.entry,
        "count": header.count,
        "time": _time(header.time_ns),
        "chain": header.chain.hex(),
    }


def _end(result: ScanResult) -> dict[str, Any]:
    later = result.later
    position = result.position
    return {
        "kind": result.kind.value,
        "offset_bytes": result.end,
        "reason": result.reason or None,
        "text": result.text or None,
        "position": {
            "epoch": position.epoch.hex(),
            "segment": position.segment,
            "entry": position.entry,
            "chain": position.chain.hex(),
        },
        "later": None if later is None else _record(later.offset, later.header),
    }


def _time(time_ns: int) -> str:
    """UTC in ISO 8601 to the microsecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


# --- text ----------------------------------------------------------------------------------------------------------


def report_lines(report: Report) -> Iterator[str]:
    """The report for people."""
    yield f"{report['path']}: {_verdict_sentence(report)}"
    header = report["header"]
    if header is None:
        return
    yield f"  VM {header['vm']}, epoch {header['epoch']}"
    yield (
        f"  file {header['sequence']} of {report['size_bytes']} bytes, "
        f"begins at segment {header['segment']}, entry {header['entry']}"
    )
    counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in report["records"].items())
    yield f"  records: {counts or 'none'}"
    for kind, count in report["entries"].items():
        yield f"  {kind}: {count} entries, {report['entry_bytes'][kind]} bytes"
    if report["settled_bytes"]:
        yield f"  settled: {report['settled_bytes']} bytes"
    if report["unsettled_bytes"]:
        yield f"  unsettled again: {report['unsettled_bytes']} bytes"
    for segment in report["segments"]:
        yield f"  segment {segment['number']}: {_segment_sentence(segment)}"
    position = report["end"]["position"]
    yield (
        f"  ends at offset {report['end']['offset_bytes']}: "
        f"segment {position['segment']}, entry {position['entry']}, chain {position['chain']}"
    )


def _segment_sentence(segment: dict[str, Any]) -> str:
    if segment["number"] == 0:
        return f"{segment['entries']} entries, the blocks of a differencing file"
    begun = f"from {segment['begun_time']}" if segment["whole"] else "begun in an earlier file"
    sealed = f"sealed {segment['sealed_time']} ({segment['sealed']})" if segment["sealed"] else "not sealed here"
    return f"{segment['entries']} entries from {segment['first_entry']} on, {begun}, {sealed}"


def _verdict_sentence(report: Report) -> str:
    end = report["end"]
    match Verdict(report["verdict"]):
        case Verdict.SOUND:
            return "sound; the log goes on in the next file" if end["kind"] == EndKind.END_OF_FILE else "sound"
        case Verdict.TORN:
            return f"sound up to a torn tail at offset {end['offset_bytes']}: {end['text']}"
        case Verdict.DAMAGED:
            later = end["later"]
            return (
                f"DAMAGED at offset {end['offset_bytes']}: {end['text']}; a later record (segment {later['segment']}, "
                f"entry {later['entry']}) is at offset {later['offset_bytes_in_file']}"
            )
        case Verdict.UNREADABLE:
            return f"not readable: {end['text']}"


def record_lines(record: Record) -> Iterator[str]:
    """One record of a dump for people: a line for the record, one for each of its writes or disks."""
    name = record["record"].replace("_", " ")
    line = (
        f"{record['offset_bytes_in_file']:>12}  {name:<11}  segment {record['segment']}  entry {record['entry']}"
        f"  {record['time']}  {record['length_bytes_in_file']} bytes"
    )
    match record["record"]:
        case "seal":
            line += f"  {record['reason']}, {record['entries']} entries, {record['segment_bytes']} bytes"
        case "settled" | "unsettled":
            line += f"  disk {record['disk']}: {record['length_bytes']} bytes at {record['offset_bytes']}"
    yield line
    for disk in record.get("disks", ()):
        yield f"{'':14}disk {disk['index']}: {disk['size_bytes']} bytes, {disk['uuid']}"
    for write in record.get("writes", ()):
        yield (
            f"{'':14}disk {write['disk']}  {write['kind']:<7}  {write['length_bytes']} bytes at {write['offset_bytes']}"
        )
