"""SIGKILL in each phase of a resync while a client writes: the resync goes on, and both points are what was written."""

from __future__ import annotations

import random
import time

import pytest

from tests.pair.content import SECTOR
from tests.pair.hosts import MIB, VM, Hosts, Status, compare, patience
from tests.pair.test_every_cut import keep, read_out
from tests.places import is_thorough

PHASES = ("starting", "comparing", "tracked writes", "committing", "merging")
"""In the order in which a resync goes through them (primary_agent.progress)."""
EVERY = (1, 2, 4)
KILLED_IN = {"primary": (1,), "replica": (1,), "tap": (1,)}
"""The phases that are waited for; by the time of the kill it may be a later one."""


def phase_of(status: Status) -> int:
    """The phase that a resync is in; behind the last one when it is over."""
    progress = status["progress"]
    if progress is not None and progress["phase"] in PHASES:
        return PHASES.index(progress["phase"])
    return 0 if status["state"] in ("WaitingForStartResynchronize", "Resynchronizing") else len(PHASES)


def await_phase(hosts: Hosts, wanted: int) -> int:
    """Wait until the resync has come to a phase; the one that it was seen in."""
    seen: dict[str, object] = {}
    for _ in patience(PHASES[wanted], seen):
        seen["phase"] = found = phase_of(hosts.status("primary"))
        if found >= wanted:
            return found
    raise AssertionError


def lose_tracking(hosts: Hosts) -> None:
    """What nobody tracks from now on is found by the compare alone."""
    before = hosts.tap("status")["writes"]
    hosts.tap("stop_tracking", reason="the test")
    hosts.wait_state("WaitingForStartResynchronize")
    hosts.wait("untracked writes", "primary", lambda vm: vm["tap"]["writes"] >= before + 200)


def kill(hosts: Hosts, target: str, rng: random.Random) -> None:
    if target == "tap":
        hosts.kill_tap()
        return
    hosts.kill(target)
    time.sleep(rng.uniform(0, 0.1))
    hosts.start(target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["primary", "replica", "tap"])
def test_a_resync_goes_on_whatever_is_killed_in_whichever_phase(hosts: Hosts, target: str) -> None:
    """I1, I6, I7, R33, R35: the newest point, and one from before the resync, are byte for byte what was written."""
    hosts.replicate(48 * MIB, 12 * MIB, log_limit=1024 * MIB)
    hosts.call("replica", "vm.set", vm=VM, settings={"points_newest": 64})
    rng = random.Random(target)
    writer = hosts.start_writer(61, depth=16, pause=0.001, longest=64 * SECTOR)
    epochs = {hosts.status("primary")["epoch"]}
    hit: set[int] = set()
    phases = EVERY if is_thorough() else KILLED_IN[target]
    for number, wanted in enumerate(phases):
        hosts.caught_up()
        before = hosts.caught_up()["applied_cut"]
        kept = keep(hosts, writer.shadows, number)
        writer.go()
        lose_tracking(hosts)
        hosts.connect()
        hosts.wait("a healthy link", "primary", lambda vm: vm["link"]["healthy"])
        hosts.call("primary", "vm.resume", vm=VM)
        hit.add(await_phase(hosts, wanted))
        kill(hosts, target, rng)
        hosts.connect()
        status = hosts.wait_state("Replicating")
        writer.settle()
        hosts.assert_same(writer.shadows)
        epochs.add(status["epoch"])
        export = hosts.call("replica", "vm.export", vm=VM, point=f"{before['epoch'][:8]}/{before['segment']}")
        for image, expected in zip(read_out(hosts, export), kept, strict=True):
            compare(image, expected)
        hosts.call("replica", "vm.unexport", vm=VM, id=export["id"])
        for path in kept:
            path.unlink()
    assert len(epochs) == 1 + len(phases), "each resync has begun an epoch of its own"
    assert PHASES.index("comparing") in hit
    assert all(write["done"] for write in writer.finish())
