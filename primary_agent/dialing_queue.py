"""Whose turn it is to dial: so many VMs at a time for each replica, the others wait, the first come first.

After a restart of either agent all VMs want their sessions back at the same instant. A replica refuses links when it
has too many that are not open yet, and each refusal would cost a VM seconds of back-off; in turn they all get through.
A replica that does not answer holds up nobody but those who dial it, too.
"""

from __future__ import annotations

import asyncio

from shared.ports import Address

AT_ONCE = 24
"""Fewer than a replica accepts that have not come to their OPEN: other primaries dial it, too."""


class DialingQueue:
    """Turns for each address. ``async with queue.turn(address):`` waits for one, and holds it."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._turns: dict[str, asyncio.Semaphore] = {}

    def turn(self, address: Address) -> asyncio.Semaphore:
        """The turns of one replica; they are kept for good, and there are as many as ever were configured."""
        return self._turns.setdefault(str(address), asyncio.Semaphore(self._at_once))
