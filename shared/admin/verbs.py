"""What the agents' admin sockets offer: the names of the methods, their parameters, and results that aren't a status.

A VM is named by its name or its UUID. Long work returns at once; it shows as ``progress`` in the VM's status.
Results of methods not named here are a ``shared.status`` struct: an AgentStatus for ``status``, else the VmStatus
after the change (``vm.export``: the ExportStatus; ``vm.points``: the PointsStatus; ``vm.remove``, ``vm.unexport``:
null; ``vm.measure``, ``vm.measure_reset``: the Statistics; ``metrics``: {text}, in Prometheus' form; ``vm.churn``: a
ChurnReport; ``vm.cut``: a CutReport; ``vm.definition``: a DefinitionReport). Those of ``vm.resync_show``, ``_history``
and ``_plan`` are in ``shared.resync_runs``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from shared.admin.audit_lines import AuditEntry, AuditReport
from shared.admin.bounds import CHURN_TOP, CHURN_TOP_MAX, PLAN_BLOCKS, PLAN_BLOCKS_MAX
from shared.admin.methods import Params
from shared.block_devices import BlockDevicePolicy
from shared.errors import UsageError
from shared.ports import Peer
from shared.ports.disk_use import Usage
from shared.status import CutStatus

VmName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, msgspec.Meta(ge=1, le=86400)]
Bytes = Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]
DISKS_MAX = 64
"""Disks of one VM."""
EVENTS_MAX = 10_000
"""Events in one answer."""

# Both agents
STATUS = "status"
GET = "vm.get"
MEASURE = "vm.measure"
MEASURE_RESET = "vm.measure_reset"
METRICS = "metrics"
EVENTS = "events"
SUSPEND = "vm.suspend"
RESUME = "vm.resume"
REMOVE = "vm.remove"
RECOVER = "vm.recover"
CONFIG = "config"
AGENT_EVENTS = "agent.events"
EVENTS_FOLLOW = "events.follow"
"""From now on the client gets the notification EVENT for each event, of one VM or of all and the agent's own."""
EVENT = "event"
ALARMS = "alarms"
ALARM_TEST = "alarms.test"
AUDIT = "audit"
HAND_OVER = "vm.hand_over"
"""Let a VM go to the other agent of this host; the answer is the HandOver. Steps of ``vmreplica reverse``."""
ADOPT_PART = "vm.adopt_part"
ADOPT = "vm.adopt"
HANDED_OVER = "vm.handed_over"
"""The other agent has it, durably: let go of what is left. With ``taken`` false: it did not take it, so go on."""
DIFFERENCES = "vm.differences"
"""What was written on this host since the failover; the tap's dirty map takes the place of its log for that."""
RESOLVE = "vm.resolve"
"""Keep the primary's side: at the promoted side its failover is given up, at the primary replication goes on."""
# The primary agent
ENABLE = "vm.enable"
STOP = "vm.stop"
INITIAL = "vm.initial"
SET = "vm.set"
RESIZE = "vm.resize"
DISK_ADD = "vm.disk_add"
DISK_REMOVE = "vm.disk_remove"
DISK_RESIZE = "vm.disk_resize"
TEST_CONNECTION = "test_connection"
DISK_USE = "disk_use"
"""What ``vmreplica watch-disks`` saw, for an agent that can't see other users' processes."""
RESYNC_SHOW = "vm.resync_show"
RESYNC_HISTORY = "vm.resync_history"
RESYNC_PLAN = "vm.resync_plan"
VERIFY = "vm.verify"
CUT = "vm.cut"
PREPARE_FAILOVER = "vm.prepare_failover"
ABORT_FAILOVER = "vm.abort_failover"
CHURN = "vm.churn"
# The replica agent
POINTS = "vm.points"
EXPORT = "vm.export"
UNEXPORT = "vm.unexport"
MARK_POINT = "vm.mark_point"
PROVE = "vm.prove"
TEST_FAILOVER = "vm.test_failover"
FAILOVER = "vm.failover"
DEFINITION = "vm.definition"
DEFINITION_READ = "vm.definition_read"
IMPORT = "import"
"""Import the export in a folder; of a VM that may be new here."""
IMPORT_SEED = "vm.import_seed"
IMPORT_STATUS = "vm.import_status"
IMPORT_STOP = "vm.import_stop"
FAILOVER_UNDO = "vm.failover_undo"
FAILOVER_COMMIT = "vm.failover_commit"

