"""Failover by the replica agent: what was found of the primary, which point, and what was received; commit and undo."""

from __future__ import annotations

import argparse
import time

from shared.admin import verbs as admin
from shared.cli.agents import Agent, Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.point_text import other_disks
from shared.cli.text import time_text
from shared.cli.verbs.points import point_of
from shared.cli.verbs.reading import rejoin_command
from shared.cli.verbs.replication import disk_uris
from shared.errors import InvalidStateError
from shared.rates import duration_text, size_text
from shared.status import VmStatus

SERVING_SECONDS = 30.0
"""How long the tap of a promoted VM may take until it serves the disks."""
SERVING_POLL_SECONDS = 0.2
NEWEST = "newest"
APPLIED = "applied"


def failover(options: argparse.Namespace, context: Context) -> int:
    """Promote the replica, to the newest or to a chosen point; undo or commit that; test it, or prepare it."""
    from shared.cli.verbs.planned import check_options, prepare

    check_options(options)
    if options.prepare:
        return prepare(options, context)
    if options.test or options.stop:
        from shared.cli.verbs.test_failover import test_failover

        return test_failover(options, context)
    if options.undo:
        return undo(options, context)
    if options.commit:
        return commit(options, context)
    return promote(options, context)


def promote(options: argparse.Namespace, context: Context) -> int:
    """Promote the replica."""
    from shared.cli.attach import attachment_lines
    from shared.cli.live import call_while_showing

    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        params = point_of(options)
        which = options.point if options.at is None else time_text(options.at, None)
        context.console.confirm(_warning(found, which), found.vm.name, options.yes)
        call_while_showing(found, admin.FAILOVER, context.console, rejoin=rejoin_command(options), **params)
        agent = _serving(found)
    vm = next(each for each in agent.status.vms if each.uuid == found.vm.uuid)
    if options.json:
        context.console.print_json(next(raw for raw in agent.raw["vms"] if raw["uuid"] == vm.uuid))
        return SUCCESS
    promoted = vm.failover.cut if vm.failover is not None else None
    shown = promoted if promoted is not None else vm.applied_cut
    cut = "" if shown is None or shown.time is None else f" as of {time_text(shown.time, None)}"
    context.console.print(f"{vm.name} is failed over to this host{cut}; its old primary can no longer write.")
    context.console.print(_kind(vm, options))
    if vm.failover is not None and vm.failover.proven_time is not None:
        when = time_text(vm.failover.proven_time, None)
        context.console.print(
            f"Both sides' disks were compared at this cut, and had the same SHA-256 digests ({when})."
        )
    if vm.failover is not None and (others := other_disks(vm.failover)):
        context.console.print(f"It has other disks than the newest recovery point: {others}.")
    if not disk_uris(vm):
        raise InvalidStateError(
            f"The disks of {vm.name} are not served yet. {vm.reasons[0] if vm.reasons else ''}".strip(),
            vm.remedy or f"Look again: vmreplica status {vm.name}",
        )
    context.console.print(["", *attachment_lines(disk_uris(vm))])
    if vm.failover is not None and vm.failover.undoable:
        context.console.print(
            [
                "",
                "What is written from now on lies over the copy, which stays as it is:",
                f"  to keep it:  vmreplica failover {vm.name} --commit   (deletes the other recovery points)",
                f"  to go back:  vmreplica failover {vm.name} --undo     (drops what was written here)",
            ]
        )
    return SUCCESS


