"""Simulated clock, randomness, workers and store, and the ports of a process made of them."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shared.errors import StoreDamagedError
from tests.simulation.loop import Process, SimulationLoop

T = TypeVar("T")
EPOCH_OF_WORLD = 1_700_000_000.0


class SimulatedClock:
    """Virtual time (shared.ports.Clock); the boot id changes when the host loses power."""

    def __init__(self, loop: SimulationLoop, boot: Callable[[], str]) -> None:
        self._loop = loop
        self._boot = boot

    def monotonic(self) -> float:
        return self._loop.now

    def wall(self) -> float:
        return EPOCH_OF_WORLD + self._loop.now

    def boot_id(self) -> str:
        return self._boot()


class SimulatedRandom:
    """Seeded randomness (shared.ports.Random)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._rng.uniform(low, high)


class SimulatedWorkers:
    """Work off the loop (shared.ports.Workers): takes virtual time, and happens at its beginning or at its end."""

    def __init__(self, process: Process, rng: random.Random, stall: Callable[[], float]) -> None:
        self._process = process
        self._rng = rng
        self._stall = stall

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        self._process.operation()
        # A cancelled caller does not stop a thread that runs already.
        return await asyncio.shield(asyncio.ensure_future(self._work(work, args)))

    async def _work(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        delay = self._rng.uniform(0.0001, 0.004) + self._stall()
        if self._rng.random() < 0.5:
            await asyncio.sleep(delay)
            return work(*args)
        try:
            result = work(*args)
        except Exception:
            await asyncio.sleep(delay)
            raise
        await asyncio.sleep(delay)
        return result


class StoreContent:
    """What one store holds durably."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []


class SimulatedStore:
    """Atomic versions in memory (shared.ports.Store); a commit that has not returned may or may not survive."""

    def __init__(self, process: Process, rng: random.Random, content: StoreContent, stall: Callable[[], float]) -> None:
        self._process = process
        self._rng = rng
        self._content = content
        self._records = copy.deepcopy(content.records)
        self._stall = stall
        self._order = asyncio.Lock()

    def get(self, name: str) -> Any:
        self._process.operation()
        return copy.deepcopy(self._records.get(name))

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._records if name.startswith(prefix))

    async def commit(self, changes: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> None:
        changes, events = copy.deepcopy(changes), copy.deepcopy(list(events))
        self._process.operation()
        async with self._order:
            before = self._rng.uniform(0.0002, 0.004) + self._stall()
            await asyncio.sleep(before)
            self._process.operation()
            for records in (self._content.records, self._records):
                for name, value in changes.items():
                    if value is None:
                        records.pop(name, None)
                    else:
                        records[name] = copy.deepcopy(value)
            first = self._content.events[-1]["id"] + 1 if self._content.events else 1
            self._content.events.extend({**event, "id": first + index} for index, event in enumerate(events))
            await asyncio.sleep(self._rng.uniform(0, 0.002))

    async def events(self, *, limit: int, after: int = 0) -> list[dict[str, Any]]:
        return [copy.deepcopy(event) for event in self._content.events if event["id"] > after][-limit:]

    async def close(self) -> None:
        pass


class SimulatedStores:
    """The stores of an agent (shared.ports.Stores); ``contents`` is the host's durable state."""

    def __init__(
        self, process: Process, rng: random.Random, contents: dict[str, StoreContent], stall: Callable[[], float]
    ) -> None:
        self._process = process
        self._rng = rng
        self._contents = contents
        self._stall = stall

    async def open(self, folder: str, *, create: bool = False) -> SimulatedStore:
        self._process.operation()
        await asyncio.sleep(self._rng.uniform(0.0001, 0.002))
        self._process.operation()
        if create:
            if folder in self._contents:
                raise StoreDamagedError(f"{folder} already has a state.")
            self._contents[folder] = StoreContent()
        if folder not in self._contents:
            raise StoreDamagedError(f"{folder} has no state.", "Rebuild it.")
        return SimulatedStore(self._process, self._rng, self._contents[folder], self._stall)
