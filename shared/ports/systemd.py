"""What a service tells systemd about itself, and when: sd_notify(3) and its watchdog, without a library.

Everything is told from the event loop, so that a loop that stands still is told about too: by silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping

STATUS_BYTES = 400
"""A status line is cut to so many bytes: it is a line of ``systemctl status``."""
STATUS_SECONDS = 15.0
"""The status line is made anew so often."""
EXTEND_SECONDS = 60.0
"""While a start goes on, and its event loop turns, it gets so much more time again and again."""
EXTEND_EVERY_SECONDS = 10.0


class ServiceManager:
    """The service manager that started this process, if one did; else everything here does nothing."""

    def __init__(self, environment: Mapping[str, str], process_id: int) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        self._ready = False
        self.beat_seconds = _beat_seconds(environment, process_id) if self._path else None
        """How often the watchdog wants to hear from us: twice in its time. None where there is none."""

    @classmethod
    def of_this_process(cls) -> ServiceManager:
        """As the environment of this process says."""
        return cls(os.environ, os.getpid())

    def tell(self, *lines: str) -> None:
        """Send one notification. What can't be sent is lost: a service does not end because nobody listens."""
        if not self._path:
            return
        self._ready = self._ready or "READY=1" in lines
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as end,
        ):
            end.connect("\0" + self._path[1:] if self._path.startswith("@") else self._path)
            end.sendall("\n".join(lines).encode())

    def ready(self, status: str) -> None:
        """The service serves from now on, or again after a reload."""
        self.tell("READY=1", status_line(status))

    def reloading(self) -> None:
        """The configuration is being read anew; ``ready`` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """The orderly end has begun, and takes ``seconds`` at most."""
        self.tell("STOPPING=1", status_line("Ending in order."), f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def failed(self, text: str) -> None:
        """The service ends with an error, which stays readable in ``systemctl status``."""
        self.tell(status_line(text))

    async def keep_alive(self) -> None:
        """Answer for the event loop until cancelled: it turns, or this is not heard of.

        Until the service is ready a start gets more time instead; the watchdog counts from then on.
        """
        while self._path:
            if self._ready and self.beat_seconds is None:
                return
            if self._ready:
                self.tell("WATCHDOG=1")
                await asyncio.sleep(self.beat_seconds or 0.0)
            else:
                self.tell(f"EXTEND_TIMEOUT_USEC={int(EXTEND_SECONDS * 1e6)}")
                await asyncio.sleep(min(EXTEND_EVERY_SECONDS, self.beat_seconds or EXTEND_EVERY_SECONDS))

    async def keep_status(self, make: Callable[[], Awaitable[str]]) -> None:
        """Keep the status line up to date until cancelled; ``make`` is not called where nobody reads it."""
        told = ""
        while self._path:
            text = await make()
            if text != told:
                told = text
                self.tell(status_line(text))
            await asyncio.sleep(STATUS_SECONDS)


def status_line(text: str) -> str:
    """``text`` as the field STATUS: one line, and not longer than STATUS_BYTES."""
    line = " ".join(text.split()).encode()
    if len(line) > STATUS_BYTES:
        line = line[: STATUS_BYTES - 3].decode(errors="ignore").encode() + "…".encode()
    return f"STATUS={line.decode()}"


def _beat_seconds(environment: Mapping[str, str], process_id: int) -> float | None:
    """Half of the watchdog's time, if the watchdog is ours."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(process_id)):
        return None
    return int(usec) / 2e6
