"""Verbs about the command itself: completion and version."""

from __future__ import annotations

import argparse

from shared.cli.agents import connect, socket_paths
from shared.cli.context import Context
from shared.cli.context import version as own_version
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable
from shared.errors import VmreplicaError


def completion(options: argparse.Namespace, context: Context) -> int:
    """Print a shell's completion script, or the words that such a script asks for."""
    if options.shell == "vms":
        context.console.print(_vm_names(options, context))
        return SUCCESS
    from shared.cli.completion import script

    context.console.out.write(script(options.shell))
    return SUCCESS


def version(options: argparse.Namespace, context: Context) -> int:
    """The versions of the command and of the agents that run here."""
    running: list[dict[str, str]] = []
    paths, named = socket_paths(options.socket, context.environment)
    try:
        with connect(paths, named=named) as agents:
            running = [{"role": each.status.role, "version": each.status.version} for each in agents.answered]
    except VmreplicaError:
        # Without agents the command still has a version.
        pass
    if options.json:
        context.console.print_json({"version": own_version(), "agents": running})
        return SUCCESS
    context.console.print(f"vmreplica {own_version()}")
    context.console.print(f"{each['role']} agent {each['version']}" for each in running)
    return SUCCESS


def _vm_names(options: argparse.Namespace, context: Context) -> list[str]:
    """Names of the VMs; none where no agent answers, since a completion has nowhere to complain to."""
    paths, named = socket_paths(options.socket, context.environment)
    try:
        with connect(paths, named=named) as agents:
            return sorted({printable(vm.name) for each in agents.answered for vm in each.status.vms})
    except VmreplicaError:
        return []
