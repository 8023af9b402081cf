"""SIGKILL at random moments under load: whatever is killed, nothing is lost and no client sees an error."""

from __future__ import annotations

import random
import time

import pytest

from tests.pair.hosts import MIB, Hosts
from tests.places import step

KILLS = {target: 16 // step(8, all_places=1) for target in ("tap", "primary", "replica")}


@pytest.mark.slow
@pytest.mark.parametrize("target", KILLS)
def test_nothing_is_lost_however_often_it_is_killed(hosts: Hosts, target: str) -> None:
    """I1, I3, I5, I6, R26, R44: after each recovery the disks on both sides are what the client wrote."""
    # While an agent starts, the client goes on: the log has to have room for that.
    hosts.replicate(12 * MIB, 4 * MIB, log_limit=2048 * MIB)
    epoch = hosts.status("primary")["epoch"]
    rng = random.Random(target)
    writer = hosts.start_writer(50, depth=16, pause=0.002)
    for _ in range(KILLS[target]):
        writer.go()
        # No condition is waited for: the moment is to be any.
        time.sleep(rng.uniform(0, 0.6))
        if target == "tap":
            hosts.kill_tap()
        else:
            hosts.kill(target)
            time.sleep(rng.uniform(0, 0.2))
            hosts.start(target)
        hosts.connect()
        writer.settle()
        hosts.assert_same(writer.shadows)
    status = hosts.status("primary")
    assert (status["epoch"], status["state"], status["causes"]) == (epoch, "Replicating", [])
    journal = writer.finish()
    assert journal
    assert all(write["done"] for write in journal)
