"""Whatever state a VM is in: agents and hosts restart, and it comes back to where it was without a human."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.places import is_thorough
from tests.systemd.pair import Pair
from tests.systemd.restarts import CUT_OFF, RESTARTS, STATES, State, Vm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("systemd-restarts")]


SAMPLED = ("primary agent", "replica agent", "power of alpha", "power of beta")
"""What CI restarts: whoever comes back after a power cut comes back after an orderly restart of the host."""
SAMPLED_CUT_OFF = ("primary agent", "power of alpha")
"""The same while the wire is out: what was written meanwhile is at alpha alone."""


class Walk:
    """VMs in a state each, on one pair; a failure says which state, and after what.

    All VMs take a step at the same time, so that it lasts as long as the longest of them.
    """

    def __init__(self, pair: Pair, states: Mapping[str, State]) -> None:
        self.pair = pair
        self.states = states
        self.vms: dict[str, Vm] = {}
        self._each(self._make, "before anything")

    def _make(self, name: str) -> None:
        self.vms[name] = Vm(self.pair, name.replace(" ", "-"), full=self.states[name].full)

    def _each(self, take: Callable[[str], None], when: str) -> None:
        with ThreadPoolExecutor(len(self.states)) as threads:
            taken: dict[str, Future[None]] = {name: threads.submit(take, name) for name in self.states}
        for name, end in taken.items():
            if (error := end.exception()) is not None:
                error.add_note(f"in the state {name!r}, {when}")
                raise error

    def all(self, step: str, when: str) -> None:
        """Take one step (``enter``, ``holds``, ``leave``) with each VM."""
        self._each(lambda name: getattr(self.states[name], step)(self.vms[name]), when)

    def restart_everything(self, sampled: Sequence[str] = SAMPLED) -> None:
        """One restart after another; each VM is in its state again after each. ``sampled``: what CI restarts."""
        for name in RESTARTS if is_thorough() else sampled:
            RESTARTS[name](self.pair)
            self.all("holds", f"after a restart: {name}")

    def end(self) -> None:
        """No VM is left."""
        self._each(lambda name: self.vms[name].remove(), "at the end")


def test_every_state_outlasts_every_restart(quick_pair: Pair) -> None:
    walk = Walk(quick_pair, STATES)
    walk.all("enter", "on the way into it")
    walk.all("holds", "before any restart")
    walk.restart_everything()
    walk.all("leave", "on the way out")
    walk.end()


def test_restarts_while_the_wire_is_out(quick_pair: Pair) -> None:
    walk = Walk(quick_pair, CUT_OFF if is_thorough() else {"link down": CUT_OFF["link down"]})
    walk.all("enter", "on the way into it")
    quick_pair.wire("down")
    try:
        walk.all("holds", "before any restart")
        walk.restart_everything(SAMPLED_CUT_OFF)
    finally:
        quick_pair.wire("up")
    walk.all("leave", "with the wire in again")
    walk.end()
