"""The replica agent's part in reversing the direction of a VM: its admin methods, step by step.

``vmreplica reverse`` drives the steps over the sockets of both agents of one host; each is durable and may be repeated,
so that a crash anywhere is answered by the same command.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import structlog

from replica_agent import handing_over
from replica_agent.agent import ReplicaAgent
from replica_agent.finishing import finish
from replica_agent.orders import ordered
from replica_agent.taking_over import is_taken, take_over
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.admin import verbs
from shared.admin.methods import Methods
from shared.admin.server import Client
from shared.admin.verbs import (
    AdoptParams,
    AdoptPartParams,
    HandedOverParams,
    HandOverParams,
    ResolveParams,
    VmParams,
)
from shared.differences import Differences
from shared.errors import InvalidStateError
from shared.handover import HandOver
from shared.handover_parts import HandOverParts, require_carrier
from shared.status import VmStatus

log = structlog.get_logger(__name__)


class Reversing:
    """The steps, for one agent."""

    def __init__(self, agent: ReplicaAgent) -> None:
        self._agent = agent
        self._parts = HandOverParts()
        self._handing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._adopting = asyncio.Lock()
        """Held while a VM is taken over: the order may come again before it is done."""

    def add_to(self, methods: Methods) -> None:
        """Offer them."""
        methods.add(verbs.HAND_OVER, HandOverParams, self.hand_over)
        methods.add(verbs.HANDED_OVER, HandedOverParams, self.handed_over)
        methods.add(verbs.ADOPT_PART, AdoptPartParams, self.adopt_part)
        methods.add(verbs.ADOPT, AdoptParams, self.adopt)
        methods.add(verbs.DIFFERENCES, VmParams, self.differences)
        methods.add(verbs.RESOLVE, ResolveParams, self.resolve)

    async def hand_over(self, params: HandOverParams, client: Client) -> HandOver:
        vm = await self._agent.reopening.standing(params.vm)
        identity = vm.parts.uuid
        self._agent.carriers.begin(identity, vm.name, client)
        try:
            # One after the other: each writes the same files, and the second is answered by what the first has done.
            async with self._handing[identity]:
                vm = await self._agent.reopening.standing(identity)
                if vm.parts.closing:
                    raise InvalidStateError(f"{vm.name} is being removed here.", "Look whether that came about.")
                return await ordered(vm, "reverse", handing_over.hand_over(vm))
        except BaseException:
            self._agent.carriers.end(identity, client)
            raise

    async def handed_over(self, params: HandedOverParams, client: Client) -> None:
        identity = (await self._agent.reopening.standing(params.vm)).parts.uuid
        async with self._handing[identity]:
            vm = await self._agent.reopening.standing(identity)
            self._agent.carriers.judge(identity, vm.name, client)
            if not params.taken:
                await finish(handing_over.take_back(vm))
            self._agent.carriers.end(identity, client)

    async def adopt_part(self, params: AdoptPartParams, client: Client) -> None:
        self._parts.add(client, params.vm, params.offset, params.data)

    async def adopt(self, params: AdoptParams, client: Client) -> VmStatus:
        handed = HandOver.read(params.handover)
        # Taken twice, it would be put on record as it was handed over, whatever has become of the copy since.
        async with self._adopting:
            known = self._taken(handed)
            if known is None:
                require_carrier(client, handed)
                known = await self._take_over(handed, self._parts.take(client, handed))
        return status_of(known)

    async def _take_over(self, handed: HandOver, ranges: bytes) -> ReplicaVm:
        try:
            return await finish(take_over(self._agent, handed, ranges))
        except Exception:
            taken = self._taken(handed)
            if taken is None:
                raise
            # An error would have the primary agent take it back, and the VM have two owners.
            log.warning("a VM is taken over, but for what came after that", vm=handed.name, exc_info=True)
            return taken

    def _taken(self, handed: HandOver) -> ReplicaVm | None:
        """The VM, where its records say that it came by this hand-over."""
        known = self._agent.vms.get(handed.vm_id)
        return known if known is not None and is_taken(known, handed) else None

    async def differences(self, params: VmParams, client: Client) -> Differences:
        return await finish(handing_over.differences(await self._agent.reopening.standing(params.vm)))

    async def resolve(self, params: ResolveParams, client: Client) -> VmStatus:
        vm = await self._agent.reopening.standing(params.vm)
        promoted = vm.ledger.promotion
        try:
            await ordered(vm, "resolve", handing_over.give_up(vm, yes=params.yes))
        finally:
            if promoted is not None and vm.ledger.promotion is None:
                # The disks are this agent's again, and everything that works on them begins anew.
                await finish(self._agent.revive(vm, failed=False))
        return status_of(self._agent.find(vm.parts.uuid))
