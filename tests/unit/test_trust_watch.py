"""Tests of the watch over revocation lists: what changes is loaded, what can't be is told once, and it never ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared import trust_watch
from shared.ports.network import RealNetwork
from shared.ports.workers import ThreadWorkers
from shared.trust_watch import keep_trust
from tests.unit.ports.authority import Authority
from tests.unit.ports.test_tls_trust import peers


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_lists_are_loaded_and_sessions_examined_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_watch, "LOOK_SECONDS", 0.01)
    ca = Authority(tmp_path)
    crl = ca.revoke()
    yours, mine = ca.issue("client"), ca.issue("server", crl=crl)
    client, _ = await peers(yours, mine)
    network, workers = RealNetwork(mine), ThreadWorkers(1)
    looks: list[bool] = []

    def examine() -> None:
        looks.append(network.trust.objection(client) is not None)
        if len(looks) == 1:
            raise RuntimeError("a mistake")

    with capture_logs() as logs:
        watching = asyncio.create_task(keep_trust(network, workers, examine))
        try:
            await until(lambda: len(looks) > 1)
            assert not any(looks)
            fresh = ca.revoke(yours, file_name="fresh.pem")
            half = tmp_path / "half.pem"
            half.write_bytes(fresh.read_bytes()[:100])
            os.replace(half, crl)
            seen = len(looks)
            await until(lambda: len(looks) > seen + 5)
            assert not any(looks)
            os.replace(fresh, crl)
            await until(lambda: looks[-1])
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await workers.close()
    told = [entry["event"] for entry in logs]
    assert told.count("the sessions could not be examined") == 1
    assert told.count("the revocation list has changed and can't be loaded") == 1
    assert told.count("the revocation list was loaded anew") == 1