READING = frozenset(
    {
        STATUS,
        GET,
        MEASURE,
        EVENTS,
        METRICS,
        CHURN,
        CONFIG,
        AGENT_EVENTS,
        EVENTS_FOLLOW,
        DISK_USE,
        ALARMS,
        POINTS,
        DEFINITION,
        IMPORT_STATUS,
        RESYNC_SHOW,
        RESYNC_HISTORY,
    }
)
"""Methods that change nothing, for viewers. (DISK_USE takes nobody's word but root's, whoever may call it.)"""
UNRECORDED = frozenset({TEST_CONNECTION, AUDIT, RESYNC_PLAN, DEFINITION_READ, ADOPT_PART})
"""Methods that change nothing either, but are for administrators.

RESYNC_PLAN reads the disks of both hosts, and a definition may have passwords in it.
"""


class VmParams(Params, frozen=True):
    """One VM."""

    vm: VmName


class AnyVmParams(Params, frozen=True):
    """One VM, or all."""

    vm: VmName | None = None


class DiskParams(Params, frozen=True):
    """One disk to replicate: the absolute path of its raw image, and its name over NBD (default: ``disk<n>``)."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    export: Annotated[str, msgspec.Meta(max_length=255)] = ""


class EnableParams(Params, frozen=True):
    """``vm.enable``. ``replica`` is ``HOST`` or ``HOST:PORT``; no log limit means half of the disks' size.

    Sizes and counts that are not given are the tap's defaults (shared.tap_config).
    """

    name: VmName
    disks: Annotated[list[str | DiskParams], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    replica: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    interval_seconds: Seconds = 300.0
    log_limit_bytes: Bytes | None = None
    hot_region_bytes: Bytes | None = None
    hot_regions: Bytes | None = None
    block_device_policy: BlockDevicePolicy = BlockDevicePolicy.COMPARE
    uuid: str | None = None
    exclude: Annotated[tuple[str, ...], msgspec.Meta(max_length=DISKS_MAX)] = ()
    """Absolute paths of disks of the VM that are not replicated: they are on record, and nothing else is done."""


class DiskAddParams(VmParams, frozen=True):
    """``vm.disk_add``: replicate one more disk of the VM; returns when the tap serves it."""

    disk: DiskParams


class DiskRemoveParams(VmParams, frozen=True):
    """``vm.disk_remove``: a disk by its number, export or path; ``exclude``: it stays on record as not replicated."""

    disk: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    exclude: bool = False


class DiskResizeParams(VmParams, frozen=True):
    """``vm.disk_resize``: a disk by its number, export or path, and its new size in bytes.

    Without a size: that which a block device has by now. Returns when the tap serves it.
    """

    disk: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    size: Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)] | None = None


class ResumeParams(VmParams, frozen=True):
    """``vm.resume``; only a primary can be told to resynchronize, or to ``go_on`` with what was suspended of it.

    ``at`` puts the resync off: a time as ``shared.schedule.parse_moment`` takes it, in the zone of the primary's host,
    or ``never``, which cancels what was put off.
    """

    resynchronize: bool = False
    at: Annotated[str, msgspec.Meta(max_length=64)] = ""
    go_on: bool = False


class InitialParams(VmParams, frozen=True):
    """``vm.initial``; ``at`` puts it off as that of ``vm.resume`` does a resync, and ``never`` cancels that.

    ``export``: the absolute path of a folder into which the first copy is written for a courier. ``use_seed``: only
    where the replica has a seed.
    """

    at: Annotated[str, msgspec.Meta(max_length=64)] = ""
    export: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    use_seed: bool = False


class SeedParams(Params, frozen=True):
    """A seed: the absolute path of a raw image, and the index of its disk (default: the next in order)."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    disk: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)] | None = None


class ImportSeedParams(VmParams, frozen=True):
    """``vm.import_seed``: begin to import seeds; ``move``: the files themselves become the disks. An ImportStatus."""

    seeds: Annotated[list[SeedParams], msgspec.Meta(min_length=1, max_length=DISKS_MAX)]
    move: bool = False


class ImportParams(Params, frozen=True):
    """``import``: begin to import the export in ``folder``, an absolute path. An ImportStatus.

    ``storage``: where the copy of a VM is made that is new here; by default what the only entry for it names.
    """

    folder: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    storage: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class VerifyParams(VmParams, frozen=True):
    """``vm.verify``: compare both sides at a cut, or join the run that does; ``repair`` sends again what differs.

    ``at`` puts it off, as that of ``vm.resume``; ``stop`` ends the run.
    """

    at: Annotated[str, msgspec.Meta(max_length=64)] = ""
    repair: bool = False
    stop: bool = False


