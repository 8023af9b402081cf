"""Verbs that command the replica agent: export, unexport."""

from __future__ import annotations

import argparse

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable_values, time_text
from shared.cli.verbs.points import point_of
from shared.cli.verbs.replication import print_status
from shared.errors import NotFoundError
from shared.status import ExportStatus

EXPORT_SECONDS = 600.0
"""An export begins between two applies, so it may have to wait for one."""


def export(options: argparse.Namespace, context: Context) -> int:
    """Serve a recovery point, read-only or writable."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        writable = {"writable": True} if options.writable else {}
        raw = found.call(admin.EXPORT, EXPORT_SECONDS, **point_of(options), **writable)
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    status = msgspec.convert(printable_values(raw), ExportStatus)
    name, how = found.vm.name, "writable" if status.writable else "read-only"
    context.console.print(
        [
            f"{name} as of cut {status.cut.segment}, {time_text(status.cut.time, None)}, {how}:",
            *(f"  {uri}" for uri in status.uris),
            f"{_promise(status)} To end it: vmreplica unexport {name} {status.id}",
        ]
    )
    return SUCCESS


def _promise(export: ExportStatus) -> str:
    if export.writable:
        return "What is written to it is deleted at its end; the point stays as it is, and replication goes on."
    return "It stays as it is while replication goes on."


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
        if options.json:
            print_status(found, context)
            return SUCCESS
    context.console.print(f"Ended: {', '.join(ended)}" if ended else f"{found.vm.name} has no export.")
    return SUCCESS
