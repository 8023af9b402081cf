"""The lines of an audit log: how one is written, and whether a row of them is whole (docs/audit-format.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

FORMAT = 1
NO_LINE = "0" * 64
"""What the first line of all names as the digest of the one before it."""
CURRENT = "audit.jsonl"
LINE_MAX = 1 << 20
"""Bytes of a line; no writer makes a longer one."""


class AuditEntry(msgspec.Struct, kw_only=True):
    """One line. ``before`` and ``after`` have the VM's state, and beside it only what differs between the two."""

    format: int = FORMAT
    seq: int
    """1 for the first line of all, then one more for each."""
    time: float
    """When the order ended, in seconds since the Unix epoch."""
    role: str
    """``primary`` or ``replica``: the agent that was asked."""
    verb: str
    """The method of the admin socket; ``agent.start``, ``agent.stop``, ``agent.reload``, ``peer.refused`` and
    ``audit.mended`` are the agent's own."""
    uid: int | None = None
    """Who asked; None where it was nobody at the socket."""
    user: str = ""
    """The name of that user at the time, empty where there is none."""
    pid: int | None = None
    source: str = ""
    """The socket; of a peer that was refused its address."""
    vm: str = ""
    uuid: str = ""
    params: dict[str, Any] = {}
    """As they came, secrets blotted out."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    result: str
    """``ok``, or the code of the error."""
    text: str = ""
    """The error's text."""
    left_out: int = 0
    """Refusals of the same user or peer just before, that have no line of their own."""
    previous: str
    """SHA-256 of the line before this one, without its line feed, in lower hex."""


class AuditReport(msgspec.Struct, kw_only=True):
    """Whether a log is whole. ``broken`` says where it is not, else it is empty."""

    ok: bool
    entries: int = 0
    first_seq: int = 0
    last_seq: int = 0
    first_time: float | None = None
    last_time: float | None = None
    last_digest: str = NO_LINE
    """SHA-256 of the last line: with it kept elsewhere, lines that are taken off the end are noticed, too."""
    missing_before: int = 0
    """Lines before the first one that rotation removed."""
    broken: str = ""
    file: str = ""
    line: int = 0
    """Where, from 1 within the file."""


def digest_of(line: bytes) -> str:
    """What the next line names this one by; ``line`` is without its line feed."""
    return hashlib.sha256(line).hexdigest()


def encode_line(entry: AuditEntry) -> bytes:
    """The line of an entry, without its line feed."""
    return msgspec.json.encode(entry)


def decode_line(line: bytes) -> AuditEntry:
    """The entry of a line; raises ValueError. Fields of newer writers are ignored."""
    try:
        entry = msgspec.json.decode(line, type=AuditEntry)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    if entry.format != FORMAT:
        raise ValueError(f"format {entry.format} is not known")
    return entry


@dataclass(slots=True)
class ChainCheck:
    """Follows lines in their order and stops at the first that does not belong there."""

    report: AuditReport = field(default_factory=lambda: AuditReport(ok=True))

    def follow(self, file: str, content: bytes) -> bool:
        """Take in a whole file, the oldest first; whether all is well so far."""
        for number, line in enumerate(split(content), 1):
            if not self.report.ok:
                return False
            self._follow_line(file, number, line)
        if self.report.ok and content and not content.endswith(b"\n"):
            self._break(file, content.count(b"\n") + 1, "the line is cut off")
        return self.report.ok

    def _follow_line(self, file: str, number: int, line: bytes) -> None:
        report = self.report
        try:
            entry = decode_line(line)
        except ValueError as error:
            self._break(file, number, f"the line is no entry: {error}")
            return
        if report.entries == 0:
            report.first_seq, report.first_time = entry.seq, entry.time
            report.missing_before = entry.seq - 1
            if entry.seq == 1 and entry.previous != NO_LINE:
                self._break(file, number, "the first entry of all names one before it")
                return
        elif entry.seq != report.last_seq + 1:
            self._break(file, number, f"entry {entry.seq} follows entry {report.last_seq}")
            return
        elif entry.previous != report.last_digest:
            self._break(
                file, number, f"entry {report.last_seq} is not the one that entry {entry.seq} was written after"
            )
            return
        report.entries += 1
        report.last_seq, report.last_time, report.last_digest = entry.seq, entry.time, digest_of(line)

    def _break(self, file: str, number: int, text: str) -> None:
        self.report.ok = False
        self.report.broken, self.report.file, self.report.line = text, file, number


def split(content: bytes) -> Iterator[bytes]:
    """The whole lines of a file, without their line feeds."""
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        yield content[start:end]
        start = end + 1


def older_name(first_seq: int) -> str:
    """The name of a file that is no longer written to; names sort as the entries do."""
    return f"audit-{first_seq:012d}.jsonl"


def in_order(names: Iterable[str]) -> list[str]:
    """Those names that are files of the log, the oldest first."""
    older = sorted(name for name in names if _is_older(name))
    return [*older, *(name for name in names if name == CURRENT)]


def _is_older(name: str) -> bool:
    number = name.removeprefix("audit-").removesuffix(".jsonl")
    return len(number) == 12 and number.isdigit() and name == f"audit-{number}.jsonl"
