"""A VM is carried by one connection at a time, which ends with its program."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.admin.carrying import Carriers
from shared.errors import InvalidStateError
from tests.unit.admin.test_server import WAIT, Served


async def test_connection_that_ends_lets_the_next_one_go_on(tmp_path: Path) -> None:
    served, carriers = Served(tmp_path / "admin.sock"), Carriers()
    await served.server.start()
    links = [await asyncio.open_unix_connection(str(tmp_path / "admin.sock")) for _ in range(2)]
    try:
        async with asyncio.timeout(WAIT):
            while len(served.server.clients) < 2:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)
            first, second = served.server.clients
            carriers.begin("u", "web", first)
            carriers.begin("u", "web", first)
            carriers.begin("other", "db", second)
            with pytest.raises(InvalidStateError, match="Another command, process") as refused:
                carriers.begin("u", "web", second)
            assert refused.value.code == "handover_under_way"
            with pytest.raises(InvalidStateError):
                carriers.judge("u", "web")
            carriers.end("u", second)
            with pytest.raises(InvalidStateError):
                carriers.judge("u", "web", second)
            for _, writer in links:
                writer.close()
            await asyncio.wait([first.closed, second.closed])
            carriers.judge("u", "web")
            carriers.judge("other", "db")
    finally:
        await served.server.close()
