"""The durable state of a VM's replication: transitions with events, and what a later start finds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from primary_agent.enabling import create
from primary_agent.problems import clear_problem, set_problem
from primary_agent.record import DiskRecord, ResyncRecord, VmRecord, load_vm, mint, plain
from primary_agent.replication import Acked, Replication
from primary_agent.resuming import leave_failover
from protocol.messages import ResyncKind
from protocol.position import NO_EPOCH, Ancestor, Position
from shared.errors import InvalidStateError, StoreDamagedError, VmreplicaError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.ports.clock import RealClock
from shared.ports.store import SqliteStores
from shared.states import PrimaryEvent, ReplicationState

VM = VmRecord(
    vm=b"v" * 16,
    name="web",
    disks=[DiskRecord(index=0, uuid=b"d" * 16, path="/srv/web.raw", size=1 << 20, export="disk0")],
    replica_host="b",
    replica_port=8443,
    interval_seconds=30.0,
    log_limit_bytes=0,
    created_time=1.0,
)
CLOCK = RealClock()


def resync(epoch: bytes, parent: bytes = NO_EPOCH, parent_segment: int = 0) -> ResyncRecord:
    return ResyncRecord(
        id=b"r" * 16,
        kind=ResyncKind.INITIAL,
        epoch=epoch,
        parent=parent,
        parent_segment=parent_segment,
        started_time=2.0,
    )


class World:
    """A store in a folder, opened and opened again."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.stores = SqliteStores(CLOCK)
        self.replication: Replication

    async def create(self) -> Replication:
        store = await self.stores.open(self.folder, create=True)
        await create(store, VM, CLOCK, "enabled")
        self.replication = Replication(store, CLOCK)
        return self.replication

    async def reopen(self) -> Replication:
        """As a restarted agent finds it."""
        await self.replication.store.close()
        self.replication = Replication(await self.stores.open(self.folder), CLOCK)
        return self.replication

    async def events(self, number: EventId) -> list[dict[str, Any]]:
        found = await self.replication.store.events(limit=1000)
        return [event for event in found if event["event"] == number]


async def replicating(world: World, epoch: bytes = b"1" * 16) -> Replication:
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.begin_resync(resync(epoch))
    await replication.propose(Position(epoch, 3, 30, b"c" * 16))
    await replication.adopt("confirmed")
    return replication


async def test_an_enabled_vm_is_ready_for_its_initial_replication(world: World) -> None:
    again = await world.reopen()
    assert again.state is ReplicationState.READY_FOR_INITIAL_REPLICATION
    assert again.vm == VM
    (event,) = await world.events(EventId.ADMINISTRATOR)
    assert (event["before"], event["after"]) == ("Disabled", "ReadyForInitialReplication")


async def test_every_change_of_state_is_an_event_with_cause_before_and_after(world: World) -> None:
    """I16."""
    replication = await replicating(world)
    await replication.transition(PrimaryEvent.SUSPENDED, "asked")
    await replication.transition(PrimaryEvent.RESUMED, "asked")
    await replication.require_resync(ResyncCause.TRACKING_LOST, "the log is full", {"limit": 5})
    changes = [(event["before"], event["after"], event["cause"]) for event in await world.events(EventId.STATE_CHANGED)]
    assert changes == [
        ("ReadyForInitialReplication", "InitialReplicationInProgress", "asked"),
        ("InitialReplicationInProgress", "Replicating", "confirmed"),
        ("Replicating", "Suspended", "asked"),
        ("Suspended", "Replicating", "asked"),
        ("Replicating", "WaitingForStartResynchronize", "the log is full"),
    ]


