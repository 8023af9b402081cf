"""The figures of a monitoring interval, on record at both sides when it is over."""

from __future__ import annotations

from typing import Any

import pytest

from replica_agent import vm as replica_vm
from shared.events import EventId
from shared.stats import MONITORING_SECONDS, ReplicationStatistics
from tests.pair.rig import MIB, Pair


async def test_each_side_tells_its_figures_once_an_interval(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Event 29174; what was told when outlives a restart of the agent."""
    monkeypatch.setattr(replica_vm, "HOUSEKEEPING_SECONDS", 0.05)
    await pair.replicate(4 * MIB)
    await pair.cut()

    async def told() -> list[list[dict[str, Any]]]:
        there = (await pair.replica.events(None, limit=1000, after=0)).events
        return [
            await pair.events(EventId.STATISTICS),
            [event for event in there if event["event"] == EventId.STATISTICS],
        ]

    assert await told() == [[], []]
    for statistics in (pair.vm.parts.replication.statistics, pair.copy.statistics):
        # As if the last ones had been told an interval ago.
        statistics.told(pair.primary.ports.clock.wall() - MONITORING_SECONDS)
    here: list[Any] = []
    there: list[Any] = []
    while not (here and there):
        await pair.cut()
        here, there = await told()
    for events in (here, there):
        (event,) = events
        assert event["data"]["successful_replication_count"] > 0
        assert "cuts replicated" in event["text"] and event["level"] == "info"
    now = pair.primary.ports.clock.wall()
    for store in (pair.vm.parts.replication.store, pair.copy.ledger.store):
        assert not ReplicationStatistics(store.get("statistics"), now).is_due(now)
