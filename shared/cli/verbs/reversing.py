"""Verbs that change the direction of replication: reverse and resolve.

The two agents of a host do not speak with each other: the command carries a VM from the one to the other. Each step is
durable and may be repeated; after a crash the same command goes on.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from shared.admin import verbs as admin
from shared.admin.verbs import PART_BYTES
from shared.cli.agents import Agent, Agents, Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable_values
from shared.differences import Differences
from shared.errors import ForbiddenError, InvalidStateError, StorageError, UnreachableError, UsageError, VmreplicaError
from shared.handover import RANGES_NAME, HandOver
from shared.handover_parts import BYTES_MAX
from shared.ports.beneath import Place, parent_of
from shared.rates import size_text
from shared.states import ReplicationState
from shared.status import VmStatus

ORDER_SECONDS = 900.0
"""A hand-over waits until the tap has read its log for the dirty map."""
NEEDS_YES = "needs_confirmation"
RANGES_SHOWN = 20
"""Ranges of a disk that are listed for people."""

_FAILED_OVER = (ReplicationState.FAILED_OVER, ReplicationState.PREPARED_FOR_FAILOVER)
_PROMOTED = (ReplicationState.FAILED_OVER_WAITING_COMPLETION, ReplicationState.FAILED_OVER)


def reverse(options: argparse.Namespace, context: Context) -> int:
    """Make this host the primary, or the replica, by what it was."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        here = _Here(agents, options.vm)
        if here.is_former_primary:
            return _become_replica(here, options, context, despite_split=False)
        if here.is_promoted:
            return _become_primary(here, options, context)
        if here.is_reversed_replica:
            return _tell(here.replica, "replica", options, context)
        raise here.unfit("reverse", _before_reverse(here))


def _before_reverse(here: _Here) -> str:
    """What comes before a reversal, as of this host."""
    planned = here.replica.vm.planned if here.replica is not None else None
    if planned is not None and planned.token_sent:
        return f"Run `vmreplica failover {here.name}` here first: it is prepared."
    return (
        f"It comes after a failover, which moves the VM: `vmreplica failover {here.name} --prepare` at the primary, "
        f"then `vmreplica failover {here.name}` at the replica."
    )


