"""A tap on a simulated disk, whose process can be killed in any call of a port."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from primary_agent.tap.ports import OwnPorts
from shared.errors import UnreachableError
from shared.ports import Address, Link, Listener
from shared.ports.trust import Trust
from shared.tap_config import TapConfig
from tests.simulation.disk import SimulatedFileSystem, Volume
from tests.simulation.loop import Process, SimulationLoop
from tests.simulation.services import EPOCH_OF_WORLD, SimulatedClock, SimulatedRandom, SimulatedWorkers


class NoNetwork:
    """An engine alone needs no network."""

    trust = Trust()

    async def connect(self, address: Address, *, timeout: float) -> Link:
        raise UnreachableError(f"nobody is at {address}")

    async def listen(self, address: Address, accept: Callable[[Link], None]) -> Listener:
        raise UnreachableError(f"nobody can reach {address}")


class World:
    """One host with its volume; processes come and go, one at a time."""

    def __init__(self, config: TapConfig, seed: int = 0) -> None:
        self.config = config
        self.loop = SimulationLoop(max_steps=200_000)
        self.rng = random.Random(seed)
        self.volume = Volume(random.Random(seed), lambda: EPOCH_OF_WORLD + self.loop.now)
        self.boots = 1
        self.latency = 0.0
        """Seconds that each call of a worker takes."""
        self.process = Process("none", self.loop)
        folder = config.log_folder.rpartition("/")[0]
        self.volume.folders |= {folder, folder.rpartition("/")[0]}
        self.folder = folder
        files = SimulatedFileSystem(self.volume, self.process)
        for disk in config.disks:
            file = files.open(disk.path, write=True, create=True)
            file.write(0, self.rng.randbytes(disk.size))
            file.sync()
            file.close()
        files.sync_folder(folder.rpartition("/")[0])
        self.files = files
        """The volume as an onlooker sees it."""

    def images(self) -> dict[int, bytes]:
        """What the disks hold."""
        return {disk.index: self.volume.entries[disk.path].image() for disk in self.config.disks}

    def run(self, main: Callable[[OwnPorts], Coroutine[Any, Any, Any]], *, die_at: int | None = None) -> bool:
        """Run a process to its end, or to its death in its ``die_at``-th call of a port; whether it lived."""
        process = self.process = Process("tap", self.loop)
        process.die_at = die_at
        ports = OwnPorts(
            SimulatedClock(self.loop, lambda: f"boot-{self.boots}"),
            SimulatedRandom(self.rng),
            SimulatedWorkers(process, self.rng, lambda: self.latency),
            SimulatedFileSystem(self.volume, process),
            NoNetwork(),
        )
        over = self.loop.create_future()

        def end(_task: asyncio.Task[Any] | None = None) -> None:
            if not over.done():
                over.set_result(None)

        task = process.spawn(main(ports))
        task.add_done_callback(end)
        process.on_death.append(end)
        self.loop.run_until_complete(over)
        lived = not process.dead
        process.kill()
        if lived:
            task.result()
        errors, self.loop.errors[:] = list(self.loop.errors), []
        assert not errors, errors
        # Time passes until the next start: a killed process is missed first.
        self.loop.run_until_complete(asyncio.sleep(0.5))
        return lived

    def lose_power(self) -> None:
        self.volume.lose_power()
        self.boots += 1

    def close(self) -> None:
        self.loop.dismantle()
