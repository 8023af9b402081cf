"""What runs beside an agent: metrics over HTTP from its status, and an address that is taken."""

from __future__ import annotations

import asyncio
import urllib.request
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from scripts.link_cutter import LinkCutter
from shared import monitoring
from shared.config_sections import MetricsSection
from shared.monitoring import Monitoring
from shared.ports.real import RealPorts
from shared.status import AgentStatus
from shared.volumes import VolumeWatch
from tests.unit.cli.samples import agent


async def ask() -> AgentStatus:
    return agent()


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


async def test_an_address_that_is_taken_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "LISTEN_AGAIN_SECONDS", 0.02)
    real = RealPorts(None, threads=1)
    port = LinkCutter.free_port()
    taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    beside = Monitoring(real.ports, MetricsSection(listen=f"127.0.0.1:{port}"), VolumeWatch(real.ports), ask)
    with capture_logs() as logs:
        await beside.start()
        (problem,) = beside.problems()
        assert problem.startswith("Metrics are not offered:") and str(port) in problem
        taken.close()
        await taken.wait_closed()
        while beside.problems():  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
    assert [each["log_level"] for each in logs].count("error") == 1
    assert 'vmreplica_agent_vms{role="primary"} 1.0' in await asyncio.to_thread(fetch, port)
    await beside.stop()
    with suppress(OSError):
        raise AssertionError(await asyncio.to_thread(fetch, port))
    await real.close()


async def test_without_an_address_nothing_listens() -> None:
    real = RealPorts(None, threads=1)
    beside = Monitoring(real.ports, MetricsSection(), VolumeWatch(real.ports), ask)
    await beside.start()
    assert (beside._server, beside.problems()) == (None, [])
    await beside.stop()
    await real.close()
