"""The world of one run: two hosts with the real tap and agents, a guest, an oracle, and the checks on what they do."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from primary_agent.admin import with_settings
from primary_agent.agent import PrimaryAgent
from primary_agent.tap.control import Surroundings, TapControl
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.exports import DiskExport
from primary_agent.tap.process import Identity, TapFailedError, TapProcess
from protocol.entries import EntryKind
from protocol.messages import ManifestRequest
from protocol.position import Position
from replica_agent.agent import ReplicaAgent
from replica_agent.authorize import Grant
from shared.admin.verbs import EnableParams
from shared.config_sections import ListenSection
from shared.errors import VmreplicaError
from shared.nbd.backend import Mutation
from shared.nbd.server import NbdServer
from shared.ports import Address, Buffer, Ports
from shared.schedule import ResyncMode
from shared.states import ReplicationState
from shared.tap_control import GuestLatency
from tests.simulation.agents import primary_agent_of, replica_agent_of
from tests.simulation.constants import (
    DISK_FOLDER,
    DISKS,
    PORT,
    PRIMARY_STORE,
    REPLICA_FOLDER,
    VM,
    VM_ID,
)
from tests.simulation.disk import PAGE, SimulatedFile, SimulatedFileSystem
from tests.simulation.exports import ExportReaders
from tests.simulation.guest import Guest
from tests.simulation.hosts import Host
from tests.simulation.loop import Process, SimulationLoop
from tests.simulation.net import Wire
from tests.simulation.options import Options
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.overlays import OverlayWriters
from tests.simulation.plans import HOLDS, Plans
from tests.simulation.promoted import PromotedVm
from tests.simulation.replica_view import ReplicaView
from tests.simulation.runs_view import check_runs
from tests.simulation.schedule_view import ScheduleView
from tests.simulation.second_agents import SECOND, SecondAgents
from tests.simulation.services import SimulatedClock, StoreContent
from tests.simulation.verifies import Verifies

SUSPENDED = (ReplicationState.SUSPENDED, ReplicationState.RESYNCHRONIZE_SUSPENDED)


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What a replica agent needs of its configuration."""

    host: str
    runtime_dir: str
    listen: Address
    grants: tuple[Grant, ...]


