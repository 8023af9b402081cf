"""The replica agent: all VMs in its storage locations, the primaries' connections, and the orders to VMs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Unpack

import structlog

from protocol.messages import ErrorCode, Open
from protocol.position import Position
from replica_agent.authorize import Authorization, Grant
from replica_agent.creating import clear_folder, create_vm, plan_vm
from replica_agent.damaged import DamagedVm, damaged_vm
from replica_agent.description import keeper_of
from replica_agent.finishing import finish
from replica_agent.layout import read_vm_folder, vm_folder
from replica_agent.ledger import Ledger
from replica_agent.parts import Surroundings
from replica_agent.quota import Copy
from replica_agent.rebuilding import RECOVERABLE, rebuild
from replica_agent.record import VmRecord
from replica_agent.refusals import Refusal
from replica_agent.removing import delete, dismantle, not_deleted
from replica_agent.reopening import LOOK_SECONDS, Reopening
from replica_agent.sessions import Sessions
from replica_agent.storages import Storages
from replica_agent.vm import ReplicaVm, settle
from replica_agent.vm_status import damaged_status, status_of
from shared.admin.carrying import Carriers
from shared.config_sections import ReplicaConfig
from shared.errors import InvalidStateError, NotFoundError, StoreDamagedError, VmreplicaError
from shared.event_query import Choice, Event, EventsAnswer, sought_of_all, sought_of_vm
from shared.expiry import agent_problems, certificates_of
from shared.limits import LimitsStatus
from shared.ports import Address, Ports, Store
from shared.status import AgentStatus, VmStatus

REVIVAL_SECONDS = 30.0

log = structlog.get_logger(__name__)


class ReplicaAgent:
    """Owns the VMs. ``start`` finds them and listens; ``stop`` ends everything but the taps of promoted VMs."""

    def __init__(self, config: ReplicaConfig, ports: Ports, *, surroundings: Surroundings | None = None) -> None:
        self.config = config
        self.ports = ports
        self.surroundings = surroundings or Surroundings.of(config, ports)
        self.vms: dict[bytes, ReplicaVm] = {}
        self.damaged: dict[bytes, DamagedVm] = {}
        self.sessions = Sessions(
            self.surroundings,
            Authorization.of(config),
            self._storage_of,
            self._vm_for,
            self.vms.keys,
            self._copies,
        )
        self.surroundings.volumes.folders = lambda: self.sessions.authorization.storages
        self.surroundings.overlay_room.quota = self.quota_left
        self.surroundings.quota_of = self.sessions.quota_of
        self.started_time = ports.clock.wall()
        self.certificate_end: Callable[[], float | None] = lambda: None
        """When this host's certificate ends, in seconds since the Unix epoch: shown, lest it expire unseen."""
        self.arrivals: Callable[[], LimitsStatus] = LimitsStatus
        """What is known of connections before their handshake is over."""
        self.problems: Callable[[], list[str]] = list
        """What concerns the agent as a whole."""
        self.exposed: list[Callable[[ReplicaVm, Position], None]] = []
        """Called synchronously whenever the disks of a VM are exactly at a new point, and at its start."""
        self.storages = Storages(self._find)
        self.reopening = Reopening(ports.clock, self.find)
        self.carriers = Carriers()
        self._changing = asyncio.Lock()
        self._revivals: set[asyncio.Task[None]] = set()

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find and start all VMs, then listen. Raises what listening raises; a VM's trouble stays its own, and so does
        that of a storage location, which is looked at again and again.
        """
        await self.storages.begin(self.sessions.authorization.storages, self._changing)
        listen = self.config.listen
        await self.sessions.listen(Address(host=listen.host, port=listen.port, tls=True))

    async def stop(self) -> None:
        """End all connections and VMs in order."""
        for task in list(self._revivals):
            task.cancel()
        await settle(self._revivals)
        await self.storages.stop()
        await asyncio.gather(*(vm.connections.end(_STOPPING) for vm in self.vms.values()))
        await self.sessions.close()
        await asyncio.gather(*(vm.stop() for vm in self.vms.values()))
        self.vms.clear()

    async def reload(self, config: ReplicaConfig) -> None:
        """Take over a new configuration: what all VMs share of it is in force at once; connections that its
        authorization no longer allows are ended, and the others go on.
        """
        authorization = Authorization.of(config)
        async with self._changing:
            # Before anything is in force: whoever connects by a new entry has to meet the copies that are there.
            for storage in authorization.storages:
                if storage not in self.sessions.authorization.storages or storage in self.storages.absent:
                    await self.storages.add(storage)
            self.config = config
            self.surroundings.adopt(config)
            for vm in self.vms.values():
                vm.adopt_surroundings()
            self.storages.keep(authorization.storages)
            self.sessions.reauthorize(authorization)

    def reexamine(self) -> None:
        """End the connections of peers whose certificates would not be accepted any more, and tell them why."""
        self.sessions.reexamine()

    async def _find(self, storage: str) -> None:
        """Start the VMs of one storage location."""
        await finish(self.ports.workers.run(self.ports.files.make_folder, storage))
        for name in await finish(self.ports.workers.run(self.ports.files.list, storage)):
            vm = read_vm_folder(name)
            if vm is not None and vm not in self.vms and vm not in self.damaged:
                await self._load(vm, vm_folder(storage, vm))

    async def _load(self, vm: bytes, folder: str) -> None:
        try:
            names = await finish(self.ports.workers.run(self.ports.files.list, folder))
        except (VmreplicaError, OSError) as error:
            # A link, say, or a pipe, in the place of a folder: nothing behind it is looked at.
            await self._list_damaged(vm, folder, error)
            return
        if not names:
            # Its creation was interrupted before anything was made.
            await finish(self.ports.workers.run(self.ports.files.remove_tree, folder))
            return
        try:
            store = await self.ports.stores.open(folder)
        except VmreplicaError as error:
            await self._list_damaged(vm, folder, error)
            return
        if not store.names():
            await store.close()
            await finish(self.ports.workers.run(clear_folder, self.ports, folder))
            return
        try:
            ledger = Ledger(store, self.ports.clock)
            if ledger.vm.vm != vm:
                raise StoreDamagedError(
                    f"The state in {folder} belongs to another VM, {ledger.vm.vm.hex()}.",
                    "Move the folder back to where it came from.",
                    code="store_foreign",
                )
        except VmreplicaError as error:
            await store.close()
            await self._list_damaged(vm, folder, error)
            return
        ledger.keeper = keeper_of(self.ports, folder)
        await finish(ledger.keeper.look())
        await ledger.describe()
        await self._take_in(ReplicaVm(self.surroundings, folder, ledger))

    async def _take_in(self, vm: ReplicaVm) -> ReplicaVm:
        self.vms[vm.parts.vm] = vm

        def exposed(position: Position) -> None:
            for callback in self.exposed:
                callback(vm, position)

        vm.on_exposed(exposed)
        vm.on_failure = self._failed
        vm.on_undone = lambda vm: self._spawn(self.revive(vm, failed=False))
        await vm.start()
        return vm

    def _failed(self, vm: ReplicaVm) -> None:
        """Try a VM that failed again after a while: what failed may be over, and its state says how to go on."""
        self.reopening.look_again()

        async def later() -> None:
            await asyncio.sleep(REVIVAL_SECONDS)
            await self.revive(vm)

        self._spawn(later())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def revive(self, vm: ReplicaVm, *, failed: bool = True) -> None:
        """Start a VM anew from its durable state, by default one that failed."""
        async with self._changing:
            if self.vms.get(vm.parts.vm) is vm and (vm.failure is not None or not failed):
                await finish(self._reload_vm(vm))

    async def _reload_vm(self, vm: ReplicaVm) -> None:
        with self.reopening.of(vm):
            try:
                await vm.stop()
            finally:
                await self._load(vm.parts.vm, vm.parts.layout.folder)
                if self.vms.get(vm.parts.vm) is vm:
                    del self.vms[vm.parts.vm]

    async def _list_damaged(self, vm: bytes, folder: str, error: VmreplicaError | OSError) -> None:
        damaged = self.damaged[vm] = await damaged_vm(self.ports, vm, folder, error)
        log.error("a VM can't be loaded", vm=damaged.identity, reason=str(damaged.error))

    # --- connections -----------------------------------------------------------------------------------------------

    def _storage_of(self, vm: bytes) -> str | None:
        """The storage location that has a copy of the VM."""
        if vm in self.vms:
            return self.vms[vm].parts.layout.folder.rpartition("/")[0]
        return self.damaged[vm].folder.rpartition("/")[0] if vm in self.damaged else None

    def _copies(self) -> Iterator[Copy]:
        """All copies here; of one whose state can't be read it is not known how large its disks are."""
        for vm in self.vms.values():
            folder, nominal = vm.parts.layout.folder, sum(disk.size for disk in vm.parts.ledger.vm.disks)
            yield Copy(vm.parts.vm, folder, folder.rpartition("/")[0], nominal)
        for damaged in self.damaged.values():
            yield Copy(damaged.vm, damaged.folder, damaged.folder.rpartition("/")[0], 0)

    async def quota_left(self, vm: bytes) -> int | None:
        """What the entries that are for this VM leave of their quotas to its writable exports; None for any."""
        grants = self.sessions.authorization.entries_of(vm, self._storage_of(vm))
        return await self.sessions.quotas.left(grants)

    async def _vm_for(self, grant: Grant, body: Open, peer: str) -> ReplicaVm:
        """The VM of an authorized OPEN; made where there is none yet."""
        async with self._changing:
            if body.vm in self.damaged:
                error = self.damaged[body.vm].error
                raise Refusal(ErrorCode.DAMAGED, error.text, error.remedy)
            self.storages.require(grant.storage)
            self.sessions.quotas.judge(grant, body)
            known = self.vms.get(body.vm)
            if known is not None:
                return known
            return await self._make(plan_vm(body, peer, self.ports.clock.wall()), grant.storage)

    async def make(self, record: VmRecord, grant: Grant) -> ReplicaVm:
        """The VM of that record; made where there is none yet, though its primary has never been here."""
        async with self._changing:
            self.storages.require(grant.storage)
            self.sessions.quotas.judge(grant, record)
            return self.vms.get(record.vm) or await self._make(record, grant.storage)

    async def _make(self, record: VmRecord, storage: str) -> ReplicaVm:
        folder = vm_folder(storage, record.vm)
        ledger = await finish(create_vm(self.ports, folder, record))
        return await finish(self._take_in(ReplicaVm(self.surroundings, folder, ledger)))

    # --- looking up ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> ReplicaVm:
        """The VM of that name or UUID. Raises NotFoundError, or what is wrong with its state."""
        found = [vm for vm in self.vms.values() if name in (vm.name, vm.parts.uuid)]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(f"Several VMs here are named {name}.", "Name it by its UUID.")
        damaged = self._find_damaged(name)
        if damaged is not None:
            raise damaged.error
        known = ", ".join(sorted(vm.name for vm in self.vms.values())) or "none"
        raise NotFoundError(f"No VM {name} is replicated to this host.", f"Known VMs: {known}.")

    def _find_damaged(self, name: str) -> DamagedVm | None:
        found = [vm for vm in self.damaged.values() if name in (vm.name, vm.identity)]
        return found[0] if len(found) == 1 else None

    def status(self, name: str | None = None) -> AgentStatus:
        """The agent with all its VMs, or with one."""
        damaged = [vm for vm in self.damaged.values() if name in (None, vm.name, vm.identity)]
        vms = list(self.vms.values()) if name is None else []
        if name is not None and not damaged:
            vms = [self.find(name)]
        statuses, now = [status_of(vm) for vm in vms], self.ports.clock.wall()
        statuses += [damaged_status(vm, now) for vm in damaged]
        listener = self.sessions.listener
        return AgentStatus(
            role="replica",
            host=self.surroundings.host,
            version=self.surroundings.software,
            pid=os.getpid(),
            started_time=self.started_time,
            time=now,
            certificate_not_after_time=self.certificate_end(),
            certificates=certificates_of(self.ports.network.trust),
            listening=[str(listener.address)] if listener is not None else [],
            limits=self.sessions.add_to(self.arrivals()),
            vms=sorted(statuses, key=lambda vm: vm.name),
            problems=[*agent_problems(self.ports.network.trust, now), *self.problems(), *self.storages.problems()],
        )

    async def known(self) -> list[VmStatus]:
        """What is known of all VMs; gives way to others between VMs."""
        statuses = []
        for vm in list(self.vms.values()):
            statuses.append(status_of(vm))
            await asyncio.sleep(0)
        now = self.ports.clock.wall()
        return statuses + [damaged_status(vm, now) for vm in self.damaged.values()]

    async def events(self, name: str | None, **choice: Unpack[Choice]) -> EventsAnswer:
        """Events of one VM or of all. Raises what keeps those of a single VM from being read."""

        async def events_of(wanted: str, seconds: float | None) -> list[Event]:
            vm = await self.reopening.standing(wanted, undone=False, seconds=seconds)
            return await sought_of_vm(vm.name, vm.parts.uuid, vm.ledger.store.events, **choice)

        if name is not None:
            return EventsAnswer(await events_of(name, None))
        names = {vm.parts.uuid: vm.name for vm in (*self.reopening, *self.vms.values())}
        names |= {damaged.identity: damaged.name for damaged in self.damaged.values()}
        return await sought_of_all(names, lambda wanted: events_of(wanted, LOOK_SECONDS), choice["limit"])

    # --- recovering ------------------------------------------------------------------------------------------------

    async def recover(self, name: str, order: dict[str, Any]) -> ReplicaVm:
        """Rebuild the state of a VM that is damaged; ``order`` says who asked. Its other files stay as they are.

        Raises InvalidStateError for a VM whose state is sound, and where too little is left.
        """
        async with self._changing:
            damaged = self._find_damaged(name)
            if damaged is None:
                vm = self.find(name)
                raise InvalidStateError(f"The state of {vm.name} is sound: there is nothing to recover.")
            del self.damaged[damaged.vm]
            try:
                return await finish(self._recover(damaged, order))
            finally:
                if damaged.vm not in self.vms:
                    self.damaged.setdefault(damaged.vm, damaged)

    async def _recover(self, damaged: DamagedVm, order: dict[str, Any]) -> ReplicaVm:
        # An intact state is always believed: it may have been brought back meanwhile.
        await self._load(damaged.vm, damaged.folder)
        again = self.damaged.pop(damaged.vm, None)
        if again is not None:
            if again.error.code not in RECOVERABLE:
                raise again.error
            await rebuild(self.ports, damaged.folder, damaged.vm, self.surroundings.host, again.error.text, order)
            await self._load(damaged.vm, damaged.folder)
        if damaged.vm not in self.vms:
            found = self.damaged.get(damaged.vm)
            raise found.error if found is not None else NotFoundError(f"Nothing of {damaged.name} was kept here.")
        return self.vms[damaged.vm]

    async def replace(self, vm: bytes, folder: str, write: Callable[[Store], Awaitable[None]]) -> ReplicaVm:
        """Start a VM anew of which ``write`` has put all records in the place of what was there."""
        async with self._changing:
            known = self.vms.pop(vm, None)
            with self.reopening.of(known) if known is not None else contextlib.nullcontext():
                try:
                    if known is not None:
                        await known.stop()
                    store = await self.ports.stores.open(folder, create=known is None)
                    try:
                        await write(store)
                    finally:
                        await store.close()
                finally:
                    await self._load(vm, folder)
            if vm in self.damaged:
                raise self.damaged[vm].error
            return self.vms[vm]

    # --- removing --------------------------------------------------------------------------------------------------

    async def remove(self, name: str, *, released: bool = False) -> str:
        """Forget a VM and its copy; the folder in which disks of it stay, or empty (replica_agent.removing)."""
        async with self._changing:
            if (damaged := self._find_damaged(name)) is not None:
                raise not_deleted(name, damaged)
            vm = self.find(name)
            try:
                keep = await dismantle(vm, self.ports.clock.wall(), self.carriers, released=released)
                del self.vms[vm.parts.vm]
                self.reopening.look_again()
                await finish(delete(self.ports, vm, keep))
            except Exception:
                if vm.parts.closing:
                    # It is what is on record of it, and may be removed again.
                    await finish(self._reload_vm(vm))
                raise
            return keep


_STOPPING = Refusal(ErrorCode.SHUTDOWN, "The replica agent stops.", "It is tried again.")
