"""Clients that write to exports: what they were told is there whatever becomes of the agent, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shared.nbd.backend import CommandKind, Mutation
from shared.status import ExportStatus
from tests.simulation.exports import ExportReaders
from tests.simulation.oracle import Violation, difference

if TYPE_CHECKING:
    from tests.simulation.world import World

SECTOR = 512
STEPS = 12
"""What one client does before it has done enough."""
Sector = tuple[int, int]


class Written:
    """What an export that is written to has to hold, sector by sector.

    ``images`` are as they were answered. A change that was not answered may have happened (``open``); a change that was
    not flushed may be gone after power loss (``unflushed``).
    """

    def __init__(self, images: list[bytearray], boots: int) -> None:
        self.images = images
        self.boots = boots
        self.open: dict[Sector, set[bytes]] = {}
        self.unflushed: dict[Sector, set[bytes]] = {}

    def sectors(self, disk: int, change: Mutation) -> Iterator[tuple[Sector, bytes, bytes]]:
        """Each with what it holds and what the change puts there."""
        for at in range(change.offset, change.offset + change.length, SECTOR):
            place = at - change.offset
            data = bytes(SECTOR) if change.payload is None else bytes(change.payload[place : place + SECTOR])
            yield (disk, at), bytes(self.images[disk][at : at + SECTOR]), data

    def answered(self, disk: int, change: Mutation) -> None:
        for key, before, data in self.sectors(disk, change):
            self.unflushed.setdefault(key, {before}).update({data, *self.open.pop(key, ())})
            self.images[disk][key[1] : key[1] + SECTOR] = data

    def unanswered(self, disk: int, change: Mutation) -> None:
        for key, before, data in self.sectors(disk, change):
            self.open.setdefault(key, {before}).add(data)

    def check(self, found: list[bytes], boots: int) -> None:
        """``found`` is what a client reads. Raises Violation; what was in doubt is settled by it."""
        lost_power = boots != self.boots
        for disk, image in enumerate(found):
            wanted = self.images[disk]
            for at in range(0, len(image) if image != wanted else 0, SECTOR):
                got, key = image[at : at + SECTOR], (disk, at)
                allowed = {bytes(wanted[at : at + SECTOR]), *self.open.get(key, ())}
                allowed |= self.unflushed.get(key, set()) if lost_power else set()
                if got not in allowed:
                    what = "after power loss" if lost_power else "in one boot"
                    raise Violation(
                        f"I4: a writable export {what} has something else: {difference(disk, bytes(wanted), image)}"
                    )
                self.unflushed.setdefault(key, set()).update(allowed)
            self.images[disk] = bytearray(image)
        self.open.clear()
        # What was changed since the host came back is not flushed either: nothing of it is forgotten before a FLUSH.
        self.boots = boots


class OverlayWriters(ExportReaders):
    """Begins writable exports, changes and reads them, and compares."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        # Neither ends what the other follows.
        self._followed = world.exports._followed

    async def _begin(self, vm: Any) -> None:
        world = self.world
        position = world.rng.choice([None, *vm.parts.history.positions()])
        status = await vm.exports.start(vm.describe, position, writable=True)
        self._followed.add(status.id)
        world.loop.call_soon(lambda: world.loop.create_task(self._follow(status)), context=world.context)

    async def _follow(self, status: ExportStatus) -> None:
        world = self.world
        truth = world.oracle.cuts[bytes.fromhex(status.cut.epoch), status.cut.segment]
        written = Written([bytearray(image) for image in truth], world.replica.boots)
        try:
            for _ in range(STEPS):
                if not await self._step(status.id, written):
                    break
            else:
                self.checks += 1
        except Violation as violation:
            world.fail(violation)
        self._followed.discard(status.id)
        world.order(world.replica, lambda vm: vm.exports.stop(status.id))

    async def _step(self, identity: str, written: Written) -> bool:
        """False where the export is gone, and says so."""
        rng = self.world.rng
        if rng.random() < 0.25:
            boots = self.world.replica.boots
            found = await self._image(identity)
            # What was read over a restart of the host is of both sides of it.
            if found is not None and boots == self.world.replica.boots:
                written.check(found, boots)
            return found is not None
        disk = rng.randrange(len(written.images))
        size = len(written.images[disk])
        if rng.random() < 0.2:
            done = await self._ask(identity, disk, lambda each: each.flush())
            if done == 0 and written.boots == self.world.replica.boots:
                for key in [key for key in written.unflushed if key[0] == disk]:
                    del written.unflushed[key]
            return done is not None
        kind = rng.choice([CommandKind.WRITE, CommandKind.WRITE, CommandKind.ZEROES, CommandKind.TRIM])
        offset = rng.randrange(size // SECTOR) * SECTOR
        length = min(rng.choice([512, 4096, 20480]), size - offset)
        payload = memoryview(rng.randbytes(length)) if kind is CommandKind.WRITE else None
        change = Mutation(kind, offset, length, payload, fua=False, no_hole=False, fast=False)
        # Until it is answered it may have happened, once or again by a client that reconnects.
        written.unanswered(disk, change)
        done = await self._ask(identity, disk, lambda each: _change(each, change))
        if done == 0:
            written.answered(disk, change)
        return done is not None

    async def _ask(self, identity: str, disk: int, what: Any) -> Any:
        """One request, sent again to each agent that comes until it is answered; None where the export is gone."""
        return await self._asked(identity, lambda export: _answer(what(export.disks[disk])))

    def _judge_end(self, vm: Any, reason: str) -> None:
        if "can't be told any more" in reason and self.world.replica.boots > 1:
            # Power was lost while a page of its map was being written.
            return
        super()._judge_end(vm, reason)


async def _change(disk: Any, change: Mutation) -> int:
    change.error = 0
    await disk.mutate([change])
    return change.error


async def _answer(work: Any) -> Any:
    try:
        return await work
    except OSError as error:
        return error