class World:
    """Everything of one run. ``failure`` is done with the first violation."""

    def __init__(self, options: Options, loop: SimulationLoop) -> None:
        self.options = options
        self.loop = loop
        self.rng = random.Random(f"{options.seed}/world")
        self.failure: asyncio.Future[None] = loop.create_future()
        self.context = contextvars.Context()
        """That of no process: for what the world itself does."""
        self.counts: Counter[str] = Counter()
        self.journal: list[str] | None = None
        """What happened, in words, where somebody wants to read it."""
        self.wire = Wire(loop, random.Random(f"{options.seed}/wire"))
        self.wire.slow = options.slow
        self.primary = Host("P", loop, self.wire, options, self._tap_main)
        self.replica = Host("R", loop, self.wire, options, self._tap_main)
        for host in self.hosts:
            host.born = self._born
            host.failed = self.fail
        images = self._make_disks()
        self.oracle = Oracle(images)
        self.guest = Guest(loop, options, self.oracle, self.fail)
        self.view = ReplicaView(self.replica, REPLICA_FOLDER, DISKS, self.oracle, self.fail)
        self.view.required = lambda: (self.baseline, self.acknowledged_cuts.get(self.baseline or b"", 0))
        self.replica.committed = self.view.committed
        self.clock = SimulatedClock(loop, self.primary.boot_id, options.zone)
        self.schedule = ScheduleView(
            self.clock, lambda: self.wire.heard_at.get("P", 0.0), self.fail, stalls=bool(options.stalls)
        )
        self.primary.committed = self._primary_committed
        self.agents: dict[str, PrimaryAgent | ReplicaAgent] = {}
        self._orders: list[tuple[Process, asyncio.Task[Any]]] = []
        self.told_to_stop: dict[Process, asyncio.Event] = {}
        self.acknowledged_cuts: dict[bytes, int] = {}
        """The newest cut of each epoch that the primary knows to be at the replica."""
        self.baseline: bytes | None = None
        """The newest epoch whose commit the primary knows of."""
        self.losing_power = False
        self.doomed: set[Process] = set()
        """Processes with whose death their host loses power."""
        self.exports = ExportReaders(self)
        self.overlays = OverlayWriters(self)
        self.verifies = Verifies(self)
        self.plans = Plans(self)
        self.served: set[Process] = set()
        """All taps that ever served anything."""
        self.serving: dict[Process, list[DiskExport]] = {}
        """What the taps of the replica's host serve."""
        self.promoted = PromotedVm(self, self.replica, self.view, "promoted")
        self.second: SecondAgents | None = None
        """The other agent of each host, once a direction is to be reversed."""

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.primary, self.replica

    # --- what goes wrong, and what is told ---

    def fail(self, violation: BaseException) -> None:
        """Something must not be: the run ends."""
        if not self.failure.done():
            self.tell(f"VIOLATION {violation}")
            self.failure.set_exception(violation)

    def tell(self, text: str) -> None:
        if self.journal is not None:
            self.journal.append(f"{self.loop.now:10.6f}  {text}")

    def count(self, what: str) -> None:
        self.counts[what] += 1
        self.tell(what)

    # --- disks ---

    def disk_path(self, index: int) -> str:
        return f"{DISK_FOLDER}/disk-{index}.raw"

    def _make_disks(self) -> list[bytes]:
        files = SimulatedFileSystem(self.primary.volume, Process("installer"))
        files.make_folder(DISK_FOLDER)
        images = []
        for index in range(DISKS):
            file: SimulatedFile = files.open(self.disk_path(index), write=True, create=True)
            file.truncate(self.options.pages * PAGE)
            for page in range(self.options.pages):
                if self.rng.random() < 0.3:
                    file.write(page * PAGE, self.rng.randbytes(PAGE))
            file.sync()
            images.append(file.inode.image())
        files.sync_folder(DISK_FOLDER)
        return images

    def disks(self) -> list[bytes]:
        """The guest's disks as programs on their host see them."""
        return [self.primary.volume.entries[self.disk_path(index)].image() for index in range(DISKS)]

    # --- processes ---

    def _born(self, host: Host, role: str, process: Process) -> None:
        self.tell(f"{process.name} starts (process {process.number})")
        process.on_death.append(lambda: self._died(host, role, process))

    def _died(self, host: Host, role: str, process: Process) -> None:
        self.tell(f"{process.name} ends (process {process.number})")
        if process in self.doomed and not self.losing_power:
            self.losing_power = True
            self.loop.call_soon(self._lose_power_now, host, context=self.context)
        if role == "tap" and host is self.primary and self.guest.process is process:
            self.guest.detach()
            self._check_survivors(power=False)
        if self.serving.pop(process, None) is not None:
            self.promoted_at(host).tap_died(process)
        if role == SECOND and self.second is not None:
            self.second.died(host)
        if role == "agent":
            self._guarded(self.check_runs)
            self._guarded(self.view.check_below)
            self.agents.pop(host.name, None)
            if not self.losing_power:
                self.loop.call_later(self.rng.uniform(0.02, 1.5), self.start_agent, host, context=self.context)

    def _check_survivors(self, *, power: bool) -> None:
        """After a kill every answered write is on the disk; after power loss every flushed one (I4)."""
        check = self.oracle.lost_power if power else self.oracle.killed
        self._guarded(lambda: check(self.disks()))

    def kill(self, host: Host, role: str) -> None:
        """SIGKILL, now."""
        process = host.alive(role)
        if process is not None:
            self.count(f"kill {role}@{host.name}")
            process.kill()

    def lose_power(self, host: Host) -> None:
        """The host loses power, and comes back after a while."""
        if not host.up:
            return
        self.count(f"power loss {host.name}")
        self.losing_power = True
        host.up = False
        host.lose_power()
        self.losing_power = False
        if host is self.primary:
            self.guest.reset()
            self.plans.unsound = True
            if self.second is None or not self.second.taken:
                self._check_survivors(power=True)
        else:
            self.view.check_after_crash()
            self.promoted.lost_power()
        if self.second is not None and host is self.primary:
            self.second.lost_power()
        self.loop.call_later(self.rng.uniform(0.1, 3), self.boot, host, context=self.context)

    def _lose_power_now(self, host: Host) -> None:
        self.losing_power = False
        self.lose_power(host)

    def boot(self, host: Host) -> None:
        host.up = True
        self.tell(f"{host.name} boots")
        self.start_agent(host)
        if self.second is not None:
            self.second.start(host)

    def start_agent(self, host: Host) -> None:
        if host.up and host.alive("agent") is None:
            host.start("agent", self._primary_main if host is self.primary else self._replica_main)

    async def _primary_main(self, ports: Ports, process: Process) -> None:
        agent = primary_agent_of(ports, "P")
        await agent.start()
        await self.run_agent(self.primary, agent, process, self.agents)

    async def _replica_main(self, ports: Ports, process: Process) -> None:
        agent = replica_agent_of(ports, self.options, "R", ListenSection(host="replica", port=PORT), "P")
        await agent.start()
        await self.run_agent(self.replica, agent, process, self.agents)

    async def run_agent(
        self,
        host: Host,
        agent: PrimaryAgent | ReplicaAgent,
        process: Process,
        agents: dict[str, PrimaryAgent | ReplicaAgent],
    ) -> None:
        """Until the agent is told to stop in order."""
        told = self.told_to_stop[process] = asyncio.Event()
        agents[host.name] = agent
        await told.wait()
        await agent.stop()

    def restart_agent(self, host: Host) -> None:
        """Stop the agent in order; it starts again by itself."""
        process = host.alive("agent")
        if process is not None and process in self.told_to_stop:
            self.count(f"restart agent@{host.name}")
            self.told_to_stop[process].set()

    # --- the tap ---

    async def _tap_main(self, host: Host, folder: str, ports: Ports, process: Process) -> None:
        """What the tap's program does."""
        tap = GuestsTap(folder, ports, Identity(process.number, "simulation"), authorize=lambda _peer, _method: None)
        tap.world, tap.process, tap.host = self, process, host
        tap.serves_guest = host is self.primary and not (self.second is not None and self.second.taken)
        try:
            await tap.run(serve_nbd=False)
        except TapFailedError as error:
            self.fail(error)
        except VmreplicaError as error:
            self.tell(f"{process.name} refuses: {error}")

    def stop_tap(self) -> None:
        """Stop the primary's tap in order, as its service manager would; the agent starts it again."""
        self.count("stop tap")
        self.order(self.primary, lambda vm: vm.parts.tap.stop_tap())

    # --- orders of the administrator ---

    def order(self, host: Host, work: Callable[[Any], Awaitable[Any]]) -> asyncio.Task[Any] | None:
        """Give an order to the VM of a host's agent; refusals are part of life."""
        agent, process = self.agents.get(host.name), host.alive("agent")
        if agent is None or process is None:
            return None

        async def run() -> Any:
            try:
                return await work(agent.find(VM))
            except VmreplicaError as error:
                self.tell(f"refused: {error}")
                return None

        task = process.spawn(run())
        self._orders.append((process, task))
        return task

    async def enable(self) -> None:
        """Begin to replicate the VM; nothing goes wrong yet."""
        await self._poll(lambda: len(self.agents) == len(self.hosts))
        agent, process = self.agents["P"], self.primary.processes["agent"]
        assert isinstance(agent, PrimaryAgent)
        params = EnableParams(
            name=VM,
            disks=[self.disk_path(index) for index in range(DISKS)],
            replica=f"replica:{PORT}",
            interval_seconds=self.options.interval,
            log_limit_bytes=self.options.log_limit or None,
            uuid=VM_ID,
        )
        await process.spawn(agent.enable(params))
        await process.spawn(self._configure(agent))
        await self._poll(agent.find(VM).parts.link.healthy)
        await process.spawn(agent.find(VM).initial())

    async def _poll(
        self, condition: Callable[[], bool], what: str = "the agents do not come up", seconds: float = 100
    ) -> None:
        """Wait until that is so, which must not take long."""
        for _ in range(int(seconds / 0.05)):
            if condition():
                return
            await asyncio.sleep(0.05)
        self.fail(Violation(what))

    async def _obeyed(self) -> None:
        """Wait until no order is under way: each may wait for a proof of connectivity, and they come one by one."""
        await self._poll(self._ordered, "I12: an order is not answered", 500)

    async def _configure(self, agent: PrimaryAgent) -> None:
        await _set(agent.find(VM), {"resync_mode": "automatic"})

    def configure(self, **settings: Any) -> asyncio.Task[Any] | None:
        """Have an administrator change settings of the VM at the primary."""
        return self.order(self.primary, lambda vm: _set(vm, settings))

    def order_again(self) -> None:
        """Ask for what was cancelled, where that is so."""
        record = self.primary_record()
        if not record:
            return
        state = ReplicationState(record["state"])
        if self.plans.step in HOLDS:
            self.plans.take_back()
        if state is ReplicationState.READY_FOR_INITIAL_REPLICATION:
            self.order(self.primary, lambda vm: vm.initial())
        elif state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE and record.get("stopped_time") is not None:
            self.order(self.primary, lambda vm: vm.resume(resynchronize=False))

    # --- what the primary claims ---

    def primary_record(self) -> dict[str, Any]:
        """The primary's durable record of the replication; empty where there is none."""
        content = self.primary.contents.get(PRIMARY_STORE)
        return (content.record("replication") or {}) if content is not None else {}

    def _primary_committed(self, folder: str, content: StoreContent) -> None:
        if folder == PRIMARY_STORE:
            self._guarded(lambda: self.schedule.committed(content))
        if self.second is not None:
            self.second.committed(folder, content)

    def check_runs(self) -> None:
        """What is on record of resyncs at the primary fits its state. Raises Violation."""
        check_runs(self.primary.contents.get(PRIMARY_STORE))

    async def revive(self) -> None:
        """The faults are over: hosts are up again, and what the administrator suspended is resumed."""
        for host in self.hosts:
            if not host.up:
                self.boot(host)
        await self._poll(lambda: len([agent for agent in self.agents.values() if agent.vms]) == len(self.hosts))
        self.order(self.replica, lambda vm: vm.resume())
        # A setting that was ordered before may be carried out by an agent that is being stopped, after the last one.
        await self._obeyed()
        while self.options.windows and self.schedule.mode is not ResyncMode.AUTOMATIC:
            self.configure(resync_mode="automatic")
            await self._obeyed()
            await asyncio.sleep(0.5)
        # Orders given before may still be under way: a suspension among them shows only then.
        await self._obeyed()
        while ReplicationState(self.primary_record()["state"]) in SUSPENDED:
            order = self.order(self.primary, lambda vm: vm.resume(resynchronize=False))
            await self._obeyed()
            if order is not None and order.done() and not order.cancelled():
                return
            # An agent that is just being stopped takes no order any more: the next one gets it.
            await asyncio.sleep(0.5)

    def _ordered(self) -> bool:
        """Whether no order is under way any more."""
        self._orders = [(process, task) for process, task in self._orders if not (task.done() or process.dead)]
        return not self._orders

    # --- observations (tests.simulation.hooks.Observer) ---

    def entry_logged(
        self, process: Process, kind: EntryKind, disk: int, offset: int, length: int, payload: Buffer | None
    ) -> None:
        oracle = self._oracle_of(process)
        if oracle is None:
            return
        write = None
        if payload is None:
            write = oracle.find_zeroes(kind, disk, offset, length)
        elif isinstance(payload, memoryview):
            write = oracle.find_by_payload(payload.obj)
        if write is not None:
            oracle.number(write)
        else:
            # What the tap logs anew is what its disk holds.
            disks = self.disks() if oracle is self.oracle else self._promoted_by(process).view.shown()
            oracle.adopt(disk, offset, disks[disk][offset : offset + length])

    def _oracle_of(self, process: Process) -> Oracle | None:
        """That of the guest whose tap this process is."""
        if process is self.guest.process:
            return self.oracle
        promoted = self._promoted_by(process).guest
        return promoted.oracle if promoted is not None and process is promoted.process else None

    def promoted_at(self, host: Host) -> PromotedVm:
        """What runs on that host after a failover to it."""
        return self.second.returned if host is self.primary and self.second is not None else self.promoted

    def _promoted_by(self, process: Process) -> PromotedVm:
        return self.promoted_at(self.primary if process.name.endswith("@P") else self.replica)

    def disk_written(self, process: Process, mutation: Mutation) -> None:
        oracle = self._oracle_of(process)
        write = oracle.find(mutation) if oracle is not None else None
        if oracle is not None and write is not None:
            oracle.number(write)

    def _truth_of(self, process: Process) -> Oracle | None:
        """That of the VM whose tap this process is, whether its guest is connected yet or not."""
        if process.name == "tap@P" and not (self.second is not None and self.second.taken):
            return self.oracle
        return self._promoted_by(process).oracle if self.second is not None else None

    def cut_made(self, process: Process, epoch: bytes, segment: int) -> None:
        oracle = self._truth_of(process)
        if oracle is not None:
            self.tell(f"cut {epoch.hex()[:8]}/{segment} of {process.name}")
            self._guarded(lambda: oracle.cut(epoch, segment, self.loop.now))

    def epoch_begun(self, process: Process, epoch: bytes) -> None:
        oracle = self._truth_of(process)
        if oracle is not None:
            self.tell(f"epoch {epoch.hex()[:8]} begins at {process.name}")
            disks = self.disks() if oracle is self.oracle else self._promoted_by(process).view.shown()
            # Whatever was written before is on the disks by now (R6).
            self._guarded(lambda: oracle.check_disks(disks, "at the begin of an epoch", "R6"))

    def acknowledged(self, process: Process, position: Position) -> None:
        self.tell(f"acknowledged {position}")
        known = self.acknowledged_cuts.get(position.epoch, 0)
        self.acknowledged_cuts[position.epoch] = max(known, position.segment)

    def adopted(self, process: Process, end: Position) -> None:
        self.tell(f"adopted {end}")
        self.baseline = end.epoch

    def released(self, process: Process, epoch: bytes, segment: int) -> None:
        second = self.second
        if second is not None:
            self._guarded(lambda: second.released(process, epoch, segment))
        elif process.name == "tap@P" and segment > self.acknowledged_cuts.get(epoch, 0):
            # The replica tells where it stands when a session opens, too.
            missing = self.view.holds(epoch, segment)
            if missing:
                self.fail(Violation(f"I5: the log was released up to {segment}, but {missing}"))

    def asking(self, process: Process, question: ManifestRequest) -> None:
        if process.name == "agent@P":
            self.schedule.asking()
        second = self.second
        if second is not None:
            self._guarded(lambda: second.asking(process, question))

    def acknowledging(self, process: Process, position: Position) -> None:
        view = self.view if process.name.endswith("@R") or self.second is None else self.second.view
        missing = view.holds(position.epoch, position.segment)
        if missing:
            self.fail(Violation(f"I5: the replica acknowledges {position}, but {missing}"))
        promoted = view.promoted
        if promoted is not None and (position.epoch != promoted[0] or position.segment > promoted[1]):
            self.fail(Violation(f"I8: the replica acknowledges {position} after its promotion at cut {promoted[1]}"))

    def _guarded(self, check: Callable[[], None]) -> None:
        try:
            check()
        except Violation as violation:
            self.fail(violation)


