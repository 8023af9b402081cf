"""The steps of a reversal at the replica agent: two commands at once, and what fails once a VM is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from replica_agent.reversing import Reversing
from replica_agent.taking_over import take_over
from replica_agent.vm import ReplicaVm
from shared.admin.verbs import AdoptParams, AdoptPartParams, HandedOverParams, HandOverParams
from shared.errors import InvalidStateError, UsageError
from shared.handover import HandOver
from shared.states import ReplicaEvent
from tests.connected import Connected
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import World
from tests.unit.replica.test_failover import failover
from tests.unit.replica.test_sessions import replicating
from tests.unit.replica.test_taking_over import NOTHING, handed, made, opened

ORDER = HandOverParams(vm="web")
REFUSED = HandedOverParams(vm="web", taken=False)


def client(pid: int) -> Any:
    return Connected(pid)


async def given_away(vm: ReplicaVm) -> None:
    """As the hand-over to the primary agent leaves it."""
    await failover(vm)
    await vm.leave_tap()
    async with vm.ledger.transaction() as draft:
        assert draft.promotion is not None
        draft.promotion.layered, draft.promotion.handed_over = False, True
        draft.step(ReplicaEvent.FAILOVER_COMMITTED, "commit")
        draft.step(ReplicaEvent.HANDED_OVER, "reverse")


def order_of(handed: HandOver) -> AdoptParams:
    return AdoptParams(vm=handed.vm, handover=msgspec.to_builtins(handed))


def part_of(handed: HandOver, data: bytes, offset: int = 0) -> AdoptPartParams:
    return AdoptPartParams(vm=handed.vm, offset=offset, data=data)


# --- the agent that lets it go ---------------------------------------------------------------------------------------


async def test_one_command_does_not_take_back_what_another_carries(world: World) -> None:
    """I6: the primary agent took the VM from the one, and refused it from the other: both agents had it then."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await given_away(vm)
        steps, first, second, third = Reversing(pair.agent), client(11), client(12), client(13)
        handed = await steps.hand_over(ORDER, first)
        with pytest.raises(InvalidStateError, match="Another command, process 11, is about to hand web over"):
            await steps.hand_over(ORDER, second)
        with pytest.raises(InvalidStateError, match="process 11"):
            await steps.handed_over(REFUSED, second)
        assert vm.ledger.promotion is not None and vm.ledger.promotion.handed_over
        first.go()
        assert (await steps.hand_over(ORDER, second)).id == handed.id, "a killed one is gone on with"
        with pytest.raises(InvalidStateError, match="process 12"):
            await steps.handed_over(REFUSED, first)
        await steps.handed_over(HandedOverParams(vm="web"), second)
        assert (await steps.hand_over(ORDER, third)).id == handed.id, "one that is through is in nobody's way"
        await steps.handed_over(REFUSED, third)
        assert not vm.ledger.promotion.handed_over


# --- the agent that takes it -----------------------------------------------------------------------------------------


async def test_ranges_of_two_commands_do_not_mix(world: World, tmp_path: Path) -> None:
    """Two VMs that are reversed at the same time: the ranges of the one took the place of the other's."""
    async with world.agent() as agent:
        steps, first, second = Reversing(agent), client(11), client(12)
        mine = handed(tmp_path)
        other = msgspec.structs.replace(mine, vm="c" * 32)
        await steps.adopt_part(part_of(mine, NOTHING[:3]), first)
        await steps.adopt_part(part_of(other, b"other"), second)
        await steps.adopt_part(part_of(mine, NOTHING[3:], 3), first)
        assert (await steps.adopt(order_of(mine), first)).state == "WaitingForStartResynchronize"


async def test_what_a_command_brought_goes_with_it(world: World, tmp_path: Path) -> None:
    """One that has ended can tell nobody what came of it; one whose order came to its end before is told the same."""
    async with world.agent() as agent:
        steps, killed, again = Reversing(agent), client(11), client(12)
        order = handed(tmp_path)
        await steps.adopt_part(part_of(order, NOTHING), killed)
        killed.go()
        with pytest.raises(InvalidStateError, match="has ended"):
            await steps.adopt(order_of(order), killed)
        assert not agent.vms
        with pytest.raises(UsageError, match="are not here wholly"):
            await steps.adopt(order_of(order), again)
        await steps.adopt_part(part_of(order, NOTHING), again)
        taken = await steps.adopt(order_of(order), again)
        assert (await steps.adopt(order_of(order), killed)).state == taken.state


