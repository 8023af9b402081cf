"""The metrics of failovers, of what can be failed over to, and of application-consistent cuts."""

from __future__ import annotations

from collections.abc import Callable

from shared.failover_status import FailoverStatus
from shared.metric_kinds import Figure, Samples, VmMetric, one_hot
from shared.metric_kinds import vm_metric as _vm
from shared.point_status import PointProof
from shared.states import PlannedStep
from shared.status import VmStatus

_OUTCOMES = ("proven", "wrong", "unrecorded", "undecided")


def _failover(name: str, text: str, read: Callable[[FailoverStatus], Figure]) -> VmMetric:
    def figure(vm: VmStatus) -> Figure:
        return read(vm.failover) if vm.failover is not None else None

    return _vm(f"failover_{name}", text, figure, at="replica")


def _consistent(name: str, text: str, field: str, *, counter: bool = False) -> VmMetric:
    def figure(vm: VmStatus) -> Figure:
        found: Figure = getattr(vm.consistency, field) if vm.consistency is not None else None
        return found

    return _vm(name, text, figure, at="primary", counter=counter)


def _failures(vm: VmStatus) -> Samples:
    return (
        [((reason,), count) for reason, count in vm.consistency.failures_since_start.items()] if vm.consistency else ()
    )


def _every(vm: VmStatus) -> Figure:
    cuts = vm.consistency
    return cuts.hours * 3600 if cuts is not None and cuts.hours and cuts.setting != "none" else None


def _prepared(vm: VmStatus) -> bool:
    planned = vm.planned
    if planned is None:
        return False
    return planned.step == PlannedStep.CONFIRMED if vm.role == "primary" else planned.token_sent


def _proof(read: Callable[[PointProof], Figure]) -> Callable[[VmStatus], Figure]:
    return lambda vm: read(vm.proof) if vm.proof is not None else None


FAILOVER_METRICS: tuple[VmMetric, ...] = (
    _vm(
        "failover_prepared",
        "Whether the replica holds the token of a planned failover: the VM runs nowhere.",
        _prepared,
    ),
    _vm(
        "failover_prepared_timestamp_seconds",
        "Since when that is so.",
        lambda vm: vm.planned.step_time if vm.planned is not None and _prepared(vm) else None,
    ),
    _vm("writes_held", "Whether the tap takes no writes, by a planned failover or what is left of one.",
        lambda vm: vm.tap is not None and bool(vm.tap.refused), at="primary"),
    _vm(
        "split_brain",
        "Whether this side and the one that it was failed over to both have, or may have, writes of their own.",
        lambda vm: vm.split_brain,
        at="primary",
    ),
    _vm(
        "handed_over",
        "Whether the other agent of this host has the VM, or is about to.",
        lambda vm: vm.handed_over,
    ),
    _failover("timestamp_seconds", "When the VM was failed over to this host.", lambda failover: failover.time),
    _failover("undoable", "Whether that is neither committed nor being undone.", lambda failover: failover.undoable),
    _failover("undoing", "Whether it is being undone.", lambda failover: failover.undoing),
    _failover(
        "written_bytes",
        "What was written since and lies over the disks, while they are in layers.",
        lambda failover: failover.written_bytes,
    ),
    _failover(
        "settled_bytes",
        "After a commit: what of that has settled in the disks.",
        lambda failover: failover.settled_bytes,
    ),
    _failover("settling_bytes", "Of about so much.", lambda failover: failover.settling_bytes),
    _failover("settling_failed", "Whether that can't go on.", lambda failover: bool(failover.trouble)),
    _vm(
        "test_failover_failed",
        "Whether the test failover can't be served.",
        lambda vm: bool(vm.test_failover.error) if vm.test_failover is not None else None,
        at="replica",
    ),
    _vm(
        "exports_full",
        "Writable exports whose clients find no room.",
        lambda vm: sum(export.full for export in vm.exports),
        at="replica",
    ),
    _vm(
        "exports_held_bytes",
        "What the undo logs take that exports read through.",
        lambda vm: sum(export.held_bytes for export in vm.exports),
        at="replica",
    ),
    _vm(
        "point_proof_running",
        "Whether a point is read to its end.",
        _proof(lambda proof: proof.running),
        at="replica",
    ),
    _vm(
        "point_proof_timestamp_seconds",
        "When the last one was read to its end, since the agent started.",
        _proof(lambda proof: proof.ended_time),
        at="replica",
    ),
    VmMetric(
        "vmreplica_point_proof_outcome",
        "1 for what came of that, 0 for the others.",
        lambda vm: one_hot(_OUTCOMES, vm.proof.outcome) if vm.proof is not None and vm.proof.outcome else (),
        ("outcome",),
        at="replica",
    ),
    _vm(
        "point_wrong",
        "Whether a point that is there was read and found not to be what both sides were.",
        lambda vm: vm.wrong_point is not None,
        at="replica",
    ),
    _vm(
        "consistent_cut_interval_seconds",
        "An application-consistent cut is to be taken so often.",
        _every,
        at="primary",
    ),
    _vm(
        "consistent_cut_timestamp_seconds",
        "When the newest application-consistent cut was sealed; at the replica, that of the newest such point.",
        lambda vm: vm.application_cut.time if vm.application_cut is not None else None,
    ),
    _consistent(
        "consistent_cuts_total", "Application-consistent cuts, since the agent started.", "taken_since_start",
        counter=True,
    ),
    VmMetric(
        "vmreplica_consistent_cut_failures_total",
        "Cuts that were to be and became crash-consistent ones, by the error's code, since the agent started.",
        _failures,
        ("reason",),
        counter=True,
        at="primary",
    ),
    _consistent(
        "guest_frozen_seconds_total", "How long the guest was frozen for cuts, since the agent started.",
        "frozen_seconds_since_start", counter=True,
    ),
    _consistent("guest_last_frozen_seconds", "How long it was for the last one.", "last_frozen_seconds"),
    _consistent(
        "guest_frozen_timestamp_seconds",
        "When a freeze began that could not be ended: the guest may stand still.",
        "frozen_since",
    ),
    _vm(
        "definition_failed",
        "Whether the VM's definition can't be read, or is not kept at the replica.",
        lambda vm: vm.definition.failure is not None if vm.definition is not None else None,
    ),
)  # fmt: skip
