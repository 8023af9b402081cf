"""Verbs that command the replica agent: points, export, unexport."""

from __future__ import annotations

import argparse

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable_values, time_text
from shared.errors import NotFoundError
from shared.status import ExportStatus, PointsStatus

EXPORT_SECONDS = 600.0
"""An export begins between two applies, so it may have to wait for one."""


def points(options: argparse.Namespace, context: Context) -> int:
    """List the recovery points."""
    from shared.cli.tables import point_lines

    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        raw = found.call(admin.POINTS)
        now = found.agent.status.time
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    context.console.print(point_lines(found.vm, msgspec.convert(printable_values(raw), PointsStatus), now))
    return SUCCESS


def export(options: argparse.Namespace, context: Context) -> int:
    """Serve a recovery point read-only."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        raw = found.call(admin.EXPORT, EXPORT_SECONDS, point=options.point)
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    status = msgspec.convert(printable_values(raw), ExportStatus)
    name = found.vm.name
    context.console.print(
        [
            f"{name} as of cut {status.cut.segment}, {time_text(status.cut.time, None)}, read-only:",
            *(f"  {uri}" for uri in status.uris),
            f"It stays as it is while replication goes on. To end it: vmreplica unexport {name} {status.id}",
        ]
    )
    return SUCCESS


def unexport(options: argparse.Namespace, context: Context) -> int:
    """End one export, or all of the VM."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        ids = [each.id for each in found.vm.exports]
        if options.id is not None and options.id not in ids:
            known = f"Its exports: {', '.join(ids)}." if ids else "It has none."
            raise NotFoundError(f"{found.vm.name} has no export {options.id}.", known)
        ended = [options.id] if options.id is not None else ids
        for identity in ended:
            found.call(admin.UNEXPORT, EXPORT_SECONDS, id=identity)
    context.console.print(f"Ended: {', '.join(ended)}" if ended else f"{found.vm.name} has no export.")
    return SUCCESS
