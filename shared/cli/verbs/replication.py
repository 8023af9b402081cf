"""Verbs that command the primary agent, and those that both agents know: enable, initial, set, suspend, resume, ..."""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import replace
from typing import Any

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import Agent, Agents, Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable_values
from shared.cli.verbs.exporting import export
from shared.cli.verbs.reading import rejoin_command
from shared.errors import InvalidStateError, NotFoundError, UnreachableError, UsageError, VmreplicaError
from shared.rates import duration_text
from shared.states import ReplicationState
from shared.status import VmStatus

ENABLE_SECONDS = 120.0
"""How long enabling may take: the tap is started and its log preallocated."""
LINK_SECONDS = 10.0
"""How long a session that is being opened is waited for before a compare is asked for."""
LINK_POLL_SECONDS = 0.2


def enable(options: argparse.Namespace, context: Context) -> int:
    """Put a VM under replication, and tell how its disks are attached."""
    from shared.cli.attach import attachment_lines

    params: dict[str, Any] = {
        "name": options.name,
        "disks": options.disk,
        "replica": options.replica,
        "interval_seconds": options.interval,
    }
    given = {
        "log_limit_bytes": options.log_limit,
        "hot_region_bytes": options.hot_region_bytes,
        "hot_regions": options.hot_regions,
        "block_device_policy": options.block_device_policy,
        "uuid": options.uuid,
        "exclude": options.exclude or None,
    }
    params |= {name: value for name, value in given.items() if value is not None}
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        agent = agents.of_role("primary")
        agent.call(admin.ENABLE, params, ENABLE_SECONDS)
        agent = agent.refresh()
        vm = _named(agent, options.name)
    if options.json:
        context.console.print_json(next(raw for raw in agent.raw["vms"] if raw["uuid"] == vm.uuid))
        return SUCCESS
    context.console.print(
        [
            f"{vm.name} is enabled: a cut every {duration_text(vm.interval_seconds)}, to {options.replica}.",
            "",
            *attachment_lines(disk_uris(vm)),
            "",
            f"Start the VM on these, then make the first copy: vmreplica initial {vm.name}",
        ]
    )
    return SUCCESS


def initial(options: argparse.Namespace, context: Context) -> int:
    """Make the first copy, and follow it."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        if options.at:
            found.call(admin.INITIAL, at=options.at)
            return _tell(found, options, context, waiting="initial replication")
        if options.export:
            return _ended(export(found, options, _quiet(options, context)), found, options, context)
        await_link(found)
        found.call(admin.INITIAL, **({"use_seed": True} if options.use_seed else {}))
        return _follow(found, options, context)


def set_settings(options: argparse.Namespace, context: Context) -> int:
    """Change settings of a VM, and print them all."""
    from shared.cli.tables import settings_lines
    from shared.cli.units import REPLICA_SETTINGS

    settings = dict(options.settings)
    roles = {"replica" if name in REPLICA_SETTINGS else "primary" for name in settings}
    if len(roles) > 1:
        raise UsageError("These are settings of both sides.", "Set those of the primary and of the replica each there.")
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, roles.pop()) if roles else agents.find_one(options.vm, prefer="primary")
        if settings:
            found.call(admin.SET, settings=settings)
        vm = found.refresh()
    if options.json:
        known = {"name": vm.name, "uuid": vm.uuid, "role": vm.role}
        context.console.print_json({"vms": [{**known, "settings": vm.settings, "pending": vm.pending_settings}]})
    else:
        context.console.print(settings_lines(vm))
    return SUCCESS


def suspend(options: argparse.Namespace, context: Context) -> int:
    """Stop replication until resume."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, options.role, prefer="primary")
        found.call(admin.SUSPEND)
        return _tell(found, options, context)


