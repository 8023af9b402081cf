"""What of a seen bypass is durable at every moment of a compare, its commit included (I3, I7)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from primary_agent.bypassing import doubt, lasting
from primary_agent.parts import Parts
from primary_agent.record import MAX_CAUSES, ExportRecord
from primary_agent.replication import Replication
from protocol.messages import ResyncKind
from protocol.position import Position
from shared.attachment import OPENED
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import PrimaryEvent, ReplicationState
from shared.status import Cause
from shared.tasks import Signal
from tests.unit.primary.test_replication import CLOCK, World, replicating, resync

ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16
_S = ReplicationState


def opened(pid: int = 7) -> Cause:
    evidence = {"pid": pid, "program": "dd", "path": "/dev/vg/web"}
    return Cause(code=OPENED, text=f"Process {pid} (dd) has it open.", time=5.0, evidence=evidence)


async def seen(replication: Replication, *pids: int, fresh: bool = True) -> None:
    """What a look of a watcher leaves that found these processes; of none, that it is over."""
    parts: Any = SimpleNamespace(
        replication=replication,
        surroundings=SimpleNamespace(ports=SimpleNamespace(clock=CLOCK)),
        link=SimpleNamespace(poke=Signal()),
        settle_progress=lambda: None,
    )
    await doubt(cast(Parts, parts), [opened(pid) for pid in pids], fresh=fresh, told=True)


def codes(replication: Replication) -> list[str]:
    return [cause.code for cause in replication.record.causes]


async def comparing(world: World, epoch: bytes = TWO) -> Replication:
    """A VM with a baseline, in the middle of a resync."""
    replication = world.replication
    if replication.record.epoch != ONE:
        await replicating(world, ONE)
        await replication.order_resync("asked")
    await replication.begin_resync(msgspec.structs.replace(resync(epoch, ONE), kind=ResyncKind.RESYNC, id=epoch))
    return replication


async def test_seen_once_is_one_cause_and_stays_when_it_is_over(world: World) -> None:
    replication = await replicating(world)
    orders = replication.orders
    await seen(replication, 7)
    assert (replication.state, codes(replication)) == (_S.WAITING_FOR_START_RESYNCHRONIZE, [ResyncCause.BYPASSED])
    assert replication.orders > orders, "what the session does no longer fits"
    await seen(replication, 7, 8, fresh=False)
    await seen(replication, 8, fresh=False)
    (cause,) = replication.record.causes
    assert [opener["pid"] for opener in cause.evidence["openers"]] == [7, 8]
    assert len(await world.events(EventId.RESYNC_REQUIRED)) == 1
    again = await world.reopen()
    assert lasting(again.record) is not None
    await seen(again)
    assert lasting(again.record) is None and codes(again) == [ResyncCause.BYPASSED]
    # Who comes back afterwards is told anew, and what it asks for takes in what was asked for before.
    await seen(again, 9)
    (cause,) = again.record.causes
    assert [opener["pid"] for opener in cause.evidence["openers"]] == [9]


@pytest.mark.parametrize("pids", [(7,), ()])
async def test_compare_that_was_disturbed_is_void(world: World, pids: tuple[int, ...]) -> None:
    """By the look that sees it, and by the first one that does not: up to then it may have been written."""
    replication = await comparing(world)
    if not pids:
        # Its beginning came between the check and the record.
        await seen(replication, 7)
        replication = await comparing(world, THREE)
    assert replication.record.resync is not None
    await seen(replication, *pids)
    assert replication.record.resync is None
    assert (replication.state, ResyncCause.BYPASSED in codes(replication)) == (_S.RESYNCHRONIZING, True)


@pytest.mark.parametrize("over", [False, True])
async def test_cause_outlasts_a_commit_that_was_proposed_before_it(world: World, over: bool) -> None:
    """I7: that one can't be taken back. The cause stays, and the next baseline is what ends it."""
    replication = await comparing(world)
    await replication.propose(Position(TWO, 5, 50, b"c" * 16))
    await seen(replication, 7)
    if over:
        await seen(replication)
    assert replication.record.resync is not None
    again = await world.reopen()
    orders = again.orders
    await again.adopt("confirmed")
    assert (again.record.epoch, again.state) == (TWO, _S.WAITING_FOR_START_RESYNCHRONIZE)
    assert codes(again) == [ResyncCause.BYPASSED]
    assert again.orders > orders
    if not over:
        await seen(again)
    await again.transition(PrimaryEvent.RESYNC_STARTED, "asked")
    await again.begin_resync(msgspec.structs.replace(resync(THREE, TWO), kind=ResyncKind.RESYNC, id=THREE))
    await again.propose(Position(THREE, 5, 50, b"c" * 16))
    await again.adopt("confirmed")
    assert (again.state, codes(again)) == (_S.REPLICATING, [])


async def test_commit_of_the_first_copy_that_was_proposed_before(world: World) -> None:
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.begin_resync(resync(ONE))
    await replication.propose(Position(ONE, 3, 30, b"c" * 16))
    await seen(replication, 7)
    assert (replication.state, codes(replication)) == (_S.INITIAL_REPLICATION_IN_PROGRESS, [ResyncCause.BYPASSED])
    # Suspended and resumed in that moment it is still what it was.
    await replication.transition(PrimaryEvent.SUSPENDED, "asked")
    await replication.resume(asked=False)
    assert replication.state is _S.INITIAL_REPLICATION_IN_PROGRESS
    await replication.adopt("confirmed")
    assert (replication.state, codes(replication)) == (_S.WAITING_FOR_START_RESYNCHRONIZE, [ResyncCause.BYPASSED])


async def test_first_copy_that_was_disturbed_begins_anew(world: World) -> None:
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.begin_resync(resync(ONE))
    await seen(replication, 7)
    assert replication.record.resync is None
    assert (replication.state, codes(replication)) == (_S.INITIAL_REPLICATION_IN_PROGRESS, [])


async def test_first_copy_by_courier_counts_no_longer(world: World) -> None:
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.update(export=ExportRecord(folder="/media/x", epoch=ONE, started_time=1.0))
    await seen(replication, 7)
    assert replication.record.export is None
    assert replication.state is _S.READY_FOR_INITIAL_REPLICATION
    (told,) = [each for each in await world.events(EventId.ADMINISTRATOR) if "counts no longer" in each["text"]]
    assert "Process 7 (dd)" in told["text"]


@pytest.mark.parametrize("order", [PrimaryEvent.SUSPENDED, PrimaryEvent.FENCED])
async def test_put_on_record_in_every_state(world: World, order: PrimaryEvent) -> None:
    replication = await replicating(world)
    await replication.transition(order, "asked")
    state = replication.state
    await seen(replication, 7)
    assert (replication.state, codes(replication)) == (state, [ResyncCause.BYPASSED])


async def test_it_has_its_place_among_many_causes(world: World) -> None:
    replication = await replicating(world)
    for number in range(MAX_CAUSES + 3):
        await replication.require_resync(ResyncCause.GAP, f"gap {number}")
    await seen(replication, 7)
    assert len(replication.record.causes) == MAX_CAUSES
    assert lasting(replication.record) is not None
    for number in range(MAX_CAUSES + 3):
        await replication.require_resync(ResyncCause.GAP, f"later gap {number}")
    assert lasting(replication.record) is not None, "it must not be lost before it is over"