def resolve(options: argparse.Namespace, context: Context) -> int:
    """Say which side of a split brain counts."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        here = _Here(agents, options.vm)
        if not here.is_former_primary and not here.is_promoted:
            verb = "resolve" if options.keep is None else f"resolve --keep {options.keep}"
            raise here.unfit(verb, f"There is no split brain to resolve: {here.name} was not failed over.")
        if options.keep is None:
            return _report(here, options, context)
        if options.keep == "replica":
            if not here.is_former_primary:
                raise here.unfit("resolve --keep replica", "Run it on the host that was the primary before.")
            return _become_replica(here, options, context, despite_split=True)
        found = here.primary if here.is_former_primary else here.replica
        if found is None:
            raise here.unfit("resolve --keep primary", "")
        _confirmed(found, admin.RESOLVE, options, context)
        # The primary only takes it once the other side has given its failover up.
        there = f"vmreplica resolve {here.name} --keep primary" if found.vm.role == "replica" else ""
        return _tell(found, found.vm.role, options, context, there=there)


def _report(here: _Here, options: argparse.Namespace, context: Context) -> int:
    """List what was written on this host."""
    found = here.primary if here.is_former_primary else here.replica
    if found is None:
        raise here.unfit("resolve", "")
    raw = found.call(admin.DIFFERENCES, ORDER_SECONDS)
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    report = msgspec.convert(printable_values(raw), Differences)
    lines = [f"Written on this host of {report.name} and not on the other one, since cut {report.common or 'unknown'}:"]
    for disk in report.disks:
        lines.append(f"  disk {disk.index}, {disk.path}: {size_text(disk.bytes)} in {disk.range_count} range(s)")
        lines += [f"    {offset} + {length}" for offset, length in disk.ranges[:RANGES_SHOWN]]
        if disk.range_count > RANGES_SHOWN:
            lines.append(f"    and {disk.range_count - RANGES_SHOWN} more: add --json")
    if report.reason:
        lines.append(f"More may differ: {report.reason}.")
    lines += [
        "To decide, where both hosts have something of their own:",
        "  for the former primary, on the host that it was failed over to, and then there:",
        f"    vmreplica resolve {report.name} --keep primary",
        "  for the host that it was failed over to, on the former primary:",
        f"    vmreplica resolve {report.name} --keep replica",
    ]
    context.console.print(lines)
    return SUCCESS


class _Here:
    """The VM at the agents of this host."""

    def __init__(self, agents: Agents, name: str) -> None:
        found = {each.vm.role: each for each in agents.find(name)}
        self.agents = agents
        self.primary = found.get("primary")
        self.replica = found.get("replica")
        self.name = next(iter(found.values())).vm.name

    @property
    def is_former_primary(self) -> bool:
        return self.primary is not None and (self.primary.vm.handed_over or _state(self.primary.vm) in _FAILED_OVER)

    @property
    def is_promoted(self) -> bool:
        return self.replica is not None and (self.replica.vm.handed_over or _state(self.replica.vm) in _PROMOTED)

    @property
    def is_reversed_replica(self) -> bool:
        return self.replica is not None and any(cause.code == "reversed" for cause in self.replica.vm.causes)

    def unfit(self, verb: str, remedy: str) -> InvalidStateError:
        """The error for a VM that is not in a state for the verb."""
        states = ", ".join(
            f"{each.vm.state} at the {each.vm.role} agent" for each in (self.primary, self.replica) if each is not None
        )
        return InvalidStateError(f"{self.name} is in state {states}: {verb} is not possible on this host.", remedy)


def _state(vm: VmStatus) -> ReplicationState:
    return ReplicationState(vm.state_code)


def _become_primary(here: _Here, options: argparse.Namespace, context: Context) -> int:
    assert here.replica is not None
    target = _other_agent(here, "primary")
    context.console.confirm(
        f"This host becomes the primary of {here.name}: the failover is kept for good, and the other recovery points "
        "that this host has of it are deleted.",
        here.name,
        options.yes,
    )
    raw = here.replica.call(admin.HAND_OVER, ORDER_SECONDS, yes=True)
    _carry(here.replica, target, raw, replica=options.replica)
    return _tell(_found(target, here), "primary", options, context)


def _become_replica(here: _Here, options: argparse.Namespace, context: Context, *, despite_split: bool) -> int:
    assert here.primary is not None
    if options.vm and getattr(options, "replica", ""):
        raise UsageError("--replica is for the host that becomes the primary.", "Leave it out here.")
    target = _other_agent(here, "replica")
    more = {"despite_split": True} if despite_split else {}
    raw = _confirmed(here.primary, admin.HAND_OVER, options, context, **more)
    _carry(here.primary, target, raw, replica="")
    return _tell(_found(target, here), "replica", options, context)


def _other_agent(here: _Here, role: str) -> Agent:
    """The agent that gets the VM. Raises UnreachableError where it does not run here, or can't be reached."""
    try:
        return here.agents.of_role(role)
    except UnreachableError as error:
        raise UnreachableError(
            f"{here.name} goes to the {role} agent of this host, which does not answer: {error.text}",
            f"For a reversal each host runs both agents: `systemctl start vmreplica-{role}`, after `vmreplica setup "
            f"{role}` where it was never set up.",
        ) from error


def _confirmed(found: Found, method: str, options: argparse.Namespace, context: Context, **params: Any) -> Any:
    """Give an order; one that wants to be confirmed is given again once somebody has."""
    try:
        return found.call(method, ORDER_SECONDS, yes=False, **params)
    except UsageError as error:
        text = error.text
    except InvalidStateError as error:
        if error.code != NEEDS_YES:
            raise
        text = error.text
    context.console.confirm(text, found.vm.name, options.yes)
    return found.call(method, ORDER_SECONDS, yes=True, **params)


