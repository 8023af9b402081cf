"""Tests of names, pins and proofs of recovery points at a running replica, and of points by time."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from replica_agent.marks import MARKS_MAX, mark_point
from replica_agent.points import find_point, point_settings, points_of, set_rules
from replica_agent.record import MarkRecord
from replica_agent.retention import HOUR, Retention
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.errors import InvalidStateError, NotFoundError, UsageError
from shared.events import EventId
from shared.point_status import PointProof, PointStatus
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import DISKS, World, check_history
from tests.unit.replica.test_points import cuts, segments, texts, thinned
from tests.unit.replica.test_sessions import Pair, replicating, until
from tests.unit.replica.test_verify import held


def listed(vm: ReplicaVm, name: str) -> PointStatus:
    (point,) = [point for point in points_of(vm).points if point.name == name]
    return point


async def proof(pair: Pair, vm: ReplicaVm, point: str) -> PointProof:
    status = await vm.prover.start(vm.describe, find_point(vm, point))
    await until(lambda: not status.running)
    assert vm.prover._task is not None
    await vm.prover._task
    assert points_of(vm).proof is status
    return status


async def test_a_named_and_pinned_point_is_kept_until_it_is_unpinned(world: World) -> None:
    """I1: over many cuts, merges and a restart; it is found by its name."""
    world.options["retention"] = Retention(newest=2, hourly=0)
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 2)
        await mark_point(vm.parts.history, None, name="before-upgrade", pinned=True)
        pinned = pair.tap.position
        for _ in range(3):
            await cuts(pair, 5, seconds=HOUR)
            await thinned(vm)
        assert segments(vm)[0] == pinned.segment
        assert find_point(vm, "before-upgrade") == pinned
        point = listed(vm, "before-upgrade")
        assert point.pinned and point.bytes > 0
        assert points_of(vm).pinned_bytes == point.bytes
        status = status_of(vm)
        assert (status.points_pinned, status.points_pinned_oldest) == (1, True)
        assert 0 < status.points_pinned_bytes <= status.points_bytes
        assert await check_history(vm, pair.tap) == len(segments(vm)) + 1
        tap = pair.tap
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert find_point(vm, "before-upgrade") == pinned
        assert await check_history(vm, tap) == len(segments(vm)) + 1
        await mark_point(vm.parts.history, pinned, pinned=False)
        assert pinned.segment not in segments(vm)
        assert vm.ledger.points.marks == []
        events = [event["text"] for event in (await agent.events(None, limit=100, after=0)).events]
        assert any("before-upgrade" in text and text.endswith("is gone.") for text in events)


async def test_the_newest_can_be_pinned_though_no_history_is_kept(world: World) -> None:
    """Applies write undo logs then; and none any more when it is unpinned."""
    world.options["retention"] = Retention(newest=1, hourly=0)
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 1)
        await mark_point(vm.parts.history, None, pinned=True)
        pinned = pair.tap.position
        await cuts(pair, 4)
        assert segments(vm) == [pinned.segment]
        assert await check_history(vm, pair.tap) == 2
        await mark_point(vm.parts.history, pinned, pinned=False)
        await cuts(pair, 1)
        assert segments(vm) == []
        assert vm.ledger.points.logs == []


async def test_a_pinned_point_goes_last_and_is_warned_of_before(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 1)
        await mark_point(vm.parts.history, None, name="base", pinned=True)
        await cuts(pair, 12)
        await thinned(vm)
        taken = status_of(vm).points_pinned_bytes
        limit = int(taken * 1.25)
        await set_rules(vm, point_settings({"points_limit_bytes": limit}))
        vm.parts.applier.changed.notify()
        await thinned(vm)
        await until(lambda: vm.parts.history.bytes <= limit)
        status = status_of(vm)
        assert find_point(vm, "base") is not None
        assert status.health == "Warning"
        assert any("the oldest of the pinned is deleted next" in reason for reason in status.reasons)
        assert await check_history(vm, pair.tap) == len(segments(vm)) + 1
        await set_rules(vm, point_settings({"points_limit_bytes": taken // 2}))
        with pytest.raises(UsageError, match="names no recovery point"):
            find_point(vm, "base")
        assert vm.point() == pair.tap.position
        events = (await pair.agent.events(None, limit=100, after=0)).events
        (gone,) = [event for event in events if event["cause"] == "mark_gone"]
        assert gone["level"] == "warning" and "pinned recovery point base" in gone["text"]


async def test_names_are_plain_and_of_one_point(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        history = vm.parts.history
        await cuts(pair, 3)
        one, two = history.positions()[-2:]
        for wrong in ("newest", "Newest", "17", "1a/2", "-x", "a b", "x" * 64, "ümlaut"):
            with pytest.raises(UsageError, match="can't be the name"):
                await mark_point(history, one, name=wrong)
        await mark_point(history, one, name="a")
        with pytest.raises(UsageError, match="Another recovery point"):
            await mark_point(history, two, name="a")
        await mark_point(history, one, name="b")
        await mark_point(history, two, name="a")
        assert (find_point(vm, "a"), find_point(vm, "b")) == (two, one)
        await mark_point(history, two, name="")
        with pytest.raises(UsageError, match=r"or the name of one: b\."):
            find_point(vm, "a")
        with pytest.raises(NotFoundError, match="no such recovery point"):
            await mark_point(history, one._replace(segment=999), pinned=True)
        many = [MarkRecord(position=vm.ledger.points.logs[-1].older, time=0.0, pinned=True)] * MARKS_MAX
        async with vm.ledger.transaction() as draft:
            draft.points.marks = many
        with pytest.raises(InvalidStateError, match="named or pinned"):
            await mark_point(history, None, pinned=True)


async def test_points_by_time(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 4, seconds=100)
        *_, before, middle, after = points_of(vm).points[::-1]
        assert middle.cut.time is not None and after.cut.time is not None and before.cut.time is not None
        for moment, found, later in (
            (middle.cut.time, middle.point, after.point),
            (middle.cut.time - 1e-3, before.point, middle.point),
            (after.cut.time + 1e6, after.point, ""),
            (1.0, "", points_of(vm).points[-1].point),
        ):
            told = points_of(vm, moment)
            assert (told.at_time, told.nearest, told.after) == (moment, found, later)
        assert find_point(vm, "newest", middle.cut.time + 1) == find_point(vm, middle.point)
        with pytest.raises(NotFoundError, match="at or before 1970-01-01 00:00:01 UTC. Its oldest"):
            find_point(vm, "newest", 1.0)
        with pytest.raises(UsageError, match="one of the two"):
            find_point(vm, middle.point, middle.cut.time)


async def test_a_point_of_a_verified_cut_is_proven_as_long_as_it_is_what_it_was(world: World) -> None:
    """I15: what a verify found equal on both sides is on record as SHA-256; a point that was changed is found out."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        asking, content = await held(pair)
        for disk in DISKS:
            assert (await asking.ask(disk.index, content[disk.index])).equal == b"\1"
        images = await asking.end()
        (record,) = vm.ledger.points.proofs
        point = next(each for each in points_of(vm).points if each.proven_time is not None)
        assert {image.disk: image.digest for image in record.images} == images
        await mark_point(vm.parts.history, record.position.position, name="proven", pinned=True)
        await cuts(pair, 6)
        await thinned(vm)
        found = await proof(pair, vm, "proven")
        assert (found.outcome, found.point) == ("proven", point.point)
        assert {image.disk: image.digest for image in found.images} == {d: each.hex() for d, each in images.items()}
        unrecorded = await proof(pair, vm, "newest")
        assert unrecorded.outcome == "unrecorded" and all(image.digest for image in unrecorded.images)
        # Somebody writes into the copy behind our back, where the point is still read through to the disk.
        path = world.folder_of() / f"disk-{DISKS[0].index}.raw"
        for at in range(0, DISKS[0].size, 4096):
            with path.open("r+b") as file:
                file.seek(at)
                file.write(os.urandom(512))
        wrong = await proof(pair, vm, "proven")
        assert wrong.outcome == "wrong" and "Disk 0" in wrong.text
        events = (await pair.agent.events(None, limit=100, after=0)).events
        levels = {event["cause"]: event["level"] for event in events if event["event"] == EventId.POINT_READ}
        assert levels == {"proven": "info", "unrecorded": "info", "wrong": "error"}
        # It is on record, and told, until the point is gone.
        vm.prover.status = None
        status = status_of(vm)
        assert status.wrong_point is not None and point.point in status.wrong_point.text
        assert status.health == "Critical" and "Do not use this point" in status.remedy
        await mark_point(vm.parts.history, record.position.position, name="", pinned=False)
        await cuts(pair, 6, seconds=HOUR)
        await set_rules(vm, point_settings({"points_newest": 1, "points_hourly": 0}))
        await thinned(vm)
        await until(lambda: not vm.ledger.points.wrong)
        assert status_of(vm).wrong_point is None


