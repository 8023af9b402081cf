"""The verbs ``points``, ``point`` and ``prove``: what recovery points there are, their names and pins, their proof."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import Found, connect, socket_paths
from shared.cli.console import Console
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.live import follow_line
from shared.cli.point_text import nearest_lines, point_lines, proof_line, proof_lines
from shared.cli.text import printable_values
from shared.errors import UsageError, VmreplicaError
from shared.point_status import PointProof, PointsStatus
from shared.status import to_plain

BEGIN_SECONDS = 600.0
"""Reading a point begins between two applies, so it may have to wait for one."""


def points(options: argparse.Namespace, context: Context) -> int:
    """List the recovery points."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        asked: dict[str, Any] = {} if options.at is None else {"at_time": options.at}
        raw = found.call(admin.POINTS, **asked)
        now = found.agent.status.time
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    status = _points_of(raw)
    context.console.print(point_lines(found.vm, status, now))
    if status.at_time is not None:
        context.console.print(nearest_lines(found.vm, status))
    return SUCCESS


def point(options: argparse.Namespace, context: Context) -> int:
    """Name or pin a recovery point."""
    if options.name is None and options.pinned is None:
        raise UsageError("Nothing is to be done with the point.", "Give --name, --no-name, --pin or --unpin.")
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        raw = found.call(admin.MARK_POINT, name=options.name, pinned=options.pinned, **point_of(options))
        now = found.agent.status.time
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    status = _points_of(raw)
    context.console.print(point_lines(found.vm, status, now))
    if options.name and not any(each.pinned for each in status.points if each.name == options.name):
        context.console.print(f"{options.name} is not pinned: it goes when the rules end it. To keep it: --pin")
    return SUCCESS


def prove(options: argparse.Namespace, context: Context) -> int:
    """Read a point to its end, or join whoever does."""
    console = context.console
    rejoin = f"vmreplica prove {options.vm} --point POINT"
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        raw = found.call(admin.PROVE, BEGIN_SECONDS, stop=options.stop, **point_of(options))
        if options.stop:
            console.print(f"{found.vm.name}: no recovery point is being read any more.")
            return SUCCESS
        started = _proof_of(raw)
        if options.no_wait:
            console.print(f"Started. To see it: {rejoin.replace('POINT', started.point)}")
            return SUCCESS
        result = _follow(found, console, started, quiet=options.json)
    if result is None:
        return SUCCESS
    good = result.outcome in ("proven", "unrecorded")
    if options.json:
        console.print_json({"name": found.vm.name, "uuid": found.vm.uuid, **to_plain(result)})
        return SUCCESS if good else VmreplicaError.exit_code
    sentence, *rest = proof_lines(found.vm.name, result)
    if good:
        console.print([sentence, *rest, *([result.remedy] if result.remedy else [])])
        return SUCCESS
    console.print(rest)
    raise VmreplicaError(sentence, result.remedy)


def point_of(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters that name a point, of the options that do."""
    if options.at is None:
        return {"point": options.point}
    if options.point != "newest":
        raise UsageError("A point was named, and a time was given as well.", "Give one of --point and --at.")
    return {"at_time": options.at}


def _points_of(raw: object) -> PointsStatus:
    return msgspec.convert(printable_values(raw), PointsStatus)


def _proof_of(raw: object) -> PointProof:
    return msgspec.convert(printable_values(raw), PointProof)


def _follow(found: Found, console: Console, started: PointProof, *, quiet: bool) -> PointProof | None:
    """What came of it; None where it was left with Ctrl-C."""

    def look() -> tuple[PointProof, str]:
        status = _points_of(found.call(admin.POINTS)).proof
        if status is None or status.point != started.point or status.started_time != started.started_time:
            raise VmreplicaError("The agent was restarted meanwhile: nothing is known of the point.", "Run it again.")
        return status, proof_line(found.vm.name, status) if status.running else ""

    left = f"It goes on. To see it again: vmreplica prove {found.vm.name} --point {started.point}"
    return follow_line(console, look, quiet=quiet, left=left)