def undo(options: argparse.Namespace, context: Context) -> int:
    """Go back to before a failover."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        failed_over = found.vm.failover
        dropped = "What was written here since is dropped for good."
        if failed_over is not None:
            dropped = f"{size_text(failed_over.written_bytes)} that were written here since are dropped for good."
        context.console.confirm(
            f"{found.vm.name} becomes a replica again, as it was before the failover. {dropped}",
            found.vm.name,
            options.yes,
        )
        # Answered when it is over, or with what holds it up.
        found.call(admin.FAILOVER_UNDO)
        agent = found.agent.refresh(found.vm.uuid)
        vm, raw = agent.status.vms[0], agent.raw["vms"][0]
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    primary = vm.peer_host or "its old host"
    context.console.print(
        [
            f"The failover of {vm.name} is undone: it is a replica again, in state {vm.state}.",
            f"Its primary on {primary} goes on by itself; where it was told of the failover, within a minute. At once:",
            f"  vmreplica resume {vm.name}   (there)",
        ]
    )
    return SUCCESS


def commit(options: argparse.Namespace, context: Context) -> int:
    """Keep a failover for good."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        name, points, failed_over = found.vm.name, found.vm.older_points, found.vm.failover
        added = failed_over.added_disks if failed_over is not None else []
        lost = f", and so is disk {', '.join(map(str, added))}, which the promoted one does not have" if added else ""
        context.console.confirm(
            f"The failover of {name} can't be undone any more after this, and its {points} older recovery points are "
            f"deleted{lost}.",
            name,
            options.yes,
        )
        raw = found.call(admin.FAILOVER_COMMIT)
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    context.console.print(
        [
            f"The failover of {name} is committed. What was written since settles in its disks while they are served:",
            f"  vmreplica status {name}",
        ]
    )
    return SUCCESS


def _kind(vm: VmStatus, options: argparse.Namespace) -> str:
    """Whether anything was lost."""
    planned = vm.planned
    if planned is not None and planned.cut is not None:
        return (
            f"A planned failover: nothing is lost, cut {planned.cut.segment} of epoch {planned.cut.epoch}, "
            f"chain {planned.chain}."
        )
    if options.point != NEWEST or options.at is not None:
        return "An older point was chosen: what was written after it is not part of it."
    return "It was not prepared at the primary: what was written there after this cut is not part of it."


def _serving(found: Found) -> Agent:
    """The agent once it serves the promoted disks; or as it is after a while, or at a problem."""
    end = time.monotonic() + SERVING_SECONDS
    while True:
        agent = found.agent.refresh(found.vm.uuid)
        vm = agent.status.vms[0]
        if disk_uris(vm) or vm.problem is not None or time.monotonic() > end:
            return agent
        time.sleep(SERVING_POLL_SECONDS)


def _warning(found: Found, point: str) -> str:
    """What is known before: the point and its age, what was received beyond it, and whether the primary runs."""
    vm = found.vm
    primary = vm.peer_host or "its primary host"
    if point == NEWEST and vm.planned is not None and vm.planned.token_sent:
        return (
            f"{vm.name} was prepared for this on {primary}, which takes no writes of it any more: its newest cut "
            "becomes its disks here, and nothing is lost."
        )
    age = "" if vm.lag_seconds is None else f", {duration_text(vm.lag_seconds)} old"
    if point == NEWEST:
        text = f"The newest cut of {vm.name} becomes its disks{age}; what was written after it is lost."
        if vm.pending_bytes:
            text += (
                f" {size_text(vm.pending_bytes)} were received and are not applied yet: that is done first. "
                f"`--point {APPLIED}` starts at once without them."
            )
    else:
        which = "newest applied cut" if point == APPLIED else f"recovery point {point}"
        text = f"The {which} of {vm.name} becomes its disks; what was written after it is left out, until an undo."
    return f"{text} {_signs(found, primary)}"


def _signs(found: Found, primary: str) -> str:
    """Whether the primary still runs, as far as this host can tell."""
    vm, now = found.vm, found.agent.status.time
    heard, last = vm.link.heard_time, vm.statistics.last_replication_time
    received = "" if last is None else f" and sent its last log {duration_text(max(0.0, now - last))} ago"
    if vm.link.connected:
        when = "" if heard is None else f"; it was last heard of {duration_text(max(0.0, now - heard))} ago{received}"
        return (
            f"The primary agent on {primary} is connected right now{when}. "
            f"Make sure that the VM no longer runs on {primary}."
        )
    if heard is None:
        found_text = f"The primary agent on {primary} is not connected{received}."
    else:
        ago = duration_text(max(0.0, now - heard))
        found_text = f"The primary agent on {primary} was last heard of {ago} ago{received}."
    return f"{found_text} Make sure that the VM no longer runs on {primary}."
