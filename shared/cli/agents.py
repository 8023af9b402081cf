"""The agents of this host: finding their sockets, their VMs by name or UUID, and the one that a verb is for."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shared.cli.connection import CALL_SECONDS, HOW_TO_START, Connection, NoSocketError
from shared.cli.text import printable_values
from shared.errors import ForbiddenError, NotFoundError, UnreachableError, UsageError, VmreplicaError
from shared.states import Health
from shared.status import AgentStatus, VmStatus

DEFAULT_SOCKETS = ("/run/vmreplica/primary/admin.sock", "/run/vmreplica/replica/admin.sock")
SOCKETS_VARIABLE = "VMREPLICA_SOCKETS"
"""Environment variable with the paths of the agents' sockets, separated by colons."""

STATUS_SECONDS = 15.0
"""How long an agent may take to tell its status before it counts as not answering."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent that answered: its connection, and its status as data and as it came."""

    connection: Connection
    status: AgentStatus
    raw: dict[str, Any]

    def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float | None = CALL_SECONDS) -> Any:
        """Call a method of the agent; see :meth:`Connection.call`."""
        return self.connection.call(method, params, timeout)

    def refresh(self, vm: str | None = None) -> Agent:
        """The agent with a fresh status of all its VMs, or of one."""
        return read_status(self.connection, vm)


@dataclass(frozen=True, slots=True)
class Found:
    """A VM at one agent."""

    agent: Agent
    vm: VmStatus

    def call(self, method: str, timeout: float | None = CALL_SECONDS, **params: Any) -> Any:
        """Call a method of the agent for this VM."""
        return self.agent.call(method, {"vm": self.vm.uuid, **params}, timeout)

    def refresh(self) -> VmStatus:
        """The VM's status now. Raises NotFoundError when the agent no longer has it."""
        for vm in self.agent.refresh(self.vm.uuid).status.vms:
            if vm.uuid == self.vm.uuid:
                return vm
        raise NotFoundError(f"The {self.vm.role} agent no longer has the VM {self.vm.name}.")


@dataclass(slots=True)
class Agents:
    """All agents that answered, and why the others did not."""

    answered: list[Agent] = field(default_factory=list)
    failed: list[VmreplicaError] = field(default_factory=list)

    def of_role(self, role: str) -> Agent:
        """The agent of a role. Raises UnreachableError where none runs here."""
        for agent in self.answered:
            if agent.status.role == role:
                return agent
        if self.failed:
            # The one that did not answer is most likely the one that is needed.
            raise self.failed[0]
        raise UnreachableError(
            f"This needs the {role} agent, and here only the {self.answered[0].status.role} agent answers.",
            f"Run it on the {role}'s host, or start the agent here: systemctl start vmreplica-{role}.",
        )

    def find(self, name: str, role: str | None = None) -> list[Found]:
        """The VM with this name or UUID at each agent (of ``role``) that has it, the primary's first.

        Raises NotFoundError with the nearest name, and UsageError where one agent has several of that name.
        """
        wanted = _canonical_uuid(name)
        found = [
            Found(agent, vm)
            for agent in self.answered
            for vm in agent.status.vms
            if (vm.uuid == wanted if wanted else vm.name == name)
        ]
        if not found:
            raise self._unknown(name)
        here = [each for each in found if role is None or each.vm.role == role]
        if not here:
            vm = found[0].vm
            peer = f" {vm.peer_host}" if vm.peer_host else ""
            raise UsageError(
                f"{vm.name} is on this host as {vm.role}; this is for its {role}.", f"Run it on the other host{peer}."
            )
        for each in here:
            same = [other.vm.uuid for other in here if other.vm.role == each.vm.role]
            if len(same) > 1:
                raise UsageError(
                    f"The {each.vm.role} agent has {len(same)} VMs named {name}.",
                    f"Name it by UUID: {', '.join(same)}.",
                )
        return sorted(here, key=lambda each: each.vm.role)

    def find_one(self, name: str, role: str | None = None, *, prefer: str | None = None) -> Found:
        """Like :meth:`find`, for a verb that goes to one agent.

        Where both agents of this host have the VM, it is the one of role ``prefer``, else UsageError.
        """
        found = self.find(name, role)
        preferred = [each for each in found if each.vm.role == prefer]
        if len(found) > 1 and not preferred:
            raise UsageError(
                f"Both the primary and the replica agent of this host have the VM {name}.",
                "Say which with --role primary or --role replica.",
            )
        return (preferred or found)[0]

    def _unknown(self, name: str) -> NotFoundError:
        names = sorted({vm.name for agent in self.answered for vm in agent.status.vms})
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        unheard = f" ({self.failed[0].text})" if self.failed else ""
        return NotFoundError(
            f"No agent on this host has a VM named {name}{unheard}.", f"{hint}`vmreplica status` lists the VMs."
        )


