"""Settles a committed promotion: brings what lies over the disks into them, while they are served.

The guest comes first: it is done in small windows, by workers, with pauses. A kill or power loss at any moment only
means that it begins anew: until a disk is on record as settled its layers decide, and they are never changed by it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.layered import LayeredFile, Range
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.watch import why
from shared.overlay import Phase
from shared.tap_control import Layers

RETRY_SECONDS = 30.0
"""After an error all of a disk is copied anew: what was not made durable can't be told (R17)."""
PAUSE = 1.0
"""A pause after each window, as a part of the time that it took,"""
PAUSE_BUSY = 3.0
"""and while the guest writes."""
BUSY_SECONDS = 1.0
PAUSE_LEAST = 0.001
CLOSE_POLL_SECONDS = 0.05


class Settling:
    """The settling of one VM's disks. One that was begun before is taken up by :meth:`begin_again`."""

    def __init__(self, engine: TapEngine, ports: TapPorts) -> None:
        self._engine = engine
        self._clock = ports.clock
        self._workers = ports.workers
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._failed = ""
        self._done = 0
        self._total = 0

    def begin_again(self) -> None:
        """Go on where a tap before was told to settle."""
        if any(file.phase is Phase.SETTLING for file in self._layered) or self._half_settled:
            self.begin()

    @property
    def _half_settled(self) -> bool:
        """Whether a disk has settled and another has not: all of them are to."""
        return bool(self._layered) and len(self._layered) < len(self._engine.disks)

    @property
    def _layered(self) -> Sequence[LayeredFile]:
        return [disk.layers for disk in self._engine.disks if disk.layers is not None]

    def begin(self) -> None:
        """Settle; a no-op where that is under way, or done."""
        if self._task is None and self._layered and not self._over.is_set():
            self._task = self._engine.tasks.spawn(self._run())

    async def end(self) -> None:
        """Leave the rest to the next tap; nothing of it runs any more when this returns."""
        self._over.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    def status(self) -> Layers | None:
        """None where the disks are plain ones."""
        layered = self._layered
        if not layered:
            return None
        return Layers(
            committed=self._task is not None,
            written_bytes=sum(file.overlay.bytes for file in layered),
            done_bytes=min(self._done, self._total),
            total_bytes=self._total,
            failed=self._failed,
        )

    # --- settling --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        disks = [disk for disk in self._engine.disks if disk.layers is not None]
        logs = {log.path: log.length for file in self._layered for log in file.layers}
        self._total = sum(logs.values()) + sum(file.overlay.bytes for file in self._layered)
        for disk in disks:
            before = self._done
            while not self._over.is_set():
                try:
                    await self._settle(disk)
                    break
                except OSError as error:
                    self._failed = f"{disk.config.path}: {why(error)}"
                    self._done = before
                await self._rest(RETRY_SECONDS)

    async def _settle(self, disk: Disk) -> None:
        file = disk.layers
        assert file is not None
        await self._workers.run(file.commit)
        file.mirror()
        file.missed = False
        windows = file.unsettled()
        while (window := await self._workers.run(next, windows, None)) is not None:
            if self._over.is_set():
                return
            await self._copy(file, window)
        if file.missed:
            raise OSError(0, "a write to the disk failed")
        # Most of it is durable before the guest has to wait for the rest.
        await self._workers.run(file.base.sync)
        if not self._over.is_set():
            await self._finish(disk, file)

    async def _copy(self, file: LayeredFile, window: list[Range]) -> None:
        began = self._clock.monotonic()
        file.open_window(window)
        try:
            await self._workers.run(file.copy, window)
        except BaseException:
            file.forget_window()
            raise
        file.close_window()
        self._done += sum(end - start for start, end in window)
        self._failed = ""
        last = self._engine.last_write_time
        busy = last is not None and abs(self._clock.wall() - last) < BUSY_SECONDS
        took = self._clock.monotonic() - began
        await self._rest(max(PAUSE_LEAST, took * (PAUSE_BUSY if busy else PAUSE)))

    async def _finish(self, disk: Disk, file: LayeredFile) -> None:
        """The disk has everything: from here on it is the plain one, also for the next tap."""
        tracker = self._engine.tracker
        if tracker.maps.hot is not None:
            # Its file was written just now, which has to be vouched for like any write (R30).
            await tracker.maps.hot.warm(disk, ())

        async def turn() -> None:
            told, base = await self._workers.run(file.settle)
            disk.unlay(told, base)
            if tracker.is_tracked:
                tracker.watch.saw_through(disk, disk.done_ns)

        await self._engine.turns.take(turn)
        while not file.idle:
            await self._rest(CLOSE_POLL_SECONDS)
        await self._workers.run(file.close_layers)

    async def _rest(self, seconds: float) -> None:
        """Wait; once this is to end, only for others to get their turn."""
        if self._over.is_set():
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
