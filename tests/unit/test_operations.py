"""What an agent does beside replicating: health that is watched, certificates that end, peers that were refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import operations as module
from shared.config_sections import PrimaryConfig
from shared.errors import UsageError
from shared.events import EventId
from shared.expiry import certificates_of, endings
from shared.operations import Operations
from shared.ports import Peer
from shared.ports.alarm_ways import RealAlarmWays
from shared.ports.real import RealPorts
from shared.ports.trust import Credential, Trust
from shared.status import VmStatus

TLS = {"ca": "/a", "certificate": "/b", "key": "/c"}
DAY = 86400.0
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"


class Kept:
    """A journal that keeps its entries, and fails when told to."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.broken = False

    def send(self, fields: Any) -> None:
        if self.broken:
            raise OSError(111, "Connection refused")
        self.entries.append(dict(fields))


class Rig:
    """Operations of an agent whose VMs are what ``health`` says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.health: dict[str, str] = {}
        self.trust: Trust = Trust()
        self.journal = Kept()
        self.real = RealPorts(None, threads=2)
        config = msgspec.convert({"tls": TLS, "state_dir": str(folder), "host": "alpha"}, PrimaryConfig)
        self.operations = Operations(
            "primary", str(folder / "primary.toml"), config, self.real.ports,
            journal=self.journal, ways=RealAlarmWays(), blocking=asyncio.to_thread,
        )  # fmt: skip

    async def start(self) -> None:
        await self.operations.open()
        await self.operations.started("1.0", self.vms, lambda: self.trust)

    async def vms(self) -> list[VmStatus]:
        return [
            VmStatus(name=name, uuid=f"{name}-{UUID}", role="primary", state="Replicating", state_code=4, health=health,
                     reasons=[] if health == "Normal" else [f"{name} is {health}."])
            for name, health in self.health.items()
        ]  # fmt: skip

    async def events(self, number: EventId) -> list[dict[str, Any]]:
        found = await self.operations.events.events(limit=1000, after=0)
        return [event for event in found if event["event"] == number]

    async def until(self, number: EventId, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            while len(found := await self.events(number)) < count:  # noqa: ASYNC110 - a store tells nobody of news
                await asyncio.sleep(0.01)
        return found

    async def stop(self) -> None:
        await self.operations.close()
        await self.real.close()


@pytest.fixture
async def rigs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], Rig]]:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    made: list[Rig] = []

    def make() -> Rig:
        made.append(Rig(tmp_path))
        return made[-1]

    yield make
    await made[-1].stop()


async def test_change_of_health_is_an_event_of_that_level(rigs: Callable[[], Rig]) -> None:
    rig = rigs()
    rig.health = {"web": "Normal"}
    await rig.start()
    await rig.until(EventId.HEALTH_CHANGED, 1)
    rig.health["web"] = "Critical"
    (_, event) = await rig.until(EventId.HEALTH_CHANGED, 2)
    assert (event["before"], event["after"], event["level"]) == ("Normal", "Critical", "error")
    assert (event["vm"], event["uuid"]) == ("web", f"web-{UUID}")
    assert "web is Critical." in event["text"]


async def test_health_that_was_told_is_not_told_again_after_a_restart(rigs: Callable[[], Rig]) -> None:
    rig = rigs()
    rig.health = {"web": "Warning"}
    await rig.start()
    await rig.until(EventId.HEALTH_CHANGED, 1)
    await rig.stop()
    again = rigs()
    again.health = {"web": "Warning", "mail": "Normal"}
    await again.start()
    found = await again.until(EventId.HEALTH_CHANGED, 2)
    assert [event["vm"] for event in found] == ["web", "mail"]
    assert len(await again.events(EventId.AGENT_STARTED)) == 2
    assert len(await again.events(EventId.AGENT_STOPPED)) == 1


class Ending(Trust):
    """A certificate and a CA of which so many seconds are left."""

    def __init__(self, own: float, ca: float) -> None:
        now = time.time()
        self._all = (
            Credential("own", "alpha", "a CA", now - 800 * DAY, now + own, "/etc/certificate.pem"),
            Credential("ca", "a CA", "a CA", now - 800 * DAY, now + ca, "/etc/ca.pem"),
        )

    def credentials(self) -> tuple[Credential, ...]:
        return self._all


async def test_what_ends_is_told_once_for_each_grade(rigs: Callable[[], Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same rule and with the same words as health and status (shared.expiry), and with their remedy."""
    monkeypatch.setattr(module, "CERTIFICATE_LOOK_SECONDS", 0.01)
    rig = rigs()
    rig.trust = soon = Ending(20 * DAY, 5 * DAY)
    await rig.start()
    own, ca = await rig.until(EventId.CERTIFICATE_ENDS, 2)
    assert (own["level"], own["data"]["what"], own["data"]["path"]) == ("warning", "own", "/etc/certificate.pem")
    assert "pki renew" in own["text"]
    assert (ca["level"], ca["data"]["what"]) == ("error", "ca")
    assert [own["text"], ca["text"]] == [each.sentence for each in endings(certificates_of(soon), own["time"])]
    await asyncio.sleep(0.05)
    rig.trust = Ending(0, 900 * DAY)
    (*_, ended) = await rig.until(EventId.CERTIFICATE_ENDS, 3)
    assert ended["level"] == "error" and "ran out on" in ended["text"]


