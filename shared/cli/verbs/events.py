"""The verb that prints what happened, of VMs and of the agents themselves, and goes on doing so."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from shared.admin import verbs as admin
from shared.cli.agents import Agent, Agents, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.gaps import Gaps, MissingVm
from shared.cli.tables import event_lines
from shared.cli.text import printable_values
from shared.errors import UnreachableError, UsageError, VmreplicaError
from shared.events import LEVELS

POLL_SECONDS = 0.2
"""How long one agent's news are waited for before another's are looked at."""
AGAIN_SECONDS = 1.0
"""How often an agent that went away is looked for."""
CAUGHT_UP = 10_000
"""So many events are taken in at once after a lost connection."""
OVERLAP_SECONDS = 5.0
"""What happened around the time of a lost connection is asked for again; what was printed is known."""

Event = dict[str, Any]


def events(options: argparse.Namespace, context: Context) -> int:
    """What happened, the newest last; with ``--follow`` also what happens from now on."""
    if options.named is not None:
        if options.vm not in (None, options.named):
            raise UsageError(f"Two VMs are named: {options.vm} and {options.named}.", "Name one.")
        options.vm = options.named
    if options.since is not None and options.until is not None and options.until < options.since:
        raise UsageError("--until lies before --since.", "Give the earlier moment as --since.")
    if options.follow and options.until is not None:
        raise UsageError("--follow goes on for ever.", "Leave --until out.")
    if options.follow:
        return _follow(options, context)
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        happened, gaps = _happened(agents, options, options.since, options.limit)
    if options.json:
        context.console.print_json({"events": happened, **gaps.plain()})
    else:
        context.console.print(event_lines(printable_values(happened), context.console.palette))
        gaps.tell(context.console)
    return gaps.exit_code


def _params(options: argparse.Namespace, since: float | None, limit: int) -> dict[str, Any]:
    params: dict[str, Any] = {"limit": limit, "events": options.id, "levels": _levels(options)}
    if since is not None:
        params["since"] = since
    if options.until is not None:
        params["until"] = options.until
    return {name: value for name, value in params.items() if value not in ([], None)}


def _levels(options: argparse.Namespace) -> list[str]:
    return list(LEVELS[LEVELS.index(options.level) :]) if options.level else []


def _happened(agents: Agents, options: argparse.Namespace, since: float | None, limit: int) -> tuple[list[Event], Gaps]:
    """The newest events of all that is asked for, oldest first, and whose are missing.

    Raises what went wrong where nobody answered.
    """
    params = _params(options, since, limit)
    happened: list[Event] = []
    gaps = Gaps("the events", list(agents.failed))
    answered = False
    for agent, chosen in _asked(agents, options):
        role = agent.status.role
        asked = [(admin.EVENTS, {**params, **chosen}), *([] if chosen else [(admin.AGENT_EVENTS, params)])]
        try:
            for method, wanted in asked:
                answer = agent.call(method, wanted)
                answered = True
                happened += [{"role": role, **event} for event in answer["events"]]
                gaps.vms += [MissingVm.told(role, each) for each in answer.get("missing", ())]
        except VmreplicaError as error:
            gaps.agents.append(error)
    gaps.require(answered=answered)
    happened.sort(key=lambda event: event["time"])
    return happened[-limit:], gaps


def _asked(agents: Agents, options: argparse.Namespace) -> Iterator[tuple[Agent, dict[str, str]]]:
    if options.vm is None:
        for agent in agents.answered:
            if options.role in (None, agent.status.role):
                yield agent, {}
        return
    for each in agents.find(options.vm, options.role):
        yield each.agent, {"vm": each.vm.uuid}


# --- following


def _follow(options: argparse.Namespace, context: Context) -> int:
    paths, named = socket_paths(options.socket, context.environment)
    printer = _Printer(options, context)
    since, first = options.since, True
    known: set[str] = set()
    try:
        while True:
            try:
                with connect(paths, named=named) as agents:
                    if options.role is not None:
                        agents.of_role(options.role)
                    asked = list(_asked(agents, options))
                    for agent, chosen in asked:
                        agent.call(admin.EVENTS_FOLLOW, chosen)
                    happened, gaps = _happened(agents, options, since, options.limit if first else CAUGHT_UP)
                    printer.print(happened)
                    printer.remark_gaps(gaps)
                    first = False
                    here = {agent.connection.path for agent, _ in asked}
                    known |= here
                    # While one of them is away the others are listened to, and it is looked for again and again.
                    _listen([agent for agent, _ in asked], printer, None if here == known else AGAIN_SECONDS)
            except UnreachableError as error:
                if first:
                    raise
                printer.remark(error)
                time.sleep(AGAIN_SECONDS)
            except VmreplicaError:
                if first:
                    raise
                time.sleep(AGAIN_SECONDS)
            # Whatever happened meanwhile is on record.
            since = printer.newest - OVERLAP_SECONDS
    except KeyboardInterrupt:
        return SUCCESS


def _listen(agents: list[Agent], printer: _Printer, seconds: float | None) -> None:
    """Print what the agents tell, for so long, or until one of them goes away: raises UnreachableError then."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        for agent in agents:
            for told in agent.connection.notified(admin.EVENT, POLL_SECONDS / len(agents)):
                printer.print([{"role": agent.status.role, **told}])


class _Printer:
    """Prints each event once, though it may be told by the agent and found on record."""

    def __init__(self, options: argparse.Namespace, context: Context) -> None:
        self._options = options
        self._console = context.console
        self._printed: dict[tuple[Any, ...], None] = {}
        self._remarked: set[str] = set()
        self.newest = time.time()

    def print(self, events: list[Event]) -> None:
        fresh = [event for event in events if self._is_fresh(event)]
        if self._options.json:
            for event in fresh:
                self._console.print_json(event, compact=True)
            self._console.out.flush()
        elif fresh:
            self._console.print(event_lines(printable_values(fresh), self._console.palette))

    def remark_gaps(self, gaps: Gaps) -> None:
        """What is missing of what happened before: each once, since an agent that went away is asked again."""
        for error in gaps.errors():
            if error.text not in self._remarked:
                self._remarked.add(error.text)
                self._console.complain(error)

    def remark(self, error: VmreplicaError) -> None:
        self._console.err.write(f"vmreplica: {error.text} It is tried again.\n")
        self._console.err.flush()

    def _is_fresh(self, event: Event) -> bool:
        options, levels = self._options, _levels(self._options)
        if (options.id and event["event"] not in options.id) or (levels and event["level"] not in levels):
            return False
        key = (event["role"], event["uuid"], event["event"], event["time"], event["text"])
        if key in self._printed:
            return False
        self._printed[key] = None
        if len(self._printed) > 10_000:
            del self._printed[next(iter(self._printed))]
        self.newest = max(self.newest, event["time"])
        return True
