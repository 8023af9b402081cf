"""Settings that reach a running tap at once, and one that waits for its next start and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from primary_agent.admin import with_settings
from shared.block_devices import BlockDevicePolicy
from shared.errors import UsageError
from shared.events import EventId
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair


async def test_hot_regions_at_once_and_their_size_from_the_next_start_on(pair: Pair) -> None:
    await pair.replicate(4 * MIB, hot_regions=3000, block_device_policy=BlockDevicePolicy.TRUST)
    vm = pair.vm
    assert (await vm.status()).settings["hot_regions"] == 3000
    assert vm.parts.tap.require().status.hot_regions == 3000
    too_few = {"hot_region_bytes": MIB}
    with pytest.raises(UsageError, match="too few for the longest requests"):
        await vm.set(with_settings(vm.record, too_few), too_few)
    assert vm.record.hot_region_bytes == 0, "what is refused changes nothing"
    given = {"hot_region_bytes": MIB, "hot_regions": 9000, "block_device_policy": "strict"}
    await vm.set(with_settings(vm.record, given), given)
    status = await vm.status()
    assert status.settings == status.settings | given
    assert status.pending_settings == ["hot_region_bytes"]
    running = await vm.parts.tap.refresh()
    assert (running.hot_regions, running.hot_region_bytes) == (9000, 4 * MIB)
    config = json.loads((Path(vm.folder) / "tap" / "tap.json").read_bytes())
    assert config == config | given
    assert (await pair.events(EventId.SETTINGS))[-1]["data"] == given
    await pair.write(0, "write -P 1 0 64k")
    await pair.kill_tap()
    status = await vm.status()
    assert (status.pending_settings, vm.parts.tap.require().status.hot_region_bytes) == ([], MIB)
    await pair.write(0, "write -P 2 1M 64k")
    await pair.assert_same()
    assert vm.parts.replication.state is ReplicationState.REPLICATING