@pytest.mark.parametrize("how", ["differs", "in part"])
async def test_only_what_was_equal_as_a_whole_is_recorded(world: World, how: str) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        asking, content = await held(pair)
        for disk in DISKS if how == "differs" else DISKS[:1]:
            theirs = bytearray(content[disk.index])
            if how == "differs":
                theirs[0] ^= 1
            await asking.ask(disk.index, bytes(theirs))
        await asking.end()
        assert vm.ledger.points.proofs == []


async def test_reading_a_point_can_be_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 2)
        begun, go_on = asyncio.Event(), asyncio.Event()
        digest = type(vm.prover)._digest

        async def slow(*arguments: Any) -> Any:
            begun.set()
            await go_on.wait()
            return await digest(*arguments)

        monkeypatch.setattr(type(vm.prover), "_digest", slow)
        status = await vm.prover.start(vm.describe, None)
        await begun.wait()
        assert await vm.prover.start(vm.describe, None) is status, "it is joined"
        with pytest.raises(InvalidStateError, match="Another point"):
            await vm.prover.start(vm.describe, vm.parts.history.positions()[-1])
        assert len(vm.parts.history.readings) == 1
        await vm.prover.stop()
        assert (status.running, status.outcome) == (False, "undecided")
        assert vm.parts.history.readings == []
        assert any("was read" in text for text in await texts(pair))
