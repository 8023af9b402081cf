"""What a look at this host found, each with its evidence and what to do: shown, as JSON, and as an exit code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shared.cli.console import Console, Palette
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable, wrapped
from shared.errors import VmreplicaError


class Level(StrEnum):
    """How bad a finding is. ``CHANGED`` and ``TO_DO``: something was missing, and was made, or would be."""

    OK = "ok"
    CHANGED = "changed"
    TO_DO = "to do"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``subject`` names it, ``text`` says what it is like, ``remedy`` what to do."""

    subject: str
    level: Level
    text: str
    remedy: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    """Raw values behind the text, for JSON."""

    def plain(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "level": self.level.value,
            "text": self.text,
            "remedy": self.remedy,
            "evidence": self.evidence,
        }


def ok(subject: str, text: str, **evidence: Any) -> Finding:
    return Finding(subject, Level.OK, text, evidence=evidence)


def note(subject: str, text: str, remedy: str = "", **evidence: Any) -> Finding:
    return Finding(subject, Level.NOTE, text, remedy, evidence)


def warning(subject: str, text: str, remedy: str, **evidence: Any) -> Finding:
    return Finding(subject, Level.WARNING, text, remedy, evidence)


def problem(subject: str, text: str, remedy: str, **evidence: Any) -> Finding:
    return Finding(subject, Level.PROBLEM, text, remedy, evidence)


def of_error(subject: str, error: VmreplicaError) -> Finding:
    """What an error tells, as a problem."""
    return Finding(subject, Level.PROBLEM, error.text, error.remedy, {"code": error.code})


def finding_lines(findings: Iterable[Finding], width: int | None, palette: Palette) -> list[str]:
    """A line for each finding; below one that needs somebody, what to do."""
    paints = {
        Level.OK: palette.good,
        Level.CHANGED: palette.strong,
        Level.TO_DO: palette.strong,
        Level.WARNING: palette.warning,
        Level.PROBLEM: palette.critical,
    }
    lines = []
    for each in findings:
        mark = each.level.value.ljust(8)
        body = wrapped(printable(f"{each.subject}: {each.text}"), width, 10, f"{mark}  ")
        paint = paints.get(each.level)
        if paint is not None:
            body[0] = paint(mark) + body[0][len(mark) :]
        lines += body
        if each.remedy:
            lines += wrapped(printable(each.remedy), width, 12, "          > ")
    return lines


def problems_in(findings: Sequence[Finding]) -> int:
    return sum(each.level is Level.PROBLEM for each in findings)


def report(findings: Sequence[Finding], console: Console, *, json: bool, **more: Any) -> int:
    """Print all findings and how many need somebody; the exit code is 1 where one of them is a problem."""
    problems = problems_in(findings)
    if json:
        plain = [each.plain() for each in findings]
        console.print_json({"ok": not problems, "problems": problems, **more, "findings": plain})
    else:
        console.print(finding_lines(findings, console.width, console.palette))
        warnings = sum(each.level is Level.WARNING for each in findings)
        console.print(f"{len(findings)} looked at: {_count(problems, 'problem')}, {_count(warnings, 'warning')}.")
    return VmreplicaError.exit_code if problems else SUCCESS


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
