"""Health of failovers and of points that can be failed over to, on either side. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shared.rates import size_text
from shared.states import Health, ReplicationState
from shared.status import VmStatus

_FAILED_OVER = (ReplicationState.FAILED_OVER_WAITING_COMPLETION, ReplicationState.FAILED_OVER)

Reason = tuple[Health, str, str]


def judge_failover(status: VmStatus, state: ReplicationState) -> Iterator[Reason]:
    """What makes the health worse than Normal: how bad, text and remedy."""
    if status.role == "primary":
        yield from _at_the_primary(status, state)
    else:
        yield from _at_the_replica(status, state)
        yield from _points(status)


def _at_the_primary(status: VmStatus, state: ReplicationState) -> Iterator[Reason]:
    name = status.name
    if status.handed_over:
        yield (
            Health.CRITICAL,
            f"{name} is handed over to the replica agent of this host, which has not taken it yet.",
            f"Run `vmreplica reverse {name}` again, which completes that.",
        )
    elif state is ReplicationState.FAILED_OVER:
        there = status.peer_host or "the replica's host"
        reverse = (
            f"To make this host its replica, run `vmreplica reverse {name}` on both hosts. After an undo there it goes "
            "on by itself here."
        )
        decide = (
            f"Decide which side counts: `vmreplica resolve {name}` lists what was written; then either "
            f"`vmreplica resolve {name} --keep replica` here, or `vmreplica resolve {name} --keep primary` on {there}."
        )
        remedy = f"Do not run the VM here. {decide if status.split_brain else reverse}"
        yield Health.CRITICAL, status.fenced or "The VM was failed over at the replica.", remedy
    elif status.fenced:
        there = status.peer_host or "the replica's host"
        yield (
            Health.WARNING,
            f"{name} was resumed after a failover to {there}, which has not answered yet whether that is over.",
            f"Until it has, nothing is sent and nobody may write: `vmreplica test-connection {status.link.peer}`.",
        )


def _at_the_replica(status: VmStatus, state: ReplicationState) -> Iterator[Reason]:
    name, failover = status.name, status.failover
    there = status.peer_host or "the primary's host"
    if status.handed_over:
        if status.tap is not None and status.tap.error:
            text = (
                f"The disks of virtual machine '{name}' were handed over to the primary agent of this host, and are "
                f"not served: their tap is not there: {status.tap.error}."
            )
            remedy = f"If `vmreplica status {name}` shows no primary here, run `vmreplica reverse {name}` again."
            yield Health.CRITICAL, text, remedy
    elif failover is not None and failover.undoing:
        yield (
            Health.WARNING,
            f"The failover of {name} is being undone: what was written here since is given up.",
            f"If it does not end, see `vmreplica events {name}`.",
        )
    elif state in _FAILED_OVER:
        alone = "The VM was failed over to this host and is not replicated to another one."
        reverse = f"When {there} can be reached, run `vmreplica reverse {name}` here and there."
        if failover is not None and failover.undoable:
            reverse = (
                f"Keep it with `vmreplica failover {name} --commit`, or go back to before it with "
                f"`vmreplica failover {name} --undo`."
            )
        yield Health.WARNING, alone, reverse
    elif status.planned is not None and status.planned.token_sent:
        back = f"vmreplica failover {name} --prepare --abort"
        yield (
            Health.WARNING,
            f"{name} is prepared for a failover to this host, and takes no writes at {there}.",
            f"Run `vmreplica failover {name}` here, or take it back on {there}: `{back}`.",
        )
    if failover is not None and failover.trouble:
        yield (
            Health.CRITICAL,
            f"What was written since the failover can't settle in the disks: {failover.trouble}.",
            "Check their volume; it is tried again, and the disks are served meanwhile.",
        )


def _points(status: VmStatus) -> Iterator[Reason]:
    name = status.name
    if (wrong := status.wrong_point) is not None:
        yield Health.CRITICAL, wrong.text, wrong.remedy
    for export in status.exports:
        what = "The test failover" if export.test else f"The export {export.id}"
        end = f"vmreplica failover {name} --test --stop" if export.test else f"vmreplica unexport {name} {export.id}"
        if export.error:
            yield Health.WARNING, f"{what} of {name} can't be read: {export.error}", f"To end it: `{end}`."
        elif export.full:
            yield (
                Health.WARNING,
                f"{what} of {name} finds no room for more than the {size_text(export.written_bytes)} written to it.",
                f"Make room on the volume, or end it: `{end}`.",
            )
