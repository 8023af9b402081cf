"""Verbs that command the replica agent: points, export, unexport, failover."""

from __future__ import annotations

import argparse
import time

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import Agent, Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable_values, time_text
from shared.cli.verbs.reading import rejoin_command
from shared.cli.verbs.replication import disk_uris
from shared.errors import InvalidStateError, NotFoundError
from shared.rates import duration_text
from shared.status import ExportStatus, PointsStatus, VmStatus

EXPORT_SECONDS = 600.0
"""An export begins between two applies, so it may have to wait for one."""
SERVING_SECONDS = 30.0
"""How long the tap of a promoted VM may take until it serves the disks."""
SERVING_POLL_SECONDS = 0.2


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


def failover(options: argparse.Namespace, context: Context) -> int:
    """Promote the replica."""
    from shared.cli.attach import attachment_lines
    from shared.cli.live import call_while_showing
    from shared.cli.verbs.planned import check_options, prepare

    check_options(options)
    if options.prepare:
        return prepare(options, context)
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        context.console.confirm(_failover_warning(found), found.vm.name, options.yes)
        call_while_showing(found, admin.FAILOVER, context.console, rejoin=rejoin_command(options))
        agent = _serving(found)
    vm = next(each for each in agent.status.vms if each.uuid == found.vm.uuid)
    if options.json:
        context.console.print_json(next(raw for raw in agent.raw["vms"] if raw["uuid"] == vm.uuid))
        return SUCCESS
    cut_time = vm.applied_cut.time if vm.applied_cut is not None else None
    cut = "" if cut_time is None else f" as of {time_text(cut_time, None)}"
    context.console.print(f"{vm.name} is failed over to this host{cut}; its old primary can no longer write.")
    context.console.print(_kind(vm))
    if not disk_uris(vm):
        raise InvalidStateError(
            f"The disks of {vm.name} are not served yet. {vm.reasons[0] if vm.reasons else ''}".strip(),
            vm.remedy or f"Look again: vmreplica status {vm.name}",
        )
    context.console.print(["", *attachment_lines(disk_uris(vm))])
    return SUCCESS


def _kind(vm: VmStatus) -> str:
    """Whether anything was lost."""
    planned = vm.planned
    if planned is None or planned.cut is None:
        return "It was not prepared at the primary: what was written there after this cut is not part of it."
    return (
        f"A planned failover: nothing is lost, cut {planned.cut.segment} of epoch {planned.cut.epoch}, "
        f"chain {planned.chain}."
    )


def _serving(found: Found) -> Agent:
    """The agent once it serves the promoted disks; or as it is after a while, or at a problem."""
    end = time.monotonic() + SERVING_SECONDS
    while True:
        agent = found.agent.refresh(found.vm.uuid)
        vm = agent.status.vms[0]
        if disk_uris(vm) or vm.problem is not None or time.monotonic() > end:
            return agent
        time.sleep(SERVING_POLL_SECONDS)


def _failover_warning(found: Found) -> str:
    vm = found.vm
    primary = vm.peer_host or "its primary host"
    age = "" if vm.lag_seconds is None else f", {duration_text(vm.lag_seconds)} old"
    if vm.planned is not None and vm.planned.token_sent:
        return (
            f"{vm.name} was prepared for this on {primary}, which takes no writes of it any more: its newest cut "
            "becomes its disks here, and nothing is lost."
        )
    connected = f" The primary agent on {primary} is connected right now." if vm.link.connected else ""
    return (
        f"The newest cut of {vm.name} becomes its disks{age}; what was written after it is lost.{connected} "
        f"Make sure that the VM no longer runs on {primary}."
    )
