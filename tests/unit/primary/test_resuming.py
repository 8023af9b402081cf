"""What ``resume`` leads to after a failover, by what was under way when the fence came."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from primary_agent.replication import Replication
from primary_agent.resuming import resume
from primary_agent.session_loop import SessionLoop
from protocol.messages import ErrorCode, Fence, Problem
from protocol.position import NO_EPOCH, Position
from shared.channel import ChannelClosed
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import PrimaryEvent, ReplicationState
from shared.tasks import Signal
from tests.unit.primary.test_replication import CLOCK, World, replicating, resync

S = ReplicationState
FIRST, SECOND = b"1" * 16, b"2" * 16
END = Position(SECOND, 1, 0, b"d" * 16)


async def ordered(replication: Replication, *, resynchronize: bool = False) -> None:
    """Fenced, and resumed; the parts that the order does not get to in this state are not there."""
    await replication.fence("failed over at b", split=False)
    parts: Any = SimpleNamespace(replication=replication, link=SimpleNamespace(poke=Signal()))

    async def gate(what: str) -> None:
        raise AssertionError(what)

    def refuse(what: str, remedy: str) -> InvalidStateError:
        raise AssertionError(remedy)

    await resume(parts, gate, refuse, resynchronize=resynchronize)


async def resynchronizing(world: World) -> Replication:
    replication = await replicating(world, FIRST)
    await replication.require_resync(ResyncCause.CHAIN, "they differ")
    await replication.transition(PrimaryEvent.RESYNC_STARTED, "asked")
    await replication.begin_resync(resync(SECOND, FIRST, 9))
    return replication


@pytest.mark.parametrize("resynchronize", [False, True])
async def test_open_compare_is_given_up_by_the_fence(world: World, resynchronize: bool) -> None:
    """Else it would be gone on with in a state from which no commit can be adopted, and none begun in its place."""
    await ordered(await resynchronizing(world), resynchronize=resynchronize)
    again = await world.reopen()
    assert (again.state, again.record.resync) == (S.WAITING_FOR_START_RESYNCHRONIZE, None)
    assert again.record.causes[0].code == "chain" and again.record.fenced


@pytest.mark.parametrize("resynchronize", [False, True])
async def test_compare_whose_commit_may_be_at_the_replica_is_adopted_after_all(
    world: World, resynchronize: bool
) -> None:
    """R33: its epoch may be what was failed over, and is the baseline when that is undone."""
    replication = await resynchronizing(world)
    await replication.propose(END)
    await ordered(replication, resynchronize=resynchronize)
    again = await world.reopen()
    assert (again.state, again.record.proposed) == (S.RESYNCHRONIZING, SECOND)
    assert await again.adopt("the replica shows it") == END
    assert (again.state, again.record.epoch) == (S.REPLICATING, SECOND)


async def test_vm_without_a_baseline_gets_its_first_copy(world: World) -> None:
    """The other host's copy was failed over, and is gone: nothing can replicate, and `initial` has to be possible."""
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.begin_resync(resync(FIRST))
    await ordered(replication)
    again = await world.reopen()
    assert (again.state, again.record.epoch) == (S.READY_FOR_INITIAL_REPLICATION, NO_EPOCH)
    assert again.record.resync is None and again.record.fenced
    await again.transition(PrimaryEvent.INITIAL_STARTED, "asked")


async def test_first_copy_whose_commit_may_be_at_the_replica_is_adopted_after_all(world: World) -> None:
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.begin_resync(resync(SECOND))
    await replication.propose(END)
    await ordered(replication)
    again = await world.reopen()
    assert again.record.proposed == SECOND
    await again.adopt("the replica shows it")
    assert (again.state, again.record.epoch, again.record.causes) == (S.REPLICATING, SECOND, [])


async def test_vm_that_replicated_goes_on(world: World) -> None:
    await ordered(await replicating(world, FIRST))
    assert world.replication.state is S.REPLICATING and world.replication.record.fenced


async def test_what_has_become_of_the_failover_is_kept_each_time_that_it_is_told(world: World) -> None:
    """I8: when it was told first nobody had started the VM there; both have moved on since, and status says so."""
    replication = await replicating(world, FIRST)
    idle = Fence(epoch=SECOND, parent=FIRST, parent_segment=1, received=None, written=False, wall_ns=int(5e9), host="b")

    async def refresh() -> None:
        """The tap has told what it has."""

    tap = SimpleNamespace(refresh=refresh)
    ports = SimpleNamespace(clock=CLOCK)
    parts: Any = SimpleNamespace(
        replication=replication, link=None, tap=tap, surroundings=SimpleNamespace(ports=ports), moved_on=lambda: True
    )
    companions: Any = None
    loop = SessionLoop(parts, companions)
    for written in (False, False, True, True):
        told = msgspec.structs.replace(idle, written=written)
        problem = Problem(code=ErrorCode.FENCED, text="failed over at b", remedy="", retryable=False, fence=told)
        await loop._fence(ChannelClosed("refused", problem=problem))
        assert replication.record.fence is not None and replication.record.fence.written is written
    assert (await world.reopen()).record.fence == replication.record.fence
    assert len(await world.events(EventId.FENCED)) == len(await world.events(EventId.SPLIT_BRAIN)) == 1