class HistoryParams(VmParams, frozen=True):
    """``vm.resync_history``: the newest runs, the newest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=EVENTS_MAX)] = 50


class ChurnParams(VmParams, frozen=True):
    """``vm.churn``: of each disk the ``top`` regions that are written most."""

    top: Annotated[int, msgspec.Meta(ge=1, le=CHURN_TOP_MAX)] = CHURN_TOP


class PlanParams(VmParams, frozen=True):
    """``vm.resync_plan``; ``sample``: measure on a sample of the disks, also where past runs tell a rate.

    ``blocks`` random blocks are compared with the replica, to tell how much differs; 0: it is not asked.
    """

    sample: bool = False
    blocks: Annotated[int, msgspec.Meta(ge=0, le=PLAN_BLOCKS_MAX)] = PLAN_BLOCKS


class SetParams(VmParams, frozen=True):
    """``vm.set``: the settings that a VM's status has; each is checked by the agent, of either side its own."""

    settings: Annotated[dict[str, Any], msgspec.Meta(min_length=1, max_length=64)]


class RemoveParams(VmParams, frozen=True):
    """``vm.remove``; refused without ``yes``.

    ``released`` is for a replica agent that handed the VM over: whoever asks has seen that the primary agent of this
    host does not have it. That agent's answer says where disks are ``kept``, empty where none are.
    """

    yes: bool = False
    released: bool = False


class RecoverParams(VmParams, frozen=True):
    """``vm.recover``: rebuild a lost state; refused without ``yes``.

    ``replica`` (``HOST`` or ``HOST:PORT``) is for a primary: where nothing tells it any more, or in place of what does.
    """

    yes: bool = False
    replica: Annotated[str, msgspec.Meta(max_length=300)] = ""

    def require_yes(self) -> None:
        """Raises UsageError unless it was confirmed."""
        if not self.yes:
            raise UsageError(
                f"Recovering {self.vm} puts a rebuilt state in the place of the damaged one.", "Repeat it with --yes."
            )


PART_BYTES = 32 << 10
"""Bytes of the ranges that go with one message: with base64 it has to fit the limit of what a client may send."""


class HandOverParams(VmParams, frozen=True):
    """``vm.hand_over``. ``yes``: although this side has what the other one has not; ``despite_split``: although both
    sides have moved on.
    """

    yes: bool = False
    despite_split: bool = False


class AdoptPartParams(VmParams, frozen=True):
    """``vm.adopt_part``: bytes of the ranges of a hand-over, in base64, from ``offset`` on; ``vm`` as that has it."""

    offset: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    data: Annotated[bytes, msgspec.Meta(max_length=PART_BYTES)]


class AdoptParams(VmParams, frozen=True):
    """``vm.adopt``: take over what the other agent of this host let go: ``handover`` is a shared.handover.HandOver.

    ``replica`` (``HOST`` or ``HOST:PORT``) is for the primary agent: where the copy is from now on; empty for the host
    that the VM came from, at the default port.
    """

    handover: dict[str, Any]
    replica: Annotated[str, msgspec.Meta(max_length=300)] = ""


class HandedOverParams(VmParams, frozen=True):
    """``vm.handed_over``."""

    taken: bool = True


class ResolveParams(VmParams, frozen=True):
    """``vm.resolve``; refused without ``yes``."""

    yes: bool = False


class EventChoice(Params, frozen=True):
    """Which events: the newest ``limit`` with an id above ``after`` that are as the rest says, oldest first.

    Times are in seconds since the Unix epoch; ``events`` are numbers; an empty list is for all.
    """

    limit: Annotated[int, msgspec.Meta(ge=1, le=EVENTS_MAX)] = 50
    after: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    since: float = 0.0
    until: float | None = None
    events: Annotated[tuple[int, ...], msgspec.Meta(max_length=100)] = ()
    levels: Annotated[tuple[Literal["info", "warning", "error"], ...], msgspec.Meta(max_length=3)] = ()

    def wants(self, event: dict[str, Any]) -> bool:
        """Whether an event is among those asked for, but for its id and its age."""
        if self.until is not None and event["time"] > self.until:
            return False
        if self.events and event["event"] not in self.events:
            return False
        return not self.levels or event["level"] in self.levels


class EventsParams(EventChoice, frozen=True):
    """``events``: those of a VM or of all VMs; {events: [...]}.

    Each is an event of ``shared.events`` with ``id``, and ``vm`` and ``uuid`` of its VM.
    """

    vm: VmName | None = None


