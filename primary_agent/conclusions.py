"""How a session with the replica ends when it is over for a reason of its own, not because a link or a tap failed."""

from __future__ import annotations

from shared.errors import VmreplicaError


class Replan(Exception):
    """The session's work no longer fits; plan anew at once."""


class Refused(VmreplicaError):
    """The two sides don't fit together; that does not heal by itself."""


class FencedOff(VmreplicaError):
    """The VM was failed over at the replica (I8). ``split`` where this side may have moved on as well."""

    code = "fenced"

    def __init__(self, text: str, *, split: bool) -> None:
        super().__init__(text)
        self.split = split
