"""References as Markdown, made from the code: verbs and exit codes for docs/cli.md, settings for docs/config.md.

``python -m shared.cli.reference docs/cli.md docs/config.md`` writes them between the pages' markers; a test checks that
they are current.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from shared.cli.arguments import build_parser
from shared.cli.exit_codes import exit_codes
from shared.cli.grammar import verb_parsers
from shared.cli.settings import tables

MARKERS = {
    "settings": ("<!-- settings: made by python -m shared.cli.reference -->", "<!-- end of settings -->"),
    "verbs": ("<!-- verbs: made by python -m shared.cli.reference -->", "<!-- end of verbs -->"),
    "exit codes": ("<!-- exit codes: made by python -m shared.cli.reference -->", "<!-- end of exit codes -->"),
}


BOTH = "## Both agents"
PAGE_WIDTH = 120


def current(page: str) -> str:
    """The page with what stands between its markers made anew. Raises ValueError where there are none, or not both."""
    sources = {"settings": setting_lines, "verbs": verb_lines, "exit codes": exit_code_lines}
    found = [name for name, (start, _) in MARKERS.items() if start in page]
    if not found:
        raise ValueError("the page has no markers")
    for name in found:
        start, end = MARKERS[name]
        before, _, rest = page.partition(start)
        _, ended, after = rest.partition(end)
        if not ended:
            raise ValueError(f"the page has no end of the {name}")
        made = "\n".join(sources[name]()).strip()
        page = f"{before}{start}\n\n{made}\n\n{end}{after}"
    return page


def setting_lines() -> Iterator[str]:
    """Every table of the configuration: what it is for, and its keys with type, default and meaning."""
    for table in tables():
        holder = f" ({table.holder})" if table.holder else ""
        yield f"## `{table.written}`{holder}" if table.name else BOTH
        yield ""
        for paragraph in table.text:
            yield from textwrap.wrap(paragraph, PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)
            yield ""
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        for each in table.settings:
            yield f"| `{each.key}` | {_cell(each.type)} | {_cell(each.default)} | {_cell(each.meaning)} |"
        yield ""


def verb_lines() -> Iterator[str]:
    """Every verb: what it does, how it is written, its arguments and options."""
    for path, parser in _leaves(build_parser(), ()):
        yield f"### {' '.join(path)}"
        yield ""
        yield parser.description or ""
        yield ""
        yield "```"
        yield usage(parser)
        yield "```"
        yield ""
        yield "| argument | meaning |"
        yield "|---|---|"
        for action in parser._actions:
            # What all verbs share is told once, on the page itself.
            if not isinstance(action, argparse._HelpAction) and action.dest != "socket":
                yield f"| `{_cell(written(action))}` | {_cell(action.help or '')} |"
        yield ""


def usage(parser: argparse.ArgumentParser) -> str:
    """The verb's form on one line; optional parts in brackets."""
    parts = [parser.prog]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        text = written(action)
        optional = not action.required or action.nargs == "*"
        parts.append(f"[{text}]" if optional else text)
    return " ".join(parts)


def exit_code_lines() -> Iterator[str]:
    """The table of exit codes, with the code that errors carry in JSON-RPC."""
    yield "| exit code | error code | meaning |"
    yield "|---|---|---|"
    for each in exit_codes():
        yield f"| {each.number} | {f'`{each.name}`' if each.name else ''} | {_cell(each.meaning)} |"


def _leaves(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    below = list(verb_parsers(parser))
    if not below:
        yield path, parser
    for name, own in below:
        yield from _leaves(own, (*path, name))


def written(action: argparse.Action) -> str:
    """An option or argument as it is written, dots where it may be repeated."""
    value = str(action.metavar or "")
    if action.choices is not None:
        value = "|".join(str(choice) for choice in action.choices)
    name = action.option_strings[-1] if action.option_strings else ""
    if action.nargs == 0:
        return name
    repeated = isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")
    return f"{name} {value}".strip() + ("..." if repeated else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def main() -> None:
    """Bring the pages that are named up to date."""
    for page in map(Path, sys.argv[1:]):
        page.write_text(current(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
