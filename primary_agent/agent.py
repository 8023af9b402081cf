"""The primary agent: all VMs of this host, found at start, enabled, removed, and looked up for their orders."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Unpack

import structlog

from primary_agent.believing import keep
from primary_agent.damaged import DamagedVm
from primary_agent.description import keeper_of
from primary_agent.enabling import check_log_room, check_sockets, create, plan_vm, prepare_tap, tap_config
from primary_agent.fencing import fenced_config
from primary_agent.rebuilding import RECOVERABLE, check_unused, plan, read_remains, rebuild
from primary_agent.record import TapPlace, VmRecord
from primary_agent.replication import Replication
from primary_agent.surroundings import Surroundings
from primary_agent.trusting import end_distrusted
from primary_agent.vm import PrimaryVm
from primary_agent.vm_folders import forget, is_barely_begun, is_remains, is_vm_folder, remove_folder
from primary_agent.vm_status import damaged_status
from shared.admin.verbs import EnableParams
from shared.config_sections import PrimaryConfig
from shared.errors import InvalidStateError, NoSpaceError, NotFoundError, StoreDamagedError, VmreplicaError
from shared.event_query import Choice, EventsAnswer, sought_of_all
from shared.expiry import agent_problems, certificates_of
from shared.ports import Ports
from shared.status import AgentStatus, VmStatus
from shared.tap_config import TapConfig
from shared.tasks import uninterrupted

REVIVAL_SECONDS = 30.0
"""A VM whose state could not be written is started anew after so long,"""
REVIVAL_ROOM = 1 << 20
"""once its volume has so many bytes free."""
TAPS_ASKED_MAX = 64
"""For a status of more VMs than this their taps are not woken: what each told last is at most some seconds old."""
TAP_START_SECONDS = 60.0
"""How long ``enable`` waits for the tap to serve the disks."""

SERVED_SECONDS = 60.0
"""How long the host's start may wait for all taps: libvirt starts its VMs after that."""

log = structlog.get_logger(__name__)


