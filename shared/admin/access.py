"""Who may call which method of an admin socket: a decision on the peer's credentials, default deny."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shared.errors import ForbiddenError
from shared.ports import Peer

Authorize = Callable[[Peer, str], None]
"""Raises ForbiddenError unless the peer may call the method of that name."""


@dataclass(frozen=True, slots=True)
class Access:
    """Root, the server's own user and members of the admin group may do everything; viewers may read.

    ``viewer_methods`` are the names of the methods that change nothing.
    """

    own_uid: int
    admin_gid: int | None = None
    viewer_gid: int | None = None
    viewer_methods: frozenset[str] = field(default=frozenset())

    def __call__(self, peer: Peer, method: str) -> None:
        if peer.uid is not None and peer.uid in (0, self.own_uid):
            return
        groups = {peer.gid, *peer.groups} - {None}
        if self.admin_gid in groups:
            return
        if self.viewer_gid in groups and method in self.viewer_methods:
            return
        raise ForbiddenError(
            f"User {'unknown' if peer.uid is None else peer.uid} may not call {method}.",
            "Run the command as root, or become a member of the admin group and log in again.",
        )
