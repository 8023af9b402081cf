"""Lets concurrent flushes of one export share one flush: a group commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shared.nbd.constants import Errno

Answer = Callable[[int], None]


class FlushGate:
    """At most one flush runs; requests that arrive meanwhile share the next one, which begins after they arrived.

    ``start`` runs a coroutine as a task with an owner.
    """

    def __init__(self, flush: Callable[[], Awaitable[int]], start: Callable[[Awaitable[None]], None]) -> None:
        self._flush = flush
        self._start = start
        self._waiting: list[Answer] = []
        self._running = False

    def request(self, answer: Answer) -> None:
        """``answer`` gets the ``Errno`` of a flush that begins after this call; it is called from the loop."""
        self._waiting.append(answer)
        if not self._running:
            self._running = True
            self._start(self._run())

    async def _run(self) -> None:
        waiting: list[Answer] = []
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                error = await self._flush()
                while waiting:
                    waiting.pop()(error)
        finally:
            # An export that raises (or a cancelled task) still leaves nobody waiting for ever.
            self._running = False
            abandoned, self._waiting = waiting + self._waiting, []
            for answer in abandoned:
                answer(Errno.EIO)
