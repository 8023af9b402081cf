"""The primary agent's admin methods: parameters in, the agent's and its VMs' answers out."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

import msgspec

from primary_agent.agent import PrimaryAgent
from primary_agent.consistent_cuts import APPLICATION, CRASH
from primary_agent.disk_changes import add_disk, remove_disk
from primary_agent.disk_sizes import resize_disk
from primary_agent.enabling import split_address
from primary_agent.planned_orders import abort, prepare
from primary_agent.probing import probe
from primary_agent.record import VmRecord
from primary_agent.resizing import take_sizes
from primary_agent.resync_report import history, plan, report
from primary_agent.reversing import Reversing
from primary_agent.scheduling import checked_time, with_window
from primary_agent.vm import PrimaryVm
from shared.admin import verbs
from shared.admin.methods import Methods, NoParams
from shared.admin.server import Client
from shared.admin.verbs import (
    AbortParams,
    AnyVmParams,
    ChurnParams,
    ConnectionParams,
    ConnectionReport,
    CutParams,
    CutReport,
    DiskAddParams,
    DiskRemoveParams,
    DiskResizeParams,
    EnableParams,
    EventsParams,
    HistoryParams,
    InitialParams,
    PlanParams,
    RecoverParams,
    RemoveParams,
    ResumeParams,
    SetParams,
    VerifyParams,
    VmParams,
)
from shared.block_devices import BlockDevicePolicy
from shared.churn import ChurnReport
from shared.config_sections import Rate
from shared.errors import InvalidStateError, UsageError
from shared.event_query import EventsAnswer
from shared.guest_settings import HOURS_MAX, NONE, check_files, parse_consistency, parse_definition
from shared.health import measured
from shared.measures import Statistics
from shared.monitoring import metrics_text
from shared.ports import Address
from shared.resync_runs import ResyncPlan, ResyncReport, RunHistory
from shared.schedule import NEVER, PastWindow, Recurrence, ResyncMode
from shared.status import AgentStatus, VmStatus
from shared.tap_config import LEAST_LOG_LIMIT, MAX_HOT_REGION, MAX_HOT_REGIONS, MIN_HOT_REGION


class AdminMethods:
    """The methods, for one agent."""

    def __init__(self, agent: PrimaryAgent) -> None:
        self._agent = agent

    def table(self) -> Methods:
        """The methods under their names."""
        methods = Methods()
        methods.add(verbs.STATUS, AnyVmParams, self.status)
        methods.add(verbs.GET, AnyVmParams, self.status)
        methods.add(verbs.MEASURE, VmParams, self.measure)
        methods.add(verbs.MEASURE_RESET, VmParams, self.measure_reset)
        methods.add(verbs.METRICS, NoParams, self.metrics)
        methods.add(verbs.CHURN, ChurnParams, self.churn)
        methods.add(verbs.EVENTS, EventsParams, self.events)
        methods.add(verbs.ENABLE, EnableParams, self.enable)
        methods.add(verbs.INITIAL, InitialParams, self.initial)
        methods.add(verbs.SUSPEND, VmParams, self.suspend)
        methods.add(verbs.RESUME, ResumeParams, self.resume)
        methods.add(verbs.STOP, VmParams, self.stop)
        methods.add(verbs.VERIFY, VerifyParams, self.verify)
        methods.add(verbs.CUT, CutParams, self.cut)
        methods.add(verbs.PREPARE_FAILOVER, VmParams, self.prepare_failover)
        methods.add(verbs.ABORT_FAILOVER, AbortParams, self.abort_failover)
        methods.add(verbs.SET, SetParams, self.set)
        methods.add(verbs.RESIZE, VmParams, self.resize)
        methods.add(verbs.DISK_ADD, DiskAddParams, self.disk_add)
        methods.add(verbs.DISK_REMOVE, DiskRemoveParams, self.disk_remove)
        methods.add(verbs.DISK_RESIZE, DiskResizeParams, self.disk_resize)
        methods.add(verbs.REMOVE, RemoveParams, self.remove)
        methods.add(verbs.RECOVER, RecoverParams, self.recover)
        methods.add(verbs.RESYNC_SHOW, VmParams, self.resync_show)
        methods.add(verbs.RESYNC_HISTORY, HistoryParams, self.resync_history)
        methods.add(verbs.RESYNC_PLAN, PlanParams, self.resync_plan)
        methods.add(verbs.TEST_CONNECTION, ConnectionParams, self.test_connection)
        Reversing(self._agent, with_settings).add_to(methods)
        return methods

    async def status(self, params: AnyVmParams, client: Client) -> AgentStatus:
        return await self._agent.status(params.vm)

    async def measure(self, params: VmParams, client: Client) -> Statistics:
        return measured(await self._agent.find(params.vm).status())

    async def measure_reset(self, params: VmParams, client: Client) -> Statistics:
        vm = self._agent.find(params.vm)
        await vm.parts.replication.reset_statistics(verbs.ordered_by(client.peer))
        return measured(await vm.status())

    async def metrics(self, params: NoParams, client: Client) -> dict[str, str]:
        return {"text": (await metrics_text(self._agent.ports, self._agent.status)).decode()}

    async def churn(self, params: ChurnParams, client: Client) -> ChurnReport:
        return self._agent.find(params.vm).parts.churn_report(params.top)

    async def events(self, params: EventsParams, client: Client) -> EventsAnswer:
        return await self._agent.events(
            params.vm, limit=params.limit, after=params.after, wants=params.wants, since=params.since
        )

    async def enable(self, params: EnableParams, client: Client) -> VmStatus:
        return await (await self._agent.enable(params)).status()

    async def initial(self, params: InitialParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "initial", vm.initial(at=params.at, export=params.export, use_seed=params.use_seed))

    async def suspend(self, params: VmParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "suspend", vm.suspend())

    async def resume(self, params: ResumeParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        if vm.failure is not None:
            await self._agent.revive(vm)
            return await self._agent.find(params.vm).status()
        order = vm.resume(resynchronize=params.resynchronize, at=params.at, go_on=params.go_on)
        return await _ordered(vm, "resume", order)

    async def stop(self, params: VmParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "stop", vm.stop_resync())

    async def verify(self, params: VerifyParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        order = vm.verifier.order(at=params.at, repair=params.repair, stop=params.stop)
        return await _ordered(vm, "verify", order)

    async def cut(self, params: CutParams, client: Client) -> CutReport:
        vm = self._agent.find(params.vm)
        if params.consistent:
            # The definition as it is now belongs to the cut.
            await vm.definition.look()
        taken = await vm.cuts.take(consistent=params.consistent)
        failure = taken.failure
        return CutReport(
            cut=taken.status,
            consistency=APPLICATION if taken.consistent else CRASH,
            frozen_seconds=taken.frozen_seconds,
            text=failure.text if failure is not None else "",
            remedy=failure.remedy if failure is not None else "",
        )

    async def prepare_failover(self, params: VmParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "failover --prepare", prepare(vm))

    async def abort_failover(self, params: AbortParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "failover --prepare --abort", abort(vm, force=params.force))

    async def set(self, params: SetParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        await vm.set(with_settings(vm.record, params.settings), params.settings)
        return await vm.status()

    async def resize(self, params: VmParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "resize", take_sizes(vm))

    async def disk_add(self, params: DiskAddParams, client: Client) -> VmStatus:
        vm, disk = self._agent.find(params.vm), params.disk
        async with self._agent.changing:
            others = [other.record for other in self._agent.vms.values()]
            return await _ordered(vm, "disk add", add_disk(vm, disk.path, disk.export, others))

    async def disk_remove(self, params: DiskRemoveParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "disk remove", remove_disk(vm, params.disk, exclude=params.exclude))

    async def disk_resize(self, params: DiskResizeParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        return await _ordered(vm, "disk resize", resize_disk(vm, params.disk, params.size))

    async def remove(self, params: RemoveParams, client: Client) -> None:
        if not params.yes:
            raise UsageError(f"Removing {params.vm} ends its replication and its tap.", "Repeat it with --yes.")
        await self._agent.remove(params.vm)

    async def recover(self, params: RecoverParams, client: Client) -> VmStatus:
        params.require_yes()
        vm = await self._agent.recover(params.vm, params.replica, verbs.ordered_by(client.peer))
        return await vm.status()

    async def resync_show(self, params: VmParams, client: Client) -> ResyncReport:
        return report(self._agent.find(params.vm))

    async def resync_history(self, params: HistoryParams, client: Client) -> RunHistory:
        return history(self._agent.find(params.vm), params.limit)

    async def resync_plan(self, params: PlanParams, client: Client) -> ResyncPlan:
        return await plan(self._agent.find(params.vm), sample=params.sample, blocks=params.blocks)

    async def test_connection(self, params: ConnectionParams, client: Client) -> ConnectionReport:
        host, port = split_address(params.replica)
        return await probe(self._agent.surroundings, Address(host=host, port=port, tls=True))


async def _ordered(vm: PrimaryVm, verb: str, order: Coroutine[Any, Any, None]) -> VmStatus:
    """Carry out an order; one that the state does not allow is put on record (event 32546) and refused."""
    try:
        if vm.parts.handed_over is not None:
            order.close()
            raise InvalidStateError(
                f"{vm.name} is handed over to the replica agent of this host.",
                f"Run `vmreplica reverse {vm.name}` again, which completes that.",
            )
        await order
    except InvalidStateError as error:
        await vm.note_refusal(verb, error)
        raise
    return await vm.status()


_HotRegion = Annotated[int, msgspec.Meta(ge=MIN_HOT_REGION, le=MAX_HOT_REGION)]


class _Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be set; UNSET stays as it is."""

    interval_seconds: Annotated[float, msgspec.Meta(ge=1, le=86400)] | msgspec.UnsetType = msgspec.UNSET
    log_limit_bytes: Annotated[int, msgspec.Meta(ge=LEAST_LOG_LIMIT, lt=1 << 62)] | msgspec.UnsetType = msgspec.UNSET
    replica: Annotated[str, msgspec.Meta(min_length=1, max_length=300)] | msgspec.UnsetType = msgspec.UNSET
    resync_mode: ResyncMode | msgspec.UnsetType | None = msgspec.UNSET
    resync_window: str | msgspec.UnsetType | None = msgspec.UNSET
    resync_window_start: str | msgspec.UnsetType | None = msgspec.UNSET
    resync_window_end: str | msgspec.UnsetType | None = msgspec.UNSET
    resync_past_window: PastWindow | msgspec.UnsetType | None = msgspec.UNSET
    resync_back_off: bool | msgspec.UnsetType | None = msgspec.UNSET
    resync_read_rate: Rate | msgspec.UnsetType = msgspec.UNSET
    resync_send_rate: Rate | msgspec.UnsetType = msgspec.UNSET
    initial_read_rate: Rate | msgspec.UnsetType = msgspec.UNSET
    initial_send_rate: Rate | msgspec.UnsetType = msgspec.UNSET
    replication_send_rate: Rate | msgspec.UnsetType = msgspec.UNSET
    resync_priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] | msgspec.UnsetType = msgspec.UNSET
    hot_region_bytes: _HotRegion | msgspec.UnsetType = msgspec.UNSET
    hot_regions: Annotated[int, msgspec.Meta(ge=1, le=MAX_HOT_REGIONS)] | msgspec.UnsetType = msgspec.UNSET
    block_device_policy: BlockDevicePolicy | msgspec.UnsetType = msgspec.UNSET
    verify_schedule: str | msgspec.UnsetType = msgspec.UNSET
    consistency: str | msgspec.UnsetType = msgspec.UNSET
    consistency_hours: Annotated[int, msgspec.Meta(ge=0, le=HOURS_MAX)] | msgspec.UnsetType = msgspec.UNSET
    definition: str | msgspec.UnsetType = msgspec.UNSET
    definition_files: list[str] | msgspec.UnsetType = msgspec.UNSET


