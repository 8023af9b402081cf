"""The verb that looks at everything replication depends on, and says what to do."""

from __future__ import annotations

import argparse
import os

from shared.cli.agents import Agents, Found, connect, socket_paths
from shared.cli.configured import KINDS, config_findings, default_path
from shared.cli.context import Context
from shared.cli.doctoring import agent_findings, vm_findings
from shared.cli.findings import Finding, of_error, report
from shared.cli.machine import machine_findings
from shared.errors import UnreachableError


def doctor(options: argparse.Namespace, context: Context) -> int:
    """Look at one VM, or at this host with all its agents and VMs; the exit code is 1 where there is a problem."""
    paths, named = socket_paths(options.socket, context.environment)
    try:
        with connect(paths, named=named) as agents:
            found = findings_of(agents, options.vm, options.role)
    except UnreachableError as error:
        if named or options.vm is not None:
            raise
        found = [of_error("agents", error), *_without_agents()]
    return report(found, context.console, json=options.json)


def findings_of(agents: Agents, vm: str | None, role: str | None) -> list[Finding]:
    """Of one VM, or of the host with all agents that answer and their VMs; ``role``: only of that agent."""
    tested: dict[str, list[Finding]] = {}
    found: list[Finding] = []
    if vm is not None:
        chosen = agents.find(vm, role)
    else:
        found += machine_findings("")
        found += [of_error("agents", error) for error in agents.failed]
        chosen = [Found(agent, vm) for agent in agents.answered for vm in agent.status.vms]
    for agent in agents.answered:
        mine = [each.vm for each in chosen if each.agent is agent and role in (None, each.vm.role)]
        if vm is None and role in (None, agent.status.role):
            found += agent_findings(agent)
        for each in mine:
            found += vm_findings(agent, each, tested)
    return found


def _without_agents() -> list[Finding]:
    """What can be said where no agent answers: the machine, and the files that an agent would start with."""
    found = [*machine_findings("")]
    for role in KINDS:
        if not os.path.lexists(default_path(role)):
            continue
        findings, _ = config_findings(default_path(role), role)
        found += findings
    return found
