"""What goes wrong in a run: each kind of fault comes at its own rate, until the faults are over."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from primary_agent.replication import Replication
from protocol.position import NO_EPOCH
from replica_agent.marks import mark_point
from shared.planning import ResyncCause
from tests.simulation.constants import DISKS
from tests.simulation.disk import PAGE, UNLIMITED
from tests.simulation.hosts import Host
from tests.simulation.loop import Process
from tests.simulation.world import World

LATEST_OPERATION = 400
"""A death is aimed at one of so many operations to come."""


def edit_page(host: Host, path: str, page: int, content: bytes) -> None:
    """Write a page of a file and sync it, as another program would."""
    inode = host.volume.entries[path]
    inode.write(page * PAGE, content)
    inode.allocated.add(page)
    inode.dirty.add(page)
    inode.mtime_ns = int(host.volume.wall() * 1e9)
    inode.sync()


class Chaos:
    """The faults of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.options = world.options
        self.rng = random.Random(f"{world.options.seed}/chaos")
        self.active = False
        self._tasks: list[asyncio.Task[None]] = []
        self._log_fault: str | None = None
        self._replica_fault: str | None = None

    def start(self) -> None:
        """Let things go wrong from now on."""
        options, world, rng = self.options, self.world, self.rng
        self.active = True
        world.wire.hiccups = options.hiccups
        world.wire.splits = 0.05
        for host in world.hosts:
            host.stalling = True
            host.volume.on_sync = self._at_sync
            host.on_commit = self._at_sync
        world.primary.volume.fault = self._fault_of_log
        world.replica.volume.fault = self._fault_of_replica
        primary, replica = world.hosts
        self._every(options.resets, self._reset)
        self._every(options.partitions, self._partition)
        self._every(options.kill_tap, lambda: self._kill(primary, "tap"))
        self._every(options.kill_primary, lambda: self._kill(primary, "agent"))
        self._every(options.kill_replica, lambda: self._kill(replica, "agent"))
        self._every(options.power_primary, lambda: self._power(primary))
        self._every(options.power_replica, lambda: self._power(replica))
        self._every(options.log_errors, self._fail_log)
        self._every(options.replica_errors, self._fail_replica)
        self._every(options.full_replica, self._fill_replica)
        self._every(options.agent_restarts, lambda: world.restart_agent(rng.choice(world.hosts)))
        self._every(options.tap_restarts, world.stop_tap)
        self._every(options.suspends, self._suspend)
        self._every(options.resyncs, self._resynchronize)
        self._every(options.stops, self._stop)
        self._every(options.windows, self._change_schedule)
        self._every(options.put_off, self._put_off)
        self._every(options.exports, world.exports.begin)
        self._every(options.verifies, world.verifies.begin)
        self._every(options.overlays, world.overlays.begin)
        self._every(options.marks, self._mark)
        world.plans.start()

    def _every(self, rate: float, happen: Callable[[], object]) -> None:
        """Let something happen at that rate."""
        if not rate:
            return

        async def run() -> None:
            while True:
                await asyncio.sleep(self.rng.expovariate(rate))
                happen()

        self._tasks.append(self.world.loop.create_task(run()))

    def stop(self) -> None:
        """The faults are over; what is broken stays as it is, and has to be found and healed."""
        self.active = False
        for task in self._tasks:
            task.cancel()
        world = self.world
        world.plans.stop()
        world.wire.heal()
        world.wire.hiccups = 0.0
        self._log_fault = self._replica_fault = None
        for host in world.hosts:
            host.stalling = False
            host.volume.capacity = UNLIMITED
            for process in host.processes.values():
                process.die_at = None
        world.doomed.clear()

    def _mark(self) -> None:
        """Pin a point of the replica, or unpin it."""
        pinned = self.rng.random() < 0.6

        async def mark(vm: Any) -> None:
            position = self.rng.choice([None, *vm.parts.history.positions()])
            await mark_point(vm.parts.history, position, pinned=pinned)

        self.world.order(self.world.replica, mark)

    # --- deaths ---

    def _kill(self, host: Host, role: str) -> None:
        process = host.alive(role)
        if process is None:
            return
        if self.rng.random() < self.options.aimed:
            process.die_at = process.operations + self.rng.randint(1, LATEST_OPERATION)
            return
        self.world.kill(host, role)
        self._edit_behind_our_back(host, role)

    def _power(self, host: Host) -> None:
        process = host.alive(self.rng.choice(("agent", "tap")))
        if process is not None and self.rng.random() < self.options.aimed:
            process.die_at = process.operations + self.rng.randint(1, LATEST_OPERATION)
            self.world.doomed.add(process)
            return
        self.world.lose_power(host)

    def _at_sync(self, process: Process, _path: str) -> None:
        """Somebody begins to make something durable: the best moment to die."""
        rate = self.options.crash_at_sync
        if not rate or not self.active or self.rng.random() >= rate:
            return
        host = next(host for host in self.world.hosts if process in host.processes.values())
        delay = self.rng.uniform(0, 0.006)
        if self.rng.random() < 0.5:
            self.world.loop.call_later(delay, self._crash, host, process, context=self.world.context)
        else:
            self.world.loop.call_later(delay, self._crash, host, None, context=self.world.context)

    def _crash(self, host: Host, process: Process | None) -> None:
        if not self.active:
            return
        if process is None:
            self.world.lose_power(host)
        elif not process.dead:
            self.world.count(f"crash at sync {process.name}")
            process.kill()

    def _edit_behind_our_back(self, host: Host, role: str) -> None:
        """Somebody writes to a disk that nobody holds open, a while after its owner was killed."""
        world, rng = self.world, self.rng
        if rng.random() >= self.options.foreign_edits:
            return
        if host is world.primary and role == "tap":
            host.no_taps_until = world.loop.now + 1.0
            world.loop.call_later(rng.uniform(0.5, 0.9), self._edit_primary)
        elif host is world.replica and role == "agent":
            self._edit_replica()

    def _edit_primary(self) -> None:
        world, rng = self.world, self.rng
        if not self.active or world.primary.alive("tap") is not None or not world.primary.up:
            return
        world.count("edit P")
        world.plans.unsound = True
        index = rng.randrange(DISKS)
        page, content = self._edit(world.primary, world.disk_path(index))
        world.oracle.edited(index, page * PAGE, content, world.disks())

    def _edit_replica(self) -> None:
        """What is between two points is not watched over: whatever is there is written again."""
        world, record = self.world, self.world.view.record("replication")
        if not record or record["applying"] is not None or record["identities"] is None or world.view.promoted:
            return
        world.count("edit R")
        world.view.edited = world.view.unsound = True
        self._edit(world.replica, world.view.disk_path(self.rng.randrange(DISKS)))

    def _edit(self, host: Host, path: str) -> tuple[int, bytes]:
        """Write one page of a file, wherever."""
        page, content = self.rng.randrange(self.options.pages), self.rng.randbytes(PAGE)
        edit_page(host, path, page, content)
        return page, content

    # --- disks ---

    def _fault_of_log(self, operation: str, path: str) -> int:
        if self._log_fault != operation or "/tap/log/" not in path:
            return 0
        self.world.count(f"log {operation} fails")
        self._log_fault = None
        return self.rng.choice((errno.EIO, errno.ENOSPC)) if operation != "sync" else errno.EIO

    def _fail_log(self) -> None:
        self.fail_log(self.rng.choice(("write", "write", "sync", "sync", "allocate", "open")))

    def fail_log(self, operation: str) -> None:
        """The next call of this kind on the tap's log fails."""
        self._log_fault = operation

    def _fault_of_replica(self, operation: str, path: str) -> int:
        if self._replica_fault != operation:
            return 0
        self.world.count(f"replica {operation} fails")
        self.world.view.unsound = True
        self._replica_fault = None
        return errno.EIO

    def _fail_replica(self) -> None:
        self._replica_fault = self.rng.choice(("write", "sync", "sync", "allocate", "punch", "read"))

    def _fill_replica(self) -> None:
        world, volume = self.world, self.world.replica.volume
        if volume.capacity != UNLIMITED:
            return
        world.count("fill R")
        volume.capacity = volume.used() + self.rng.choice((0, 64 << 10, 512 << 10, 3 << 20))

        def free() -> None:
            volume.capacity = UNLIMITED

        world.loop.call_later(self.rng.uniform(0.5, 5), free)

    # --- network ---

    def _reset(self) -> None:
        self.world.count("reset")
        self.world.wire.reset()

    def _partition(self) -> None:
        world = self.world
        if world.wire.partitioned:
            return
        world.count("partition")
        world.wire.partition()
        world.loop.call_later(self.rng.uniform(0.1, 8), self._heal)

    def _heal(self) -> None:
        if self.rng.random() < 0.5:
            self.world.wire.reset()
        self.world.wire.heal()

    # --- orders ---

    def _suspend(self) -> None:
        self.world.count("suspend")
        host = self.rng.choice(self.world.hosts)
        self.world.order(host, lambda vm: vm.suspend())
        self.world.loop.call_later(self.rng.uniform(0.1, 3), self._resume)

    def _resume(self) -> None:
        world = self.world
        world.order(world.primary, lambda vm: vm.resume(resynchronize=False))
        world.order(world.replica, lambda vm: vm.resume())

    def _stop(self) -> None:
        self.world.count("stop")
        self.world.order(self.world.primary, lambda vm: vm.stop_resync())
        self.world.loop.call_later(self.rng.uniform(0.1, 3), self.world.order_again)

    def _resynchronize(self) -> None:
        self.world.count("resynchronize")
        self.world.order(self.world.primary, lambda vm: vm.resume(resynchronize=True))

    def _change_schedule(self) -> None:
        """Windows that are open or closed by now, and such that open or close at the next full minute."""
        world, hour = self.world, 3600.0
        world.count("change schedule")
        mode = self.rng.choice(("window", "window", "window", "automatic", "manual"))
        start, end = self.rng.choice(((-hour, hour), (hour, 2 * hour), (-hour, 60.0), (60.0, hour)))
        zone, now = self.options.zone, world.clock.wall()
        ends = [datetime.fromtimestamp(now + seconds, zone).strftime("%H:%M") for seconds in (start, end)]
        past = self.rng.choice(("pause", "pause", "finish"))
        world.configure(resync_mode=mode, resync_window="-".join(ends), resync_past_window=past)
        if self.rng.random() < 0.5:
            world.loop.call_later(self.rng.uniform(0, 2), self._find_cause)

    def _find_cause(self) -> None:
        """The primary finds that something needs whole disks to be compared; what it was does not matter here."""
        if self.active:
            self.world.count("finding")
            self.world.order(self.world.primary, lambda vm: _require(vm.parts.replication))

    def _put_off(self) -> None:
        self.world.count("put off")
        at = "never" if self.rng.random() < 0.3 else f"+{self.rng.randint(1, 6)}s"
        self.world.order(self.world.primary, lambda vm: vm.resume(resynchronize=True, at=at))


async def _require(replication: Replication) -> None:
    if replication.record.epoch == NO_EPOCH:
        # Before there is a baseline nothing can be found wrong with it.
        return
    await replication.require_resync(ResyncCause.CHAIN, "simulated finding")
    replication.replan()