_COMPOSED = frozenset({"replica", "resync_window"})
"""Settings that are not single fields of the record."""


def with_settings(record: VmRecord, settings: dict[str, Any]) -> VmRecord:
    """The record with settings changed. Raises UsageError naming the setting."""
    try:
        given = msgspec.convert(settings, _Settings, strict=True)
    except msgspec.ValidationError as error:
        names = ", ".join(_Settings.__struct_fields__)
        raise UsageError(f"A setting is not valid: {error}.", f"There are {names}.") from None
    changes: dict[str, Any] = {
        name: value
        for name in _Settings.__struct_fields__
        if name not in _COMPOSED and (value := getattr(given, name)) is not msgspec.UNSET
    }
    if given.replica is not msgspec.UNSET:
        changes["replica_host"], changes["replica_port"] = split_address(given.replica)
    if given.resync_window is not msgspec.UNSET:
        record = with_window(record, given.resync_window)
    parse_consistency(changes.get("consistency", NONE))
    parse_definition(changes.get("definition", NONE))
    check_files(changes.get("definition_files", ()))
    if "verify_schedule" in changes:
        changes["verify_schedule"] = str(Recurrence.parse(changes["verify_schedule"]) or NEVER)
    for end in ("resync_window_start", "resync_window_end"):
        if end in changes:
            changes[end] = checked_time(changes[end])
    return msgspec.structs.replace(record, **changes)
