"""The link breaks again and again under load: the replica converges, and nothing needs a resync."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.pair.hosts import MIB, Hosts, Status

BREAKS = 20


def wrote_more_than(count: int) -> Callable[[Status], bool]:
    return lambda vm: vm["tap"]["writes"] > count


def acknowledged_beyond(segment: int) -> Callable[[Status], bool]:
    return lambda vm: vm["acked_cut"]["segment"] > segment


@pytest.mark.slow
def test_the_replica_converges_after_twenty_breaks_under_load(hosts: Hosts) -> None:
    """I1, I12, R33, R34."""
    hosts.replicate(24 * MIB, 8 * MIB)
    assert hosts.link is not None
    epoch = hosts.status("primary")["epoch"]
    rng = random.Random(20)
    writer = hosts.start_writer(20, pause=0.002)
    writer.go()
    for _ in range(BREAKS):
        hosts.link.cut()
        before = hosts.wait("the break", "primary", lambda vm: not vm["link"]["connected"])
        written = before["tap"]["writes"]
        hosts.wait("writes without a link", "primary", wrote_more_than(written + 20))
        hosts.link.restore()
        hosts.connect()
        if rng.random() < 0.5:
            # Half of the breaks come right after the connection, the others when cuts went through it.
            acked = (before["acked_cut"] or {"segment": 0})["segment"]
            hosts.wait("a cut", "primary", acknowledged_beyond(acked))
    writer.settle()
    hosts.connect()
    hosts.assert_same(writer.shadows)
    status = hosts.status("primary")
    assert (status["epoch"], status["state"], status["causes"]) == (epoch, "Replicating", [])