def resume(options: argparse.Namespace, context: Context) -> int:
    """Go on, with a resync if asked for."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        if options.at:
            if not options.resynchronize:
                raise UsageError("A time is for a resynchronization.", "Add --resynchronize.")
            found = agents.find_one(options.vm, "primary")
            found.call(admin.RESUME, resynchronize=True, at=options.at)
            return _tell(found, options, context, waiting="resynchronization")
        if options.go_on:
            found = agents.find_one(options.vm, "primary")
            found.call(admin.RESUME, go_on=True)
            return _follow(found, options, context)
        if not options.resynchronize:
            found = agents.find_one(options.vm, options.role, prefer="primary")
            found.call(admin.RESUME)
            return _tell(found, options, context)
        found = agents.find_one(options.vm, "primary")
        vm = found.vm
        if vm.state_code == ReplicationState.REPLICATING and vm.health == "Normal":
            context.console.confirm(
                f"{vm.name} replicates without trouble: a resync is seldom needed then. It suspends replication, reads "
                "all disks on both hosts, and until it is done the replica stays at its newest cut.",
                vm.name,
                options.yes,
            )
        await_link(found)
        found.call(admin.RESUME, resynchronize=True)
        return _follow(found, options, context)


def resize(options: argparse.Namespace, context: Context) -> int:
    """Take over the sizes of disks that were made larger."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        found.call(admin.RESIZE, ENABLE_SECONDS)
        return _tell(found, options, context)


def stop(options: argparse.Namespace, context: Context) -> int:
    """Cancel a resync or initial replication before its commit."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        found.call(admin.STOP)
        return _tell(found, options, context)


def remove(options: argparse.Namespace, context: Context) -> int:
    """End the replication of a VM on this host."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, options.role)
        vm = found.vm
        if vm.role == "primary":
            warning = (
                f"The tap of {vm.name} stops, and its log is deleted; the disks stay. A VM that runs on the tap "
                "loses its disks: shut it down first."
            )
        elif vm.state_code == ReplicationState.FAILED_OVER_WAITING_COMPLETION:
            warning = (
                f"The tap of {vm.name} on this host stops; the disks stay in {vm.folder}. A VM that runs on the tap "
                "loses its disks: shut it down first."
            )
        elif vm.state_code == ReplicationState.FAILED_OVER:
            warning = (
                f"What this host's replica agent has of {vm.name} is deleted; its disks are moved to the folder "
                f"removed beside {vm.folder}. A VM that runs on them loses them: shut it down first."
            )
        else:
            warning = f"The replica of {vm.name} on this host is deleted, with its disks in {vm.folder}."
        context.console.confirm(warning, vm.name, options.yes)
        more = {}
        if vm.role == "replica" and vm.handed_over:
            _require_released(agents, vm)
            more["released"] = True
        told = found.call(admin.REMOVE, ENABLE_SECONDS, yes=True, **more)
    kept = told.get("kept") or "" if isinstance(told, dict) else ""
    if options.json:
        context.console.print_json({"name": vm.name, "uuid": vm.uuid, "role": vm.role, "kept": kept})
        return SUCCESS
    context.console.print(f"{vm.name} is no longer replicated {'from' if vm.role == 'primary' else 'to'} this host.")
    if kept:
        context.console.print(f"Its disks are kept in {printable_values(kept)}.")
    return SUCCESS


def _require_released(agents: Agents, vm: VmStatus) -> None:
    """Only the primary agent knows whether it needs the folder of a VM that was handed over to it."""
    try:
        primary = agents.of_role("primary").refresh()
    except VmreplicaError as error:
        raise UnreachableError(
            f"{vm.name} was handed over to the primary agent of this host, which does not answer: {error.text}",
            f"Nothing was removed: that agent may serve the VM from {vm.folder}. Start it: `systemctl start "
            "vmreplica-primary`.",
        ) from error
    if any(each.uuid == vm.uuid for each in primary.status.vms):
        raise InvalidStateError(
            f"The primary agent of this host has {vm.name}, and its disks and its tap's files are in {vm.folder}.",
            f"Nothing was removed. To end its replication: `vmreplica remove {vm.name} --role primary`, and then the "
            "same here.",
        )


