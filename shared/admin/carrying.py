"""Which command brings a VM from one agent of its host to the other: one at a time, known by its connection.

Of two commands that carry the same hand-over one can be refused where the other is not; believed, the first one's word
would take back what the other agent has by then (I6). A connection tells the two apart, whatever their version, and its
end that a command was killed: the next one goes on with the same hand-over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import InvalidStateError

if TYPE_CHECKING:
    from shared.admin.server import Client


class Carriers:
    """Of the VMs of one agent, by UUID."""

    def __init__(self) -> None:
        self._carrying: dict[str, Client] = {}

    def begin(self, vm: str, name: str, client: Client) -> None:
        """``client`` carries it until :meth:`end`, or until its connection ends. Raises like :meth:`judge`."""
        self.judge(vm, name, client)
        if self._carrying.get(vm) is not client:
            self._carrying[vm] = client
            client.on_closed(lambda: self.end(vm, client))

    def judge(self, vm: str, name: str, client: Client | None = None) -> None:
        """Raises InvalidStateError while somebody else than ``client`` carries it."""
        other = self._carrying.get(vm)
        if other is None or other is client or other.closed.done():
            return
        raise InvalidStateError(
            f"Another command, process {other.peer.pid}, is about to hand {name} over to the other agent of this host.",
            f"Wait for its end, and look at `vmreplica status {name}` then. If it hangs, end it, and run `vmreplica "
            f"reverse {name}` again, which goes on where it stopped.",
            code="handover_under_way",
        )

    def end(self, vm: str, client: Client) -> None:
        """It is through, or gave up; nothing happens where another one carries the VM."""
        if self._carrying.get(vm) is client:
            del self._carrying[vm]