@pytest.mark.parametrize("required", [False, True])
async def test_a_vm_with_causes_is_resumed_in_one_change(
    world: World, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    """I12, I16: a crash between two would leave a VM that says it replicates, and waits for an order for ever.

    An order adds nothing to what is required already: what is bounded stays so.
    """
    replication = await replicating(world)
    await replication.transition(PrimaryEvent.SUSPENDED, "asked")
    if required:
        await replication.require_resync(ResyncCause.TRACKING_LOST, "the log is full")
    seen = []
    commit = replication.store.commit

    async def committed(records: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> None:
        await commit(records, events)
        seen.append(records["replication"]["state"])

    monkeypatch.setattr(replication.store, "commit", committed)
    await replication.resume(asked=True)
    assert seen == [ReplicationState.WAITING_FOR_START_RESYNCHRONIZE]
    again = await world.reopen()
    assert [cause.code for cause in again.record.causes] == ["tracking_lost" if required else "administrator"]
    assert again.record.resync_wanted
    states = [(event["before"], event["after"]) for event in await world.events(EventId.STATE_CHANGED)]
    assert states[-2:] == [("Suspended", "Replicating"), ("Replicating", "WaitingForStartResynchronize")]


async def test_resuming_sees_what_was_lost_meanwhile(world: World) -> None:
    """I12: tracking is lost while the order to resume is on its way: the VM must not say that it replicates."""
    replication = await replicating(world)
    await replication.transition(PrimaryEvent.SUSPENDED, "asked")
    lost = replication.require_resync(ResyncCause.TRACKING_LOST, "the log is full")
    await asyncio.gather(lost, replication.resume(asked=False))
    assert replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    assert replication.record.resync_wanted


async def test_a_start_that_was_decided_before_an_order_is_not_made(world: World) -> None:
    """An order to stop comes between the decision to start by itself and the start: the order counts."""
    replication = await replicating(world)
    await replication.require_resync(ResyncCause.CHAIN, "found")
    seen = replication.record
    stop = replication.update(stopped_time=1.0)
    start = replication.transition(PrimaryEvent.RESYNC_STARTED, "the mode is automatic", seen=seen, stopped_time=None)
    await asyncio.gather(stop, start)
    assert replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    assert replication.record.stopped_time is not None


async def test_a_refused_transition_changes_and_records_nothing(world: World) -> None:
    before = await world.replication.store.events(limit=1000)
    with pytest.raises(InvalidStateError):
        await world.replication.transition(PrimaryEvent.RESYNC_STARTED, "asked", fenced="x")
    again = await world.reopen()
    assert again.record.fenced == ""
    assert await again.store.events(limit=1000) == before


async def test_a_proposed_commit_survives_a_restart_until_it_is_adopted(world: World) -> None:
    """R33."""
    epoch, end = b"1" * 16, Position(b"1" * 16, 3, 30, b"c" * 16)
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.begin_resync(resync(epoch))
    assert replication.record.proposed is None
    assert replication.tracked_epoch == epoch
    await replication.propose(end)
    again = await world.reopen()
    assert again.record.proposed == epoch
    assert await again.adopt("the replica shows it") == end
    last = await world.reopen()
    assert (last.state, last.record.epoch, last.record.resync) == (ReplicationState.REPLICATING, epoch, None)
    assert last.record.ancestors == (Ancestor(epoch, NO_EPOCH, 0),)


async def test_a_new_baseline_clears_causes_and_acknowledgements_and_keeps_the_lineage(world: World) -> None:
    replication = await replicating(world)
    replication.acked = Acked(Position(b"1" * 16, 9, 90, b"c" * 16), 5)
    await replication.store_progress()
    await replication.require_resync(ResyncCause.CHAIN, "they differ")
    await replication.transition(PrimaryEvent.RESYNC_STARTED, "asked")
    await replication.begin_resync(resync(b"2" * 16, b"1" * 16, 9))
    await replication.propose(Position(b"2" * 16, 1, 0, b"d" * 16))
    again = await world.reopen()
    assert again.acked is not None
    await again.adopt("confirmed")
    last = await world.reopen()
    assert last.acked is None
    assert last.record.causes == []
    assert last.record.ancestors == (Ancestor(b"1" * 16, NO_EPOCH, 0), Ancestor(b"2" * 16, b"1" * 16, 9))


async def test_an_acknowledged_cut_is_found_again(world: World) -> None:
    replication = await replicating(world)
    replication.acked = Acked(Position(b"1" * 16, 9, 90, b"c" * 16), 5, (1, 4096))
    await replication.store_progress()
    again = await world.reopen()
    assert again.acked == Acked(Position(b"1" * 16, 9, 90, b"c" * 16), 5)


async def test_a_commit_that_is_adopted_while_suspended_leaves_the_vm_suspended(world: World) -> None:
    """I7: what is committed can't be taken back."""
    replication = world.replication
    await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
    await replication.begin_resync(resync(b"1" * 16))
    await replication.propose(Position(b"1" * 16, 1, 0, b"c" * 16))
    await replication.transition(PrimaryEvent.SUSPENDED, "asked")
    await replication.adopt("confirmed")
    assert (replication.state, replication.record.epoch) == (ReplicationState.SUSPENDED, b"1" * 16)


async def test_all_causes_of_a_resync_are_kept_each_once(world: World) -> None:
    replication = await replicating(world)
    for _ in range(2):
        await replication.require_resync(ResyncCause.TRACKING_LOST, "the log is full", {"limit": 5})
        await replication.require_resync(ResyncCause.GAP, "a segment is missing")
    again = await world.reopen()
    assert [(cause.code, cause.text) for cause in again.record.causes] == [
        ("tracking_lost", "the log is full"),
        ("gap", "a segment is missing"),
    ]
    assert again.record.causes[0].evidence == {"limit": 5}
    assert len(await world.events(EventId.RESYNC_REQUIRED)) == 2


async def test_causes_are_bounded_and_the_first_ones_stay(world: World) -> None:
    """I13."""
    replication = await replicating(world)
    for number in range(100):
        await replication.require_resync(ResyncCause.GAP, f"reason {number}")
    texts = [cause.text for cause in replication.record.causes]
    assert len(texts) == 32
    assert (texts[0], texts[-1]) == ("reason 0", "reason 99")


async def test_a_failure_is_told_once(world: World) -> None:
    replication = await replicating(world)
    failure = VmreplicaError("not authorized", "authorize it", code="unauthorized")
    assert await set_problem(replication, failure, EventId.SUSPENDED_NOT_RECOVERABLE)
    assert not await set_problem(replication, failure, EventId.SUSPENDED_NOT_RECOVERABLE)
    assert len(await world.events(EventId.SUSPENDED_NOT_RECOVERABLE)) == 1
    again = await world.reopen()
    assert again.record.problem is not None
    assert again.record.problem.remedy == "authorize it"
    await clear_problem(again)
    assert again.record.problem is None


async def test_being_fenced_is_durable_and_told_once(world: World) -> None:
    """I8."""
    replication = await replicating(world)
    await replication.fence("failed over at b", split=True)
    await replication.fence("failed over at b", split=True)
    again = await world.reopen()
    assert (again.state, again.record.fenced) == (ReplicationState.FAILED_OVER, "failed over at b")
    (event,) = await world.events(EventId.FENCED)
    assert event["data"]["split_brain"] is True
    assert "split brain" in event["text"]


@pytest.mark.parametrize("resynchronize", [False, True])
async def test_an_open_resync_ends_at_a_fence_and_a_proposed_one_is_settled(world: World, resynchronize: bool) -> None:
    """I7, R33: the replica drops what is open at its failover; what was proposed it may have committed before."""
    replication = await replicating(world)
    for proposed in (False, True):
        await replication.require_resync(ResyncCause.TRACKING_LOST, f"lost {proposed}")
        await replication.transition(PrimaryEvent.RESYNC_STARTED, "asked")
        await replication.begin_resync(resync(b"2" * 16, b"1" * 16, 7))
        if proposed:
            await replication.propose(Position(b"2" * 16, 5, 50, b"e" * 16))
        await replication.fence("failed over at b", split=False)
        await leave_failover(replication, resynchronize=resynchronize)
        if not proposed:
            assert replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
            assert replication.record.resync is None
            await replication.transition(PrimaryEvent.FENCED, "put back")
            await replication.transition(PrimaryEvent.UNFENCED, "put back", causes=[])
    assert replication.state is ReplicationState.RESYNCHRONIZING
    assert (await replication.adopt("the replica shows it")).epoch == b"2" * 16
    assert (await world.reopen()).state is ReplicationState.REPLICATING


async def test_fenced_before_its_baseline_a_vm_begins_its_initial_replication_anew(world: World) -> None:
    replication = world.replication
    for resynchronize in (False, True):
        await replication.transition(PrimaryEvent.INITIAL_STARTED, "asked")
        await replication.begin_resync(resync(b"1" * 16))
        await replication.fence("failed over at b", split=False)
        await leave_failover(replication, resynchronize=resynchronize)
        assert (await world.reopen()).state is ReplicationState.READY_FOR_INITIAL_REPLICATION
        replication = world.replication
        assert replication.record.resync is None


async def test_a_resync_follows_the_present_baseline(world: World) -> None:
    replication = await replicating(world)
    fresh = mint(
        identity=b"i" * 16,
        epoch=b"2" * 16,
        kind=ResyncKind.RESYNC,
        replication=replication.record,
        parent_segment=7,
        now=3.0,
    )
    assert (fresh.parent, fresh.parent_segment, fresh.end) == (b"1" * 16, 7, None)


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [
        ("vm", None, "which VM"),
        ("vm", {"name": "web"}, "not valid"),
        ("vm", plain(VM) | {"version": 2}, "version 2"),
        ("vm", plain(VM) | {"colour": "blue"}, "not valid"),
        ("replication", {"state": 99}, "not valid"),
        ("acked", {"time_ns": -1}, "not valid"),
    ],
    ids=["missing", "incomplete", "newer", "unknown field", "unknown state", "negative"],
)
async def test_records_that_are_missing_damaged_or_newer_are_refused(
    world: World, name: str, record: Any, words: str
) -> None:
    """A24: never a guess."""
    await world.replication.store.commit({name: record})
    with pytest.raises(StoreDamagedError, match=words) as refused:
        load_vm(world.replication.store)
        await world.reopen()
    assert refused.value.remedy


async def test_a_change_whose_caller_is_cancelled_is_known_here_as_it_is_on_record(world: World) -> None:
    """I16: a session that ends in the middle of a change would otherwise leave memory behind the store."""
    replication = world.replication
    change = asyncio.ensure_future(replication.transition(PrimaryEvent.INITIAL_STARTED, "asked"))
    await asyncio.sleep(0)
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change
    state = replication.state
    assert state is ReplicationState.INITIAL_REPLICATION_IN_PROGRESS
    assert (await world.reopen()).state is state
