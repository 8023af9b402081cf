"""The tables of the format pages, rendered from the code; the pages carry them between marks, and a test compares.

A mark is a line ``<!-- table: NAME -->``; the table ends at the line ``<!-- end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from protocol.entries import EntryKind
from protocol.frames import COMPRESSIBLE, PAYLOAD_CAPS
from protocol.hrl import RecordKind, SealReason
from protocol.messages import BODIES, BULK_TYPES, RETRYABLE, Body, ErrorCode, MessageType
from protocol.session import TRANSITIONS, SessionState, Side
from tests.vectors.cases import cases

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("protocol.md", "hrl-format.md")]
_REGION = re.compile(r"(<!-- table: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# --- wire ----------------------------------------------------------------------------------------------------------


def messages() -> str:
    def senders(kind: MessageType) -> str:
        found = {side for _state, side, each in TRANSITIONS if each is kind}
        return "both" if len(found) == 2 else found.pop().value

    rows = []
    for kind in MessageType:
        form = ("bulk, may be compressed" if kind in COMPRESSIBLE else "bulk") if kind in BULK_TYPES else "control"
        rows.append((int(kind), kind.name, senders(kind), form, PAYLOAD_CAPS[kind]))
    return table(("number", "type", "sender", "payload", "limit in bytes"), rows)


def states() -> str:
    """All states; what both sides may send in all states alike is left to the page's text."""
    rows = []
    for state in SessionState:
        cells = []
        for side in Side:
            moves = sorted(
                (kind, after) for (before, who, kind), after in TRANSITIONS.items() if (before, who) == (state, side)
            )
            cells.append(", ".join(_move(kind, state, after) for kind, after in moves if kind not in EVERYWHERE))
        rows.append((f"`{state}`", *(cell or "–" for cell in cells)))
    return table(("state", "the primary may send", "the replica may send"), rows)


EVERYWHERE = (MessageType.ERROR, MessageType.CLOSE, MessageType.HEARTBEAT)


def _move(kind: MessageType, before: SessionState, after: SessionState) -> str:
    if kind is MessageType.OPENED:
        return "OPENED → `open`, `bulk`, `probe` or `verify`, by the role of OPEN"
    return kind.name if after is before else f"{kind.name} → `{after}`"


def errors() -> str:
    meaning = {
        ErrorCode.PROTOCOL: "Bytes that are no valid message.",
        ErrorCode.VERSION: "No version, or no frame limit, that both sides can work with.",
        ErrorCode.UNAUTHORIZED: "The peer may not do this, or the VM is unknown: one answer for both.",
        ErrorCode.BUSY: "Another session of this VM is still ending, or a limit is reached.",
        ErrorCode.GEOMETRY: "The disks of the two sides differ in number, identity or size.",
        ErrorCode.UNRELATED: "The two sides share no epoch.",
        ErrorCode.FENCED: "The VM was promoted here: nothing of an older epoch is taken any more.",
        ErrorCode.GAP: "A segment or entry is missing between what was received and what came.",
        ErrorCode.CHAIN: "What came has another history than what was received.",
        ErrorCode.STATE: "A message that may not be sent in this state, or with another session's token.",
        ErrorCode.NO_SPACE: "A volume is full; the text names the missing bytes.",
        ErrorCode.STORAGE: "Reading, writing or syncing failed.",
        ErrorCode.DAMAGED: "Durable state of this VM is damaged.",
        ErrorCode.STALE: "The message belongs to a resync, round or key that is over.",
        ErrorCode.SHUTDOWN: "The agent is stopping.",
        ErrorCode.QUEUED: "The replica compares as many VMs as it takes on at a time; to be asked again. No outage.",
    }
    rows = [(f"`{code}`", "yes" if code in RETRYABLE else "no", meaning[code]) for code in ErrorCode]
    return table(("code", "retryable", "meaning"), rows)


def bodies() -> str:
    return "\n".join(f"**{kind.name}.** {_sentences(body)}\n\n{_fields(body)}" for kind, body in BODIES.items())


def parts_of_bodies() -> str:
    found: dict[str, type[Body]] = {}
    for body in BODIES.values():
        _collect(msgspec.inspect.type_info(body), found, outermost=True)
    return "\n".join(f"**{name}.** {_sentences(part)}\n\n{_fields(part)}" for name, part in sorted(found.items()))


def _collect(info: Any, found: dict[str, type[Body]], *, outermost: bool = False) -> None:
    match info:
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            if not outermost:
                assert issubclass(cls, Body)
                found[cls.__name__] = cls
            for field in fields:
                _collect(field.type, found)
        case msgspec.inspect.ListType(item_type=item):
            _collect(item, found)
        case msgspec.inspect.UnionType(types=types):
            for each in types:
                _collect(each, found)


