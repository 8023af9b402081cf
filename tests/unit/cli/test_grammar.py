"""The grammar, its reference in docs/cli.md, and the exit codes."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.cli.arguments import build_parser
from shared.cli.exit_codes import exit_codes
from shared.cli.grammar import EVENTS_LIMIT, verb_parsers
from shared.cli.main import main
from shared.cli.reference import current, usage
from shared.cli.settings import tables
from tests.unit.cli.conftest import ROOT, Command

PAGE = ROOT / "docs/cli.md"


def all_parsers(parser: argparse.ArgumentParser | None = None) -> Iterator[argparse.ArgumentParser]:
    parser = parser or build_parser()
    yield parser
    for _, below in verb_parsers(parser):
        yield from all_parsers(below)


@pytest.mark.parametrize("parser", list(all_parsers()), ids=lambda parser: parser.prog)
def test_every_argument_has_help(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, f"{parser.prog}: {action.dest}"


@pytest.mark.parametrize("parser", list(all_parsers()), ids=lambda parser: parser.prog)
def test_every_verb_has_a_handler_or_verbs_below(parser: argparse.ArgumentParser) -> None:
    handler = parser.get_default("handler")
    if handler is None:
        assert list(verb_parsers(parser))
    else:
        module, _, function = handler.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("path", [PAGE, PAGE.with_name("config.md")], ids=lambda path: path.name)
def test_reference_is_current(path: Path) -> None:
    page = path.read_text()
    assert current(page) == page, f"make it anew: python -m shared.cli.reference docs/{path.name}"


def test_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no markers"):
        current("# A page\n")
    with pytest.raises(ValueError, match="no end of the settings"):
        current("<!-- settings: made by python -m shared.cli.reference -->\n")


def test_every_key_has_a_meaning() -> None:
    for table in tables():
        assert table.text and table.settings, table.name
        for setting in table.settings:
            assert setting.meaning and setting.type and setting.default, (table.name, setting.key)


def test_usage_marks_what_is_optional_and_what_repeats() -> None:
    parsers = dict(verb_parsers(build_parser()))
    assert usage(parsers["set"]) == "vmreplica set VM [KEY=VALUE...] [--json] [--socket PATH...]"
    assert usage(parsers["events"]) == (
        "vmreplica events [VM] [--role primary|replica] [--vm VM] [--since TIME] [--until TIME] [--id EVENT...] "
        "[--level info|warning|error] [--follow] [--limit N] [--json] [--socket PATH...]"
    )


def test_exit_codes_are_given_once() -> None:
    codes = exit_codes()
    assert len({each.number for each in codes}) == len(codes)
    assert [each.number for each in codes] == sorted(each.number for each in codes)
    assert all(each.meaning for each in codes)
    # A number that left the process is never given to anything else.
    assert {each.name: each.number for each in codes if each.name} == {
        "error": 1,
        "usage": 2,
        "not_found": 3,
        "invalid_state": 4,
        "unreachable": 5,
        "forbidden": 6,
        "store_damaged": 7,
        "storage": 8,
        "no_space": 9,
        "disk_in_use": 10,
        "fatal": 70,
    }


@pytest.mark.parametrize(
    "line, text, remedy",
    [
        ("", "No verb was given.", "See: vmreplica --help"),
        ("stauts", "There is no verb 'stauts'.", "Did you mean status? See: vmreplica --help"),
        ("pki", "No verb was given.", "See: vmreplica pki --help"),
        ("pki zzz", "There is no verb 'zzz'.", "See: vmreplica pki --help"),
        ("initial", "The following arguments are required: VM.", "See: vmreplica initial --help"),
        ("status --jso", "Unrecognized arguments: --jso.", "See: vmreplica --help"),
        ("events --limit 0", "'0' is not a number from 1 to 10000.", "See: vmreplica events --help"),
        ("enable x --disk /a --replica b --interval soon", "'soon' is not a duration.", "--help"),
        ("set x interval=0.1s", "The shortest replication interval is 1s.", "See: vmreplica set --help"),
        ("status --role both", "'both'", "See: vmreplica status --help"),
    ],
)
def test_wrong_usage_is_two_lines(capsys: pytest.CaptureFixture[str], line: str, text: str, remedy: str) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert first.startswith("vmreplica: ")
    assert text in first
    assert second.startswith("  ")
    assert remedy in second


def test_help(vmreplica: Command) -> None:
    ran = vmreplica("--help")
    assert (ran.code, ran.err) == (0, "")
    assert all(name in ran.out for name, _ in verb_parsers(build_parser()))
    assert f"how many (default {EVENTS_LIMIT})" in vmreplica("events", "--help").out