class AgentEventsParams(EventChoice, frozen=True):
    """``agent.events``: the agent's own, as ``events`` has those of VMs, with ids of a series of their own.

    ``vm`` and ``uuid`` are empty, or of the VM that one is about.
    """


class DiskUseParams(Params, frozen=True):
    """``disk_use``: who uses the disks of this agent's VMs, as somebody saw it who sees all processes."""

    usage: Usage


class AlarmTestParams(Params, frozen=True):
    """``alarms.test``: one entry by its name, or all; {alarms: [...]} as ``alarms``."""

    name: Annotated[str, msgspec.Meta(max_length=64)] = ""


class AuditParams(Params, frozen=True):
    """``audit``: the newest ``limit`` entries from ``since`` on, which is in seconds since the Unix epoch.

    Of one VM by name or UUID, or of all; with ``check`` whether the whole log is as it was written, in their place.
    """

    vm: Annotated[str, msgspec.Meta(max_length=256)] = ""
    since: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    limit: Annotated[int, msgspec.Meta(ge=1, le=EVENTS_MAX)] = 50
    check: bool = False


class AuditAnswer(msgspec.Struct, kw_only=True):
    """The result of ``audit``; ``folder`` is where the log is."""

    folder: str
    entries: list[AuditEntry] = []
    report: AuditReport | None = None


class AbortParams(VmParams, frozen=True):
    """``vm.abort_failover``: ``force`` also where the replica, which may be failed over, does not answer."""

    force: bool = False


Moment = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Seconds since the Unix epoch."""


class PointsParams(VmParams, frozen=True):
    """``vm.points``: with ``at_time`` also which points are nearest to it."""

    at_time: Moment | None = None


class PointParams(VmParams, frozen=True):
    """A point of a VM as ``vm.points`` names it, or the newest one at or before a moment."""

    point: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "newest"
    at_time: Moment | None = None


class ExportParams(PointParams, frozen=True):
    """``vm.export``. ``writable``: what clients write is kept beside the point, until the export is ended."""

    writable: bool = False


class MarkPointParams(PointParams, frozen=True):
    """``vm.mark_point``: name a point (empty: no name any more) and pin it, or no longer; the PointsStatus after it."""

    name: Annotated[str, msgspec.Meta(max_length=63)] | None = None
    pinned: bool | None = None


class ProveParams(PointParams, frozen=True):
    """``vm.prove``: read a point to its end, or join whoever does; ``stop`` ends it. A PointProof, or null."""

    stop: bool = False


class TestFailoverParams(PointParams, frozen=True):
    """``vm.test_failover``; ``stop`` ends it. The VmStatus after it."""

    __test__ = False

    stop: bool = False


class FailoverParams(PointParams, frozen=True):
    """``vm.failover``: ``newest`` is the newest that was received, which may have to be applied first.

    ``applied`` is the newest that the disks are at.
    """


class UnexportParams(VmParams, frozen=True):
    """``vm.unexport``: one export, or all of the VM."""

    id: str | None = None


class CutParams(VmParams, frozen=True):
    """``vm.cut``: take a cut now; ``consistent``: with the guest frozen, as its setting says."""

    consistent: bool = False


class CutReport(msgspec.Struct, kw_only=True):
    """The result of ``vm.cut``; ``text`` and ``remedy`` say why one is not application-consistent that was to be."""

    cut: CutStatus
    consistency: str
    frozen_seconds: float | None = None
    text: str = ""
    remedy: str = ""


class DefinitionParams(PointParams, frozen=True):
    """``vm.definition``: the definition that belongs to a point."""


class DefinitionReadParams(VmParams, frozen=True):
    """``vm.definition_read``: bytes of a file of a definition, by its SHA-256 in hex: {data} in base64, empty at its
    end.
    """

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    offset: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0


class ConnectionParams(Params, frozen=True):
    """``test_connection``."""

    replica: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class ConnectionStep(msgspec.Struct, kw_only=True):
    """One step on the way to a replica, e.g. ``resolve``, ``connect``, ``tls``, ``hello``, ``authorization``."""

    name: str
    ok: bool
    text: str
    remedy: str = ""


class ConnectionReport(msgspec.Struct, kw_only=True):
    """The result of ``test_connection``: the steps taken, in order; the last is the first that failed, if any."""

    ok: bool
    steps: list[ConnectionStep]


def ordered_by(peer: Peer) -> dict[str, Any]:
    """Who gave an order, for the event that records it: user and process at the admin socket."""
    return {"uid": peer.uid, "pid": peer.pid}
