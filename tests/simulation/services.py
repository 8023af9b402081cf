"""Simulated clock, randomness, workers and store: what a process's ports are made of beside disk and network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from typing import Any, TypeVar

import msgpack

from shared.errors import StoreDamagedError
from tests.simulation.disk import Volume
from tests.simulation.loop import Process, SimulationLoop, fingerprint

T = TypeVar("T")
EPOCH_OF_WORLD = 1_700_000_000.0
ZONE_OF_WORLD = UTC
THREADS = 4
STORE_NAME = "state.db"


class SimulatedClock:
    """Virtual time (shared.ports.Clock); the boot id changes when the host loses power."""

    def __init__(self, loop: SimulationLoop, boot: Callable[[], str], zone: tzinfo = ZONE_OF_WORLD) -> None:
        self._loop = loop
        self._boot = boot
        self._zone = zone

    def monotonic(self) -> float:
        return self._loop.now

    def wall(self) -> float:
        return EPOCH_OF_WORLD + self._loop.now

    def boot_id(self) -> str:
        return self._boot()

    def zone(self) -> tzinfo:
        return self._zone


class SimulatedRandom:
    """Seeded randomness (shared.ports.Random)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._rng.uniform(low, high)


class SimulatedWorkers:
    """Work off the loop (shared.ports.Workers): takes virtual time, and happens at its beginning or at its end.

    As in the real ones, accepted work runs to its end, and a cancelled caller gets its CancelledError only then.
    """

    def __init__(self, process: Process, rng: random.Random, stall: Callable[[], float]) -> None:
        self._process = process
        self._rng = rng
        self._stall = stall
        self._places = asyncio.Semaphore(THREADS)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        async with self._places:
            self._process.operation()
            return await self._run(work, args)

    async def _run(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        delay = self._rng.uniform(0.0001, 0.004) + self._stall()
        if self._rng.random() < 0.5:
            cancelled = await self._pass(delay)
            if cancelled is None:
                return work(*args)
            try:
                work(*args)
            except Exception as error:
                raise cancelled from error
            raise cancelled
        failure: Exception | None = None
        try:
            result = work(*args)
        except Exception as error:
            failure = error
        cancelled = await self._pass(delay)
        if cancelled is not None:
            raise cancelled from failure
        if failure is not None:
            raise failure
        return result

    async def _pass(self, delay: float) -> asyncio.CancelledError | None:
        """Let time pass; a cancellation meanwhile is handed back."""
        loop = asyncio.get_running_loop()
        end = loop.time() + delay
        cancelled = None
        while loop.time() < end:
            future: asyncio.Future[None] = loop.create_future()
            timer = loop.call_at(end, future.set_result, None)
            try:
                await future
            except asyncio.CancelledError as error:
                cancelled = error
                timer.cancel()
        return cancelled


class StoreContent:
    """What one store holds durably: records as the bytes that a database would keep, and events."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.events: list[dict[str, Any]] = []
        self.last_event = 0

    def record(self, name: str) -> Any:
        """The plain value of a record, or None."""
        packed = self.records.get(name)
        return None if packed is None else unpack(packed)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(packed: bytes) -> Any:
    return msgpack.unpackb(packed, raw=False, strict_map_key=False)


class SimulatedStore:
    """Atomic versions in memory (shared.ports.Store); a commit that has not returned may or may not survive."""

    def __init__(self, stores: SimulatedStores, folder: str, content: StoreContent) -> None:
        self._stores = stores
        self._process = stores.process
        self.folder = folder
        self._content = content
        self._records = dict(content.records)
        self._order = asyncio.Lock()

    def get(self, name: str) -> Any:
        self._process.operation()
        packed = self._records.get(name)
        return None if packed is None else unpack(packed)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._records if name.startswith(prefix))

    async def commit(self, changes: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> None:
        packed = {name: None if value is None else pack(value) for name, value in changes.items()}
        packed_events = pack(list(events))
        self._process.operation(*(fingerprint(value or b"") for value in packed.values()))
        # The transaction takes place in a thread of its own: a cancelled caller does not stop it.
        await asyncio.shield(asyncio.ensure_future(self._commit(packed, packed_events)))

    async def _commit(self, changes: dict[str, bytes | None], events: bytes) -> None:
        rng, content = self._stores.rng, self._content
        async with self._order:
            await asyncio.sleep(rng.uniform(0.0002, 0.004) + self._stores.stall())
            self._stores.on_commit(self._process, self.folder)
            self._process.operation()
            for name, value in changes.items():
                for records in (content.records, self._records):
                    if value is None:
                        records.pop(name, None)
                    else:
                        records[name] = value
            for event in unpack(events):
                content.last_event += 1
                content.events.append({**event, "id": content.last_event})
            self._stores.committed(self.folder, content)
            await asyncio.sleep(rng.uniform(0, 0.002))

    async def events(self, *, limit: int, after: int = 0) -> list[dict[str, Any]]:
        self._process.operation()
        return [dict(event) for event in self._content.events if event["id"] > after][-limit:]

    async def close(self) -> None:
        async with self._order:
            pass


class SimulatedStores:
    """The stores of an agent (shared.ports.Stores); ``contents`` is the host's durable state, by folder.

    A store's file lies in its folder among the others, so that it is listed, and is gone when the folder is removed.
    """

    def __init__(
        self,
        process: Process,
        rng: random.Random,
        volume: Volume,
        contents: dict[str, StoreContent],
        stall: Callable[[], float],
        *,
        on_commit: Callable[[Process, str], None] = lambda _process, _folder: None,
        committed: Callable[[str, StoreContent], None] = lambda _folder, _content: None,
    ) -> None:
        self.process = process
        self.rng = rng
        self.volume = volume
        self.contents = contents
        self.stall = stall
        self.on_commit = on_commit
        """Called right before a transaction takes place."""
        self.committed = committed
        """Called right after it took place."""

    async def open(self, folder: str, *, create: bool = False) -> SimulatedStore:
        self.process.operation()
        await asyncio.sleep(self.rng.uniform(0.0001, 0.002))
        self.process.operation()
        path = f"{folder}/{STORE_NAME}"
        exists = path in self.volume.entries
        if create:
            if exists:
                raise StoreDamagedError(f"{folder} already has a state.")
            self.contents[folder] = StoreContent()
            self.volume.change({path: self.volume.create()})
            self.volume.sync_folder(folder)
        elif not exists:
            raise StoreDamagedError(f"{folder} has no state.", "Rebuild it.")
        return SimulatedStore(self, folder, self.contents[folder])

    async def rebuild(self, folder: str, records: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> str:
        """One atomic step; nothing is kept aside here."""
        self.process.operation()
        await asyncio.sleep(self.rng.uniform(0.001, 0.01))
        self.process.operation()
        content = StoreContent()
        content.records = {name: pack(value) for name, value in records.items()}
        content.events = [{**event, "id": number} for number, event in enumerate(events, 1)]
        content.last_event = len(events)
        self.contents[folder] = content
        path = f"{folder}/{STORE_NAME}"
        if path not in self.volume.entries:
            self.volume.change({path: self.volume.create()})
            self.volume.sync_folder(folder)
        return ""
