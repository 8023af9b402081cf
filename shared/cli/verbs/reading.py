"""Verbs that only read: status and get.

What only some of them show is imported where it is shown: the table of all VMs is asked for most.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

from shared.cli.agents import Agents, Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.progress import is_working
from shared.cli.render import status_lines
from shared.errors import VmreplicaError
from shared.status import AgentStatus

WATCH_JSON_SECONDS = 1.0


def status(options: argparse.Namespace, context: Context) -> int:
    """Every VM in a table, or all about one."""
    console = context.console
    if options.watch:
        return _watch(options, context)
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        if options.json:
            console.print_json(_status_json(agents, options))
        else:
            console.print(_status_text(agents, options, context))
            for error in agents.failed:
                console.complain(error)
        return type(agents.failed[0]).exit_code if agents.failed else SUCCESS


def get(options: argparse.Namespace, context: Context) -> int:
    """The settings of a VM or of all."""
    from shared.cli.gaps import Gaps

    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = _selected(agents, options)
        gaps = Gaps("the settings", list(agents.failed))
    if options.json:
        vms = [_labelled(each, _settings(each)) for each in found]
        context.console.print_json({"vms": vms, "unreachable": gaps.plain()["unreachable"]})
    else:
        from shared.cli.tables import resync_lines, settings_lines

        starts = resync_lines(each.vm for each in found)
        context.console.print([*starts, ""] if starts else [])
        context.console.print(line for each in found for line in settings_lines(each.vm))
        gaps.tell(context.console)
    return gaps.exit_code


def _selected(agents: Agents, options: argparse.Namespace) -> list[Found]:
    """The VM that was named, or all, at each agent that has it."""
    if options.vm is not None:
        return agents.find(options.vm, options.role)
    everything = [Found(agent, vm) for agent in agents.answered for vm in agent.status.vms]
    return [each for each in everything if options.role in (None, each.vm.role)]


def _settings(found: Found) -> dict[str, Any]:
    return {"settings": found.vm.settings, "pending": found.vm.pending_settings}


def _labelled(found: Found, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": found.vm.name, "uuid": found.vm.uuid, "role": found.vm.role, **values}


# --- status


def _wanted(agents: Agents, options: argparse.Namespace) -> Iterable[tuple[AgentStatus, dict[str, Any], set[str]]]:
    """Each agent with its status as it came, and the UUIDs of its VMs that are asked for."""
    if options.vm is None:
        for agent in agents.answered:
            if options.role in (None, agent.status.role):
                yield agent.status, agent.raw, {vm.uuid for vm in agent.status.vms}
        return
    for each in agents.find(options.vm, options.role):
        yield each.agent.status, each.agent.raw, {each.vm.uuid}


def _status_json(agents: Agents, options: argparse.Namespace) -> dict[str, Any]:
    """The agents' own words, so that fields which this version does not know get through."""
    return {
        "agents": [
            {**raw, "vms": [vm for vm in raw["vms"] if vm["uuid"] in uuids]}
            for _, raw, uuids in _wanted(agents, options)
        ],
        "unreachable": [{"code": error.code, "text": error.text, "remedy": error.remedy} for error in agents.failed],
    }


def _status_text(agents: Agents, options: argparse.Namespace, context: Context) -> list[str]:
    console = context.console
    wanted = list(_wanted(agents, options))
    if options.vm is None:
        return status_lines([agent for agent, _, _ in wanted], console.width, console.palette)
    from shared.cli.page import page_lines

    pages = [
        page_lines(vm, agent.time, console.width, console.palette)
        for agent, _, uuids in wanted
        for vm in agent.vms
        if vm.uuid in uuids
    ]
    return [line for at, page in enumerate(pages) for line in ([""] if at else []) + page]


def _watch(options: argparse.Namespace, context: Context) -> int:
    """Follow the work on the VM to its end; without work, or without a VM, keep the status on the screen."""
    from shared.cli.live import follow, keep_showing

    paths, named = socket_paths(options.socket, context.environment)
    console = context.console
    if options.vm is not None and not options.json:
        with connect(paths, named=named) as agents:
            for each in agents.find(options.vm, options.role):
                if is_working(each.vm):
                    return follow(each, console, rejoin=rejoin_command(options))

    def fresh(render: Any) -> Any:
        with connect(paths, named=named) as agents:
            return render(agents)

    if options.json:
        try:
            while True:
                console.print_json(fresh(lambda agents: _status_json(agents, options)), compact=True)
                console.out.flush()
                time.sleep(WATCH_JSON_SECONDS)
        except KeyboardInterrupt:
            return SUCCESS

    def lines() -> list[str]:
        try:
            shown: list[str] = fresh(lambda agents: _status_text(agents, options, context))
        except VmreplicaError as error:
            return [error.text, f"  {error.remedy}"]
        return [*shown, "", console.palette.dim("Ctrl-C to leave")]

    def summary() -> list[str]:
        try:
            changed: list[str] = fresh(
                lambda agents: [
                    f"{vm.name}: {vm.role}, {vm.state}, {vm.health}{'' if vm.protected else ', not protected'}"
                    for agent, _, uuids in _wanted(agents, options)
                    for vm in agent.vms
                    if vm.uuid in uuids
                ]
            )
        except VmreplicaError as error:
            return [error.text]
        return changed

    return keep_showing(console, lines, summary)


def rejoin_command(options: argparse.Namespace) -> str:
    """The command that shows the VM's work again."""
    sockets = "".join(f" --socket {path}" for path in options.socket)
    return f"vmreplica status {options.vm} --watch{sockets}"
