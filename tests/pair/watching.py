"""What a process holds, before, during and after a fault: memory, descriptors, threads, and tasks of this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, fields
from pathlib import Path

MIB = 1 << 20
PASSING = 4
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of resident memory, and numbers. Tasks are those of the running loop, 0 for another process."""

    memory: int
    descriptors: int
    threads: int
    tasks: int

    @classmethod
    def by(cls, pid: int | None = None) -> Held:
        """By a process, or by this one."""
        folder = Path("/proc") / str(pid or "self")
        resident = int((folder / "statm").read_text().split()[1]) * PAGE
        descriptors = len(os.listdir(folder / "fd"))
        threads = len(os.listdir(folder / "task"))
        return cls(resident, descriptors, threads, len(asyncio.all_tasks()) if pid is None else 0)

    def most(self, other: Held) -> Held:
        """The larger of each."""
        return Held(*(max(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)))


class Watch:
    """Looks several times a second, for as long as it is entered; ``worst`` is the most that it saw of each."""

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid
        self.before = self.worst = Held.by(pid)
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self.before = self.worst = Held.by(self.pid)
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._looking is not None
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking

    async def _look(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.05)

    def look(self) -> Held:
        now = Held.by(self.pid)
        self.worst = self.worst.most(now)
        return now

    def is_back(self) -> bool:
        """Whether descriptors and tasks are as before, but for one that looks and what replication opens and closes."""
        now = Held.by(self.pid)
        return now.descriptors <= self.before.descriptors + PASSING and now.tasks <= self.before.tasks + PASSING

    def assert_flat(self, *, memory: int = 48 * MIB, descriptors: int = 16, threads: int = 4, tasks: int = 24) -> None:
        """At no time more than so much above what was held before."""
        grown = {one.name: getattr(self.worst, one.name) - getattr(self.before, one.name) for one in fields(Held)}
        allowed = {"memory": memory, "descriptors": descriptors, "threads": threads, "tasks": tasks}
        beyond = {name: value for name, value in grown.items() if value > allowed[name]}
        assert not beyond, f"grew by {grown}, allowed are {allowed}"
