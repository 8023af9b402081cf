"""Whether rebuilt records are proven to fit the replica: what the tap says, and nothing else, decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from primary_agent.conclusions import Replan
from primary_agent.judgement import judge_rebuilt
from primary_agent.replication import Replication
from protocol.position import Position
from shared.errors import NotFoundError
from shared.planning import Decision, InitialRequired, Resume, ResyncCause, ResyncRequired
from shared.sides import ReplicaView
from shared.states import ReplicationState
from shared.status import Cause
from shared.tap_control import Doubt, Tracking
from tests.unit.primary.test_replication import World

EPOCH = b"e" * 16
CUT = Position(EPOCH, 7, 70, b"c" * 16)
REPLICA = ReplicaView(disks=(), epoch=EPOCH, received=CUT, cut=CUT)
LOST = ResyncRequired(ResyncCause.TRACKING_LOST, "the log is full")
RECOVERED = Cause(code="state_lost", text="lost", time=1.0)


@dataclass
class Place:
    position: Any


@dataclass
class TapAnswers:
    """A tap that holds these cuts in its log and behind its dirty map (the parts of TapLink that are asked)."""

    logged: Position | None = None
    mapped: Position | None = None
    tracking: Tracking = Tracking.MAP

    @property
    def client(self) -> TapAnswers:
        return self

    def require(self) -> TapAnswers:
        return self

    async def locate(self, position: Position) -> Place:
        if self.logged is None or (position.epoch, position.segment) != (self.logged.epoch, self.logged.segment):
            raise NotFoundError("not in the log")
        return Place(WireLike(self.logged))

    async def refresh(self) -> TapAnswers:
        return self

    @property
    def doubt(self) -> Doubt | None:
        if self.mapped is None:
            return None
        return Doubt(base_epoch=EPOCH.hex(), base_segment=5, end_segment=9, complete=True, bytes=1, catch_up=False)

    async def knows_cut(self, cut: Position) -> bool:
        return cut == self.mapped


@dataclass
class WireLike:
    found: Position

    def position(self) -> Position:
        return self.found


@pytest.fixture
async def replication(tmp_path: Path) -> AsyncIterator[Replication]:
    world = World(tmp_path)
    made = await world.create()
    await made.update(epoch=EPOCH, state=ReplicationState.REPLICATING, recovered=RECOVERED)
    yield made
    await made.store.close()
    await world.stores.close()


async def judged(replication: Replication, tap: TapAnswers, decision: Decision, replica: ReplicaView = REPLICA) -> bool:
    """Whether the records were proven; else a compare of everything is required."""
    link: Any = tap
    try:
        await judge_rebuilt(replication, link, replica, decision)
    except Replan:
        assert replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
        assert replication.record.causes
        assert (replication.record.recovered, replication.record.resync) == (None, None)
        return False
    assert replication.record.recovered is None
    return True


@pytest.mark.parametrize(
    "logged, proven",
    [
        (CUT, True),
        (None, False),
        (CUT._replace(chain=b"x" * 16), False),
        (CUT._replace(entry=71), False),
        (CUT._replace(epoch=b"o" * 16), False),
    ],
    ids=["exactly", "released", "another-chain", "another-entry", "another-epoch"],
)
async def test_log_proves_by_exactly_that_cut(replication: Replication, logged: Position | None, proven: bool) -> None:
    """R34: a segment of that number is not enough."""
    assert await judged(replication, TapAnswers(logged=logged), Resume(CUT)) is proven
    codes = [cause.code for cause in replication.record.causes]
    assert codes == ([] if proven else ["state_lost"])


async def test_replica_without_a_cut_proves_nothing(replication: Replication) -> None:
    assert not await judged(replication, TapAnswers(logged=CUT), Resume(CUT), replace(REPLICA, cut=None))


@pytest.mark.parametrize(
    "mapped, proven", [(CUT, True), (None, False), (CUT._replace(chain=b"x" * 16), False)], ids=["known", "no", "other"]
)
async def test_dirty_map_proves_what_it_bounds(replication: Replication, mapped: Position | None, proven: bool) -> None:
    """R28: the compare that would have been bounded anyway stays so."""
    assert await judged(replication, TapAnswers(mapped=mapped), LOST) is proven
    assert ("state_lost" in [cause.code for cause in replication.record.causes]) is not proven


@pytest.mark.parametrize("cause", [cause for cause in ResyncCause if cause is not ResyncCause.TRACKING_LOST])
async def test_no_map_bounds_any_other_cause(replication: Replication, cause: ResyncCause) -> None:
    found = [] if cause is not ResyncCause.ADMINISTRATOR else [Cause(code="chain", text="no", time=1.0)]
    await replication.update(causes=found)
    assert not await judged(replication, TapAnswers(mapped=CUT), ResyncRequired(cause, "so it is"))
    expected = "history_lost" if cause is ResyncCause.HISTORY_LOST else "state_lost"
    assert expected in [cause.code for cause in replication.record.causes]


async def test_what_else_a_session_may_be_for_proves_nothing(replication: Replication) -> None:
    assert not await judged(replication, TapAnswers(logged=CUT, mapped=CUT), InitialRequired())


async def test_proposed_compare_that_never_committed_is_void(replication: Replication) -> None:
    """Also in the state in which its answer was waited for."""
    await replication.update(state=ReplicationState.RESYNCHRONIZING)
    assert not await judged(replication, TapAnswers(), LOST)


@pytest.mark.parametrize(
    "cause, wanted", [(ResyncCause.REPLICA_EMPTY, True), (ResyncCause.HISTORY_LOST, False)], ids=["empty", "unknown"]
)
async def test_order_that_was_given_before(replication: Replication, cause: ResyncCause, wanted: bool) -> None:
    """I8: who ordered a resync after a recover did not order to replace a history that was found only then."""
    await replication.update(resync_wanted=True)
    assert not await judged(replication, TapAnswers(), ResyncRequired(cause, "so it is"))
    assert replication.record.resync_wanted is wanted
