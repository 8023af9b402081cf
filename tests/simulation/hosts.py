"""A simulated host: its volume, its stores, its boots, and the processes that run on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from shared.ports import Peer, Ports
from tests.simulation.disk import SimulatedFileSystem, Volume
from tests.simulation.loop import Process, SimulationLoop
from tests.simulation.net import SimulatedNetwork, Wire
from tests.simulation.services import (
    EPOCH_OF_WORLD,
    SimulatedClock,
    SimulatedRandom,
    SimulatedStores,
    SimulatedWorkers,
    StoreContent,
)

if TYPE_CHECKING:
    from tests.simulation.options import Options

TapMain = Callable[["Host", str, Ports, Process], Awaitable[None]]


class Host:
    """One host. ``processes`` are the living ones by role: ``agent``, ``tap``."""

    def __init__(self, name: str, loop: SimulationLoop, wire: Wire, options: Options, tap_main: TapMain) -> None:
        self.name = name
        self.loop = loop
        self.wire = wire
        self.options = options
        self.rng = random.Random(f"{options.seed}/{name}")
        self.volume = Volume(random.Random(f"{options.seed}/{name}/disk"), lambda: EPOCH_OF_WORLD + loop.now)
        self.volume.cold = options.cold
        self.contents: dict[str, StoreContent] = {}
        self.boots = 1
        self.up = True
        self.stalling = False
        self.no_taps_until = 0.0
        """Until then starting a tap takes."""
        self.processes: dict[str, Process] = {}
        self.on_commit: Callable[[Process, str], None] = lambda _process, _folder: None
        self.committed: Callable[[str, StoreContent], None] = lambda _folder, _content: None
        self.born: Callable[[Host, str, Process], None] = lambda _host, _role, _process: None
        """Called with every new process, before it runs."""
        self.failed: Callable[[BaseException], None] = lambda _error: None
        """Called with what ended a process unexpectedly."""
        self._tap_main = tap_main

    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boots}"

    def stall(self) -> float:
        """Seconds by which a slow disk holds up one operation."""
        if self.stalling and self.options.stalls and self.rng.random() < self.options.stalls:
            return self.rng.uniform(0.1, 4)
        return 0.0

    def ports(self, process: Process) -> Ports:
        """The ports of a process on this host."""
        identity = Peer(
            address=self.name,
            fingerprint=self.name * 64,
            names=(self.name,),
            not_after=1e11,
            uid=0,
            gid=0,
            pid=process.number,
        )
        return Ports(
            clock=SimulatedClock(self.loop, self.boot_id, self.options.zone),
            random=SimulatedRandom(random.Random(f"{self.options.seed}/{self.name}/{process.number}")),
            workers=SimulatedWorkers(process, self.rng, self.stall),
            background=SimulatedWorkers(process, self.rng, self.stall),
            files=SimulatedFileSystem(self.volume, process),
            network=SimulatedNetwork(self.wire, process, self.name, identity),
            stores=SimulatedStores(
                process,
                self.rng,
                self.volume,
                self.contents,
                self.stall,
                on_commit=self._on_commit,
                committed=self._committed,
            ),
            taps=SimulatedTapLauncher(self),
        )

    def _on_commit(self, process: Process, folder: str) -> None:
        self.on_commit(process, folder)

    def _committed(self, folder: str, content: StoreContent) -> None:
        self.committed(folder, content)

    def start(self, role: str, main: Callable[[Ports, Process], Awaitable[None]]) -> Process:
        """Start a process that runs ``main`` with its ports."""
        process = Process(f"{role}@{self.name}", self.loop)
        if role in self.processes and not self.processes[role].dead:
            # A second process of a role meets the first one's locks and sockets, and must end by itself.
            role = f"{role}#{process.number}"
        self.processes[role] = process
        self.born(self, role, process)

        async def run() -> None:
            try:
                await main(self.ports(process), process)
            except Exception as error:
                self.failed(error)
            finally:
                if not process.dead:
                    process.exited = True
                    process.kill()

        process.spawn(run())
        return process

    def alive(self, role: str) -> Process | None:
        """The living process of that role."""
        process = self.processes.get(role)
        return process if process is not None and not process.dead else None

    def lose_power(self) -> None:
        """Everything on the host ends, and what was not durable is lost."""
        for end in list(self.wire.ends.values()):
            if end.host == self.name:
                end.vanish(self.rng.choice([0.0, self.rng.uniform(0, 8)]))
        for process in self.processes.values():
            process.kill()
        self.processes.clear()
        self.volume.lose_power()
        self.boots += 1

    def start_tap(self, folder: str) -> None:
        """Start a tap process for a folder, as the launcher does."""
        self.start("tap", lambda ports, process: self._tap_main(self, folder, ports, process))


class SimulatedTapLauncher:
    """Starts taps as processes of their own (shared.ports.TapLauncher)."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def start(self, folder: str) -> None:
        await asyncio.sleep(max(0.0, self._host.no_taps_until - self._host.loop.now))
        self._host.start_tap(folder)