def recover(options: argparse.Namespace, context: Context) -> int:
    """Rebuild the lost state of a VM on this host."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, options.role)
        vm = found.vm
        if vm.role == "primary":
            warning = (
                f"The damaged state of {vm.name} is kept aside in {vm.folder}, and one that is rebuilt from the other "
                "files there takes its place. The tap goes on. What the replica has acknowledged is not known then: "
                "where the log does not prove it everything is compared."
            )
        else:
            warning = (
                f"The damaged state of {vm.name} is kept aside in {vm.folder}, and one that is rebuilt from the other "
                "files there takes its place. Its recovery point counts for nothing then until a resynchronization "
                "has compared everything; a failover to this host stays one."
            )
        if vm.state_code == ReplicationState.ERROR:
            # A sound state needs no question: the agent refuses.
            context.console.confirm(warning, vm.name, options.yes)
        found.call(admin.RECOVER, ENABLE_SECONDS, yes=True, replica=options.replica)
        return _tell(found, options, context)


def try_connection(options: argparse.Namespace, context: Context) -> int:
    """Let the primary agent try its way to a replica, and tell how far it came."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        raw = agents.of_role("primary").call(admin.TEST_CONNECTION, {"replica": options.replica}, options.timeout)
    report = msgspec.convert(printable_values(raw), admin.ConnectionReport)
    console = context.console
    if options.json:
        console.print_json(raw)
        return SUCCESS if report.ok else UnreachableError.exit_code
    for step in report.steps:
        mark = console.palette.good("ok    ") if step.ok else console.palette.critical("FAILED")
        console.print(f"{mark}  {step.name.ljust(13)}  {step.text}".rstrip())
    if report.ok:
        console.print(f"{options.replica} takes replication from this host.")
        return SUCCESS
    failed = next((step for step in report.steps if not step.ok), None)
    raise UnreachableError(
        f"{options.replica} can't be used as a replica" + (f": {failed.text}" if failed else "."),
        failed.remedy if failed else "",
    )


def disk_uris(vm: VmStatus) -> list[str]:
    """Where the VM's disks are served, in their order."""
    return vm.uris or (vm.tap.uris if vm.tap is not None else []) or [disk.uri for disk in vm.disks if disk.uri]


def _named(agent: Agent, name: str) -> VmStatus:
    for vm in agent.status.vms:
        if vm.name == name:
            return vm
    raise NotFoundError(f"The primary agent took {name}, but does not list it.", "See the agent's log.")


def await_link(found: Found) -> None:
    """Give a session that is just being opened the moment it needs: a compare is refused without one."""
    end = time.monotonic() + LINK_SECONDS
    link = found.vm.link
    while not link.healthy and not link.last_error and time.monotonic() < end:
        time.sleep(LINK_POLL_SECONDS)
        link = found.refresh().link


def print_status(found: Found, context: Context) -> None:
    """The VM's status after a change, as the agent tells it."""
    agent = found.agent.refresh(found.vm.uuid)
    context.console.print_json(next(raw for raw in agent.raw["vms"] if raw["uuid"] == found.vm.uuid))


def _quiet(options: argparse.Namespace, context: Context) -> Context:
    """Where the output is one JSON value, work under way is not shown there."""
    if not options.json:
        return context
    return replace(context, console=replace(context.console, out=io.StringIO(), live=False))


def _ended(code: int, found: Found, options: argparse.Namespace, context: Context) -> int:
    if options.json:
        print_status(found, context)
    return code


def _follow(found: Found, options: argparse.Namespace, context: Context) -> int:
    from shared.cli.live import follow

    rejoin = rejoin_command(options)
    if options.no_wait:
        if not options.json:
            context.console.print(f"Started. To see it: {rejoin}")
        return _ended(SUCCESS, found, options, context)
    return _ended(follow(found, _quiet(options, context).console, rejoin=rejoin), found, options, context)


def _tell(found: Found, options: argparse.Namespace, context: Context, *, waiting: str = "") -> int:
    """The VM after the change, or with ``waiting`` when that work begins."""
    if options.json:
        print_status(found, context)
        return SUCCESS
    vm = found.refresh()
    scheduled = vm.waiting or f"No {waiting} of {vm.name} is scheduled."
    context.console.print(scheduled if waiting else f"{vm.name}: {vm.state}. {vm.summary}")
    return SUCCESS
