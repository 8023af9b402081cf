"""The verb ``import``: a first copy for the replica's store, by courier or from a seed, followed to its end."""

from __future__ import annotations

import argparse
import os
from typing import Any

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import Agent, connect, socket_paths
from shared.cli.console import Console
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.live import follow_line
from shared.cli.text import printable_values
from shared.errors import UsageError, VmreplicaError
from shared.import_status import EXPORT, IMPORTED, ImportStatus
from shared.rates import size_text
from shared.status import to_plain

BEGIN_SECONDS = 600.0
"""All of the source's holes are looked up before it begins."""


def import_copy(options: argparse.Namespace, context: Context) -> int:
    """Import a first copy, or join whoever follows one."""
    if options.seed and (options.storage or options.stop):
        raise UsageError("--seed goes with neither --storage nor --stop.", "Name the VM and its seeds alone.")
    if options.move and not options.seed:
        raise UsageError("--move is for seeds.", "An export is copied, since it is checked on the way.")
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        if options.stop:
            raw = agents.find_one(options.what, "replica").call(admin.IMPORT_STOP, BEGIN_SECONDS)
            status = _status_of(raw)
            context.console.print(status.text if status is not None else f"Nothing is imported into {options.what}.")
            return SUCCESS
        agent, started = _begin(agents, options)
        if options.no_wait:
            context.console.print(f"Started. To see it: vmreplica status {started.name} --watch")
            return SUCCESS
        result = _follow(agent, context.console, started, quiet=options.json)
    if result is None:
        return SUCCESS
    if result.outcome != IMPORTED:
        raise VmreplicaError(result.text, result.remedy)
    if options.json:
        context.console.print_json(to_plain(result))
    else:
        context.console.print([result.text, next_step(result)])
    return SUCCESS


def next_step(status: ImportStatus) -> str:
    """What comes after it."""
    if status.kind == EXPORT:
        return "Its primary goes on by itself: it sends what was written since the export began."
    return f"Then, at its primary: vmreplica initial {status.name} --use-seed"


def _begin(agents: Any, options: argparse.Namespace) -> tuple[Agent, ImportStatus]:
    if options.seed:
        found = agents.find_one(options.what, "replica")
        seeds = [{"disk": disk, "path": path} for disk, path in options.seed]
        raw = found.call(admin.IMPORT_SEED, BEGIN_SECONDS, seeds=seeds, move=options.move)
        agent = found.agent
    else:
        agent = agents.of_role("replica")
        params = {"folder": os.path.abspath(options.what), "storage": options.storage}
        raw = agent.call(admin.IMPORT, params, BEGIN_SECONDS)
    started = _status_of(raw)
    assert started is not None
    return agent, started


def _status_of(raw: object) -> ImportStatus | None:
    return msgspec.convert(printable_values(raw), ImportStatus | None)


def _line(status: ImportStatus) -> str:
    percent = int(100 * status.done_bytes / status.total_bytes) if status.total_bytes else 0
    amount = f"{size_text(status.done_bytes)} of {size_text(status.total_bytes)}"
    return f"{status.name}: importing from {status.source}, {percent} % ({amount})"


def _follow(agent: Agent, console: Console, started: ImportStatus, *, quiet: bool) -> ImportStatus | None:
    """What came of it; None where it was left with Ctrl-C."""

    def look() -> tuple[ImportStatus, str]:
        status = _status_of(agent.call(admin.IMPORT_STATUS, {"vm": started.uuid}))
        if status is None or status.started_time != started.started_time:
            raise VmreplicaError("The agent was restarted meanwhile: nothing of the import is left.", "Run it again.")
        return status, _line(status) if status.running else ""

    left = f"It goes on. To see it again: vmreplica status {started.name} --watch"
    return follow_line(console, look, quiet=quiet, left=left)