def _carry(source: Found, target: Agent, raw: dict[str, Any], *, replica: str) -> None:
    """Bring the VM from the one agent to the other. Where that one refuses, the first one keeps it."""
    try:
        handed = _judged(raw, source, target)
        with _owned(handed, target):
            data = _read(handed, source)
            for at in range(0, max(1, len(data)), PART_BYTES):
                part = base64.b64encode(data[at : at + PART_BYTES]).decode()
                target.call(admin.ADOPT_PART, {"vm": handed.vm, "offset": at, "data": part})
            # In the form in which the agent knows it afterwards: the record of orders names it then.
            named = str(uuid.UUID(hex=handed.vm))
            target.call(admin.ADOPT, {"vm": named, "handover": raw, "replica": replica}, ORDER_SECONDS)
    except UnreachableError:
        # It may have taken it: running the command again finds out.
        raise
    except VmreplicaError:
        source.call(admin.HANDED_OVER, ORDER_SECONDS, taken=False)
        raise
    source.call(admin.HANDED_OVER, ORDER_SECONDS)


class _Given(NamedTuple):
    """A disk that was given ``to`` a user, and whose it was."""

    path: str
    to: int
    user: int
    group: int


@contextlib.contextmanager
def _owned(handed: HandOver, target: Agent) -> Iterator[None]:
    """Give disks that become a copy to the user that the replica agent runs as; back, where it does not take them."""
    given: list[_Given] = []
    try:
        if handed.to == "replica" and os.geteuid() == 0:
            _give(handed, target, given)
        yield
    except VmreplicaError as error:
        if not isinstance(error, UnreachableError):
            _give_back(given)
        raise


def _give(handed: HandOver, target: Agent, given: list[_Given]) -> None:
    """Give the disks to the agent's user; ``given`` gets each as it was."""
    try:
        user = target.connection.user
        for disk in handed.disks:
            with _opened(disk.path, user) as (descriptor, host):
                found = os.fstat(descriptor)
                if found.st_uid == user:
                    continue
                _judge_gift(disk.path, found, user, host)
                os.fchown(descriptor, user, -1)
                given.append(_Given(disk.path, user, found.st_uid, found.st_gid))
    except StorageError as error:
        text = f"The VM was not handed over. {error.remedy}"
        raise ForbiddenError(error.text, text, code="handover_refused") from error
    except OSError as error:
        raise StorageError(
            f"{error.filename} can't be given to the user of the replica agent: {error.strerror}.",
            "The disks have to be there, on a volume that is writable and knows owners. The VM was not handed over.",
        ) from error


@contextlib.contextmanager
def _opened(path: str, user: int = 0) -> Iterator[tuple[int, str]]:
    """The file itself, so that it is judged and given as one, whatever is put in its place meanwhile.

    And the outermost folder of that user that the path leads through, empty where there is none. No link in a folder
    of his is followed; where he is root there is nothing to be kept from him.
    """
    with parent_of(path, of=user) if user else contextlib.nullcontext(Place(path)) as place:
        descriptor = place.descriptor()
        try:
            yield descriptor, place.host_path if user else os.path.dirname(path)
        finally:
            os.close(descriptor)


def _judge_gift(path: str, found: os.stat_result, user: int, host: str) -> None:
    """Raises ForbiddenError for what may be another file than the one that the agent had as the VM's disk.

    In a folder of that user's a disk is his already; what is not he has put there, or led there.
    """
    reason = ""
    if not stat.S_ISREG(found.st_mode):
        reason = "it is no regular file"
    elif host:
        reason = f"it lies below {host}, which is that user's, and is not his"
    if reason:
        raise ForbiddenError(
            f"{path} is not given to the user {user} of the replica agent: {reason}.",
            f"The VM was not handed over. Look how the file came there; if it is the VM's disk: chown {user} {path}",
            code="handover_refused",
        )