async def _set(vm: Any, settings: dict[str, Any]) -> None:
    await vm.set(with_settings(vm.record, settings), settings)


class GuestsTap(TapProcess):
    """A tap whose engine the guest of the simulation drives directly, in place of NBD clients."""

    world: World
    process: Process
    host: Host
    serves_guest: bool

    def _surroundings(self, server: NbdServer) -> Surroundings:
        """The guest waits for its disks now longer and now shorter, whatever is read beside."""
        rng = random.Random(f"{self.world.options.seed}/latency/{self.process.number}")
        told = GuestLatency()

        def latency() -> GuestLatency:
            nonlocal told
            more = rng.choice((0, 5, 50))
            seconds = told.write_seconds + more * rng.choice((0.0005, 0.0005, 0.01))
            told = GuestLatency(writes=told.writes + more, write_seconds=seconds, passes=told.passes + more)
            return told

        return replace(super()._surroundings(server), latency=latency)

    async def _until_stopped(self, engine: TapEngine, control: TapControl) -> None:
        exports = [DiskExport(engine, disk) for disk in engine.disks]
        self.world.served.add(self.process)
        if self.serves_guest:
            self.world.guest.attach(self.process, exports)
        else:
            self.world.serving[self.process] = exports
            self.world.promoted_at(self.host).attach(self.process, exports)
        await super()._until_stopped(engine, control)

    async def _end(self, engine: TapEngine, server: NbdServer, control: TapControl) -> None:
        if self.serves_guest:
            self.world.guest.drained()
        elif (guest := self.world.promoted_at(self.host).guest) is not None:
            guest.drained()
        await super()._end(engine, server, control)
