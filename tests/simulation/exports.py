"""Readers of exports: an export must show its one point for as long as it lasts, whatever is applied meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shared.errors import VmreplicaError
from tests.simulation.loop import Process
from tests.simulation.oracle import Violation

if TYPE_CHECKING:
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
    """Begins exports, reads them piece by piece over some time, and compares them with the oracle."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.checks = 0

    def begin(self) -> None:
        """Start an export and read it."""
        world = self.world
        process = world.replica.alive("agent")
        if process is None or "R" not in world.agents:
            return
        world.count("export")
        world.order(world.replica, lambda vm: self._read(process, vm))

    async def _read(self, process: Process, vm: Any) -> None:
        rng = self.world.rng
        positions = vm.parts.history.positions()
        status = await vm.exports.start(vm.describe, rng.choice([None, *positions]))
        export = vm.exports._exports.get(status.id)
        if export is None:
            # A failover ended it while its beginning was being recorded.
            return
        try:
            cut = (bytes.fromhex(status.cut.epoch), status.cut.segment)
            found = [bytearray(disk.size) for disk in export.disks]
            pieces = [(index, start) for index, disk in enumerate(export.disks) for start in range(0, disk.size, 65536)]
            rng.shuffle(pieces)
            for index, start in pieces:
                disk = export.disks[index]
                length = min(65536, disk.size - start)
                try:
                    data = disk.read_cached(start, length)
                    if data is None:
                        data = await disk.read(start, length)
                except OSError:
                    # The export is gone, and says so: what it kept has passed its limit, say.
                    return
                found[index][start : start + length] = data
                await asyncio.sleep(rng.uniform(0, 0.4))
            self.checks += 1
            self.world.oracle.check_cut(*cut, [bytes(image) for image in found], "an export")
        except Violation as violation:
            self.world.fail(violation)
        finally:
            if not process.dead:
                try:
                    await vm.exports.stop(status.id)
                except VmreplicaError as error:
                    self.world.tell(f"unexport: {error}")
