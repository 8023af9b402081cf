"""The event loop of the simulation: virtual time, first-in first-out timers, and processes that can be killed.

A process is whatever runs in a context where :data:`CURRENT` names it. Killing it means that none of its callbacks
ever runs again: no ``finally`` and no ``except`` sees the end, as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import math
import sys
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import xxhash


class ProcessDead(BaseException):
    """Raised by every port of a killed process, so that code that still runs gets no further."""


class Deadlock(Exception):
    """Nothing is scheduled any more, so that the awaited thing can never happen."""


class Livelock(Exception):
    """Far more steps than any healthy run takes: something spins without waiting."""


class Trace:
    """The fingerprint of everything that happened: equal for two runs of one seed, or the run is not deterministic.

    With ``kept`` set the events are kept as well, so that two runs can be compared to their first difference.
    """

    def __init__(self) -> None:
        self.value = 0
        self.kept: list[tuple[Any, ...]] | None = None

    def mix(self, *event: float) -> None:
        # The hash of a tuple of numbers does not depend on the process's hash seed.
        self.value = hash((self.value, *event))
        if self.kept is not None:
            self.kept.append(event)


def fingerprint(data: bytes | bytearray | memoryview) -> int:
    """A number for the trace that stands for the bytes."""
    return xxhash.xxh3_64_intdigest(data) >> 3


class Process:
    """One simulated process: its tasks die with it, its files close, its links break."""

    _last_number = 0

    def __init__(self, name: str, loop: SimulationLoop | None = None) -> None:
        self.name = name
        self.loop = loop
        self.dead = False
        self.exited = False
        """It ended by itself, with nothing left to lose."""
        self.tasks: list[asyncio.Task[Any]] = []
        """Its unfinished tasks, and finished ones for a while: a task that is collected would run its ``finally``."""
        self.on_death: list[Callable[[], None]] = []
        self.operations = 0
        self.die_at: int | None = None
        """The number of the operation in which the process is killed."""
        self.number = 0
        if loop is not None:
            loop.processes.append(self)
            self.number = len(loop.processes)
        self.context = contextvars.Context()
        self.context.run(CURRENT.set, self)

    def operation(self, *details: float) -> None:
        """Called by each port call: dies here when told to, which is where a real process may die, too."""
        if self.dead:
            raise ProcessDead
        self.operations += 1
        loop = self.loop
        if loop is not None:
            loop.trace.mix(loop.now, self.number, self.operations, *details)
        if self.die_at is not None and self.operations >= self.die_at:
            self.kill()
            raise ProcessDead

    def dies_next(self) -> bool:
        """Whether the next operation is the one in which the process is killed."""
        return self.die_at is not None and self.operations + 1 >= self.die_at

    def kill(self) -> None:
        if self.dead:
            return
        self.dead = True
        for callback in self.on_death:
            callback()
        self.on_death.clear()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function`` as this process would; what it starts belongs to the process."""
        return self.context.copy().run(function, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of this process."""
        assert self.loop is not None
        task: asyncio.Task[Any] = self.run(self.loop.create_task, coroutine)
        return task


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class SimulatedFuture(asyncio.Future[Any]):
    """A future whose hash is its number, so that sets of futures have the same order in every run."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class SimulatedTask(asyncio.Task[Any]):
    """A task whose hash is its number, so that sets of tasks have the same order in every run."""

    number = 0

    def __new__(cls, *_args: Any, loop: SimulationLoop, **_options: Any) -> SimulatedTask:
        task = super().__new__(cls)
        loop.numbers += 1
        task.number = loop.numbers
        return task

    def __hash__(self) -> int:
        return self.number


class _Handle:
    """A callback of a process; skipped once that process is dead. Does all that asyncio wants of its own handles."""

    __slots__ = ("args", "callback", "context", "gone", "process", "time")

    def __init__(self, callback: Any, args: tuple[Any, ...], context: contextvars.Context, time: float) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.time = time
        self.process = context.get(CURRENT)
        self.gone = False

    def when(self) -> float:
        return self.time

    def cancel(self) -> None:
        self.gone = True
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.gone


class SimulationLoop(asyncio.BaseEventLoop):
    """asyncio without a real clock, sockets or threads; deterministic for one sequence of calls."""

    def __init__(self, max_steps: float = math.inf) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.max_steps = max_steps
        self.numbers = 0
        self.trace = Trace()
        self.processes: list[Process] = []
        self.errors: list[dict[str, Any]] = []
        self._timers: list[tuple[float, int, _Handle]] = []
        self._ready: deque[_Handle] = deque()
        self.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self.now

    def create_future(self) -> SimulatedFuture:
        future = SimulatedFuture(loop=self)
        self.numbers += 1
        future.number = self.numbers
        return future

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, contextvars.copy_context() if context is None else context, self.now)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, contextvars.copy_context() if context is None else context, when)
        self.numbers += 1
        heapq.heappush(self._timers, (when, self.numbers, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def run_in_executor(self, _executor: Any, function: Any, *_args: Any) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{function} was given to a thread past the ports")

    def _process_events(self, _events: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        """Run until told to stop: asyncio asks between any two rounds, which costs more than many a round."""
        while True:
            self._run_round()
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _run_round(self) -> None:
        """What is due now, in the order in which it became due; where nothing is, time goes on to the next timer."""
        ready, timers = self._ready, self._timers
        while timers and _is_over(timers[0][2]):
            heapq.heappop(timers)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                raise Deadlock("nothing is scheduled")
            self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            ready.append(heapq.heappop(timers)[2])
        count = len(ready)
        self.steps += count
        if self.steps > self.max_steps:
            raise Livelock(f"{self.steps} steps at {self.now:.6f} s")
        for _ in range(count):
            handle = ready.popleft()
            process = handle.process
            if handle.gone or (process is not None and process.dead):
                continue
            try:
                handle.context.run(handle.callback, *handle.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"{handle.callback} failed", "exception": error})

    def unretrieved(self) -> list[BaseException]:
        """Exceptions that ended a task of a living process and that nobody looked at, and failed callbacks."""
        found = [error for context in self.errors if (error := context.get("exception")) is not None]
        for process in self.processes:
            for task in process.tasks:
                if not process.dead and task.done() and not task.cancelled() and task._log_traceback:
                    error = task.exception()
                    if error is not None:
                        found.append(error)
        return [error for error in found if not isinstance(error, ProcessDead)]

    def waiting(self) -> list[str]:
        """Where each task of a living process waits, from its outermost to its innermost frame."""
        return [
            f"{process.name}: {' > '.join(_frames(task.get_coro()))}"
            for process in self.processes
            for task in process.tasks
            if not process.dead and not task.done()
        ]

    def dismantle(self) -> None:
        """End everything without letting it run on: for the end of a simulation.

        Suspended coroutines are closed, which makes their ``finally`` run into ports of dead processes and into a loop
        that stands still. What they then complain about is of no interest.
        """
        for process in self.processes:
            process.kill()
        complain, sys.unraisablehook = sys.unraisablehook, lambda _complaint: None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for task in asyncio.all_tasks(self):
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close(task.get_coro())
                self._ready.clear()
                self._timers.clear()
                self._asyncgens.clear()  # type: ignore[attr-defined]
                self.close()
                for process in self.processes:
                    process.tasks.clear()
                self.processes.clear()
                gc.collect()
        finally:
            sys.unraisablehook = complain


def _close(coroutine: Any) -> None:
    try:
        coroutine.close()
    except BaseException:
        return


def _is_over(handle: _Handle) -> bool:
    return handle.gone or (handle.process is not None and handle.process.dead)


def _frames(coroutine: Any) -> list[str]:
    """The functions that a suspended coroutine is in."""
    found = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        found.append(f"{coroutine.__qualname__}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return found


PRUNE_AT = 512


def _make_task(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    task = SimulatedTask(coroutine, loop=loop, **options)
    process = CURRENT.get()
    if process is not None:
        process.tasks.append(task)
        if len(process.tasks) % PRUNE_AT == 0 and not process.dead:
            process.tasks = [one for one in process.tasks if not one.done() or one._log_traceback]
    return task
