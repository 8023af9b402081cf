"""Which compares of this host run at the same time, and in which order the others wait.

Bounded catch-ups come first, since they are short and the VM is unprotected until then; then those of higher priority;
then whoever came first. A running one is never stopped for another.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from shared.tasks import Signal


@dataclass(slots=True, eq=False)
class Ticket:
    """One compare that runs or waits; ``priority`` is asked anew each time, since it may be changed meanwhile."""

    name: str
    priority: Callable[[], int]
    bounded: bool
    number: int


@dataclass(slots=True)
class ResyncQueue:
    """At most ``limit`` compares at a time."""

    limit: int
    running: list[Ticket] = field(default_factory=list)
    waiting: list[Ticket] = field(default_factory=list)
    changed: Signal = field(default_factory=Signal)
    _count: int = 0

    @contextlib.asynccontextmanager
    async def place(
        self, name: str, priority: Callable[[], int], *, bounded: bool, told: Callable[[str], None]
    ) -> AsyncIterator[None]:
        """Wait for a place and hold it. ``told`` gets the place in the queue, in words, whenever it changes."""
        self._count += 1
        ticket = Ticket(name, priority, bounded, self._count)
        self.waiting.append(ticket)
        self.changed.notify()
        try:
            while len(self.running) >= self.limit or self._order()[0] is not ticket:
                told(self.words(ticket))
                await self.changed.wait()
            self.running.append(ticket)
        finally:
            self.waiting.remove(ticket)
            self.changed.notify()
        try:
            yield
        finally:
            self.running.remove(ticket)
            self.changed.notify()

    def reconsider(self) -> None:
        """A priority was changed."""
        self.changed.notify()

    def words(self, ticket: Ticket) -> str:
        """The place of one that waits, and for whom it waits."""
        order = self._order()
        priority = f", priority {ticket.priority()}" if ticket.priority() else ""
        names = ", ".join(each.name for each in self.running)
        return f"place {order.index(ticket) + 1} of {len(order)} in the queue{priority}; now: {names or 'nobody'}"

    def _order(self) -> list[Ticket]:
        return sorted(self.waiting, key=lambda each: (not each.bounded, -each.priority(), each.number))
