"""What several tests of the primary's parts start from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.primary.test_replication import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.create()
    yield made
    await made.replication.store.close()
    await made.stores.close()