def _give_back(given: list[_Given]) -> None:
    for one in given:
        # What can't be given back either is told by what it could not be used for.
        with contextlib.suppress(OSError, StorageError), _opened(one.path, one.to) as (descriptor, _host):
            os.fchown(descriptor, one.user, one.group)


def _judged(raw: dict[str, Any], source: Found, target: Agent) -> HandOver:
    """The hand-over, where it is about what was asked. This command may be root, and the agent that answers is not.

    Raises ForbiddenError, or UsageError for what is no hand-over.
    """
    handed = HandOver.read(raw)
    wanted = {"to": target.status.role, "vm": uuid.UUID(source.vm.uuid).hex, "name": source.vm.name}
    for field, value in wanted.items():
        if (found := getattr(handed, field)) != value:
            raise _refused(source, field, found, f"this is about {value}")
    teller = source.agent.connection.user
    if handed.to == "replica" and teller not in (0, os.geteuid()):
        # The disks that it names are given away.
        raise _refused(source, "to", handed.to, f"only root's agent gives disks away, and this one is user {teller}'s")
    if not os.path.isabs(handed.ranges_path) or os.path.basename(handed.ranges_path) != RANGES_NAME:
        raise _refused(source, "ranges_path", handed.ranges_path, f"such a file is called {RANGES_NAME}")
    if handed.ranges_bytes > BYTES_MAX:
        raise _refused(source, "ranges_bytes", handed.ranges_bytes, f"there are at most {BYTES_MAX}")
    return handed


def _refused(source: Found, field: str, value: object, reason: str) -> ForbiddenError:
    return ForbiddenError(
        f"The hand-over of {source.vm.name} that the {source.vm.role} agent tells is refused: its {field} is "
        f"{value!r}, but {reason}.",
        "Nothing was handed over. If nobody changed that agent's program, look who runs under its account.",
        code="handover_refused",
    )


def _read(handed: HandOver, source: Found) -> bytes:
    """The ranges, from a file of the agent's own: what else its path may lead to is not read."""
    path, owner = handed.ranges_path, source.agent.connection.user
    try:
        with _opened(path) as (descriptor, _host):
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_uid != owner or state.st_size != handed.ranges_bytes:
                reason = f"that is no file of user {owner} with {handed.ranges_bytes} bytes"
                raise _refused(source, "ranges_path", path, reason)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(handed.ranges_bytes)
    except PermissionError:
        raise ForbiddenError(f"{path} can't be read by this user.", "Run the command as root.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(source, "ranges_path", path, "that is a symbolic link") from None
        raise StorageError(f"{path} can't be read: {error.strerror}.", "Run `vmreplica reverse` again.") from error


def _found(agent: Agent, here: _Here) -> Found:
    """The VM at the agent that has it now."""
    known = here.primary or here.replica
    assert known is not None
    fresh = agent.refresh(known.vm.uuid)
    return Found(fresh, fresh.status.vms[0])


def _tell(
    found: Found | None, role: str, options: argparse.Namespace, context: Context, *, there: str | None = None
) -> int:
    """What this host is now. ``there``: the order for the other one, `reverse` by default; empty where it was given."""
    assert found is not None
    fresh = found.agent.refresh(found.vm.uuid)
    vm = fresh.status.vms[0]
    if options.json:
        context.console.print_json(fresh.raw["vms"][0])
        return SUCCESS
    other = vm.peer_host or "the other host"
    there = f"vmreplica reverse {vm.name}" if there is None else there
    context.console.print(
        [
            f"This host is the {role} of {vm.name}. {vm.summary}",
            *([f"Where that was not done yet: {there} on {other}."] if there else []),
            f"To follow it: vmreplica status {vm.name}",
        ]
    )
    return SUCCESS
