"""Verbs about configurations: every mistake in a file, and what is in force."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from shared.admin import verbs as admin
from shared.cli.agents import Agents, connect, socket_paths
from shared.cli.configured import KINDS, config_findings, default_path
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.findings import Finding, report
from shared.cli.text import columns, joined, printable_values, time_text
from shared.config import load_config
from shared.config_state import key_statuses
from shared.errors import NotFoundError, UnreachableError, UsageError, VmreplicaError
from shared.status import to_plain


def check(options: argparse.Namespace, context: Context) -> int:
    """Every mistake of a file, or of those of this host's roles, and whether what they name is there."""
    if options.file:
        files = [(options.file, _role_of(options))]
    else:
        roles = [options.role] if options.role else [role for role in KINDS if os.path.lexists(default_path(role))]
        if not roles:
            raise NotFoundError(
                f"There is neither {' nor '.join(default_path(role) for role in KINDS)}.",
                "Make one with vmreplica setup, or name a file.",
            )
        files = [(default_path(role), role) for role in roles]
    found: list[Finding] = []
    for path, role in files:
        findings, _ = config_findings(path, role)
        found += findings
    return report(found, context.console, json=options.json, files=[path for path, _ in files])


def _role_of(options: argparse.Namespace) -> str:
    if options.role:
        return str(options.role)
    for role in KINDS:
        if role in os.path.basename(options.file):
            return role
    raise UsageError(
        f"Whose configuration {options.file} is can't be told by its name.", "Say --role primary or replica."
    )


def show(options: argparse.Namespace, context: Context) -> int:
    """What is in force at the running agents, beside their files; of an agent that does not run, what its file says."""
    shown = [*_running(options, context)]
    there = {each["role"] for each in shown}
    wanted = [options.role] if options.role else list(KINDS)
    named = bool(options.socket)
    for role in wanted:
        if role not in there and not named and os.path.lexists(default_path(role)):
            shown.append(_of_file(role))
    if not shown:
        raise NotFoundError("No agent runs here, and there is no configuration.", "Make one with vmreplica setup.")
    if options.json:
        context.console.print_json({"configurations": shown})
        return SUCCESS
    for at, each in enumerate(shown):
        context.console.print([*([""] if at else []), *config_lines(printable_values(each))])
    return SUCCESS


def _running(options: argparse.Namespace, context: Context) -> Iterator[dict[str, Any]]:
    paths, named = socket_paths(options.socket, context.environment)
    try:
        with connect(paths, named=named) as agents:
            yield from _told(agents, options)
    except UnreachableError:
        if named:
            raise


def _told(agents: Agents, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for agent in agents.answered:
        if options.role in (None, agent.status.role):
            yield {"running": True, **agent.call(admin.CONFIG)}


def _of_file(role: str) -> dict[str, Any]:
    path = default_path(role)
    try:
        keys = key_statuses(load_config(path, KINDS[role]), {})
    except VmreplicaError as error:
        return {"running": False, "role": role, "path": path, "file_mistakes": [str(error)], "keys": []}
    return {
        "running": False,
        "role": role,
        "path": path,
        "file_mistakes": [],
        "keys": [to_plain(key) for key in keys],
    }


def config_lines(config: Mapping[str, Any]) -> list[str]:
    """One configuration as people read it: keys with values, and what differs in the file."""
    if config["running"]:
        loaded = time_text(config["loaded_time"], None)
        lines = [f"{config['role']}: in force, read from {config['path']} at {loaded}"]
    else:
        lines = [f"{config['role']}: {config['path']}; the agent does not run"]
    if config.get("refused"):
        lines.append(f"  The last reload was refused: {config['refused']}")
    lines += [f"  A mistake in the file as it is now: {mistake}" for mistake in config.get("file_mistakes", [])]
    rows = [[key["key"], "=", _text(key["value"]), _remark(key)] for key in config["keys"]]
    return [*lines, *(f"  {joined(row)}" for row in columns(rows))]


def _remark(key: Mapping[str, Any]) -> str:
    if key.get("changed"):
        how = "systemctl reload brings it" if key["by_reload"] else "a restart brings it"
        return f"# the file has {_text(key['file_value'])}: {how}"
    return "# default" if key["default"] else ""


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
