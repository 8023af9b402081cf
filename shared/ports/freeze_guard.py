"""The guard of a freeze: a process that freezes a guest, and thaws it whatever becomes of who asked for it (R44).

It is started before the freeze, in a session of its own. It thaws when it is told to, when the pipe from its agent
closes (the agent died), when it gets SIGTERM, and at the latest at its deadline. It goes on trying where thawing fails.

It reads its order from standard input, a line of JSON, and then ``thaw``; and writes lines of JSON to standard output:
first ``{"frozen": ...}``, then, where a freeze was begun, ``{"thawed": ...}`` after each attempt up to the one that
succeeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from types import FrameType
from typing import Any

from shared.guest_settings import FreezeKind
from shared.ports.guest_freezing import FreezeError, FreezeWay, NotBegunError, Thawed, way_of

THAW_SECONDS = 10.0
"""How long one attempt to thaw may take,"""
THAW_PAUSE_SECONDS = 1.0
"""and the wait before the next one."""
THAW_ATTEMPTS_SECONDS = 900.0
"""After so long nobody is left to be thawed, or only a person can."""
ORDER_BYTES = 64 << 10


class _ToldToStop(BaseException):
    """SIGTERM: whoever stops us wants the guest thawed first."""


def main() -> int:
    """Carry one order out; exits with 0 once the guest is thawed."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Nobody may read any more: that must not hold us up.
    os.set_blocking(1, False)
    order = json.loads(_read_line())
    way = way_of(FreezeKind(order["kind"]), order["target"], order["vm"])
    in_time = False
    if not order["thaw_only"]:
        deadline = time.monotonic() + order["frozen_seconds"]
        with contextlib.suppress(_ToldToStop):
            try:
                in_time = _frozen(way, order["freeze_seconds"]) and _told_to_thaw(deadline)
            except NotBegunError as error:
                _tell(frozen=False, begun=False, text=error.text, remedy=error.remedy)
                return 0
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0 if _thaw(way, in_time) else 1


def _stop(_number: int, _frame: FrameType | None) -> None:
    # Once only: what follows is thawing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _ToldToStop


def _frozen(way: FreezeWay, seconds: float) -> bool:
    try:
        way.freeze(seconds)
    except NotBegunError:
        raise
    except FreezeError as error:
        # It may be frozen nevertheless, or become so: it is thawed in any case.
        _tell(frozen=False, text=error.text, remedy=error.remedy)
        return False
    _tell(frozen=True)
    return True


def _told_to_thaw(deadline: float) -> bool:
    """Wait for the order; False where the pipe closed, or the time was over, before it came."""
    left = deadline - time.monotonic()
    readable, _, _ = select.select([0], [], [], max(left, 0.0))
    return bool(readable) and _read_line() == "thaw"


def _thaw(way: FreezeWay, in_time: bool) -> bool:
    end = time.monotonic() + THAW_ATTEMPTS_SECONDS
    while True:
        try:
            done = way.thaw(THAW_SECONDS)
        except FreezeError as error:
            _tell(thawed=False, text=error.text, remedy=error.remedy)
        else:
            done = done if in_time else Thawed(held=False, text="The time for which it may be frozen was over.")
            _tell(thawed=True, held=done.held, text=done.text)
            return True
        if time.monotonic() > end:
            return False
        time.sleep(THAW_PAUSE_SECONDS)
        in_time = False


def _read_line() -> str:
    """A line of standard input, without reading on: what follows is waited for with select. Empty at its end."""
    line = b""
    while len(line) < ORDER_BYTES and (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


def _tell(**said: Any) -> None:
    """Whoever listens may be dead: that changes nothing."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
