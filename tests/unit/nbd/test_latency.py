"""How long requests take, as the server adds it up: by a clock that the test moves while a request is held up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.nbd.constants import Command, CommandFlag
from shared.nbd.latency import LatencyMeter, Tally
from shared.nbd.server import NbdServer
from tests.unit.nbd.file_backend import Directory, FileBackend
from tests.unit.nbd.raw_client import RawClient

BLOCK = 4096


class Hands:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Served:
    def __init__(self, export: FileBackend, server: NbdServer, clock: Hands, client: RawClient) -> None:
        self.export, self.server, self.clock, self.client = export, server, clock, client

    def tallies(self) -> dict[str, tuple[int, float]]:
        meter = self.server.latency
        kinds: dict[str, Tally] = {"read": meter.reads, "change": meter.changes, "flush": meter.flushes}
        return {kind: (tally.count, round(tally.seconds, 6)) for kind, tally in kinds.items()}

    async def until_requests(self, count: int) -> None:
        """Until so many requests were decoded."""
        async with asyncio.timeout(20):
            while self.server.connections[0].requests < count:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0)


@pytest_asyncio.fixture
async def served(export: FileBackend, tmp_path: Path) -> AsyncIterator[Served]:
    clock = Hands()
    server = NbdServer(Directory(export), latency=LatencyMeter(clock))
    await server.start_unix(tmp_path / "nbd.sock")
    client = await RawClient.attach(tmp_path / "nbd.sock")
    yield Served(export, server, clock, client)
    await client.close()
    await server.close(grace=1.0)


async def test_hot_requests_are_counted(served: Served) -> None:
    await served.client.ask(Command.WRITE, 1, 0, BLOCK, payload=bytes(BLOCK))
    await served.client.ask(Command.READ, 2, 0, BLOCK)
    await served.client.ask(Command.READ, 3, 0, BLOCK)
    assert served.tallies() == {"read": (2, 0.0), "change": (1, 0.0), "flush": (0, 0.0)}
    assert served.server.latency.passes >= 3


async def test_cold_reads_count_from_decoded_to_answered(served: Served) -> None:
    served.export.inline = False
    gate = served.export.read_gate = asyncio.Event()
    for cookie in (1, 2):
        served.client.send(Command.READ, cookie, 0, BLOCK)
    await served.until_requests(2)
    served.clock.time += 5
    gate.set()
    for _ in range(2):
        await served.client.reply()
    assert served.tallies()["read"] == (2, 10.0)


async def test_changes_that_wait_for_others_count_their_waiting(served: Served) -> None:
    gate = served.export.mutate_gate = asyncio.Event()
    for number, cookie in enumerate((1, 2, 3)):
        # Each a pass of its own; the second and the third are performed together.
        served.client.send(Command.WRITE, cookie, 0, BLOCK, payload=bytes(BLOCK))
        await served.until_requests(number + 1)
        served.clock.time += 1
    gate.set()
    for _ in range(3):
        await served.client.reply()
    assert served.tallies()["change"] == (3, 3.0 + 2.0 + 1.0)


@pytest.mark.parametrize("fua", [False, True], ids=["flush", "fua"])
async def test_flushes_count_to_the_end_of_the_flush(served: Served, *, fua: bool) -> None:
    gate = served.export.flush_gate = asyncio.Event()
    if fua:
        served.client.send(Command.WRITE, 1, 0, BLOCK, payload=bytes(BLOCK), flags=CommandFlag.FUA)
    else:
        served.client.send(Command.FLUSH, 1)
    await served.until_requests(1)
    served.clock.time += 2
    gate.set()
    await served.client.reply()
    assert served.tallies() == {"read": (0, 0.0), "change": (0, 0.0), "flush": (1, 2.0)}
