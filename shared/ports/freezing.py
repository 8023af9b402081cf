"""Freezing a guest for the moment of a cut: the port, and the real one, which has each freeze done by a guard.

A guard (shared.ports.freeze_guard) is a process of its own, since whoever froze a guest must thaw it even if the agent
is killed in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from shared.errors import UnreachableError, UsageError, VmreplicaError
from shared.guest_settings import FreezeKind
from shared.ports.guest_freezing import Thawed
from shared.ports.launcher import NOT_INHERITED

FREEZE_FAILED = "freeze_failed"
FREEZE_NOT_BEGUN = "freeze_not_begun"
"""Codes of the error of a freeze: it may have frozen the guest, which is being thawed; or nothing was touched."""
_SILENT = "The guard of the freeze ended without a word."
GUARD_PROGRAM = (sys.executable, "-P", "-m", "shared.ports.freeze_guard")


@dataclass(frozen=True, slots=True)
class FreezeOrder:
    """Which guest to freeze, and how: ``target`` is a socket, a domain or a program, by ``kind``.

    Freezing may take ``freeze_seconds``; from its beginning on the guest is frozen for ``frozen_seconds`` at most.
    """

    kind: FreezeKind
    target: str
    vm: str
    freeze_seconds: float
    frozen_seconds: float


class ThawFailedError(VmreplicaError):
    """A guest could not be thawed yet; it is tried on."""

    code = "thaw_failed"


class Frozen(Protocol):
    """A guest that is frozen, until it is thawed, its time is over, or whoever froze it dies."""

    async def thaw(self) -> Thawed:
        """Thaw it now. Raises ThawFailedError; it is tried on then."""

    def leave(self) -> None:
        """Have it thawed, without waiting for that. Does nothing behind :meth:`thaw`."""


class Freezer(Protocol):
    """Freezes guests."""

    async def freeze(self, order: FreezeOrder) -> Frozen:
        """Freeze a guest. Raises VmreplicaError: FREEZE_NOT_BEGUN, or another code where the guest is being thawed."""

    async def thaw(self, order: FreezeOrder) -> None:
        """Thaw a guest that an earlier freeze may have left frozen. Raises ThawFailedError."""


class GuardedFreezer:
    """See :class:`Freezer`."""

    def __init__(self) -> None:
        self._guards: set[_Guard] = set()

    async def settled(self) -> None:
        """Wait until every guard that was started has ended: each guest is thawed then, or given up."""
        await asyncio.gather(*(guard.ended.wait() for guard in self._guards))

    async def _start(self, order: FreezeOrder, *, thaw_only: bool) -> _Guard:
        guard = _Guard(await asyncio.to_thread(_start, order, thaw_only=thaw_only), self._guards.discard)
        self._guards.add(guard)
        return guard

    async def freeze(self, order: FreezeOrder) -> Frozen:
        guard = await self._start(order, thaw_only=False)
        try:
            said = await asyncio.to_thread(guard.listen)
        except BaseException:
            guard.leave()
            raise
        if not said.get("frozen"):
            guard.leave()
            code = FREEZE_FAILED if said.get("begun", True) else FREEZE_NOT_BEGUN
            raise UnreachableError(said.get("text", _SILENT), said.get("remedy", "See the agent's log."), code=code)
        return guard

    async def thaw(self, order: FreezeOrder) -> None:
        guard = await self._start(order, thaw_only=True)
        try:
            _judge(await asyncio.to_thread(guard.listen))
        finally:
            guard.end()


class _Guard:
    """A running guard, at the agent's end of its pipes (:class:`Frozen`)."""

    def __init__(self, process: subprocess.Popen[bytes], on_end: Callable[[_Guard], None]) -> None:
        self.ended = asyncio.Event()
        self._process = process
        self._on_end = on_end

    async def thaw(self) -> Thawed:
        try:
            self._say("thaw")
            said = await asyncio.to_thread(self.listen)
        finally:
            self.leave()
        return _judge(said)

    def listen(self) -> dict[str, Any]:
        """What the guard says next; empty where it has ended. Blocks; the guard's own limits bound that."""
        assert self._process.stdout is not None
        try:
            said = json.loads(self._process.stdout.readline() or b"{}")
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def leave(self) -> None:
        """Close the pipe to the guard, which then thaws, unless it has. It ends by itself."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            # The loop keeps this object as long as the descriptor is watched.
            self._ended = os.pidfd_open(self._process.pid)
            asyncio.get_running_loop().add_reader(self._ended, self._reap)

    def end(self) -> None:
        """It was only to try once: what it has not done by now is tried by another one."""
        self._process.kill()
        self.leave()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ended)
        os.close(self._ended)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self.ended.set()
        self._on_end(self)

    def _say(self, line: str) -> None:
        _write(self._process, line)


def _start(order: FreezeOrder, *, thaw_only: bool) -> subprocess.Popen[bytes]:
    """A guard that has its order. Blocks until the process is started. Raises UsageError."""
    try:
        process = subprocess.Popen(
            GUARD_PROGRAM,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(
            f"The guard of a freeze can't be run: {error.strerror}.", "Reinstall vmreplica.", code=FREEZE_NOT_BEGUN
        ) from None
    _write(process, json.dumps({**asdict(order), "thaw_only": thaw_only}))
    return process


def _write(process: subprocess.Popen[bytes], line: str) -> None:
    """A guard that has ended is found out by what it does not say."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


def _judge(said: dict[str, Any]) -> Thawed:
    """Raises ThawFailedError unless the guard says that the guest is thawed."""
    if not said.get("thawed"):
        raise ThawFailedError(
            said.get("text", "The guard of the freeze ended without a word."),
            said.get("remedy", "See the agent's log."),
        )
    return Thawed(held=bool(said.get("held")), text=str(said.get("text", "")))
