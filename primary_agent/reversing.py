"""The primary agent's part in reversing the direction of a VM: its admin methods, step by step.

``vmreplica reverse`` drives the steps over the sockets of both agents of one host; each is durable and may be repeated,
so that a crash anywhere is answered by the same command.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from primary_agent import believing, handing_over, resolving
from primary_agent.agent import PrimaryAgent
from primary_agent.enabling import split_address
from primary_agent.record import VmRecord
from primary_agent.taking_over import create, is_taken, keep_ranges, plan
from shared.admin import verbs
from shared.admin.carrying import Carriers
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
from shared.errors import InvalidStateError, UsageError
from shared.handover import HandOver
from shared.handover_parts import HandOverParts, require_carrier
from shared.status import VmStatus

WithSettings = Callable[[VmRecord, dict[str, Any]], VmRecord]


class Reversing:
    """The steps, for one agent."""

    def __init__(self, agent: PrimaryAgent, with_settings: WithSettings) -> None:
        self._agent = agent
        self._with_settings = with_settings
        self._parts = HandOverParts()
        self._carriers = Carriers()
        self._handing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while a VM is let go, or taken back: what is about to be taken back is not told once more."""
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
        vm = self._agent.find(params.vm)
        identity = vm.uuid
        self._carriers.begin(identity, vm.name, client)
        try:
            async with self._handing[identity]:
                vm = self._agent.find(identity)
                return await handing_over.hand_over(vm, yes=params.yes, despite_split=params.despite_split)
        except BaseException as error:
            self._carriers.end(identity, client)
            if isinstance(error, InvalidStateError) and error.code != handing_over.NEEDS_YES:
                await vm.note_refusal("reverse", error)
            raise

    async def handed_over(self, params: HandedOverParams, client: Client) -> None:
        identity = self._agent.find(params.vm).uuid
        async with self._handing[identity]:
            vm = self._agent.find(identity)
            self._carriers.judge(identity, vm.name, client)
            if not params.taken:
                await handing_over.take_back(vm)
            elif vm.parts.handed_over is None:
                raise InvalidStateError(f"{vm.name} was not handed over.", "Run `vmreplica reverse` for that.")
            else:
                await self._agent.let_go(vm)
            self._carriers.end(identity, client)

    async def adopt_part(self, params: AdoptPartParams, client: Client) -> None:
        self._parts.add(client, params.vm, params.offset, params.data)

    async def adopt(self, params: AdoptParams, client: Client) -> VmStatus:
        handed = HandOver.read(params.handover)
        # Refused the second time, it would be given back to the replica agent, although it was taken.
        async with self._adopting:
            return await self._adopt(handed, params, client)

    async def _adopt(self, handed: HandOver, params: AdoptParams, client: Client) -> VmStatus:
        agent = self._agent
        known = agent.vms.get(handed.vm_id)
        if known is not None and is_taken(known.record, handed):
            return await known.status()
        require_carrier(client, handed)
        run, files, state = agent.ports.workers.run, agent.ports.files, agent.config.state_dir
        # It comes from another user's program, and this one is root (docs/security.md).
        believing.judge_order(handed, params.vm)
        kept = await run(believing.read_kept, files, state, handed.vm_id)
        await run(believing.judge, handed, await run(believing.read_places, agent.config.replica_config), kept)
        ranges = self._parts.take(client, handed)
        replica = params.replica or handed.peer
        if not replica:
            text = f"Nothing tells where the replica of {handed.name} is to be."
            raise UsageError(text, "Add --replica HOST[:PORT].")
        taken = [vm.record for vm in agent.vms.values()]
        record = plan(handed, split_address(replica), taken, agent.ports.clock.wall())
        record = self._with_settings(record, kept.settings if kept is not None else {})

        async def fill(folder: str) -> None:
            await run(files.make_folder, folder)
            store = await agent.ports.stores.open(folder, create=True)
            try:
                mapped = await run(keep_ranges, files, folder, handed, ranges)
                await create(store, record, handed, agent.ports.clock, mapped=mapped)
            finally:
                await store.close()

        vm = await agent.take_over(handed.vm_id, fill)
        with contextlib.suppress(OSError):
            # It is taken: an error would have the replica agent take it back, and the VM have two owners.
            await run(believing.drop, files, state, handed.vm_id)
        return await vm.status()

    async def differences(self, params: VmParams, client: Client) -> Differences:
        return await resolving.differences(self._agent.find(params.vm))

    async def resolve(self, params: ResolveParams, client: Client) -> VmStatus:
        vm = self._agent.find(params.vm)
        await resolving.keep_primary(vm, yes=params.yes)
        return await vm.status()
