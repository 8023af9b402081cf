"""Puts on record which peers were refused, by their certificates or for want of authorization, and how often.

The first refusal of a peer has a line at once; those of the next minute are counted, and one line at its end has their
number. Lines of all peers together are rationed as well, so that a flood from many addresses does not fill the volume
with the log, or push everything else out of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from shared.ports import Clock, Peer
from shared.ports.admission import network_of
from shared.rates import Ration

EVERY_SECONDS = 60.0
"""Between two lines of one peer."""
PEERS_MAX = 1000
"""Peers that are counted apart; refusals of others meanwhile are counted with those that have no line."""
LINES_AT_ONCE, LINES_PER_SECOND = 60, 0.1
"""Lines of all peers."""

Note = Callable[[Peer, str, str, int], Coroutine[Any, Any, None]]
"""Writes a line of a peer: the refusal's code and text, and how many before it have none."""


@dataclass(slots=True)
class _Refused:
    """What came of a peer since its last line: the newest refusal, and their number."""

    peer: Peer
    code: str = ""
    text: str = ""
    count: int = 0


class RefusedPeers:
    """Those of one agent. Calls come on its event loop."""

    def __init__(self, note: Note, clock: Clock) -> None:
        self._note = note
        self._clock = clock
        self._refused: dict[tuple[str, str], _Refused] = {}
        """Peers that had a line, or that were counted, in the last minute, by address and fingerprint."""
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._lines = Ration(LINES_AT_ONCE, LINES_PER_SECOND, clock.monotonic())
        self._left_out = 0
        """Refusals of peers that have no line and never will have one of their own."""
        self._writing: set[asyncio.Task[None]] = set()

    def refused(self, peer: Peer, code: str, text: str) -> None:
        """A peer was refused; returns at once."""
        key = _key(peer)
        known = self._refused.get(key)
        if known is not None:
            known.peer, known.code, known.text = peer, code, text
            known.count += 1
            return
        if len(self._refused) >= PEERS_MAX:
            self._left_out += 1
            return
        self._refused[key] = _Refused(peer)
        self._write(_Refused(peer, code, text, 1))
        self._watch(key)

    async def close(self) -> None:
        """Put what was counted on record, and wait until it is."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        refused, self._refused = self._refused, {}
        for each in refused.values():
            if each.count:
                self._write(each)
        await asyncio.gather(*self._writing)

    def _watch(self, key: tuple[str, str]) -> None:
        self._timers[key] = asyncio.get_running_loop().call_later(EVERY_SECONDS, self._minute_over, key)

    def _minute_over(self, key: tuple[str, str]) -> None:
        known = self._refused[key]
        if not known.count:
            del self._refused[key], self._timers[key]
            return
        self._write(known)
        self._refused[key] = _Refused(known.peer)
        self._watch(key)

    def _write(self, each: _Refused) -> None:
        if not self._lines.take(self._clock.monotonic()):
            self._left_out += each.count
            return
        left_out, self._left_out = self._left_out + each.count - 1, 0
        task = asyncio.get_running_loop().create_task(self._note(each.peer, each.code, each.text, left_out))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)


def _key(peer: Peer) -> tuple[str, str]:
    """Whose refusals are one: of an address, whatever its port, with the same certificate or none that was verified."""
    host = peer.address.rpartition(":")[0] or peer.address
    try:
        return network_of(host.strip("[]")), peer.fingerprint
    except ValueError:
        return host, peer.fingerprint
