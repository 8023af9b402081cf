"""A client of an agent's methods, for tests that call them without a socket."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace


class Connected:
    """In the place of a shared.admin.server.Client, until :meth:`go`."""

    def __init__(self, pid: int = 1) -> None:
        self.peer = SimpleNamespace(uid=0, pid=pid)
        self.closed: Future[None] = Future()

    def on_closed(self, callback: Callable[[], None]) -> None:
        self.closed.add_done_callback(lambda _: callback())

    def go(self) -> None:
        """Its program ends."""
        self.closed.set_result(None)
