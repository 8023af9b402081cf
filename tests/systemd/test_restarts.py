"""Whatever state a VM is in: agents and hosts restart, and it comes back to where it was without a human."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tests.systemd.pair import Pair
from tests.systemd.restarts import CUT_OFF, STATES, State, Vm, chosen

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("systemd-restarts")]


class Walk:
    """VMs in a state each, on one pair; a failure says which state, and after what."""

    def __init__(self, pair: Pair, states: Mapping[str, State]) -> None:
        self.pair = pair
        self.states = states
        self.vms = {name: Vm(pair, name.replace(" ", "-")) for name in states}

    def all(self, step: str, when: str) -> None:
        """Take one step (``enter``, ``holds``, ``leave``) with each VM."""
        for name, state in self.states.items():
            take: Callable[[Vm], None] = getattr(state, step)
            try:
                take(self.vms[name])
            except AssertionError as error:
                error.add_note(f"in the state {name!r}, {when}")
                raise

    def restart(self, *names: str) -> None:
        """Restart one after another; each VM is in its state again after each."""
        for name, restart in chosen(*names).items():
            restart(self.pair)
            self.all("holds", f"after a restart: {name}")

    def end(self) -> None:
        for vm in self.vms.values():
            vm.remove()


def test_every_state_outlasts_every_restart(quick_pair: Pair) -> None:
    walk = Walk(quick_pair, STATES)
    walk.all("enter", "on the way into it")
    walk.all("holds", "before any restart")
    walk.restart("primary agent", "replica agent", "host alpha", "power of beta")
    walk.all("leave", "on the way out")
    walk.end()


def test_restarts_while_the_wire_is_out(quick_pair: Pair) -> None:
    walk = Walk(quick_pair, CUT_OFF)
    walk.all("enter", "on the way into it")
    quick_pair.wire("down")
    try:
        walk.all("holds", "before any restart")
        walk.restart("primary agent", "replica agent", "power of alpha", "host beta")
    finally:
        quick_pair.wire("up")
    walk.all("leave", "with the wire in again")
    walk.end()
