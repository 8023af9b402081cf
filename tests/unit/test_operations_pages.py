"""The pages on operation and troubleshooting have every message, code and event that people meet; or a test fails."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.messages import ErrorCode
from shared import errors
from shared.cli.arguments import build_parser
from shared.cli.grammar import verb_parsers
from shared.events import EventId, level_of
from shared.journal_entries import message_id
from tests.systemd.page import sections

ROOT = Path(__file__).parents[2]
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
OPERATIONS = ROOT / "docs" / "operations.md"
LEAST = 12
"""Characters of a fixed part of a message that is worth looking for."""


def told_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and longest fixed part of each reason that a module gives: of ``critical``, ``warn`` and ``Cause``."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        local: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                local.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(function):
            told = _told(node) if isinstance(node, ast.Call) else _yielded(node)
            # A name that is given several texts has each of them looked for.
            for text in local.get(told.id, [told]) if isinstance(told, ast.Name) else [told] if told else []:
                parts = [part.strip() for part in _constants(text, local) if len(part.strip()) >= LEAST]
                if parts:
                    yield getattr(text, "lineno", 0), max(parts, key=len)


def _yielded(node: ast.AST) -> ast.expr | None:
    """The text of ``yield Health..., text, remedy``."""
    if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3:
        return node.value.elts[1]
    return None


def _told(call: ast.Call) -> ast.expr | None:
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("critical", "warn") and call.args:
        return call.args[0]
    if isinstance(call.func, ast.Name) and call.func.id in REFUSALS and call.args:
        return call.args[0]
    if isinstance(call.func, ast.Name) and call.func.id == "Cause":
        return next((keyword.value for keyword in call.keywords if keyword.arg == "text"), None)
    return None


def _constants(node: ast.expr, local: dict[str, list[ast.expr]], depth: int = 0) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        elif isinstance(each, ast.Name) and depth < 2:
            for value in local.get(each.id, []):
                yield from _constants(value, local, depth + 1)


REFUSALS = {"InvalidStateError", "ForbiddenError", "NotFoundError", "NoSpaceError", "StorageError", "StoreDamagedError"}
FAILOVERS = """
    primary_agent/planned primary_agent/planned_orders primary_agent/reversing primary_agent/handing_over
    primary_agent/taking_over primary_agent/believing primary_agent/resolving primary_agent/export_waiting
    primary_agent/exporting primary_agent/consistent_cuts replica_agent/promotion replica_agent/settled
    replica_agent/promoted_layers replica_agent/handing_over replica_agent/taking_over replica_agent/test_failover
    replica_agent/exports replica_agent/overlays replica_agent/overlay_room replica_agent/points replica_agent/marks
    replica_agent/prover replica_agent/importing replica_agent/import_methods replica_agent/companions
    replica_agent/disk_sets shared/cli/verbs/failover_verbs shared/cli/verbs/planned shared/cli/verbs/reversing
    shared/courier
""".split()
"""Modules that refuse orders to fail over, to reverse, on points and on first copies."""


@pytest.mark.parametrize("module", FAILOVERS)
def test_every_refusal_of_these_verbs_is_on_the_page(module: str) -> None:
    told = page(TROUBLESHOOTING)
    for line, part in told_parts(ROOT / f"{module}.py"):
        text = re.sub(r"\s+", " ", part)
        assert text in told, f"{module}.py:{line}: docs/troubleshooting.md says nothing of {text!r}"


def test_every_code_that_an_error_is_given_is_explained() -> None:
    table = TROUBLESHOOTING.read_text().partition("## Codes of errors")[2]
    for module in FAILOVERS:
        for code in re.findall(r'\bcode="(\w+)"', (ROOT / f"{module}.py").read_text()):
            assert f"`{code}`" in table, f"{module}: {code}"


def page(path: Path) -> str:
    return re.sub(r"\s+", " ", path.read_text())


REASONS = ("attachment", "failover_health", "forecasts", "guest_health", "health")


@pytest.mark.parametrize("module", [f"shared/{name}.py" for name in REASONS])
def test_every_reason_has_its_heading(module: str) -> None:
    headings = " ".join(line for line in TROUBLESHOOTING.read_text().splitlines() if line.startswith("### "))
    parts = list(told_parts(ROOT / module))
    assert len(parts) >= 3, "the reasons are looked for in the right way"
    silent = [
        f"{module}:{line}: {text!r}" for line, part in parts if (text := re.sub(r"\s+", " ", part)) not in headings
    ]
    assert not silent, "docs/troubleshooting.md says nothing of: " + "; ".join(silent)


def test_every_code_is_explained() -> None:
    table = TROUBLESHOOTING.read_text().partition("## Codes of errors")[2]
    for code in ErrorCode:
        assert f"| `{code}` |" in table, code
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.VmreplicaError) and kind.code != "error":
            assert f"`{kind.code}`" in table, kind.code


def test_every_event_is_listed_with_its_message_id() -> None:
    for number in EventId:
        row = f"| {int(number)} | `{number.name.lower()}` | {level_of(number)} | `{message_id(number)}` |"
        assert row in OPERATIONS.read_text(), row


def test_every_command_on_the_pages_is_one() -> None:
    verbs = dict(verb_parsers(build_parser()))
    for path in (OPERATIONS, TROUBLESHOOTING):
        for name in re.findall(r"(?:^|`)(?:sudo )?vmreplica ([a-z-]+)", path.read_text(), re.MULTILINE):
            assert name in verbs, f"{path.name}: vmreplica {name}"


@pytest.mark.parametrize("name", ["failover.md", "first-pair.md"])
def test_every_command_of_a_page_that_is_typed_is_taken(name: str) -> None:
    """Of its blocks none is left out by the tests that type them, and what its text names is a command as well."""
    text = (OPERATIONS.parent / name).read_text()
    typed = "".join(part.lines for parts in sections(name).values() for part in parts)
    prompted = re.findall(r"^[a-z]+# (.*)$", text, re.MULTILINE)
    assert prompted and typed.startswith(prompted[0])
    assert all(f"{line}\n" in typed for line in prompted)
    named = [re.sub(r"\s+", " ", each) for each in re.findall(r"`(vmreplica [^`]+)`", text)]
    parser = build_parser()
    for words in map(shlex.split, named):
        assert parser.parse_args(words[1:]).handler, words


def test_number_names_nothing_twice() -> None:
    assert len({number.name for number in EventId}) == len({int(number) for number in EventId})
