"""Readers of exports: an export must show its one point for as long as it lasts, whatever is applied meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from tests.simulation.disk import PAGE
from tests.simulation.loop import Process
from tests.simulation.oracle import Violation

if TYPE_CHECKING:
    from shared.status import ExportStatus
    from tests.simulation.world import World


class SilentNbdServer:
    """Stands for the NBD server of an export, whose sockets are real; disks are read without it."""

    def __init__(self, directory: Any) -> None:
        self.directory = directory
        self.connections: tuple[()] = ()

    async def start_unix(self, path: str, *, mode: int = 0o600, group: str = "") -> None:
        """Nobody connects."""

    async def close(self) -> None:
        """There is nothing to close."""


class ExportReaders:
    """Begins exports, reads them piece by piece over some time, and compares them with the oracle.

    A reader is a client that reconnects: it outlives the replica's agent, which has to serve the export again.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.checks = 0
        self.outlived = 0
        """Exports that were read on after the death of their agent."""
        self._followed: set[str] = set()
        """The exports that somebody reads."""

    def begin(self) -> None:
        """Start an export and read it."""
        world = self.world
        if world.replica.alive("agent") is None or "R" not in world.agents:
            return
        world.count("export")
        world.order(world.replica, self._begin)

    async def _begin(self, vm: Any) -> None:
        world = self.world
        for left in vm.exports.status():
            if left.id not in self._followed:
                # Whoever asked for it was never answered: its agent died.
                await vm.exports.stop(left.id)
        status = await vm.exports.start(vm.describe, world.rng.choice([None, *vm.parts.history.positions()]))
        self._followed.add(status.id)
        world.loop.call_soon(lambda: world.loop.create_task(self._follow(status)), context=world.context)

    async def _follow(self, status: ExportStatus) -> None:
        try:
            image = await self._image(status.id)
            if image is not None:
                self.checks += 1
                cut = bytes.fromhex(status.cut.epoch), status.cut.segment
                self.world.oracle.check_cut(*cut, image, "an export")
        except Violation as violation:
            self.world.fail(violation)
        # From here on it is left over, and its end is for whoever comes next where this agent does not live for it.
        self._followed.discard(status.id)
        self.world.order(self.world.replica, lambda vm: vm.exports.stop(status.id))

    async def _image(self, identity: str) -> list[bytes] | None:
        """All disks, read in any order; None where the export is gone, and says so."""
        rng, process = self.world.rng, self.world.replica.alive("agent")
        pages = self.world.options.pages
        found = [bytearray(pages * PAGE) for _ in self.world.disks()]
        pieces = [(index, at) for index, image in enumerate(found) for at in range(0, len(image), 65536)]
        rng.shuffle(pieces)
        for index, at in pieces:
            data = await self._piece(identity, index, at, min(65536, len(found[index]) - at))
            if data is None:
                return None
            found[index][at : at + len(data)] = data
            await asyncio.sleep(rng.uniform(0, 0.4))
        self.outlived += self.world.replica.alive("agent") is not process
        return [bytes(image) for image in found]

    async def _piece(self, identity: str, index: int, offset: int, length: int) -> bytes | None:
        """One read, asked again of each agent that comes until it is answered."""
        found: bytes | None = await self._asked(identity, lambda export: _attempt(export.disks[index], offset, length))
        return found

    async def _asked(self, identity: str, attempt: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """What an attempt on the export comes to, made again with each agent; None where it is gone, or fails."""
        while True:
            process, vm = self._present()
            if process is not None and vm is not None:
                record = vm.ledger.exports.find(identity)
                if record is None or record.lost is not None:
                    self._judge_end(vm, "is gone" if record is None else record.lost.text)
                    return None
                export = vm.exports._exports.get(identity)
                if export is not None:
                    task = process.spawn(attempt(export))
                    while not (task.done() or process.dead):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    if task.done() and not process.dead:
                        # Errors are told in words: nothing of a task that nobody awaits may be left.
                        return None if isinstance(task.result(), OSError) else task.result()
            await asyncio.sleep(0.05)

    def _present(self) -> tuple[Process | None, Any]:
        """The replica's agent that runs, and its VM, if it is there already."""
        agent: Any = self.world.agents.get("R")
        vms = list(agent.vms.values()) if agent is not None else []
        return self.world.replica.alive("agent"), vms[0] if vms else None

    def _judge_end(self, vm: Any, reason: str) -> None:
        """Nobody ended it: then only what takes its point away may have."""
        options, view = self.world.options, self.world.view
        if vm.ledger.promotion is not None or view.unsound:
            return
        if not (options.foreign_edits or options.replica_errors or options.full_replica):
            raise Violation(f"I1: an export was lost, although nothing befell its point: {reason}")


async def _attempt(disk: Any, offset: int, length: int) -> bytes | OSError:
    try:
        data: bytes | None = disk.read_cached(offset, length)
        return data if data is not None else await disk.read(offset, length)
    except OSError as error:
        # The export is gone, and says so: what it kept has passed its limit, say.
        return error
