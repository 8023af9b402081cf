"""The verbs ``adopt``, ``release`` and ``libvirt-hook``: a libvirt domain's disks behind a tap, and back."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from shared.cli.adopting import Adopted, Wanted, adopt_running, adopt_stopped
from shared.cli.agents import connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.libvirt_hook import HOOK, hook_script, install_hook
from shared.cli.qemu_nodes import Attached, keep_requests
from shared.cli.releasing import release_running, release_stopped
from shared.cli.virsh import Virsh
from shared.errors import InvalidStateError, NotFoundError, UsageError
from shared.rates import duration_text


def adopt(options: argparse.Namespace, context: Context) -> int:
    """Put a domain's disks behind a tap, or check one that is."""
    virsh = Virsh(context.environment, options.connect)
    if options.check:
        return _check(options, context, virsh)
    if options.live and options.start:
        raise UsageError("A running domain can't be started.", "Leave out --live or --start.")
    if options.copy_to and not options.live:
        raise UsageError("Only a running domain's disks are copied.", "Leave --copy-to out, or add --live.")
    enabling: dict[str, Any] = {"interval_seconds": options.interval}
    enabling |= {"replica": options.replica} if options.replica else {}
    enabling |= {"log_limit_bytes": options.log_limit} if options.log_limit is not None else {}
    wanted = Wanted(tuple(options.disk), tuple(options.exclude), enabling, options.start, options.copy_to or "")
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        agent = agents.of_role("primary")
        if options.live:
            done = adopt_running(agent, virsh, options.domain, wanted, context.console)
        else:
            done = adopt_stopped(agent, virsh, options.domain, wanted)
    if options.json:
        context.console.print_json(_plain(done))
    else:
        context.console.print(_lines(done, options))
    return SUCCESS


def release(options: argparse.Namespace, context: Context) -> int:
    """Take a domain's disks from behind their tap, and end the replication."""
    virsh = Virsh(context.environment, options.connect)
    if options.copy_to and not options.live:
        raise UsageError("Only a running domain's disks are copied.", "Leave --copy-to out, or add --live.")
    console = context.console
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        if options.live:
            done = release_running(agents, virsh, options.domain, console, options.yes, options.copy_to or "")
        else:
            done = release_stopped(agents, virsh, options.domain, console, options.yes)
    if options.json:
        console.print_json({"name": done.name, "uuid": done.uuid, "disks": done.disks, "left_over": done.left})
        return SUCCESS
    lines = [f"{done.name} is released, and no longer replicated from this host."]
    lines += [f"  {target}: {path}" for target, path in done.disks.items()]
    if done.left:
        lines += ["", "Nothing uses these any more; delete them when you are sure:"]
        lines += [f"  {path}" for path in done.left.values()]
    console.print(lines)
    return SUCCESS


def libvirt_hook(options: argparse.Namespace, context: Context) -> int:
    """Print or install the hook for libvirt."""
    program = [os.path.abspath(shutil.which(sys.argv[0]) or sys.argv[0])]
    if not options.install:
        context.console.write([hook_script(program).rstrip("\n")])
        return SUCCESS
    changed = install_hook(program)
    context.console.print(
        f"{HOOK} is installed. Restart libvirtd once, so that it sees it (systemctl restart libvirtd); guests run on."
        if changed
        else f"{HOOK} is installed already."
    )
    return SUCCESS


def _check(options: argparse.Namespace, context: Context, virsh: Virsh) -> int:
    """Look how a running domain has its disks from taps, and set right what a running QEMU can be told."""
    others = ("replica", "disk", "exclude", "live", "copy_to", "start", "log_limit")
    if given := [name for name in others if getattr(options, name)]:
        raise UsageError("--check adopts nothing.", f"Leave out --{given[0].replace('_', '-')}.")
    _, domain = virsh.domain(options.domain)
    disks = domain.behind_taps()
    if not disks:
        raise NotFoundError(
            f"No disk of {domain.name} comes from a tap.", f"To replicate it: vmreplica adopt {domain.name}."
        )
    if virsh.facts(domain.name).get("State") == "shut off":
        raise InvalidStateError(f"The domain {domain.name} does not run: there is nothing to check yet.", "Start it.")
    found = [keep_requests(virsh, domain.name, disk) for disk in disks]
    if options.json:
        context.console.print_json({"name": domain.name, "disks": [_plain_attached(each) for each in found]})
    else:
        context.console.print([line for each in found for line in _attached_lines(each)])
    if bad := [each.target for each in found if not (each.keeps_requests and each.pauses)]:
        raise InvalidStateError(
            f"A tap that is away for long would be an error of {domain.name}'s guest, on {', '.join(bad)}.",
            f"Shut the domain down and start it again: error_policy and rerror_policy of a disk have to be 'stop' "
            f"(virsh dumpxml --inactive {domain.name}), and count from the next start.",
        )
    return SUCCESS


def _lines(done: Adopted, options: argparse.Namespace) -> list[str]:
    name = done.vm.name
    lines = [f"{name} is adopted: a cut every {duration_text(done.vm.interval_seconds)}, to {done.vm.peer_host}."]
    lines += [f"  {target}: {path}, by the tap at {place.socket}" for target, (path, place) in done.disks.items()]
    lines += [line for each in done.running for line in _attached_lines(each)]
    for note in done.notes:
        lines += ["", f"Note: {note}"]
    if done.kept:
        lines += ["", "The former images are as they were at the switch. Delete them once the replica is made:"]
        lines += [f"  {path}" for path in done.kept.values()]
    begin = "" if options.live or options.start else f"Start the domain (virsh start {name}). "
    return [*lines, "", f"{begin}Make the first copy: vmreplica initial {name}"]


def _attached_lines(each: Attached) -> Sequence[str]:
    wait = f"wait for a tap that restarts, {each.delay}" if each.keeps_requests else "fail while the tap restarts"
    errors = "errors pause the guest" if each.pauses else "errors are the guest's until its next start"
    return [f"  {each.target}: requests {wait}; {errors}"]


def _plain_attached(each: Attached) -> dict[str, Any]:
    return {
        "target": each.target,
        "keeps_requests": each.keeps_requests,
        "keeps_requests_by": each.delay.name.lower(),
        "write_errors": each.write_errors,
        "read_errors": each.read_errors,
    }


def _plain(done: Adopted) -> dict[str, Any]:
    return {
        "vm": done.raw,
        "disks": [
            {"target": target, "path": path, "socket": place.socket, "export": place.export}
            for target, (path, place) in done.disks.items()
        ],
        "former_images": done.kept,
        "running": [_plain_attached(each) for each in done.running],
        "notes": done.notes,
    }
