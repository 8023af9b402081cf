"""Verbs about alarms: how each entry does, and a test of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from shared.admin import verbs as admin
from shared.cli.agents import connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import columns, joined, printable_values, time_text
from shared.errors import NotFoundError, UnreachableError

TEST_SECONDS = 330.0
"""A test waits for an attempt, which may take up to 300 seconds."""


def show(options: argparse.Namespace, context: Context) -> int:
    """How each alarm of this host's agents does."""
    _print(_asked(options, context, admin.ALARMS, {}), options, context)
    return SUCCESS


def test(options: argparse.Namespace, context: Context) -> int:
    """Send a test by one alarm or by all; the exit code is 5 where one does not arrive."""
    found = _asked(options, context, admin.ALARM_TEST, {"name": options.name or ""})
    if not found:
        raise NotFoundError("No alarm is configured.", "Add an [[alarms]] entry to the configuration, and reload.")
    _print(found, options, context)
    failed = [each for each in found if each["last_error"]]
    return UnreachableError.exit_code if failed else SUCCESS


def _asked(
    options: argparse.Namespace, context: Context, method: str, params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    paths, named = socket_paths(options.socket, context.environment)
    found: list[dict[str, Any]] = []
    unknown: list[NotFoundError] = []
    with connect(paths, named=named) as agents:
        asked = [agent for agent in agents.answered if options.role in (None, agent.status.role)]
        for agent in asked:
            try:
                answer = agent.call(method, params, TEST_SECONDS)
            except NotFoundError as error:
                unknown.append(error)
                continue
            found += [{"role": agent.status.role, **each} for each in answer["alarms"]]
    if unknown and len(unknown) == len(asked):
        raise unknown[0]
    return found


def _print(found: list[dict[str, Any]], options: argparse.Namespace, context: Context) -> None:
    if options.json:
        context.console.print_json({"alarms": found})
    else:
        context.console.print(alarm_lines(printable_values(found)))


def alarm_lines(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each alarm; below one whose last attempt failed, why."""
    alarms = list(found)
    if not alarms:
        return ["No alarm is configured: nobody is told of anything. See [[alarms]] in docs/config.md."]
    rows = [["ALARM", "AGENT", "WAY", "WAITING", "SENT", "FAILED", "LAST SENT"]]
    rows += [
        [
            each["name"], each["role"], each["way"], str(each["waiting"]), str(each["sent"]),
            str(each["failed"] + each["dropped"]), time_text(each["last_sent_time"], None),
        ]
        for each in alarms
    ]  # fmt: skip
    lines = [joined(row) for row in columns(rows, right=[3, 4, 5])]
    shown = lines[:1]
    for each, line in zip(alarms, lines[1:], strict=True):
        shown.append(line)
        if each["last_error"]:
            shown.append(f"  the last attempt failed: {each['last_error']}")
    return shown