def socket_paths(options: Sequence[str], environment: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """The sockets to try, and whether they were named as options: then each has to be there."""
    if options:
        return tuple(options), True
    return tuple(path for path in environment.get(SOCKETS_VARIABLE, "").split(":") if path) or DEFAULT_SOCKETS, False


@contextmanager
def connect(paths: Sequence[str], *, named: bool) -> Iterator[Agents]:
    """Connect to all agents and read their status.

    A missing socket that was not ``named`` only means that this host has one role. Raises the reason when no
    agent answers at all.
    """
    agents = Agents()
    missing: list[VmreplicaError] = []
    with ExitStack() as stack:
        for path in paths:
            try:
                connection = stack.enter_context(Connection(path))
                agents.answered.append(read_status(connection))
            except NoSocketError as error:
                (agents.failed if named else missing).append(error)
            except (UnreachableError, ForbiddenError) as error:
                agents.failed.append(error)
        if not agents.answered:
            raise _nobody(paths, [*agents.failed, *missing])
        judge_together([agent.status for agent in agents.answered])
        for agent in agents.answered:
            put_into(agent)
        yield agents


def put_into(agent: Agent) -> None:
    """What was judged here is in what came as well: scripts read that."""
    vms = {vm.uuid: vm for vm in agent.status.vms if vm.handed_over and vm.role == "replica"}
    for raw in agent.raw.get("vms", ()):
        if (vm := vms.get(raw.get("uuid"))) is not None and raw.get("health") != vm.health:
            raw |= {name: getattr(vm, name) for name in ("health", "summary", "reasons", "remedy", "remedies")}


def judge_together(statuses: Sequence[AgentStatus]) -> None:
    """What only both agents of a host together tell: a VM that one gave away, and the other does not have.

    They never speak with each other, so neither of them can know it.
    """
    primaries = [status for status in statuses if status.role == "primary"]
    held = {vm.uuid for status in primaries for vm in status.vms}
    for vm in (vm for status in statuses if status.role == "replica" and primaries for vm in status.vms):
        if not vm.handed_over or vm.uuid in held:
            continue
        text = (
            f"{vm.name} was handed over to the primary agent of this host, which does not have it: nothing protects it."
        )
        vm.health, vm.summary = Health.CRITICAL.title, f"Not protected: {text}"
        vm.reasons = [text, *vm.reasons]
        vm.remedy = f"Run `vmreplica reverse {vm.name}` here again, which completes it."
        vm.remedies = [vm.remedy, *vm.remedies]


def read_status(connection: Connection, vm: str | None = None) -> Agent:
    """Ask an agent for its status, of all its VMs or of one."""
    raw = connection.call("status", {} if vm is None else {"vm": vm}, STATUS_SECONDS)
    try:
        return Agent(connection, msgspec.convert(printable_values(raw), AgentStatus), raw)
    except msgspec.ValidationError as error:
        raise UnreachableError(
            f"The agent at {connection.path} answers in a form that is not understood: {error}.",
            "Install the same version of the command and the agent.",
        ) from None


def _nobody(paths: Sequence[str], errors: Sequence[VmreplicaError]) -> VmreplicaError:
    others = [error for error in errors if not isinstance(error, NoSocketError)]
    if len(errors) == 1 or others:
        return (others or list(errors))[0]
    return UnreachableError(f"No agent runs here: there is no socket {' or '.join(paths)}.", HOW_TO_START)


def _canonical_uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text)) if len(text) in (32, 36) else None
    except ValueError:
        return None
