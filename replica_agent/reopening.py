"""VMs that are being opened anew: orders wait until one stands open again, instead of meeting what is being closed.

That is so while a failover is undone, when a VM that failed is started again, and when its records are replaced: the VM
ends, and another one is made of what is on record. Whoever only looks does not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from replica_agent.vm import ReplicaVm
from shared.errors import InvalidStateError, VmreplicaError
from shared.ports import Clock
from shared.tasks import Signal

ORDER_SECONDS = 45.0
"""How long an order waits: less than a client of the agent waits for its answer."""
LOOK_SECONDS = 5.0
"""How long a look at all VMs waits for one of them: the others' part of the answer is there already."""


@dataclass(slots=True)
class Reopening:
    """What of one agent is being opened anew. ``find`` looks a VM up by name or UUID; it raises where there is none."""

    clock: Clock
    find: Callable[[str], ReplicaVm]
    _open: dict[bytes, ReplicaVm] = field(default_factory=dict)
    _changed: Signal = field(default_factory=Signal)

    @contextmanager
    def of(self, vm: ReplicaVm) -> Iterator[None]:
        """``vm`` ends in here, and what takes its place begins."""
        self._open[vm.parts.vm] = vm
        try:
            yield
        finally:
            del self._open[vm.parts.vm]
            self._changed.notify()

    def look_again(self) -> None:
        """A VM failed, so that nobody has to wait for it."""
        self._changed.notify()

    def __iter__(self) -> Iterator[ReplicaVm]:
        """Those that are being opened anew at this moment."""
        return iter(list(self._open.values()))

    async def standing(self, name: str, *, undone: bool = True, seconds: float | None = None) -> ReplicaVm:
        """The VM of that name or UUID once it stands open. Raises as :meth:`over`, and what looking up raises:
        NotFoundError, or what is wrong with its state.
        """
        await self.over(name, undone=undone, seconds=seconds)
        return self.find(name)

    async def over(self, name: str, *, undone: bool = True, seconds: float | None = None) -> None:
        """Wait until no VM of that name or UUID is being opened anew; with ``undone`` from the beginning of an undo on,
        since what an order did before its end would be lost.

        Raises InvalidStateError where that takes longer than so many ``seconds``, of which an order has ORDER_SECONDS.
        """
        deadline = self.clock.monotonic() + (ORDER_SECONDS if seconds is None else seconds)
        while (vm := self._ending(name, undone=undone)) is not None:
            left = deadline - self.clock.monotonic()
            if left <= 0:
                raise _still(vm)
            await self._changed.wait_for(left)

    def _ending(self, name: str, *, undone: bool) -> ReplicaVm | None:
        """The VM of that name that is about to be another one."""
        for vm in self._open.values():
            if name in (vm.name, vm.parts.uuid):
                return vm
        try:
            vm = self.find(name)
        except VmreplicaError:
            return None
        return vm if undone and is_being_undone(vm) and vm.failure is None else None


def is_being_undone(vm: ReplicaVm) -> bool:
    """Whether its failover is being undone: from the moment that this is on record until another object is the VM."""
    return vm.leaving or (vm.ledger.promotion is not None and vm.ledger.promotion.undoing)


def _still(vm: ReplicaVm) -> InvalidStateError:
    remedy = f"It goes on by itself; look again: vmreplica status {vm.name}"
    if not is_being_undone(vm):
        return InvalidStateError(f"{vm.name} is still being opened anew.", remedy)
    problem = vm.parts.applier.problem
    found = f" {problem.text}" if problem is not None else ""
    return InvalidStateError(f"The failover of {vm.name} is still being undone.{found}", remedy)
