"""The verb that looks who uses the VMs' disks, for an agent whose sandbox hides other users' processes from it.

It is a service of its own, so that the agent, which strangers reach over the network, need not be able to trace
processes: this one can, and reaches nothing but the agent's socket.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence

from shared.admin import verbs as admin
from shared.attachment import Attachment, paths_of
from shared.cli.agents import connect, socket_paths
from shared.cli.context import Context
from shared.cli.doctoring import attachment_of
from shared.cli.exit_codes import SUCCESS
from shared.errors import VmreplicaError
from shared.ports.disk_use import ProcDiskUse, Usage

LOOK_SECONDS = 60.0


def watch(options: argparse.Namespace, context: Context) -> int:
    """Look now and then every minute, and tell the primary agent; an agent that does not run is waited for."""
    told = ""
    while True:
        try:
            _look(options, context)
            told = ""
        except VmreplicaError as error:
            if options.once:
                raise
            if error.text != told:
                told = error.text
                print(f"{error.text} It is tried again.", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            return SUCCESS
        if options.once:
            return SUCCESS
        try:
            time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            return SUCCESS


def _look(options: argparse.Namespace, context: Context) -> None:
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        agent = agents.of_role("primary")
        vms = [attachment_of(vm) for vm in agent.status.vms]
        disks, sockets = paths_of(vms)
        usage = ProcDiskUse().look(disks, sockets)
        after = [attachment_of(vm) for vm in agent.refresh().status.vms]
        agent.call(admin.DISK_USE, {"usage": dataclasses.asdict(suspect(usage, vms, after))})


def suspect(usage: Usage, before: Sequence[Attachment], after: Sequence[Attachment]) -> Usage:
    """Of what was seen only what may be a bypass; the VMs as their agent knew them ``before`` and ``after`` the look.

    A request has its limit, and a host may have hundreds of VMs.
    """
    # A tap that came or went meanwhile may be what was seen: of its disks the next look tells.
    now = {vm.uuid: vm.tap for vm in after}
    known = {path for vm in before if vm.tap is not None and now.get(vm.uuid) == vm.tap for path in vm.disks}
    taps = {vm.tap for vm in before}
    # A guest counts where nobody is connected to its tap.
    alone = {name for vm in before if not vm.clients for name in (vm.name, vm.uuid)}
    users = [user for user in usage.users if user.writing and user.pid not in taps and user.path in known]
    guests = [guest for guest in usage.guests if alone & {guest.name, guest.uuid}]
    return dataclasses.replace(usage, users=users, guests=guests)
