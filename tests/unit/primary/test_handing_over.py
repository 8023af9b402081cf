"""A VM that is handed over, or was: what an order meets whose ground has changed meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primary_agent import handing_over
from primary_agent.agent import PrimaryAgent
from shared.errors import InvalidStateError
from shared.handover import HandedDisk, HandOver
from shared.states import PrimaryEvent, ReplicationState
from tests.unit.primary.test_rebuilding import IDENTITY, Host
from tests.unit.primary.test_replication import VM


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[PrimaryAgent]:
    with tempfile.TemporaryDirectory(prefix="vp-") as sockets:
        host = Host(tmp_path, Path(sockets))
        await host.make()
        async with host.agent() as made:
            yield made


async def test_fence_that_lifts_during_the_order_ends_it(agent: PrimaryAgent) -> None:
    """I8: the failover was undone there meanwhile; handed over all the same, no host would be the VM's primary."""
    vm = agent.vms[VM.vm]
    disk = HandedDisk(index=0, uuid="61" * 16, path="/srv/x.raw", size=512, export="disk0")
    handed = HandOver(id="a" * 32, vm=VM.vm.hex(), name="web", to="replica", epoch="e" * 32, disks=[disk])
    await vm.parts.replication.fence("failed over at beta", split=False)
    await vm.parts.replication.transition(PrimaryEvent.UNFENCED, "undone at the replica")
    with pytest.raises(InvalidStateError, match="was undone meanwhile"):
        await handing_over._let_go(vm, handed, False)
    assert vm.parts.handed_over is None and vm._task is not None and not vm._task.done()


async def test_what_is_given_away_is_not_suspended(agent: PrimaryAgent) -> None:
    vm = agent.find(IDENTITY)
    await vm.parts.replication.fence("failed over at beta", split=False)
    with pytest.raises(InvalidStateError, match="state FailedOver: suspend is not possible") as refused:
        await vm.suspend()
    assert "`vmreplica status web` says what to do" in refused.value.remedy
    assert vm.parts.replication.state is ReplicationState.FAILED_OVER
