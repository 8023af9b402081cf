"""Two commands that carry a VM away at the same time, one of which is refused; and what came of a killed one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from primary_agent import handing_over
from primary_agent.admin import with_settings
from primary_agent.agent import PrimaryAgent
from primary_agent.reversing import Reversing
from shared.admin.verbs import HandedOverParams, HandOverParams
from shared.errors import InvalidStateError
from shared.handover import HandedDisk, HandOver
from tests.connected import Connected
from tests.unit.primary.test_rebuilding import IDENTITY, Host
from tests.unit.primary.test_replication import VM

ORDER = HandOverParams(vm="web")
TAKEN, REFUSED = HandedOverParams(vm=IDENTITY), HandedOverParams(vm="web", taken=False)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[PrimaryAgent]:
    """Its VM is handed over, but for what the command does."""
    with tempfile.TemporaryDirectory(prefix="vp-") as sockets:
        host = Host(tmp_path, Path(sockets))
        await host.make()
        async with host.agent() as made:
            vm = made.vms[VM.vm]
            disk = HandedDisk(index=0, uuid="61" * 16, path="/srv/x.raw", size=512, export="disk0")
            handed = HandOver(id="a" * 32, vm=VM.vm.hex(), name="web", to="replica", epoch="e" * 32, disks=[disk])
            await vm.rest()
            await handing_over._record(vm.parts, handed, "handed over")
            yield made


async def test_one_command_does_not_take_back_what_another_carries(agent: PrimaryAgent) -> None:
    """I6: the other agent took the VM from the one, and refused it from the other: both agents had it then."""
    steps, first, second = Reversing(agent, with_settings), client(11), client(12)
    handed = await steps.hand_over(ORDER, first)
    with pytest.raises(InvalidStateError, match=r"Another command, process 11, is about to hand web over"):
        await steps.hand_over(ORDER, second)
    with pytest.raises(InvalidStateError, match="process 11"):
        await steps.handed_over(REFUSED, second)
    assert agent.vms[VM.vm].parts.handed_over == handed
    assert await steps.hand_over(ORDER, first) == handed, "whoever carries it may ask again"
    await steps.handed_over(TAKEN, first)
    assert not agent.vms


async def test_another_goes_on_where_a_command_was_killed(agent: PrimaryAgent) -> None:
    """With the same hand-over; what the killed one still said while it ended counts no more."""
    steps, killed, again = Reversing(agent, with_settings), client(11), client(12)
    handed = await steps.hand_over(ORDER, killed)
    killed.go()
    assert await steps.hand_over(ORDER, again) == handed
    with pytest.raises(InvalidStateError, match="process 12"):
        await steps.handed_over(REFUSED, killed)
    assert agent.vms[VM.vm].parts.handed_over == handed
    # One that was refused is over, and so is one whose other agent does not take it.
    await steps.handed_over(REFUSED, again)
    assert agent.vms[VM.vm].parts.handed_over is None
    for each in (client(13), client(14)):
        with pytest.raises(InvalidStateError, match="was not failed over to its replica's host"):
            await steps.hand_over(ORDER, each)


async def test_what_is_about_to_be_taken_back_is_not_handed_over_again(agent: PrimaryAgent) -> None:
    """The second command got the hand-over that was being taken back: the other agent took what was kept here."""
    steps, first, second = Reversing(agent, with_settings), client(11), client(12)
    await steps.hand_over(ORDER, first)
    refused = asyncio.create_task(steps.handed_over(REFUSED, first))
    await asyncio.sleep(0)
    first.go()
    with pytest.raises(InvalidStateError, match="was not failed over to its replica's host"):
        await steps.hand_over(ORDER, second)
    await refused
    assert agent.vms[VM.vm].parts.handed_over is None


async def test_older_command_tells_what_came_of_it_by_another_connection(agent: PrimaryAgent) -> None:
    """Whoever has no order under way is believed, as after a restart of the agent."""
    steps = Reversing(agent, with_settings)
    await steps.handed_over(TAKEN, client(11))
    assert not agent.vms


def client(pid: int) -> Any:
    return Connected(pid)
