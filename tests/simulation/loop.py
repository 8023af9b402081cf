"""The event loop of the simulation: virtual time, first-in first-out timers, and processes that can be killed.

A process is whatever runs in a context where :data:`CURRENT` names it. Killing it means that none of its callbacks
ever runs again: no ``finally`` and no ``except`` sees the end, as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any


class ProcessDead(BaseException):
    """Raised by every port of a killed process, so that code that still runs gets no further."""


class Process:
    """One simulated process: its tasks die with it, its files close, its links break."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_death: list[Callable[[], None]] = []
        self.operations = 0
        self.die_at: int | None = None

    def operation(self) -> None:
        """Called by each port call: dies here when told to, which is where a real process may die, too."""
        if self.dead:
            raise ProcessDead
        self.operations += 1
        if self.die_at is not None and self.operations >= self.die_at:
            self.kill()
            raise ProcessDead

    def kill(self) -> None:
        if self.dead:
            return
        self.dead = True
        for callback in self.on_death:
            callback()
        self.on_death.clear()


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Selector:
    """Instead of waiting for sockets, jump to the time of the next timer."""

    def __init__(self, loop: SimulationLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is scheduled")
        if timeout > 0:
            self._loop.now += timeout
        return ()

    def close(self) -> None:
        pass


class SimulationLoop(asyncio.BaseEventLoop):
    """asyncio without a real clock or sockets; deterministic for one sequence of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self._ties = 0
        self._selector = _Selector(self)
        self._clock_resolution = 1e-12
        self.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        # The heap of asyncio does not keep equal times in order; a tie-break of 1e-11 s a timer does.
        self._ties += 1
        process = (context or contextvars.copy_context()).get(CURRENT)
        if process is not None:
            callback, args = _guarded, (process, callback, args)
        return super().call_at(when + self._ties * 1e-11, callback, *args, context=context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        process = (context or contextvars.copy_context()).get(CURRENT)
        if process is not None:
            callback, args = _guarded, (process, callback, args)
        return super().call_soon(callback, *args, context=context)

    def _process_events(self, _events: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        self.steps += len(self._ready) + 1
        super()._run_once()  # type: ignore[misc]


def _guarded(process: Process, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if not process.dead:
        callback(*args)


def _make_task(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    process = CURRENT.get()
    if process is not None:
        process.tasks.append(task)
    return task