async def test_peer_that_is_refused_again_and_again_is_one_event(rigs: Callable[[], Rig]) -> None:
    rig = rigs()
    await rig.start()
    for port in range(100):
        rig.operations.refused(Peer(address=f"10.0.0.1:{port}"), "not authorized")
    rig.operations.refused(Peer(address="10.0.0.2:1"), "not authorized")
    found = await rig.until(EventId.PEER_REFUSED, 2)
    assert [event["data"]["peer"] for event in found] == ["10.0.0.1:0", "10.0.0.2:1"]


async def test_reload_that_is_refused_leaves_what_is_in_force(rigs: Callable[[], Rig]) -> None:
    rig = rigs()
    await rig.start()
    taken: list[Any] = []

    async def take(config: Any) -> None:
        taken.append(config)

    with pytest.raises(UsageError):
        await rig.operations.reload(take)
    assert taken == []
    assert "can't be read" in rig.operations.state.refused
    (rig.folder / "primary.toml").write_text(
        f'state_dir = "{rig.folder}"\nhost = "other"\n[tls]\nca = "/a"\ncertificate = "/b"\nkey = "/c"\n'
        "[resync]\nat_once = 7\n"
    )
    await rig.operations.reload(take)
    (event,) = await rig.events(EventId.RELOADED)
    assert event["data"] == {"in_force": ["resync.at_once"], "at_next_start": ["host"]}
    assert (rig.operations.state.refused, rig.operations.state.current.host) == ("", "alpha")
    assert [(config.host, config.resync.at_once) for config in taken] == [("alpha", 7)], "what waits is not in force"


async def test_journal_that_fails_costs_entries_and_nothing_else(rigs: Callable[[], Rig]) -> None:
    rig = rigs()
    rig.journal.broken = True
    await rig.start()
    await rig.until(EventId.AGENT_STARTED, 1)
    rig.operations.refused(Peer(address="10.0.0.1:1"), "x")
    await rig.until(EventId.PEER_REFUSED, 1)
    assert rig.journal.entries == []


async def test_damaged_store_of_the_agent_is_kept_aside(rigs: Callable[[], Rig]) -> None:
    folder = rigs().folder / "agent"
    folder.mkdir()
    (folder / "state.db").write_bytes(b"nonsense" * 1000)
    rig = rigs()
    await rig.start()
    await rig.until(EventId.AGENT_STARTED, 1)
    assert rig.operations.events.error == ""