async def test_ranges_are_bounded_whoever_sends_them(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("shared.handover_parts.BYTES_ALL_MAX", 10)
    async with world.agent() as agent:
        steps, first, second, order = Reversing(agent), client(11), client(12), handed(tmp_path)
        await steps.adopt_part(part_of(order, b"123456"), first)
        with pytest.raises(InvalidStateError, match="Too much is carried"):
            await steps.adopt_part(part_of(order, b"12345"), second)
        first.go()
        await steps.adopt_part(part_of(order, b"12345"), second)


async def test_failure_once_it_is_taken_is_none(world: World, tmp_path: Path) -> None:
    """The order was answered with an error after its transaction: the primary agent took back what was taken here."""
    world.files = FailingFiles()
    async with world.agent() as agent:
        await opened(world, agent)
        order, steps, command = handed(tmp_path), Reversing(agent), client(11)
        await steps.adopt_part(part_of(order, NOTHING), command)
        world.files.fail_only("disk-", "remove")
        status = await steps.adopt(order_of(order), command)
        world.files.fail_nothing()
        assert status.state == "WaitingForStartResynchronize" and agent.vms[VM].ledger.vm.handover == order.id
        assert made(world), "what could not be deleted stays"


def end_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next VM that ends does so with an error."""
    end = ReplicaVm.end

    async def ended(vm: ReplicaVm) -> None:
        await end(vm)
        monkeypatch.setattr(ReplicaVm, "end", end)
        raise OSError("a file can't be closed")

    monkeypatch.setattr(ReplicaVm, "end", ended)


@pytest.mark.parametrize("broken", ["end", "commit"])
async def test_vm_that_could_not_be_replaced_is_there_as_it_was(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """It was in no list until the agent's next start, or in one with its store closed."""
    world.files = FailingFiles()
    async with world.agent() as agent:
        await opened(world, agent)
        before = agent.vms[VM]
        if broken == "end":
            end_badly(monkeypatch)
        else:
            world.files.fail_next("commit")
        with pytest.raises(OSError, match="closed|on purpose"):
            await take_over(agent, handed(tmp_path), NOTHING)
        vm = agent.vms[VM]
        assert vm is not before and vm.ledger.vm.handover == "" and vm.failure is None
        await vm.reset_statistics({})


async def test_vm_that_ends_badly_is_opened_anew_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed VM is started again after a while: one that could not close a file stayed as it was, closed."""
    async with world.agent() as agent:
        await opened(world, agent)
        before = agent.vms[VM]
        end_badly(monkeypatch)
        with pytest.raises(OSError, match="closed"):
            await agent.revive(before, failed=False)
        assert agent.vms[VM] is not before
        await agent.vms[VM].reset_statistics({})


# --- removing --------------------------------------------------------------------------------------------------------


def folder_of(world: World) -> list[str]:
    return sorted(path.name for path in world.folder_of().iterdir())


async def test_what_the_primary_agent_has_is_not_removed_while_its_tap_is_down(world: World) -> None:
    """The tap's log went, and the disks: all that the primary agent needs to serve the VM."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await given_away(vm)
        before = folder_of(world)
        assert "tap" in before and "disk-0.raw" in before
        with pytest.raises(InvalidStateError, match="was handed over to the primary agent of this host") as refused:
            await pair.agent.remove("web")
        assert "Nothing was removed" in refused.value.remedy
        # While it is carried nobody knows who has it in the end.
        steps, command = Reversing(pair.agent), client(11)
        await steps.hand_over(ORDER, command)
        with pytest.raises(InvalidStateError, match="process 11"):
            await pair.agent.remove("web", released=True)
        assert pair.agent.vms[VM] is vm and not vm.parts.closing
        assert folder_of(world) == sorted([*before, "handover.ranges"])
        await steps.handed_over(HandedOverParams(vm="web"), command)
        kept = Path(await pair.agent.remove("web", released=True))
        assert sorted(path.name for path in kept.iterdir()) == ["disk-0.raw", "disk-3.raw"]
        assert not pair.agent.vms and not world.folder_of().exists()


async def test_vm_that_is_being_removed_is_not_handed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await given_away(vm)
        steps, end = Reversing(pair.agent), ReplicaVm.end

        async def ended(vm: ReplicaVm) -> None:
            await end(vm)
            with pytest.raises(InvalidStateError, match="is being removed"):
                await steps.hand_over(ORDER, client(11))

        monkeypatch.setattr(ReplicaVm, "end", ended)
        await pair.agent.remove("web", released=True)
        assert not pair.agent.vms


@pytest.mark.parametrize("operation", ["rename", "commit"])
async def test_removal_that_failed_leaves_the_vm_to_be_removed_again(world: World, operation: str) -> None:
    """It was in no list until the agent's next start, though its state was there."""
    world.files = FailingFiles()
    async with replicating(world) as pair:
        await given_away(pair.agent.vms[VM])
        world.files.fail_next(operation)
        with pytest.raises(OSError, match="on purpose"):
            await pair.agent.remove("web", released=True)
        vm = pair.agent.vms[VM]
        assert vm.ledger.promotion is not None and vm.ledger.promotion.handed_over
        await pair.agent.remove("web", released=True)
        assert not pair.agent.vms and not world.folder_of().exists()
