"""Verbs about a VM's resyncs: plan one, show the open and the last one, list those before, watch one as it runs."""

from __future__ import annotations

import argparse
import time
from typing import Any, TypeVar

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.progress import is_working, outcome
from shared.cli.resync_text import history_lines, plan_lines, report_lines
from shared.cli.text import printable_values
from shared.errors import UnreachableError, VmreplicaError
from shared.resync_runs import ResyncPlan, ResyncReport, RunHistory
from shared.status import VmStatus, to_plain

PLAN_SECONDS = 300.0
"""How long a plan may take: the extents of all disks are looked up, and a sample of them is read."""

R = TypeVar("R")


def plan(options: argparse.Namespace, context: Context) -> int:
    """What a resync would cost if it began now."""
    found, raw = _asked(options, context, admin.RESYNC_PLAN, PLAN_SECONDS, sample=options.sample, blocks=options.blocks)
    if options.json:
        context.console.print_json(_labelled(found, raw))
    else:
        told = _converted(found, raw, ResyncPlan)
        context.console.print(plan_lines(found.vm.name, told, context.console.width))
    return SUCCESS


def show(options: argparse.Namespace, context: Context) -> int:
    """Whether a resync is required and why, the one that runs, and the last one."""
    found, raw = _asked(options, context, admin.RESYNC_SHOW)
    if options.json:
        context.console.print_json(_labelled(found, raw))
    else:
        told = _converted(found, raw, ResyncReport)
        context.console.print(report_lines(found.vm.name, told, context.console.width))
    return SUCCESS


def history(options: argparse.Namespace, context: Context) -> int:
    """The runs that are on record, the newest first."""
    found, raw = _asked(options, context, admin.RESYNC_HISTORY, limit=options.limit)
    if options.json:
        context.console.print_json(_labelled(found, raw))
    else:
        context.console.print(history_lines(found.vm.name, _converted(found, raw, RunHistory).runs))
    return SUCCESS


def watch(options: argparse.Namespace, context: Context) -> int:
    """Follow the resync that runs to its end."""
    from shared.cli.live import follow

    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        if options.json:
            return _watch_json(found, context)
        if not is_working(found.vm):
            context.console.print(f"{found.vm.name} is not being resynchronized. {found.vm.summary}".rstrip())
            return SUCCESS
        sockets = "".join(f" --socket {path}" for path in options.socket)
        return follow(found, context.console, rejoin=f"vmreplica resync watch {options.vm}{sockets}")


def _watch_json(found: Found, context: Context) -> int:
    """One JSON object a line for each change, the last with how it ended."""
    from shared.cli.live import WORK_SECONDS, Poller

    console, poller, told = context.console, Poller(found.agent.connection.path, found.vm), dict[str, Any]()
    try:
        while True:
            vm = poller.poll()
            fresh = _moment(vm) if vm is not None else {"name": found.vm.name, "uuid": found.vm.uuid, "state": None}
            if fresh != told:
                console.print_json({"time": time.time(), **fresh}, compact=True)
                console.out.flush()
                told = fresh
            if vm is not None and not is_working(vm):
                break
            time.sleep(WORK_SECONDS)
    except KeyboardInterrupt:
        return SUCCESS
    finally:
        poller.close()
    end = outcome(vm)
    return SUCCESS if end is None or end.succeeded else VmreplicaError.exit_code


def _moment(vm: VmStatus) -> dict[str, Any]:
    end = outcome(vm)
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "state": vm.state,
        "connected": vm.link.connected,
        "progress": to_plain(vm.progress) if vm.progress is not None else None,
        "outcome": None if end is None else {"succeeded": end.succeeded, "text": end.text},
    }


def _asked(
    options: argparse.Namespace, context: Context, method: str, timeout: float | None = None, **params: Any
) -> tuple[Found, dict[str, Any]]:
    """The primary agent's VM, and what it answers."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        raw = found.call(method, **params) if timeout is None else found.call(method, timeout, **params)
    return found, dict(raw)


def _labelled(found: Found, raw: dict[str, Any]) -> dict[str, Any]:
    return {"name": found.vm.name, "uuid": found.vm.uuid, **raw}


def _converted(found: Found, raw: dict[str, Any], kind: type[R]) -> R:
    try:
        return msgspec.convert(printable_values(raw), kind)
    except msgspec.ValidationError as error:
        raise UnreachableError(
            f"The agent at {found.agent.connection.path} answers in a form that is not understood: {error}.",
            "Install the same version of the command and the agent.",
        ) from None
