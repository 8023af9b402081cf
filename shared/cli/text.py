"""Text for terminals: what others wrote made harmless, broken into lines, cut to a width, laid out in columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any

import msgspec

# Control characters, also those of the 0x80 block: a terminal would obey them.
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\ufffd")
_SPACES = {ord(space): " " for space in "\t\n\r\x0b\x0c\u2028\u2029"}
_BIDIRECTIONAL = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
_ESCAPES = re.compile(r'\\[^"\\]')
_HARMLESS = str.maketrans(_CONTROLS | _SPACES | _BIDIRECTIONAL)


def printable(text: str) -> str:
    """``text`` on one line, without characters that a terminal would obey."""
    # Nothing that is printable by Unicode is harmful; the table is for what is not, and most of that stays as it is.
    return text if text.isprintable() else text.translate(_HARMLESS)


def printable_values(value: Any) -> Any:
    """A JSON value with every text in it made printable.

    A status of hundreds of VMs has many small values, and hardly ever one with a text to change: as one text they are
    looked through in a tenth of the time. JSON escapes what a terminal would obey, or leaves it as it is.
    """
    try:
        whole = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError):
        # It did not come as JSON, and has half of a character, say.
        return _each_printable(value)
    return value if whole.isprintable() and not _ESCAPES.search(whole) else _each_printable(value)


def _each_printable(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    if isinstance(value, dict):
        return {printable(key): _each_printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_printable(item) for item in value]
    return value


def wrapped(text: str, width: int | None, indent: int, first: str = "") -> list[str]:
    """``first`` and ``text`` broken at ``width`` columns, later lines indented; one line where width is None."""
    if width is None:
        return [first + text]
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def shortened(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, its end replaced by an ellipsis where it is longer."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[list[str]]:
    """The rows with each cell padded to its column's width; columns in ``right`` are aligned to the right."""
    if not rows:
        return []
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        [cell.rjust(widths[at]) if at in right else cell.ljust(widths[at]) for at, cell in enumerate(row)]
        for row in rows
    ]


def joined(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "  ".join(cells).rstrip()


def time_text(seconds: float | None, zone: tzinfo | None) -> str:
    """Seconds since the Unix epoch as local time of ``zone`` (None: of this host), ``-`` where unknown."""
    if seconds is None:
        return "-"
    try:
        return datetime.fromtimestamp(seconds, zone).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "-"
