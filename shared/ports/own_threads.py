"""Blocking work that may take very long, or never end: in a thread of its own, for which nobody waits at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_own_thread(work: Callable[..., T], *args: Any) -> T:
    """Run ``work`` and return what it returns. Cancelled, it goes on for itself.

    The threads of an executor are joined at the end of a program, by those of a loop without a limit: one alarm that
    hangs would keep a service from stopping, and six of them keep taps from being started. How many there are at a time
    is up to the caller.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def end(error: BaseException | None, result: Any) -> None:
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)

    def run() -> None:
        error, result = None, None
        try:
            result = work(*args)
        except BaseException as raised:  # it is the caller's
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(end, error, result)

    threading.Thread(target=run, name="vmreplica-own", daemon=True).start()
    return await ended
