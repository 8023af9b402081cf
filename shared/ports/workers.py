"""Worker threads for blocking work on files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shared.errors import InvalidStateError
from shared.ports.kernel import SESSION_NICE, stand_back, take_background_precedence

T = TypeVar("T")

BACKGROUND_SECONDS = 1.0
"""Background work that goes on after so short a pause has not ended."""
WAITING_MAX = 256
"""Work that is accepted and waits for a free thread; more waits with its caller."""


class ThreadWorkers:
    """A fixed number of threads (shared.ports.Workers).

    Accepted work always runs to its end. A caller that is cancelled meanwhile gets its CancelledError when
    the work has ended, so that it can close the files the work used. A caller that is cancelled while it
    still waits for a place in the queue gets it at once, and its work never begins. Callers are served in
    order.
    """

    def __init__(self, count: int, *, waiting_max: int = WAITING_MAX, background: bool = False) -> None:
        """``background``: processor and disks go to others first, while there is work (shared.ports.kernel)."""
        if count < 1 or waiting_max < 0:
            raise ValueError(f"{count} threads with {waiting_max} waiting can do no work")
        self._executor = ThreadPoolExecutor(
            max_workers=count,
            thread_name_prefix="vmreplica-background" if background else "vmreplica-worker",
            initializer=take_background_precedence if background else None,
        )
        self._places = asyncio.Semaphore(count + waiting_max)
        self._running: set[asyncio.Future[Any]] = set()
        self._closed = False
        self._background = Background() if background else None

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """See shared.ports.Workers; raises InvalidStateError after ``close``."""
        async with self._places:
            if self._closed:
                raise InvalidStateError("The worker threads are closed, so no work on files can begin.")
            future = asyncio.get_running_loop().run_in_executor(self._executor, _call, work, args)
            self._running.add(future)
            future.add_done_callback(self._running.discard)
            if self._background is not None:
                self._background.began()
                future.add_done_callback(self._background.ended)
            return await _ended(future)

    async def close(self) -> None:
        """Refuse further work, wait for what was accepted, end the threads."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running)
        if self._background is not None:
            self._background.close()
        self._executor.shutdown()


class Background:
    """Lets the whole process stand back behind others while background work is going on, and a while longer."""

    def __init__(self) -> None:
        self._works = 0
        self._back = False
        self._timer: asyncio.TimerHandle | None = None

    def began(self) -> None:
        """One more work is going on."""
        self._works += 1
        self._cancel()
        if not self._back:
            self._back = stand_back(SESSION_NICE)

    def ended(self, _future: object) -> None:
        """One less."""
        self._works -= 1
        if self._works == 0:
            self._cancel()
            self._timer = asyncio.get_running_loop().call_later(BACKGROUND_SECONDS, self.close)

    def close(self) -> None:
        """Come forward again."""
        self._cancel()
        if self._back and self._works == 0 and stand_back(0):
            self._back = False
        elif self._back and self._works == 0:
            self._timer = asyncio.get_running_loop().call_later(BACKGROUND_SECONDS, self.close)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _ended(future: asyncio.Future[T]) -> T:
    """The outcome of ``future``; a cancellation is held back until it has one."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break
    if cancelled is None:
        return future.result()
    raise cancelled from future.exception()


def _call(work: Callable[..., T], args: tuple[Any, ...]) -> T:
    try:
        return work(*args)
    except StopIteration as error:
        # No future can carry this one; its caller would wait for ever.
        raise RuntimeError("work in a worker thread raised StopIteration") from error
