"""``initial --export``: the first copy of a VM into a folder for a courier, followed until it is complete."""

from __future__ import annotations

import argparse

from shared.admin import verbs as admin
from shared.cli.agents import Found
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.verbs.reading import rejoin_command
from shared.errors import VmreplicaError
from shared.status import VmStatus

BEGIN_SECONDS = 600.0
"""All of the disks' holes are looked up before it begins."""


def export(found: Found, options: argparse.Namespace, context: Context) -> int:
    """Begin it and show it to its end. Raises VmreplicaError where it ended before it was complete."""
    from shared.cli.live import watch_to_end

    found.call(admin.INITIAL, BEGIN_SECONDS, export=options.export)
    rejoin = rejoin_command(options)
    if options.no_wait:
        context.console.print(f"Started. To see it: {rejoin}")
        return SUCCESS
    vm = watch_to_end(found, context.console, rejoin=rejoin, working=is_exporting)
    if vm.problem is not None and not vm.export_complete:
        raise VmreplicaError(vm.problem.text, vm.problem.remedy)
    if vm.export_folder and not vm.export_complete:
        return SUCCESS
    if not vm.export_folder:
        text = vm.reasons[0] if vm.reasons else f"{vm.name} is in state {vm.state}."
        raise VmreplicaError(f"The export ended before it was complete. {text}", f"See `vmreplica events {vm.name}`.")
    context.console.print(
        [
            f"The first copy of {vm.name} is complete in {vm.export_folder}.",
            "It is not encrypted: whoever has the medium can read the disks.",
            "",
            "Bring the folder to the replica's host, and there: vmreplica import DIR",
            "What is written meanwhile is tracked, and sent afterwards, however long that takes.",
        ]
    )
    return SUCCESS


def is_exporting(vm: VmStatus) -> bool:
    """Whether the copy is being written."""
    return bool(vm.export_folder) and not vm.export_complete and vm.problem is None
