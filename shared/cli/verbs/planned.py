"""The verb ``failover --prepare``: stop a VM's writes for a planned failover, and take that back."""

from __future__ import annotations

import argparse
import time

from shared.admin import verbs as admin
from shared.cli.agents import Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.verbs.reading import rejoin_command
from shared.cli.verbs.replication import await_link, print_status
from shared.cli.verbs.verify import run as run_verify
from shared.cli.verify_text import result_lines
from shared.errors import InvalidStateError, UsageError, VmreplicaError
from shared.states import PlannedStep, ReplicationState
from shared.status import VmStatus
from shared.verify_outcomes import EQUAL

CLIENTS_SECONDS, CLIENTS_POLL_SECONDS = 30.0, 0.2
"""How long the clients of a VM that was shut down may take to leave its tap."""
ORDER_SECONDS = 330.0
"""How long the tap may take to finish what it has taken, and to seal the cut."""


def check_options(options: argparse.Namespace) -> None:
    """Raises UsageError for options that do not go together."""
    if not options.prepare and (options.abort or options.shutdown or options.no_wait or options.prove):
        raise UsageError("--abort, --shutdown, --prove and --no-wait belong to a preparation.", "Add --prepare.")
    if options.prove and (options.abort or options.no_wait):
        raise UsageError("--prove compares both sides once all is prepared.", "Leave out --abort and --no-wait.")
    chosen = options.at is not None or options.point != "newest"
    if chosen and (options.prepare or options.undo or options.commit or options.stop):
        raise UsageError("--point and --at choose what is failed over to, or tested.", "Leave them out here.")
    if options.stop and (options.prepare or options.undo or options.commit):
        raise UsageError("--stop ends a test failover.", "Give it alone, or with --test.")
    if options.force and not options.abort:
        raise UsageError("--force is for taking a preparation back.", "Add --prepare --abort.")
    if options.abort and options.shutdown:
        raise UsageError("--abort takes back what --shutdown begins.", "Give one of them.")


def prepare(options: argparse.Namespace, context: Context) -> int:
    """Prepare a planned failover, or take one back, and follow it."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        return _abort(found, options, context) if options.abort else _prepare(found, options, context)


def _prepare(found: Found, options: argparse.Namespace, context: Context) -> int:
    from shared.cli.domain_power import check_off, shut_down
    from shared.cli.virsh import Virsh

    vm, virsh = found.vm, Virsh(context.environment)
    if _step(vm) not in (PlannedStep.STOPPING, PlannedStep.SENDING, PlannedStep.PROMISED, PlannedStep.CONFIRMED):
        _require_replicating(vm)
        peer = vm.peer_host or "its replica"
        shut = "The VM is shut down, and then its" if options.shutdown else "The"
        context.console.confirm(
            f"{shut} disks of {vm.name} take no writes on this host any more, so that it can be failed over to {peer} "
            "without loss. Until that is taken back, or done, the VM runs nowhere.",
            vm.name,
            options.yes,
        )
        if options.shutdown:
            shut_down(virsh, vm, options.timeout, context.console.print)
            _await_clients(found)
        else:
            check_off(virsh, vm)
        await_link(found)
        found.call(admin.PREPARE_FAILOVER, ORDER_SECONDS)
    followed = _followed(found, options, context)
    if followed is None:
        return SUCCESS
    if _step(followed) is not PlannedStep.CONFIRMED:
        raise InvalidStateError(followed.planned.text if followed.planned else followed.summary, followed.remedy)
    proof: list[str] = []
    if options.prove:
        result = run_verify(found, context.console, quiet=options.json, rejoin=rejoin_command(options))
        if result is None:
            return SUCCESS
        proof = result_lines(vm.name, result)
        if result.outcome != EQUAL:
            context.console.print(proof[1:])
            raise VmreplicaError(
                f"{vm.name} is prepared, but its image is not proven to be the same on both sides. {result.text}",
                f"Take it back, and make the replica good: vmreplica failover {vm.name} --prepare --abort; then "
                f"vmreplica verify {vm.name} --repair. A failover now has all writes, on what lay there before.",
            )
    if options.json:
        print_status(found, context)
    else:
        context.console.print([*proof, *_confirmed_lines(followed)])
    return SUCCESS


def _require_replicating(vm: VmStatus) -> None:
    """Before anybody is asked, and before the VM is shut down: the agent refuses any other state."""
    if vm.state_code != ReplicationState.REPLICATING.value:
        raise InvalidStateError(
            f"{vm.name} is in state {vm.state}: a failover can't be prepared.",
            f"It has to be Replicating; `vmreplica status {vm.name}` says what to do. If this host can't go on, fail "
            "over at the replica without a preparation.",
        )


def _confirmed_lines(vm: VmStatus) -> list[str]:
    planned, peer = vm.planned, vm.peer_host or "the replica"
    assert planned is not None
    assert planned.cut is not None
    return [
        f"{vm.name} is prepared for a failover to {peer}, which has received and applied everything.",
        "Its disks take no writes on this host.",
        f"  cut {planned.cut.segment} of epoch {planned.cut.epoch}, chain {planned.chain}",
        "",
        f"Now, on {peer}: vmreplica failover {vm.name}",
        f"Or take it back here: vmreplica failover {vm.name} --prepare --abort",
    ]


def _abort(found: Found, options: argparse.Namespace, context: Context) -> int:
    vm = found.vm
    if options.force:
        context.console.confirm(
            f"By force the disks of {vm.name} take writes here again without the answer of the replica. If it was, or "
            "will be, failed over there, the VM runs on both sides (split brain), and one side's writes are lost.",
            vm.name,
            options.yes,
        )
    await_link(found)
    found.call(admin.ABORT_FAILOVER, ORDER_SECONDS, force=options.force)
    followed = _followed(found, options, context)
    if followed is None:
        return SUCCESS
    if followed.planned is not None and followed.planned.holds_writes:
        raise InvalidStateError(f"The preparation is not taken back: {followed.planned.text}", followed.remedy)
    if options.json:
        print_status(found, context)
        return SUCCESS
    context.console.print(f"{vm.name} takes writes on this host again, and replicates on.")
    if _step(followed) is PlannedStep.FORCED:
        context.console.print("The replica has not been told yet; it is, as soon as it answers.")
    return SUCCESS


def _followed(found: Found, options: argparse.Namespace, context: Context) -> VmStatus | None:
    """The VM once the work is over; None where nobody waits for that."""
    from shared.cli.live import watch_to_end

    rejoin = rejoin_command(options)
    if options.no_wait:
        context.console.print(f"Started. To see it: {rejoin}")
        return None
    return watch_to_end(found, context.console, rejoin=rejoin)


def _step(vm: VmStatus) -> PlannedStep:
    step = vm.planned.step if vm.planned is not None else PlannedStep.GIVEN_UP.value
    return PlannedStep(step) if step in PlannedStep._value2member_map_ else PlannedStep.GIVEN_UP


def _await_clients(found: Found) -> None:
    """The connections of a QEMU that has just ended go away by themselves; whoever stays is told by the agent."""
    end = time.monotonic() + CLIENTS_SECONDS
    tap = found.refresh().tap
    while tap is not None and tap.clients and time.monotonic() < end:
        time.sleep(CLIENTS_POLL_SECONDS)
        tap = found.refresh().tap
