"""Certificates that run out soon are the health of both sides, before anything has stopped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from replica_agent.vm_status import status_of
from shared import pki
from tests.pair.rig import MIB, Pair

pytestmark = pytest.mark.slow


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates made from now on look as if they had been made 820 of their 825 days ago."""
    monkeypatch.setattr(pki, "_whole_second", lambda _: datetime.now(UTC).replace(microsecond=0) - timedelta(days=820))


async def test_expiry_is_told_on_both_sides_while_replication_goes_on(aged: None, pair: Pair) -> None:
    await pair.replicate(MIB)
    await pair.assert_same()
    here, there = await pair.vm.status(), status_of(pair.copy)
    for status, agent in ((here, await pair.primary.status()), (there, pair.replica.status())):
        assert status.health == "Critical" and status.state == "Replicating"
        assert sorted(each.what for each in status.link.certificates) == ["own", "peer"]
        for whose in ("this host", "the other host"):
            assert any(f"certificate of {whose}" in reason and "in 4 d" in reason for reason in status.reasons)
        assert "pki renew" in status.remedy
        assert [each.what for each in agent.certificates] == ["own", "ca"]
        (problem,) = agent.problems
        assert "certificate of this host" in problem and "in 4 d" in problem
