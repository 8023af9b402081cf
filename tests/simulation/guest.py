"""The guest: a VM that writes, zeroes, discards, flushes and reads its disks at random, several requests in flight."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from shared.nbd.backend import CommandKind, ExportBackend, Mutation
from shared.nbd.constants import Errno
from tests.simulation.disk import SECTOR
from tests.simulation.loop import Process, ProcessDead, SimulationLoop
from tests.simulation.oracle import Oracle, Violation, Write

if TYPE_CHECKING:
    from tests.simulation.options import Options


class Guest:
    """Drives the exports of whatever tap serves at the moment; knows nothing of log, agents or replica."""

    def __init__(
        self, loop: SimulationLoop, options: Options, oracle: Oracle, fail: Callable[[BaseException], None]
    ) -> None:
        self.loop = loop
        self.fail = fail
        self.options = options
        self.oracle = oracle
        self.rng = random.Random(f"{options.seed}/guest")
        self.sectors = options.pages * 8
        self.process: Process | None = None
        self.exports: Sequence[ExportBackend] = ()
        self.refused = False
        """The tap is stopping in order, and refuses what is new."""
        self.in_flight: list[list[Write]] = []
        self.unanswered: list[Write] = []
        """What a killed tap left unanswered; QEMU sends it again."""
        self.last_number = 0
        self.answered = 0
        self.flushes = 0

    # --- the tap comes and goes ---

    def attach(self, process: Process, exports: Sequence[ExportBackend]) -> None:
        """A tap serves."""
        self.process = process
        self.exports = exports
        self.refused = False
        if self.unanswered:
            again, self.unanswered = self.unanswered, []
            if self.rng.random() < 0.7:
                for write in again:
                    self._submit([self._again(write)])

    def detach(self) -> None:
        """The tap is gone; nothing in flight will be answered."""
        self.process = None
        self.exports = ()
        self.unanswered = [write for batch in self.in_flight for write in batch]
        self.in_flight = []

    def drained(self) -> None:
        """The tap stops in order: it answers what it has, and refuses what is new."""
        self.refused = True

    def reset(self) -> None:
        """The guest's own host lost power: nobody sends anything again."""
        self.unanswered = []

    # --- load ---

    async def run(self) -> None:
        """Load without end; to be cancelled."""
        while True:
            await asyncio.sleep(self.rng.expovariate(self.options.write_rate))
            if self.process is None or self.process.dead or self.refused or self._is_off():
                continue
            if len(self.in_flight) < self.options.in_flight:
                disk = self.rng.randrange(len(self.exports))
                self._submit([self._make(disk) for _ in range(self.rng.choice((1, 1, 1, 2, 4)))])
            chance = self.rng.random()
            if chance < 0.06:
                self._flush(self.rng.randrange(len(self.exports)))
            elif chance < 0.12:
                self._read()

    def _is_off(self) -> bool:
        """Most administrators shut a VM down before they prepare its failover."""
        return self.exports[0].read_only and self.rng.random() < 0.9

    def _make(self, disk: int) -> Write:
        rng = self.rng
        if rng.random() >= self.options.zeroes:
            count = rng.randint(1, rng.choice((1, 8, 8, self.options.largest)))
            kind = CommandKind.WRITE
        else:
            count = rng.randint(1, rng.choice((8, 64, self.sectors)))
            kind = rng.choice((CommandKind.ZEROES, CommandKind.TRIM))
        count = min(count, self.sectors)
        last = self.sectors - count
        # Most writes meet where others went a moment ago.
        start = min(last, int(rng.expovariate(8 / self.sectors))) if rng.random() < 0.6 else rng.randint(0, last)
        if start % 8 and rng.random() < 0.5:
            start -= start % 8
        self.last_number += 1
        payload = self._payload(start, count) if kind is CommandKind.WRITE else None
        return Write(disk, kind, start * SECTOR, count * SECTOR, payload)

    def _payload(self, start: int, count: int) -> bytes:
        """Sectors that name the write and their own place, so that nothing can be mixed up unnoticed."""
        number = self.last_number.to_bytes(8, "little")
        body = SECTOR - 16
        if self.rng.random() < 0.5:
            noise = self.rng.randbytes(count * body)
            rests = [noise[index : index + body] for index in range(0, count * body, body)]
        else:
            rests = [number * (body // 8)] * count
        return b"".join(
            b"%b%b%b" % (number, place.to_bytes(8, "little"), rest) for place, rest in enumerate(rests, start)
        )

    def _again(self, write: Write) -> Write:
        return Write(write.disk, write.kind, write.offset, write.length, write.payload)

    def _submit(self, batch: list[Write]) -> None:
        assert self.process is not None
        for write in batch:
            write.mutation = Mutation(
                kind=write.kind,
                offset=write.offset,
                length=write.length,
                payload=memoryview(write.payload) if write.payload is not None else None,
                fua=self.rng.random() < 0.05,
                no_hole=write.kind is CommandKind.ZEROES and self.rng.random() < 0.5,
                fast=False,
            )
            self.oracle.submit(write)
        self.in_flight.append(batch)
        export = self.exports[batch[0].disk]
        mutations = [write.mutation for write in batch if write.mutation is not None]
        process = self.process
        try:
            waiting = process.run(export.mutate, mutations)
        except ProcessDead:
            return
        if waiting is not None:
            self._when_done(process, waiting, lambda _result: self._answered(batch))
            return
        try:
            self._answered(batch)
        except Violation as violation:
            self.fail(violation)

    def _when_done(self, process: Process, waiting: Awaitable[Any], then: Any) -> None:
        """Call ``then`` with the result when the tap answers, unless it dies first."""

        async def answer() -> Any:
            return await waiting

        task = process.spawn(answer())

        def done(task: asyncio.Task[Any]) -> None:
            if process.dead or self.process is not process:
                return
            try:
                then(task.result())
            except Exception as error:
                self.fail(error)

        task.add_done_callback(done)

    def _answered(self, batch: list[Write]) -> None:
        if batch not in self.in_flight:
            return
        self.in_flight.remove(batch)
        for write in batch:
            mutation = write.mutation
            assert mutation is not None
            if mutation.error == Errno.EPERM and self.options.prepares and not write.numbered:
                # No writes are taken for a failover that is prepared: this one never happened.
                self.oracle.pending.remove(write)
                continue
            if mutation.error:
                raise Violation(f"I14: the guest got error {mutation.error} for a {write.kind.value}")
            if not write.numbered:
                raise Violation("I2: a write was answered before it was numbered")
            write.answered = True
            write.flushed = mutation.fua
            self.answered += 1

    def _flush(self, disk: int) -> None:
        assert self.process is not None
        covered = [write for write in self.oracle.order if write.answered and write.disk == disk]

        def done(error: int) -> None:
            if error:
                raise Violation(f"I14: the guest got error {error} for a flush")
            self.flushes += 1
            for write in covered:
                write.flushed = True

        self._when_done(self.process, self.exports[disk].flush(), done)

    def _read(self) -> None:
        """Read a range that no write under way touches, and check it."""
        assert self.process is not None
        disk = self.rng.randrange(len(self.exports))
        start = self.rng.randrange(self.sectors)
        count = self.rng.randint(1, min(64, self.sectors - start))
        offset, length = start * SECTOR, count * SECTOR
        order = len(self.oracle.order)
        before = [write for batch in self.in_flight for write in batch]

        def done(data: bytes | memoryview) -> None:
            busy = [*before, *self.oracle.order[order:], *self.oracle.pending]
            if any(w.disk == disk and w.offset < offset + length and offset < w.offset + w.length for w in busy):
                return
            if bytes(data) != bytes(self.oracle.images[disk][offset : offset + length]):
                raise Violation(f"R1: the guest read something else than it wrote at {offset} of disk {disk}")

        self._when_done(self.process, self.exports[disk].read(offset, length), done)
