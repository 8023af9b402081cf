"""What an administrator may order about a planned failover at the primary: prepare it, and take it back."""

from __future__ import annotations

from primary_agent.parts import Parts
from primary_agent.planned import advance, keep, let_writes, stop_writes
from primary_agent.planned_steps import UNSENT, step_of
from primary_agent.vm import PrimaryVm
from shared.errors import InvalidStateError, UnreachableError
from shared.events import EventId
from shared.states import PLANNED_TOKEN, PlannedEvent, PlannedStep, ReplicationState
from shared.tap_control import Tracking

_GOING = UNSENT | {PlannedStep.PROMISED, PlannedStep.CONFIRMED}


async def prepare(vm: PrimaryVm) -> None:
    """Stop the writes and seal the last cut; sending it, and the token, goes on by itself. Joins one under way.

    Raises InvalidStateError where it can't begin, with nothing changed, and what the tap has against it.
    """
    async with vm.ordering:
        parts = vm.parts
        step = step_of(parts.replication.record.planned)
        if step in _GOING:
            parts.link.poke.notify()
            return
        await _check(vm, step)
        text = f"A failover of {vm.name} is being prepared: the administrator asked for it."
        await advance(parts, PlannedEvent.ORDERED, text)
        try:
            await stop_writes(parts)
        except UnreachableError:
            # The tap is gone in the middle of it: it is told as soon as it answers again.
            return


async def _check(vm: PrimaryVm, step: PlannedStep) -> None:
    """Raises InvalidStateError unless everything that a planned failover needs is well."""
    parts, name = vm.parts, vm.name
    replication = parts.replication
    if step is PlannedStep.TAKING_BACK:
        raise InvalidStateError(
            f"The planned failover of {name} is being taken back.", "Wait for the replica's answer, and try again."
        )
    if step is PlannedStep.FORCED:
        raise InvalidStateError(
            f"The token of the planned failover of {name} that was aborted by force may still be at the replica.",
            "It is taken back as soon as the replica answers; then try again.",
        )
    if replication.state is not ReplicationState.REPLICATING:
        raise InvalidStateError(
            f"{name} is in state {replication.state.title}: a failover can't be prepared.",
            f"It has to be Replicating; `vmreplica status {name}` says what to do. If this host can't go on, fail over "
            "at the replica without a preparation.",
        )
    await vm.check_gate("preparation of a failover")
    dialled = parts.link.dialled
    if dialled is not None and not dialled.channel.session.plans:
        raise InvalidStateError(
            f"The replica of {name} runs a version that knows no planned failovers.", "Upgrade it, and try again."
        )
    if vm.verifier.status().running:
        raise InvalidStateError(
            f"{name} is being verified.", f"Wait for its end, or end it: vmreplica verify {name} --stop"
        )
    status = await parts.tap.refresh()
    if status.tracking is not Tracking.ON or status.epoch != replication.record.epoch.hex():
        raise InvalidStateError(
            f"The writes of {name} are not in its log just now (tracking is {status.tracking.value}).",
            "Wait until it replicates again.",
        )
    if status.refused is not None:
        raise InvalidStateError(
            f"The tap of {name} takes no writes already: {status.refused.text}",
            f"Take that back first: vmreplica failover {name} --prepare --abort",
        )
    if used := ", ".join(f"{disk.clients} of {disk.export}" for disk in status.disks if disk.clients):
        raise InvalidStateError(
            f"{name} runs: clients are connected to its disks ({used}).",
            f"Shut it down, or have libvirt do that: vmreplica failover {name} --prepare --shutdown",
            code="in_use",
        )


async def abort(vm: PrimaryVm, *, force: bool) -> None:
    """Take a preparation back: at once while the token is here, else with the replica's answer, or by force (R43).

    Raises InvalidStateError where nothing is prepared, or the replica does not answer.
    """
    async with vm.ordering:
        parts = vm.parts
        step = step_of(parts.replication.record.planned)
        if step in UNSENT:
            await advance(parts, PlannedEvent.ABORTED, f"The administrator took the failover of {vm.name} back.")
            await let_writes(parts)
        elif step in PLANNED_TOKEN:
            await _take_back(vm, force=force)
        elif step is not PlannedStep.FORCED and not await _unknown_refusal(parts, force=force):
            text = "It was failed over at the replica" if step is PlannedStep.FAILED_OVER else "Nothing is prepared"
            raise InvalidStateError(
                f"No planned failover of {vm.name} can be taken back: {text}.",
                f"`vmreplica status {vm.name}` says what can be done.",
            )
        await keep(parts)


async def _take_back(vm: PrimaryVm, *, force: bool) -> None:
    parts, address = vm.parts, vm.parts.address
    if await parts.link.proven():
        # Also where force was asked for: a replica that can answer is asked.
        text = f"The administrator takes the failover of {vm.name} back: {address} is asked."
        await advance(parts, PlannedEvent.ABORTED, text)
        parts.replication.replan()
        return
    if not force:
        reason = parts.link.last_error or "no answer to a heartbeat came"
        raise InvalidStateError(
            f"The promote token of {vm.name} may be at the replica, and {address} does not answer: {reason}",
            "Whoever fails over there starts the VM while it may run here. Mend the link and try again. Only if the "
            f"replica is certain never to be failed over: vmreplica failover {vm.name} --prepare --abort --force",
        )
    text = (
        f"By force, without the answer of {address}: if {vm.name} was, or will be, failed over there before that "
        "answer, both sides take writes (split brain)."
    )
    await advance(parts, PlannedEvent.FORCED, text)
    parts.replication.replan()
    parts.link.poke.notify()
    await let_writes(parts)


async def _unknown_refusal(parts: Parts, *, force: bool) -> bool:
    """A tap that takes no writes by an order that is not on record, as after a loss of the state: only by force."""
    connection, planned = parts.tap.require(), parts.replication.record.planned
    refused = (await parts.tap.refresh()).refused
    if refused is None or (planned is not None and refused.id == planned.id.hex()):
        return False
    name = parts.replication.vm.name
    if not force:
        raise InvalidStateError(
            f"The tap of {name} takes no writes by an order that is not on record here: {refused.text}",
            "The replica may have been failed over by it: look there first. Only if it was not, and will not be: "
            f"vmreplica failover {name} --prepare --abort --force",
        )
    text = f"Writes of {name} are taken again by force, against an order that is not on record: {refused.text}"
    event = parts.replication.event(EventId.PLANNED_FORCED, text, cause="forced", data={"order": refused.id})
    await parts.replication.note(event)
    await connection.client.allow_writes(refused.id)
    await parts.tap.refresh()
    return True
