"""Tests of peers that were refused: each is on record, and a flood of them fills nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.admin import refused_peers as module
from shared.admin.audit import Auditor
from shared.admin.audit_lines import AuditEntry
from shared.admin.audit_log import AuditLog, check_log, find_entries
from shared.admin.refused_peers import LINES_AT_ONCE, PEERS_MAX, RefusedPeers
from shared.ports import Peer
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.users import user_name
from shared.ports.workers import ThreadWorkers
from shared.rates import Ration

FILES = RealFileSystem()


class Rig:
    """The records of a replica, in real files."""

    def __init__(self, folder: Path, workers: ThreadWorkers) -> None:
        self.folder = str(folder)
        clock = RealClock()
        audit = AuditLog(FILES, workers, clock, self.folder, limit=8 << 20)
        self.refusals = RefusedPeers(Auditor(audit, "replica", workers, clock, user_name).note_peer, clock)

    def entries(self) -> list[AuditEntry]:
        return find_entries(FILES, self.folder, limit=1000)

    async def until(self, count: int) -> list[AuditEntry]:
        async with asyncio.timeout(30):
            while len(found := self.entries()) < count:  # noqa: ASYNC110 - a file tells nobody of its lines
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    workers = ThreadWorkers(2)
    yield Rig(tmp_path, workers)
    await workers.close()


async def test_first_refusal_has_a_line_at_once_and_the_others_of_the_minute_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.3)
    known = Peer(address="10.0.0.1:1", fingerprint="f" * 64, names=("mallory",))
    rig.refusals.refused(known, "unauthorized", "No entry fits.")
    (first,) = await rig.until(1)
    assert (first.verb, first.role, first.source, first.uid) == ("peer.refused", "replica", "10.0.0.1:1", None)
    assert first.params == {"fingerprint": "f" * 64, "names": ["mallory"]}
    assert (first.result, first.text, first.left_out) == ("unauthorized", "No entry fits.", 0)
    for port in range(50):
        rig.refusals.refused(Peer(address=f"10.0.0.1:{port}", fingerprint="f" * 64), "unauthorized", "No entry fits.")
    # Whoever shows no certificate that could be verified is another one, and so is another address.
    rig.refusals.refused(Peer(address="10.0.0.1:9"), "forbidden", "Its certificate is from a CA that is not known.")
    rig.refusals.refused(Peer(address="[2001:db8::1]:9"), "forbidden", "The same.")
    rig.refusals.refused(Peer(address="[2001:db8::2]:9"), "forbidden", "The same.")
    found = await rig.until(5)
    assert sorted((each.source, each.left_out) for each in found) == [
        ("10.0.0.1:1", 0), ("10.0.0.1:49", 49), ("10.0.0.1:9", 0), ("[2001:db8::1]:9", 0), ("[2001:db8::2]:9", 0),
    ]  # fmt: skip
    assert check_log(FILES, rig.folder).ok
    # Who was quiet for as long is remembered no more.
    async with asyncio.timeout(30):
        while rig.refusals._refused:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await rig.refusals.close()


async def test_flood_from_everywhere_has_few_lines_and_all_are_counted(rig: Rig) -> None:
    flood = PEERS_MAX + 500
    for number in range(flood):
        rig.refusals.refused(Peer(address=f"10.{number >> 8}.{number & 255}.1:7"), "forbidden", "No certificate.")
    assert len(rig.refusals._refused) == PEERS_MAX
    await rig.until(LINES_AT_ONCE)
    assert len(rig.entries()) == LINES_AT_ONCE
    await rig.refusals.close()
    # The next line has the number of those that have none.
    monotonic = rig.refusals._clock.monotonic()
    rig.refusals._lines = Ration(1, 1.0, monotonic)
    rig.refusals.refused(Peer(address="10.99.0.1:7"), "forbidden", "No certificate.")
    (*_, last) = await rig.until(LINES_AT_ONCE + 1)
    assert last.left_out == flood - LINES_AT_ONCE
    await rig.refusals.close()


async def test_what_was_counted_is_on_record_after_an_orderly_end(rig: Rig) -> None:
    for port in range(3):
        rig.refusals.refused(Peer(address=f"10.0.0.1:{port}"), "forbidden", "No certificate.")
    await rig.refusals.close()
    assert [(each.source, each.left_out) for each in rig.entries()] == [("10.0.0.1:0", 0), ("10.0.0.1:2", 1)]