class PrimaryAgent:
    """Owns the VMs. ``start`` finds and starts them, ``stop`` ends all tasks; taps go on in either case."""

    def __init__(self, config: PrimaryConfig, ports: Ports, *, surroundings: Surroundings | None = None) -> None:
        self.config = config
        self.ports = ports
        self.surroundings = surroundings or Surroundings.of(config, ports)
        self.surroundings.volumes.folders = lambda: [self._vms_folder]
        self._vms_folder = f"{config.state_dir}/vms"
        self.vms: dict[bytes, PrimaryVm] = {}
        self.damaged: dict[str, DamagedVm] = {}
        self.started_time = ports.clock.wall()
        self.certificate_end: Callable[[], float | None] = lambda: None
        """When this host's certificate ends, in seconds since the Unix epoch: shown, lest it expire unseen."""
        self.unseen_processes = 0
        """Processes whose open files could not be seen by the last look who uses the disks."""
        self.problems: Callable[[], list[str]] = list
        """What concerns the agent as a whole."""
        self.changing = asyncio.Lock()
        """Held while VMs, or disks of them, come and go."""
        self._revivals: set[asyncio.Task[None]] = set()

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find all VMs and start them. One whose state is damaged is listed and left alone."""
        folder = self._vms_folder
        await self.ports.workers.run(self.ports.files.make_folder, folder)
        for name in await self.ports.workers.run(self.ports.files.list, folder):
            if is_vm_folder(name):
                await self._load(name)
            elif is_remains(name):
                await self.ports.workers.run(self.ports.files.remove_tree, f"{folder}/{name}")

    async def stop(self) -> None:
        """End all tasks of all VMs and close their stores."""
        for task in self._revivals:
            task.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)
        await asyncio.gather(*(vm.stop() for vm in self.vms.values()), *(vm.leave() for vm in self.damaged.values()))
        self.vms.clear()

    async def served(self) -> None:
        """Wait until each VM's tap serves its disks or was found not to; SERVED_SECONDS at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SERVED_SECONDS):
                waited = [vm.parts.tap for vm in self.vms.values() if vm.parts.handed_over is None]
                await asyncio.gather(*(tap.settled() for tap in waited))

    def reload(self, config: PrimaryConfig) -> None:
        """Take over a new configuration: what all VMs share of it is in force at once. Sessions go on."""
        self.config = config
        self.surroundings.adopt(config)

    def reexamine(self) -> None:
        """End the sessions with replicas whose certificates would not be accepted any more, and tell them why."""
        end_distrusted(self.vms.values(), self.ports.network.trust)

    def try_again(self) -> None:
        """Dial the replicas that there is no session with at once."""
        for vm in self.vms.values():
            if vm.parts.link.dialled is None:
                vm.parts.link.poke.notify()

    async def _load(self, name: str) -> None:
        folder, run, files = f"{self._vms_folder}/{name}", self.ports.workers.run, self.ports.files
        try:
            store = await self.ports.stores.open(folder)
        except VmreplicaError as error:
            if isinstance(error, StoreDamagedError) and not await run(files.list, folder):
                # Enabling was interrupted before it wrote anything.
                await run(files.remove_tree, folder)
            else:
                await self._damaged(name, folder, error)
            return
        if not store.names() and await run(is_barely_begun, files, folder):
            # So was a hand-over: whoever carries it gives it once more.
            await store.close()
            await run(remove_folder, files, folder)
            return
        try:
            replication = Replication(store, self.ports.clock, self.surroundings.monitoring)
            config = tap_config(replication.vm, folder, self._runtime_folder(name), self.surroundings.nbd_group)
            config = fenced_config(config, replication)
            await run(prepare_tap, files, config, replication.vm.tap)
        except (VmreplicaError, OSError) as error:
            await store.close()
            await self._damaged(name, folder, error)
            return
        replication.keeper = keeper_of(self.ports, folder)
        await replication.keeper.look()
        await replication.describe()
        vm = PrimaryVm(folder, replication, config, self.surroundings)
        self._take_in(vm)

    def _take_in(self, vm: PrimaryVm) -> None:
        self.vms[vm.record.vm] = vm
        vm.on_failure = self._failed
        vm.start()

    def _failed(self, vm: PrimaryVm) -> None:
        """Try a VM that failed again after a while: what failed may be over, and its state says how to go on."""

        async def later() -> None:
            while vm.failure is not None and self.vms.get(vm.record.vm) is vm:
                await asyncio.sleep(REVIVAL_SECONDS)
                with contextlib.suppress(NoSpaceError):
                    await self.revive(vm)

        task = asyncio.get_running_loop().create_task(later())
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def revive(self, vm: PrimaryVm) -> None:
        """Start a failed VM anew from its durable state. Raises NoSpaceError where that would fail at once."""
        async with self.changing:
            if vm.failure is None or self.vms.get(vm.record.vm) is not vm:
                return
            free = await self.ports.workers.run(self.ports.files.free_space, vm.folder)
            if free < REVIVAL_ROOM:
                raise NoSpaceError(
                    f"{vm.name} can't go on: the volume of {vm.folder} has {free} bytes free, "
                    f"{REVIVAL_ROOM - free} too few.",
                    "Make room there; it then goes on by itself, or at once with `vmreplica resume`.",
                )
            await vm.stop()
            del self.vms[vm.record.vm]
            await self._load(vm.uuid)

    async def _damaged(self, identity: str, folder: str, error: Exception) -> None:
        if not isinstance(error, VmreplicaError):
            error = VmreplicaError(f"{folder} can't be used: {error}.", "Check the volume, and start the agent again.")
        elif error.code in RECOVERABLE:
            remedy = (
                f"Its disks were not touched, and its tap goes on. Run `vmreplica recover {identity} --role primary`: "
                "it makes the state anew from what the VM's folder tells, and keeps the old one aside."
            )
            error = StoreDamagedError(error.text, remedy)
        log.error("a VM can't be loaded", vm=identity, reason=str(error))
        vm = self.damaged[identity] = DamagedVm(identity, identity, folder, error)
        with contextlib.suppress(VmreplicaError):
            remains = await self.ports.workers.run(read_remains, self.ports.files, folder, uuid.UUID(identity).bytes)
            vm.name = remains.name or identity
            await vm.serve(remains, self.ports)

    # --- looking up ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> PrimaryVm:
        """The VM of that name or UUID. Raises NotFoundError, or what is wrong with its state."""
        for vm in self.vms.values():
            if name in (vm.name, vm.uuid):
                return vm
        damaged = self._find_damaged(name)
        if damaged is not None:
            raise damaged.error
        known = ", ".join(sorted(vm.name for vm in self.vms.values())) or "none"
        raise NotFoundError(f"No VM {name} is replicated from this host.", f"Known VMs: {known}.")

    def _find_damaged(self, name: str) -> DamagedVm | None:
        found = [vm for vm in self.damaged.values() if vm.is_named(name)]
        return found[0] if len(found) == 1 else None

    async def status(self, name: str | None = None) -> AgentStatus:
        """The agent with all its VMs, or with one."""
        statuses: list[VmStatus]
        if name is None:
            fresh = len(self.vms) <= TAPS_ASKED_MAX
            statuses = list(await asyncio.gather(*(vm.status(fresh=fresh) for vm in self.vms.values())))
        elif self._find_damaged(name) is not None:
            statuses = []
        else:
            statuses = [await self.find(name).status()]
        now = self.ports.clock.wall()
        damaged = [damaged_status(vm, now) for vm in self.damaged.values() if name is None or vm.is_named(name)]
        return AgentStatus(
            role="primary",
            host=self.config.host,
            version=self.surroundings.version,
            pid=os.getpid(),
            started_time=self.started_time,
            time=now,
            certificate_not_after_time=self.certificate_end(),
            certificates=certificates_of(self.ports.network.trust),
            unseen_processes=self.unseen_processes,
            vms=sorted([*statuses, *damaged], key=lambda vm: vm.name),
            problems=[*agent_problems(self.ports.network.trust, now), *self.problems()],
        )

    async def known(self) -> list[VmStatus]:
        """What is known of all VMs, without asking their taps; gives way to others between VMs."""
        statuses = []
        for vm in list(self.vms.values()):
            statuses.append(await vm.status(fresh=False))
            await asyncio.sleep(0)
        now = self.ports.clock.wall()
        return statuses + [damaged_status(vm, now) for vm in self.damaged.values()]

    async def events(self, name: str | None, **choice: Unpack[Choice]) -> EventsAnswer:
        """Events of one VM or of all. Raises what keeps those of a single VM from being read."""
        if name is not None:
            return EventsAnswer(await self.find(name).events(**choice))
        names = {vm.uuid: vm.name for vm in self.vms.values()} | {vm.identity: vm.name for vm in self.damaged.values()}
        return await sought_of_all(names, lambda wanted: self.find(wanted).events(**choice), choice["limit"])

    # --- enabling and removing -------------------------------------------------------------------------------------

    async def enable(self, params: EnableParams) -> PrimaryVm:
        """Begin to track a VM's disks: its tap serves them when this returns. Nothing is left behind by a failure."""
        async with self.changing:
            taken = [vm.record for vm in self.vms.values()]
            record = await self.ports.workers.run(plan_vm, params, taken, self.ports)
            name = str(uuid.UUID(bytes=record.vm))
            folder = f"{self._vms_folder}/{name}"
            if name in self.damaged:
                raise self.damaged[name].error
            config = tap_config(record, folder, self._runtime_folder(name), self.surroundings.nbd_group)
            config.check()
            check_sockets(config)
            await self.ports.workers.run(self.ports.files.make_folder, folder)
            try:
                await self.ports.workers.run(check_log_room, config, self.ports, folder)
                vm = await self._create(folder, record, config)
            except (Exception, asyncio.CancelledError):
                await self.ports.workers.run(self.ports.files.remove_tree, folder)
                raise
            self.vms[record.vm] = vm
            return vm

    async def _create(self, folder: str, record: VmRecord, config: TapConfig) -> PrimaryVm:
        store = await self.ports.stores.open(folder, create=True)
        text = f"Replication of {record.name} to {record.replica} was enabled, with {len(record.disks)} disk(s)."
        try:
            await create(store, record, self.ports.clock, text)
            await self.ports.workers.run(prepare_tap, self.ports.files, config)
            replication = Replication(store, self.ports.clock, self.surroundings.monitoring)
            replication.keeper = keeper_of(self.ports, folder)
            await replication.describe()
            vm = PrimaryVm(folder, replication, config, self.surroundings)
        except (Exception, asyncio.CancelledError):
            await store.close()
            raise
        vm.on_failure = self._failed
        vm.start()
        try:
            await vm.parts.tap.served(TAP_START_SECONDS)
        except (Exception, asyncio.CancelledError):
            await vm.dismantle()
            raise
        return vm

    async def remove(self, name: str) -> None:
        """Stop replication of a VM and its tap, and forget it. Its disks stay as they are."""
        async with self.changing:
            damaged = self._find_damaged(name)
            if damaged is not None:
                await damaged.leave()
                await damaged.stop_tap(self.ports)
                await self._forget(damaged.folder, damaged.identity, damaged.tap_place)
                del self.damaged[damaged.identity]
                return
            vm = self.find(name)
            del self.vms[vm.record.vm]
            try:
                await vm.dismantle()
            except VmreplicaError as error:
                # Its tasks have ended: it is listed as damaged, and removing it can be tried again.
                await self._damaged(vm.uuid, vm.folder, error)
                raise
            await self._forget(vm.folder, vm.uuid, vm.record.tap)

    # --- recovering ------------------------------------------------------------------------------------------------

    async def recover(self, name: str, replica: str, order: dict[str, Any]) -> PrimaryVm:
        """Rebuild the state of a VM that is damaged; its tap goes on. ``replica`` is its address, or empty if it is
        known; ``order`` says who asked.

        Raises InvalidStateError for a VM whose state is sound, and where too little is left; UsageError without an
        address where one is needed.
        """
        async with self.changing:
            damaged = self._find_damaged(name)
            if damaged is None:
                vm = self.find(name)
                raise InvalidStateError(f"The state of {vm.name} is sound: there is nothing to recover.")
            return await uninterrupted(self._recover(damaged, replica, order))

    async def _recover(self, damaged: DamagedVm, replica: str, order: dict[str, Any]) -> PrimaryVm:
        identity, folder = damaged.identity, damaged.folder
        await self._load_again(damaged)
        if (again := self.damaged.get(identity)) is not None:
            # Read only now that the state was found damaged once more: an intact one is always believed.
            if again.error.code not in RECOVERABLE:
                raise again.error
            vm = uuid.UUID(identity).bytes
            remains = await self.ports.workers.run(read_remains, self.ports.files, folder, vm)
            record = plan(remains, vm, replica, self.ports.clock.wall())
            check_unused(record, [vm.record for vm in self.vms.values()])
            await rebuild(self.ports, folder, remains, record, again.error.text, order)
            await self._load_again(again)
        if (found := self.damaged.get(identity)) is not None:
            raise found.error
        return self.vms[uuid.UUID(identity).bytes]

    async def _load_again(self, damaged: DamagedVm) -> None:
        del self.damaged[damaged.identity]
        await damaged.leave()
        await self._load(damaged.identity)

    async def _forget(self, folder: str, identity: str, place: TapPlace | None) -> None:
        """Delete what is the VM's own here; its tap has been stopped."""
        await self.ports.workers.run(forget, self.ports.files, folder, self._runtime_folder(identity), place)

    # --- reversing -------------------------------------------------------------------------------------------------

    async def take_over(self, vm: bytes, fill: Callable[[str], Awaitable[None]]) -> PrimaryVm:
        """Start a VM whose folder ``fill`` makes and fills. Nothing is left behind by a failure."""
        async with self.changing:
            identity = str(uuid.UUID(bytes=vm))
            folder = f"{self._vms_folder}/{identity}"
            if vm in self.vms or identity in self.damaged:
                raise InvalidStateError(f"The VM {identity} is replicated from this host already.")
            try:
                await fill(folder)
            except (Exception, asyncio.CancelledError):
                await self.ports.workers.run(remove_folder, self.ports.files, folder)
                raise
            await self._load(identity)
            if (damaged := self.damaged.pop(identity, None)) is not None:
                # The replica agent goes on with it, and the order may be given again.
                await damaged.leave()
                await self.ports.workers.run(remove_folder, self.ports.files, folder)
                raise damaged.error
            return self.vms[vm]

    async def let_go(self, vm: PrimaryVm) -> None:
        """Forget a VM that the replica agent of this host has taken over."""
        async with self.changing:
            # What that agent says of it on the day it comes back is not to be believed: this is.
            await self.ports.workers.run(keep, self.ports.files, self.config.state_dir, vm.record)
            del self.vms[vm.record.vm]
            await vm.stop()
            await self._forget(vm.folder, vm.uuid, vm.record.tap)

    def _runtime_folder(self, identity: str) -> str:
        return f"{self.config.runtime_dir}/{identity}"
