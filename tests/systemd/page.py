"""The commands of a page of the documentation: what its ``console`` blocks tell to type, on which host.

A line ``alpha# command`` is typed at the host alpha; a line without a prompt goes on with the one before (a text for
``cat``, or a command that ends in a backslash). Consecutive lines of one host in one block are one shell, so that
variables last as long as a reader would expect; a copy to another host stands by itself.

Pages with blocks of another kind tell in words where their commands are typed, or are no pages to be typed from end to
end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
COPIES = "scp "
PROMPT = re.compile(r"(?P<host>[a-z]+)# (?P<line>.*)")
HEADING = re.compile(r"##+ (?P<text>.*)")


@dataclass
class Typed:
    """What is typed at one host."""

    host: str
    lines: str


def sections(name: str) -> dict[str, list[Typed]]:
    """Heading, of the second level or below, to what is typed right below it, in the page's order.

    A block of another kind fails: what stands there would be left out.
    """
    found: dict[str, list[Typed]] = {}
    heading, inside, typed = "", False, None
    for line in (DOCS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            assert line == ("```" if inside else "```console"), f"{name}: a block of another kind, below {heading!r}"
            inside, typed = not inside, None
        elif inside:
            if match := PROMPT.fullmatch(line):
                host, text = match["host"], match["line"]
                if typed is None or typed.host != host or COPIES in (text[: len(COPIES)], typed.lines[: len(COPIES)]):
                    typed = Typed(host, "")
                    found[heading].append(typed)
            elif typed is not None:
                text = line
            else:
                raise AssertionError(f"{name}: no prompt before {line!r}")
            typed.lines += text + "\n"
        elif match := HEADING.fullmatch(line):
            heading = match["text"]
            assert heading not in found, f"{name}: two headings {heading!r}"
            found[heading] = []
    assert not inside, f"{name}: a block without an end"
    return found


def commands(name: str, title: str) -> list[str]:
    """The lines of the blocks without a prompt that stand right below one heading of a page, of any level."""
    parts = re.split(r"^#+ ", (DOCS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (part for part in parts if part.startswith(f"{title}\n"))
    blocks = re.findall(r"^```\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]
