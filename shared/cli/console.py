"""What the command knows of its terminal: width, colour, whether somebody answers; and printing to it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import msgspec

from shared.cli.text import printable
from shared.errors import UsageError, VmreplicaError

# JSON leaves these as they are, and a terminal obeys them; they occur in strings only.
_ESCAPED = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}

WIDTH_MIN = 50
"""Columns below which lines are broken by the terminal rather than by us."""


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of the terminal, or none."""

    enabled: bool

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled and text else text

    def good(self, text: str) -> str:
        return self._paint("32", text)

    def warning(self, text: str) -> str:
        return self._paint("33", text)

    def critical(self, text: str) -> str:
        return self._paint("1;31", text)

    def strong(self, text: str) -> str:
        return self._paint("1", text)

    def dim(self, text: str) -> str:
        return self._paint("2", text)


@dataclass(frozen=True, slots=True)
class Console:
    """Where output goes. ``width`` is None where lines are never to be broken (no terminal)."""

    out: TextIO
    err: TextIO
    width: int | None
    palette: Palette
    live: bool
    """A view may be redrawn in place."""
    answers: TextIO | None
    """Where somebody answers questions, if anybody does."""

    @classmethod
    def of_process(cls, environment: Mapping[str, str]) -> Console:
        """The console of this process; NO_COLOR and TERM=dumb are honoured."""
        terminal = sys.stdout.isatty()
        capable = terminal and environment.get("TERM", "") not in ("", "dumb")
        width = None
        if terminal:
            width = max(_columns(environment), WIDTH_MIN)
        answers = sys.stdin if sys.stdin is not None and sys.stdin.isatty() and terminal else None
        colour = capable and not environment.get("NO_COLOR")
        return cls(sys.stdout, sys.stderr, width, Palette(colour), capable, answers)

    def print(self, lines: str | Iterable[str]) -> None:
        """Print lines to the output, at once."""
        self.write([lines] if isinstance(lines, str) else lines)
        self.out.flush()

    def write(self, lines: Iterable[str]) -> None:
        """Print lines sooner or later, for output that is long."""
        self.out.writelines(line + "\n" for line in lines)

    def print_json(self, value: Any, *, compact: bool = False) -> None:
        """Print one JSON value: indented, or on one line."""
        self.out.write(_json(value, 0 if compact else 2).translate(_ESCAPED) + "\n")
        if not compact:
            self.out.flush()

    def complain(self, error: VmreplicaError) -> None:
        """Print what is wrong, and under it what to do, to the error output."""
        self.err.write(f"vmreplica: {printable(error.text)}\n")
        if error.remedy:
            self.err.write(f"  {printable(error.remedy)}\n")
        self.err.flush()

    def confirm(self, warning: str, word: str, yes: bool) -> None:
        """Go on only if ``yes`` or if somebody types ``word``; raises UsageError otherwise."""
        if yes:
            return
        if self.answers is None:
            raise UsageError(warning, "Nothing was changed. Nobody can be asked here: add --yes to do it.")
        self.out.write(f"{printable(warning)}\nType {word} to go on: ")
        self.out.flush()
        if self.answers.readline().strip() != word:
            raise UsageError("Not confirmed; nothing was changed.")


def _json(value: Any, indent: int) -> str:
    """The JSON of a value: indented, or with 0 on one line."""
    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()
    except UnicodeEncodeError:
        # Half of a character, in a file's name say. The other encoder takes it, and ten times as long.
        return json.dumps(value, indent=indent or None, ensure_ascii=False, allow_nan=False)


def _columns(environment: Mapping[str, str]) -> int:
    columns = environment.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80