def _sentences(body: type[Body]) -> str:
    text = " ".join((body.__doc__ or "").split())
    return re.sub(r" \([RI]\d+\)", "", text).replace("``", "`")


def _fields(body: type[Body]) -> str:
    info = msgspec.inspect.type_info(body)
    assert isinstance(info, msgspec.inspect.StructType)
    rows = [(f"`{field.name}`", _type(field.type), "yes" if field.required else "no") for field in info.fields]
    return table(("field", "type", "required"), rows)


def _type(info: Any) -> str:
    match info:
        case msgspec.inspect.IntType(ge=low, gt=above, le=high, lt=below):
            least = low if above is None else above + 1
            most = high if below is None else below - 1
            assert least is not None
            assert most is not None
            return f"int, {least} to {_number(most)}"
        case msgspec.inspect.FloatType(ge=low, le=high):
            return f"float, {low} to {high}"
        case msgspec.inspect.StrType(min_length=shortest, max_length=longest):
            return f"str, {shortest or 0} to {longest} characters"
        case msgspec.inspect.BytesType(min_length=shortest, max_length=longest):
            return f"bin, {shortest} bytes" if shortest == longest else f"bin, {shortest} to {longest} bytes"
        case msgspec.inspect.ListType(item_type=item, min_length=fewest, max_length=most):
            return f"array of {fewest or 0} to {most}: {_type(item)}"
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(_type(each) for each in types)
        case msgspec.inspect.StructType(cls=cls):
            return f"map, {cls.__name__}"
        case msgspec.inspect.EnumType(cls=cls):
            return "str: " + ", ".join(f"`{member.value}`" for member in cls)
        case msgspec.inspect.BoolType():
            return "bool"
        case msgspec.inspect.NoneType():
            return "nil"
    raise TypeError(f"no words for {info}")


def _number(value: int) -> str:
    power = (value + 1).bit_length() - 1
    if value + 1 == 1 << power and power > 10:
        return f"2^{power} - 1"
    power = value.bit_length() - 1
    return f"2^{power}" if value == 1 << power and power > 10 else str(value)


# --- log -----------------------------------------------------------------------------------------------------------


def record_kinds() -> str:
    body = {
        RecordKind.SEGMENT: "one 32-byte disk for each of `count`",
        RecordKind.BATCH: "one 24-byte entry for each of `count`, then the payloads of the data entries, in order",
        RecordKind.SEAL: "24 bytes",
        RecordKind.END_OF_FILE: "none",
        RecordKind.SETTLED: "24 bytes",
        RecordKind.UNSETTLED: "24 bytes",
        RecordKind.UNDO_INDEX: "one 48-byte entry for each of `count`; in undo logs only",
        RecordKind.UNDO_END: "104 bytes; in undo logs only",
    }
    return table(("kind", "name", "body"), [(int(kind), kind.name, body[kind]) for kind in RecordKind])


def entry_kinds() -> str:
    meaning = {
        EntryKind.DATA: "`length` bytes of payload are written at `offset`",
        EntryKind.ZERO: "the range reads as zeroes from here on",
        EntryKind.DISCARD: "the guest no longer needs the range; it is made to read as zeroes",
    }
    return table(("kind", "name", "meaning"), [(int(kind), kind.name, meaning[kind]) for kind in EntryKind])


def seal_reasons() -> str:
    meaning = {
        SealReason.INTERVAL: "the replication interval was over",
        SealReason.COMMAND: "an administrator or agent asked for a cut",
        SealReason.RESYNC: "the compare of a resync or initial replication was done",
        SealReason.SHUTDOWN: "the tap was stopped in order",
        SealReason.RECOVERY: "the tap was started after an unclean stop",
    }
    rows = [(int(reason), reason.name, meaning[reason]) for reason in SealReason]
    return table(("reason", "name", "meaning"), rows)


def vectors(kind: str) -> str:
    return table(("file", "what it holds"), [(f"`{case.file}`", case.what) for case in cases() if case.kind == kind])


TABLES: dict[str, Callable[[], str]] = {
    "messages": messages,
    "states": states,
    "errors": errors,
    "bodies": bodies,
    "parts-of-bodies": parts_of_bodies,
    "frame-vectors": lambda: vectors("frame"),
    "record-kinds": record_kinds,
    "entry-kinds": entry_kinds,
    "seal-reasons": seal_reasons,
    "hrl-vectors": lambda: vectors("hrl"),
}


def rendered(page: str) -> str:
    """The page with all its tables as the code says them. Raises KeyError for an unknown table."""
    return _REGION.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[4]}", page)


def names_in(page: str) -> list[str]:
    return [match[2] for match in _REGION.finditer(page)]
