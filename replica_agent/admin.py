"""The replica agent's admin methods: parameters in, the agent's and its VMs' answers out."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from replica_agent.agent import ReplicaAgent
from replica_agent.finishing import finish
from replica_agent.import_methods import Imports
from replica_agent.marks import mark_point
from replica_agent.orders import ordered
from replica_agent.points import find_point, point_settings, points_of, set_rules
from replica_agent.reopening import is_being_undone
from replica_agent.reversing import Reversing
from replica_agent.test_failover import begin_test, end_test
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.admin import verbs
from shared.admin.methods import Methods, NoParams
from shared.admin.server import Client
from shared.admin.verbs import (
    AnyVmParams,
    DefinitionParams,
    DefinitionReadParams,
    EventsParams,
    ExportParams,
    FailoverParams,
    MarkPointParams,
    PointsParams,
    ProveParams,
    RecoverParams,
    RemoveParams,
    ResumeParams,
    SetParams,
    TestFailoverParams,
    UnexportParams,
    VmParams,
)
from shared.errors import InvalidStateError, UsageError
from shared.event_query import EventsAnswer
from shared.guest_status import DefinitionReport
from shared.health import measured
from shared.measures import Statistics
from shared.monitoring import metrics_text
from shared.point_status import PointProof, PointsStatus
from shared.status import AgentStatus, ExportStatus, VmStatus


class AdminMethods:
    """The methods, for one agent."""

    def __init__(self, agent: ReplicaAgent) -> None:
        self._agent = agent

    def table(self) -> Methods:
        """The methods under their names."""
        methods = Methods()
        methods.add(verbs.STATUS, AnyVmParams, self.status)
        methods.add(verbs.GET, AnyVmParams, self.status)
        methods.add(verbs.MEASURE, VmParams, self.measure)
        methods.add(verbs.MEASURE_RESET, VmParams, self.measure_reset)
        methods.add(verbs.METRICS, NoParams, self.metrics)
        methods.add(verbs.EVENTS, EventsParams, self.events)
        methods.add(verbs.SUSPEND, VmParams, self.suspend)
        methods.add(verbs.RESUME, ResumeParams, self.resume)
        methods.add(verbs.REMOVE, RemoveParams, self.remove)
        methods.add(verbs.RECOVER, RecoverParams, self.recover)
        methods.add(verbs.SET, SetParams, self.set)
        methods.add(verbs.POINTS, PointsParams, self.points)
        methods.add(verbs.MARK_POINT, MarkPointParams, self.mark_point)
        methods.add(verbs.PROVE, ProveParams, self.prove)
        methods.add(verbs.EXPORT, ExportParams, self.export)
        methods.add(verbs.UNEXPORT, UnexportParams, self.unexport)
        methods.add(verbs.TEST_FAILOVER, TestFailoverParams, self.test_failover)
        methods.add(verbs.DEFINITION, DefinitionParams, self.definition)
        methods.add(verbs.DEFINITION_READ, DefinitionReadParams, self.definition_read)
        methods.add(verbs.FAILOVER, FailoverParams, self.failover)
        methods.add(verbs.FAILOVER_UNDO, VmParams, self.undo_failover)
        methods.add(verbs.FAILOVER_COMMIT, VmParams, self.commit_failover)
        Reversing(self._agent).add_to(methods)
        Imports(self._agent).add_to(methods)
        return methods

    async def status(self, params: AnyVmParams, client: Client) -> AgentStatus:
        return self._agent.status(params.vm)

    async def measure(self, params: VmParams, client: Client) -> Statistics:
        return measured(status_of(self._agent.find(params.vm)))

    async def metrics(self, params: NoParams, client: Client) -> dict[str, str]:
        return {"text": (await metrics_text(self._agent.ports, self._agent_status)).decode()}

    async def _agent_status(self) -> AgentStatus:
        return self._agent.status()

    async def measure_reset(self, params: VmParams, client: Client) -> Statistics:
        vm = await self._standing(params.vm)
        await finish(vm.reset_statistics(verbs.ordered_by(client.peer)))
        return measured(status_of(vm))

    async def events(self, params: EventsParams, client: Client) -> EventsAnswer:
        return await self._agent.events(
            params.vm, limit=params.limit, after=params.after, wants=params.wants, since=params.since
        )

    async def suspend(self, params: VmParams, client: Client) -> VmStatus:
        vm = await self._standing(params.vm)
        return await _ordered(vm, "suspend", vm.suspend())

    async def resume(self, params: ResumeParams, client: Client) -> VmStatus:
        if params.resynchronize:
            raise UsageError(
                f"A resynchronization of {params.vm} is started at its primary.",
                f"Run `vmreplica resume {params.vm} --resynchronize` there.",
            )
        vm = await self._standing(params.vm)
        if vm.failure is not None:
            await finish(self._agent.revive(vm))
            return status_of(self._agent.find(params.vm))
        return await _ordered(vm, "resume", vm.resume())

    async def remove(self, params: RemoveParams, client: Client) -> dict[str, str]:
        if not params.yes:
            raise UsageError(f"Removing {params.vm} here deletes its recovery point.", "Repeat it with --yes.")
        await self._agent.reopening.over(params.vm)
        return {"kept": await finish(self._agent.remove(params.vm, released=params.released))}

    async def recover(self, params: RecoverParams, client: Client) -> VmStatus:
        params.require_yes()
        if params.replica:
            raise UsageError("This host keeps the copy itself.", "--replica is for the primary.")
        return status_of(await finish(self._agent.recover(params.vm, verbs.ordered_by(client.peer))))

    async def set(self, params: SetParams, client: Client) -> VmStatus:
        vm = await self._standing(params.vm)
        await finish(set_rules(vm, point_settings(params.settings)))
        return status_of(vm)

    async def points(self, params: PointsParams, client: Client) -> PointsStatus:
        return points_of(await self._standing(params.vm), params.at_time)

    async def mark_point(self, params: MarkPointParams, client: Client) -> PointsStatus:
        vm = await self._usable(params.vm)
        position = find_point(vm, params.point, params.at_time)
        await finish(mark_point(vm.parts.history, position, name=params.name, pinned=params.pinned))
        vm.parts.applier.changed.notify()
        return points_of(vm)

    async def prove(self, params: ProveParams, client: Client) -> PointProof | None:
        vm = await self._usable(params.vm)
        if params.stop:
            await finish(vm.prover.stop())
            return vm.prover.status
        return await finish(vm.prover.start(vm.describe, find_point(vm, params.point, params.at_time)))

    async def export(self, params: ExportParams, client: Client) -> ExportStatus:
        vm = await self._usable(params.vm)
        position = find_point(vm, params.point, params.at_time)
        return await finish(vm.exports.start(vm.describe, position, writable=params.writable))

    async def test_failover(self, params: TestFailoverParams, client: Client) -> VmStatus:
        vm = await self._usable(params.vm)
        if params.stop:
            return await _ordered(vm, "failover --test --stop", end_test(vm))
        position = find_point(vm, params.point, params.at_time)
        return await _ordered(vm, "failover --test", begin_test(vm, position))

    async def _standing(self, name: str) -> ReplicaVm:
        """Where it is being opened anew, once that is over."""
        return await self._agent.reopening.standing(name)

    async def _usable(self, name: str) -> ReplicaVm:
        """Raises NotFoundError, InvalidStateError."""
        vm = await self._standing(name)
        if vm.failure is not None:
            raise InvalidStateError(f"{vm.name} is in error: {vm.failure.text}", vm.failure.remedy)
        return vm

    async def unexport(self, params: UnexportParams, client: Client) -> None:
        await finish((await self._standing(params.vm)).exports.stop(params.id))

    async def definition(self, params: DefinitionParams, client: Client) -> DefinitionReport:
        vm = await self._standing(params.vm)
        position = find_point(vm, params.point, params.at_time)
        if position is None:
            applied = vm.ledger.replication.applied
            if applied is None:
                raise InvalidStateError(f"{vm.name} has no recovery point yet.", "Its initial replication comes first.")
            position = applied.position
        return vm.companions.report(position, vm.describe(position))

    async def definition_read(self, params: DefinitionReadParams, client: Client) -> dict[str, str]:
        vm = await self._standing(params.vm)
        return {"data": await vm.companions.read(bytes.fromhex(params.sha256), params.offset)}

    async def failover(self, params: FailoverParams, client: Client) -> VmStatus:
        vm = await self._standing(params.vm)
        return await _ordered(vm, "failover", vm.failover(find_point(vm, params.point, params.at_time)))

    async def undo_failover(self, params: VmParams, client: Client) -> VmStatus:
        """Answers when the VM stands open again as what it was before; also where somebody else undoes it already."""
        vm = await self._agent.reopening.standing(params.vm, undone=False)
        if not is_being_undone(vm):
            await ordered(vm, "failover --undo", vm.undo_failover())
        return status_of(await self._usable(params.vm))

    async def commit_failover(self, params: VmParams, client: Client) -> VmStatus:
        vm = await self._standing(params.vm)
        return await _ordered(vm, "failover --commit", vm.promotion.commit())


async def _ordered(vm: ReplicaVm, verb: str, order: Coroutine[Any, Any, None]) -> VmStatus:
    """The VM's status after it."""
    await ordered(vm, verb, order)
    return status_of(vm)
