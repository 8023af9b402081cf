"""A storage location that can't be used: its own VMs wait, others go on, and a reload with one changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from replica_agent import storages
from shared.errors import StorageError
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import World
from tests.unit.replica.test_quota import limited
from tests.unit.replica.test_sessions import replicating, until


async def test_location_that_is_away_at_the_start_is_served_when_it_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that is mounted late: neither are others kept waiting, nor is a copy begun in its place."""
    monkeypatch.setattr(storages, "LOOK_SECONDS", 0.05)
    volume = world.folder / "volume"
    storage = str(volume / "store")
    world.authorize = [limited(world, storage=storage)]
    async with replicating(world):
        pass
    aside = volume.rename(world.folder / "aside")
    volume.touch()
    async with asyncio.timeout(60), world.agent() as agent:
        assert agent.sessions.listener is not None
        assert VM not in agent.vms
        (problem,) = agent.status().problems
        assert storage in problem
        with pytest.raises(StorageError, match=storage):
            agent.storages.require(storage)
        volume.unlink()
        aside.rename(volume)
        await until(lambda: VM in agent.vms)
        await until(lambda: agent.status().problems == [])


async def test_reload_with_a_location_that_can_not_be_made_changes_nothing(world: World) -> None:
    async with asyncio.timeout(60), replicating(world) as pair:
        before = pair.agent.config
        Path(world.folder / "file").touch()
        away = str(world.folder / "file" / "store")
        world.authorize = [limited(world), limited(world, "other", storage=away)]
        with pytest.raises(StorageError, match="can't be used"):
            await pair.agent.reload(world.config())
        assert pair.agent.config is before
        assert away not in pair.agent.sessions.authorization.storages
        # The next one is heard, and the session went on through both.
        world.authorize = [limited(world), limited(world, "other", storage=str(world.folder / "other"))]
        await pair.agent.reload(world.config())
        assert str(world.folder / "other") in pair.agent.sessions.authorization.storages
        await pair.control.send_segment(pair.tap, pair.rng)
