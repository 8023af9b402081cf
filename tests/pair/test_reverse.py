"""Reversing the direction between two hosts of real agents and taps (I6, I8, I12, R14, R15, R41)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primary_agent import believing, handing_over
from primary_agent.admin import with_settings
from primary_agent.scope import REVERSE_MAP
from replica_agent import handing_over as giving_up
from replica_agent.agent import ReplicaAgent
from replica_agent.marks import mark_point
from replica_agent.points import set_rules
from replica_agent.promoted_tap import PromotedTap
from replica_agent.record import PromotionRecord
from replica_agent.vm import ReplicaVm
from shared.admin import verbs
from shared.errors import ForbiddenError, InvalidStateError, UsageError
from shared.events import EventId
from shared.states import ReplicationState
from shared.status import VmStatus
from tests.pair.rig import MIB, WAIT_SECONDS
from tests.pair.two_hosts import NAME, Host, TwoHosts

BLOCK = 64 << 10
TURNS = 20


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TwoHosts]:
    if shutil.which("qemu-io") is None:
        pytest.skip("needs qemu-io (Debian: qemu-utils)")
    monkeypatch.setattr("primary_agent.session_loop.BACKOFF_FIRST_SECONDS", 0.1)
    monkeypatch.setattr("replica_agent.promoted_tap.REFRESH_SECONDS", 0.2)
    with tempfile.TemporaryDirectory(prefix="vmr-") as sockets:
        hosts = TwoHosts(tmp_path, Path(sockets))
        await hosts.start()
        try:
            yield hosts
        finally:
            await hosts.stop()


def newest_run(host: Host) -> tuple[str, int, int]:
    """Kind, bytes compared and bytes sent of the primary's newest compare."""
    (run,) = host.vm.parts.replication.runs.newest(1)
    return run.kind, run.total("compared_bytes"), run.total("sent_bytes")


async def primary_status(host: Host) -> VmStatus:
    (status,) = (await host.primary.status()).vms
    return status


async def test_there_and_back_compares_only_what_changed(two: TwoHosts) -> None:
    """I12, R41: with writes between and without, never a whole disk; and what a disaster lost is shown and kept."""
    await two.replicate(8 * MIB, 2 * MIB)
    await go_to_and_fro(two, [2, 1, 0])
    # The guest's disks on alpha are where they always were.
    assert two.alpha.paths() == [two.alpha.folder / f"disk{index}.raw" for index in range(2)]
    # Now beta runs the VM, and fails while it is cut off.
    await two.beta.vm.suspend()
    await two.beta.write("write -P 0x31 2M 64k", "write -P 0x32 4M 64k")
    tail = two.beta.paths()[0].read_bytes()
    await two.alpha.copy.failover()
    await two.tracking(two.alpha)
    await two.alpha.write("write -P 0x33 4M 64k")
    await two.beta.vm.resume(resynchronize=False)
    await two.fenced(two.beta)
    # Who starts the VM there now can't write: nobody makes it worse by mistake.
    tap = two.beta.vm.parts.tap
    await two.until("the tap's fence", lambda: tap.connection is not None and tap.connection.status.fenced)
    with pytest.raises(AssertionError, match="Permission denied"):
        await two.beta.write("write -P 0x99 0 64k")
    await two.alpha.carry("replica", "primary", replica=f"localhost:{two.beta.port}")
    with pytest.raises(InvalidStateError, match="2 changes of the disks") as refused:
        await two.beta.carry("primary", "replica")
    assert refused.value.code == handing_over.SPLIT_BRAIN, "written within seconds of the failover, so maybe after it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handing_over, "CLOCKS_SECONDS", -60.0)
        with pytest.raises(InvalidStateError, match="had not arrived when it came") as refused:
            await two.beta.carry("primary", "replica")
        assert refused.value.code == handing_over.NEEDS_YES
        await two.beta.carry("primary", "replica", yes=True)
    two.alpha.vm.parts.link.poke.notify()
    await two.replicating(two.alpha)
    assert newest_run(two.alpha) == ("bounded", 2 * BLOCK, 2 * BLOCK)
    await two.same(two.alpha)
    assert await two.oldest_point(two.beta) == tail


async def go_to_and_fro(two: TwoHosts, rounds: list[int]) -> None:
    """Fail over and reverse, with so many writes each time; the VM is on alpha before."""
    target = two.alpha
    for turn, writes in enumerate(rounds):
        target = two.other(target)
        await two.fail_over(target)
        for number in range(writes):
            await target.write(f"write -P {turn + 1} {1 - number}M 64k", disk=number)
        await two.reverse(target)
        assert newest_run(target) == ("bounded", writes * BLOCK, writes * BLOCK)
        await two.same(target)
        assert [vm.summary[:10] for vm in (await target.primary.status()).vms] == ["Protected:"]
        assert not two.other(target).primary.vms


@pytest.mark.thorough
@pytest.mark.slow
async def test_many_turns(two: TwoHosts) -> None:
    """I12, R41: twenty failovers and reversals in a row, with and without writes, never need a whole compare."""
    await two.replicate(8 * MIB, 2 * MIB)
    await go_to_and_fro(two, [turn % 3 for turn in range(TURNS)])


async def test_a_former_primary_that_is_gone_for_good_is_not_waited_for(two: TwoHosts) -> None:
    """R41: a host that keeps no copy gets a first one, of everything and by order only; alpha's stands for it here."""
    await two.replicate(4 * MIB)
    await two.fail_over(two.beta)
    await two.beta.carry("replica", "primary", replica=f"localhost:{two.alpha.port}")
    link = two.beta.vm.parts.link
    await two.until("that it waits", lambda: link.last_error_code == "not_reversed")
    assert two.beta.vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    await two.beta.write("write -P 0x41 1M 64k")
    await two.beta.vm.resume(resynchronize=True)
    await two.replicating(two.beta)
    assert newest_run(two.beta)[:2] == ("initial", 4 * MIB)
    copy = two.alpha.copy
    await two.until("the copy", lambda: copy.point() is not None and not copy.ledger.resync)
    copied = Path(copy.parts.disks.path(0)).read_bytes()
    assert copied == two.beta.paths()[0].read_bytes() and copied[MIB : MIB + BLOCK] == b"\x41" * BLOCK


async def test_split_brain_is_named_and_resolved_for_either_side(two: TwoHosts) -> None:
    """I8, R15: neither side is overwritten without an order, and the loser's content stays reachable."""
    await two.replicate(8 * MIB)
    await two.same(two.alpha)
    await two.fail_over(two.beta)
    await two.beta.write("write -P 0x51 1M 64k")
    # What the tap shows: the write lies over the copy, which is as it was.
    losing = two.beta.paths()[0].read_bytes()
    losing = losing[:MIB] + bytes([0x51]) * BLOCK + losing[MIB + BLOCK :]
    await two.write_past_the_fence(two.alpha, "write -P 0x52 3M 64k")
    # What the tap tells of itself is asked for now and then only.
    await two.alpha.vm.parts.tap.refresh()
    status = await primary_status(two.alpha)
    assert status.health == "Critical" and "split brain" in status.summary
    for host, role, offset in ((two.alpha, "primary", 3 * MIB), (two.beta, "replica", MIB)):
        report = await host.call(role, verbs.DIFFERENCES, vm=NAME)
        assert [(disk["range_count"], disk["ranges"]) for disk in report["disks"]] == [(1, [(offset, BLOCK)])]
        assert report["reason"] == "" and report["common"]
    with pytest.raises(InvalidStateError, match="still failed over to beta"):
        await two.alpha.call("primary", verbs.RESOLVE, vm=NAME, yes=True)
    with pytest.raises(UsageError, match="is given up"):
        await two.beta.call("replica", verbs.RESOLVE, vm=NAME)
    code, told = await two.beta.command("resolve", NAME, "--keep", "primary", "--yes")
    assert code == 0 and "This host is the replica of web." in told, told
    assert "Where that was not done yet: vmreplica resolve web --keep primary on alpha." in told
    await two.alpha.call("primary", verbs.RESOLVE, vm=NAME, yes=True)
    await two.replicating(two.alpha)
    assert newest_run(two.alpha) == ("bounded", 2 * BLOCK, 2 * BLOCK)
    await two.same(two.alpha)
    assert await two.oldest_point(two.beta) == losing
    # Whatever the rules say it stays, until it is unpinned.
    await set_rules(two.beta.copy, {"newest": 1, "hourly": 0})
    await two.unfenced(two.alpha)
    await two.alpha.write("write -P 0x53 5M 64k")
    await two.same(two.alpha)
    assert await two.oldest_point(two.beta) == losing
    await stays_until_unpinned(two.beta)

    await two.fail_over(two.beta)
    # The same by the command. Nothing was written on beta when it was handed over there, and then by its guest.
    code, told = await two.beta.command("reverse", NAME, "--yes", "--replica", f"localhost:{two.alpha.port}")
    assert code == 0 and "This host is the primary of web." in told, told
    await two.beta.write("write -P 0x41 1M 64k")
    await two.write_past_the_fence(two.alpha, "write -P 0x42 1M 64k", "write -P 0x43 6M 128k")
    losing = two.alpha.paths()[0].read_bytes()
    code, told = await two.alpha.command("resolve", NAME)
    assert code == 0 and f"    {6 * MIB} + {2 * BLOCK}\n" in told and "192.0 KiB in 2 range(s)" in told, told
    code, told = await two.alpha.command("reverse", NAME, "--yes")
    assert code == 4 and "Split brain: web was written on this host" in told, told
    code, told = await two.alpha.command("resolve", NAME, "--keep", "replica")
    assert code == 2 and "Nothing was changed" in told, told
    assert two.alpha.paths()[0].read_bytes() == losing
    code, told = await two.alpha.command("resolve", NAME, "--keep", "replica", "--yes")
    assert code == 0 and "This host is the replica of web." in told, told
    assert "Where that was not done yet: vmreplica reverse web on beta." in told
    code, told = await two.beta.command("reverse", NAME, "--yes")
    assert code == 0 and "This host is the primary of web." in told, "the same command again changes nothing"
    two.beta.vm.parts.link.poke.notify()
    await two.replicating(two.beta)
    # One block was written on both sides, two on alpha alone.
    assert newest_run(two.beta) == ("bounded", 3 * BLOCK, 3 * BLOCK)
    await two.same(two.beta)
    assert await two.oldest_point(two.alpha) == losing
    (mark,) = two.alpha.copy.ledger.points.marks
    assert mark.pinned and mark.name.startswith("set-aside-")


async def stays_until_unpinned(host: Host) -> None:
    """The only point beside the newest one is what was set aside."""
    vm = host.copy
    (mark,) = vm.ledger.points.marks
    assert mark.pinned and mark.name.startswith("set-aside-")
    assert vm.parts.history.positions() == [mark.position.position]
    await mark_point(vm.parts.history, mark.position.position, pinned=False)
    assert vm.parts.history.positions() == []


async def killed(*_arguments: object) -> None:
    """In the place of a step at which the agent is killed."""
    raise RuntimeError("killed")


def failed(*_arguments: object) -> None:
    """In the place of a step at which the volume fails."""
    raise OSError("the volume fails")


async def test_each_step_is_durable_and_may_be_repeated(two: TwoHosts) -> None:
    """Orders that do not fit change nothing; an agent that starts in the middle does nothing of its own (I8, I10)."""
    await two.replicate(8 * MIB)
    with pytest.raises(InvalidStateError, match="was not failed over to its replica's host"):
        await two.alpha.call("primary", verbs.HAND_OVER, vm=NAME)
    with pytest.raises(InvalidStateError, match="was not failed over to this host"):
        await two.beta.call("replica", verbs.HAND_OVER, vm=NAME)
    with pytest.raises(InvalidStateError, match="nothing to resolve"):
        await two.alpha.call("primary", verbs.RESOLVE, vm=NAME, yes=True)
    with pytest.raises(InvalidStateError, match="was not handed over"):
        await two.alpha.call("primary", verbs.HANDED_OVER, vm=NAME)
    await two.alpha.call("primary", verbs.PREPARE_FAILOVER, vm=NAME)
    replication = two.alpha.vm.parts.replication
    await two.until("prepared", lambda: replication.state is ReplicationState.PREPARED_FOR_FAILOVER)
    # No split brain, whatever was written: there is only one side.
    with pytest.raises(InvalidStateError, match="only prepared for a failover: it was not failed over to beta"):
        await two.alpha.call("primary", verbs.HAND_OVER, vm=NAME, yes=True)
    await two.fail_over(two.beta)
    for host, role, method in ((two.alpha, "primary", verbs.HAND_OVER), (two.beta, "replica", verbs.RESOLVE)):
        async with two.client(host):
            with pytest.raises(InvalidStateError, match=r"clients are connected to disk0 \(1\)"):
                await host.call(role, method, vm=NAME, yes=True)

    plain = giving_up._plain

    async def with_a_guest(vm: ReplicaVm) -> PromotionRecord:
        await late.enter_async_context(two.client(two.beta))
        return await plain(vm)

    async with contextlib.AsyncExitStack() as late:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InvalidStateError, match="clients are connected to"):
            patch.setattr(giving_up, "_plain", with_a_guest)
            await two.beta.call("replica", verbs.RESOLVE, vm=NAME, yes=True)
    # It was not cut off (I14), and whoever comes next may write.
    await two.beta.write("write -P 0x61 1M 64k")
    first = await two.beta.call("replica", verbs.HAND_OVER, vm=NAME)
    await two.beta.restart("alpha")
    assert (await two.beta.call("replica", verbs.HAND_OVER, vm=NAME))["id"] == first["id"]
    assert two.beta.copy.promotion.tap is None
    with pytest.raises(InvalidStateError, match="handed over to its primary agent"):
        await two.beta.copy.failover()
    await two.beta.copy.promotion.look()
    assert not two.beta.copy.promotion.silent
    tap = PromotedTap(two.beta.copy.parts, bytes.fromhex(first["epoch"]))
    await tap.stop_tap()
    # A tap answers that it has stopped before its process has ended.
    async with asyncio.timeout(WAIT_SECONDS):
        while not two.beta.copy.promotion.silent:
            await two.beta.copy.promotion.look()
    (status,) = two.beta.replica.status().vms
    assert status.health == "Critical" and "vmreplica reverse web" in status.remedy
    # What a replica agent that was taken over might say leads root nowhere, and changes nothing.
    lies: dict[str, dict[str, object]] = {
        r"disks\[0\].path": {"disks": [{**first["disks"][0], "path": "/etc/shadow"}]},
        "tap_folder": {"tap_folder": first["tap_folder"].replace(str(two.beta.folder), "/etc")},
        "runtime_folder": {"runtime_folder": first["runtime_folder"].replace("/r/", "/p/")},
    }
    for field, lie in lies.items():
        with pytest.raises(ForbiddenError, match=f"its {field} is"):
            await two.beta.adopt("primary", {**first, **lie}, replica=f"localhost:{two.alpha.port}")
    with pytest.raises(UsageError, match="unknown field `settings`"):
        await two.beta.call("primary", verbs.ADOPT, vm=first["vm"], handover={**first, "settings": {}}, replica="")
    assert not two.beta.primary.vms and not list((two.beta.folder / "state-primary" / "vms").iterdir())
    assert status.planned is None, "by which preparation it came here is past"
    # Refused for good by the other agent: the first one goes on with the VM.
    await two.beta.call("replica", verbs.HANDED_OVER, vm=NAME, taken=False)
    await two.until("the tap", lambda: two.beta.copy.promotion.tap is not None and two.beta.copy.promotion.tap.uris)
    # An agent that was killed before it had put anything on record takes the VM when it is asked again.
    begun = two.beta.folder / "state-primary" / "vms" / two.beta.copy.parts.uuid
    begun.mkdir(parents=True)
    await (await two.beta.ports.ports.stores.open(str(begun), create=True)).close()
    (begun / REVERSE_MAP).write_bytes(b"half")
    await two.beta.restart("alpha")
    assert not two.beta.primary.damaged and not begun.exists()
    # Whoever gives the order again while it is carried out does no harm: it is one hand-over, taken once. What fails
    # once it is taken is no error: the replica agent would take it back, and both would have it.
    again = [two.beta.carry("replica", "primary", replica=f"localhost:{two.alpha.port}") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(believing, "drop", failed)
        await asyncio.gather(*again)
    await two.beta.restart("alpha")
    await two.beta.carry("replica", "primary", replica=f"localhost:{two.alpha.port}")
    await two.beta.write("write -P 0x62 1M 64k")

    handed = await two.alpha.call("primary", verbs.HAND_OVER, vm=NAME)
    await two.alpha.restart("beta")
    assert two.alpha.vm.parts.handed_over is not None and two.alpha.vm.parts.tap.connection is None
    assert (await primary_status(two.alpha)).handed_over
    assert (await two.alpha.call("primary", verbs.HAND_OVER, vm=NAME)) == handed
    with pytest.raises(InvalidStateError, match="is handed over"):
        await two.alpha.call("primary", verbs.RESUME, vm=NAME, resynchronize=True)
    disk = two.alpha.paths()[0]
    times = disk.stat()
    os.utime(disk)
    with pytest.raises(InvalidStateError, match="was changed since its tap was stopped"):
        await two.alpha.adopt("replica", handed)
    os.utime(disk, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(ReplicaAgent, "replace", killed)
        await two.alpha.adopt("replica", handed)
    await two.alpha.restart("beta")
    assert not two.alpha.replica.damaged
    await asyncio.gather(two.alpha.adopt("replica", handed), two.alpha.adopt("replica", handed))
    events = (await two.alpha.replica.events(NAME, limit=100, after=0)).events
    assert [event["event"] for event in events].count(EventId.REVERSED) == 1
    await two.alpha.restart("beta")
    await two.alpha.carry("primary", "replica")
    two.beta.vm.parts.link.poke.notify()
    await two.replicating(two.beta)
    assert newest_run(two.beta) == ("bounded", BLOCK, BLOCK)
    await two.same(two.beta)


@pytest.mark.thorough
@pytest.mark.slow
async def test_disks_that_came_go_along_with_a_reversal(two: TwoHosts, tmp_path: Path) -> None:
    """I9, R41: both sides agree on the disks after it, also where a change of them had not arrived; no number is used
    anew, and nobody changes disks at the side that the VM does not run on."""
    await two.replicate(8 * MIB)
    first, second, third = (tmp_path / f"{name}.raw" for name in ("first", "second", "third"))
    for path in (first, second, third):
        path.write_bytes(os.urandom(2 * MIB))
    await add(two.alpha, first)
    await resynchronized(two, two.alpha)
    await two.fail_over(two.beta)
    with pytest.raises(InvalidStateError, match="was failed over to beta: its disks can't be changed here"):
        await add(two.alpha, second)
    with pytest.raises(InvalidStateError, match="was failed over to beta"):
        await two.alpha.call("primary", verbs.DISK_REMOVE, vm=NAME, disk="1")
    await two.beta.write("write -P 0x71 1M 64k", disk=1)
    await two.reverse(two.beta)
    assert newest_run(two.beta) == ("bounded", BLOCK, BLOCK)
    await two.same(two.beta)
    # --- at the new primary: one goes, another comes
    await two.beta.call("primary", verbs.DISK_REMOVE, vm=NAME, disk="1")
    await resynchronized(two, two.beta)
    await add(two.beta, second)
    await resynchronized(two, two.beta)
    assert [disk.index for disk in two.beta.vm.record.disks] == [0, 2]
    assert [disk.index for disk in two.alpha.copy.ledger.vm.former] == [1], "points of the copy have it"
    await two.same(two.beta)
    # --- one that comes, but not to the other host before that takes over
    given = {"resync_read_rate": [1]}
    await two.beta.vm.set(with_settings(two.beta.vm.record, given), given)
    await add(two.beta, third)
    await two.fail_over(two.alpha)
    await two.alpha.write("write -P 0x72 1M 64k", disk=1)
    await two.alpha.carry("replica", "primary", replica=f"localhost:{two.beta.port}")
    await two.beta.carry("primary", "replica", yes=True)
    assert [disk.index for disk in two.alpha.vm.record.disks] == [0, 2]
    assert [disk.index for disk in two.beta.copy.ledger.vm.disks] == [0, 2, 3]
    assert two.beta.copy.ledger.vm.apart == [1], "removed while the VM ran here: its file is not the copy's"
    removed = two.beta.copy.parts.layout.disk(1)
    await two.until(
        "a cause", lambda: two.alpha.vm.parts.replication.record.causes and two.alpha.vm.parts.link.healthy()
    )
    await two.alpha.vm.resume(resynchronize=True)
    await resynchronized(two, two.alpha)
    assert newest_run(two.alpha)[0] == "resync", "what bounds a compare is about disks that both sides have"
    await two.same(two.alpha)
    assert [disk.index for disk in two.beta.copy.ledger.vm.former] == [3]
    await two.beta.restart("alpha")
    assert Path(removed).exists() and third.exists()
    assert two.alpha.vm.record.index_to_come == 4, "nor the number of the one that never came here"


@pytest.mark.thorough
@pytest.mark.slow
async def test_a_point_of_other_disks_is_promoted_and_reversed(two: TwoHosts, tmp_path: Path) -> None:
    """I9, R41: committed by the reversal the set is that of the point, at both sides; given up it is the primary's."""
    await two.replicate(4 * MIB, 2 * MIB)
    await two.same(two.alpha)
    old, content = two.beta.copy.point(), [path.read_bytes() for path in two.alpha.paths()]
    assert old is not None
    first = tmp_path / "first.raw"
    first.write_bytes(os.urandom(2 * MIB))
    await add(two.alpha, first)
    await resynchronized(two, two.alpha)
    await two.alpha.call("primary", verbs.DISK_REMOVE, vm=NAME, disk="1")
    await resynchronized(two, two.alpha)
    await two.alpha.write("write -P 0x60 2M 64k", "write -P 0x60 0 4k")
    await two.same(two.alpha)
    newest = [path.read_bytes() for path in two.alpha.paths()]
    # --- given up for alpha: its set is taken over
    await two.beta.copy.failover(old)
    await two.tracking(two.beta)
    await two.fenced(two.alpha)
    await two.beta.write("write -P 0x61 1M 64k", disk=1)
    report = await two.beta.call("replica", verbs.DIFFERENCES, vm=NAME)
    assert "has other disks" in report["reason"]
    await two.beta.call("replica", verbs.RESOLVE, vm=NAME, yes=True)
    assert [disk.index for disk in two.beta.copy.ledger.vm.disks] == [0, 1]
    await two.alpha.call("primary", verbs.RESOLVE, vm=NAME, yes=True)
    parts = two.alpha.vm.parts
    await two.until("a session", lambda: parts.replication.record.causes and parts.link.healthy())
    await two.alpha.vm.resume(resynchronize=True)
    await resynchronized(two, two.alpha)
    assert [path.read_bytes() for path in two.alpha.paths()] == newest
    await two.same(two.alpha)
    (mark,) = two.beta.copy.ledger.points.marks
    assert sorted(two.beta.copy.ledger.disks_at(mark.position.position)) == [0, 1], "it has the disks that it had"
    assert await two.oldest_point(two.beta) == content[0]
    # --- and reversed
    await two.beta.copy.failover(mark.position.position)
    await two.tracking(two.beta)
    await two.fenced(two.alpha)
    await two.beta.write("write -P 0x62 64k 64k", disk=1)
    await two.beta.carry("replica", "primary", replica=f"localhost:{two.alpha.port}")
    await two.alpha.carry("primary", "replica", yes=True)
    assert [disk.index for disk in two.beta.vm.record.disks] == [0, 1]
    assert [disk.index for disk in two.alpha.copy.ledger.vm.disks] == [0, 2]
    expected = content[1][:BLOCK] + bytes([0x62]) * BLOCK + content[1][2 * BLOCK : MIB] + bytes([0x61]) * BLOCK
    assert two.beta.paths()[1].read_bytes() == expected + content[1][MIB + BLOCK :]
    parts = two.beta.vm.parts
    await two.until("a cause", lambda: parts.replication.record.causes and parts.link.healthy())
    await two.beta.vm.resume(resynchronize=True)
    await resynchronized(two, two.beta)
    assert newest_run(two.beta)[0] == "resync", "what bounds a compare is about disks that both sides have"
    await two.same(two.beta)
    assert first.exists() and two.beta.vm.record.index_to_come == 3


@pytest.mark.thorough
@pytest.mark.slow
async def test_a_removed_disk_comes_back_with_an_older_point(two: TwoHosts) -> None:
    """I9, R41: its file on the host that had removed it is kept aside, and the copy there gets all of it anew."""
    await two.replicate(2 * MIB, MIB)
    await two.fail_over(two.beta)
    await two.reverse(two.beta)
    await two.same(two.beta)
    old = two.alpha.copy.point()
    assert old is not None
    removed = two.beta.paths()[1]
    await two.beta.call("primary", verbs.DISK_REMOVE, vm=NAME, disk="1")
    await resynchronized(two, two.beta)
    await two.same(two.beta)
    # Whoever removed it may go on using it.
    removed.write_bytes(os.urandom(MIB))
    content = removed.read_bytes()
    # --- the point from before is what counts, at both hosts
    await two.alpha.copy.failover(old)
    await two.tracking(two.alpha)
    await two.fenced(two.beta)
    await two.alpha.write("write -P 0x81 64k 64k", disk=1)
    await two.alpha.carry("replica", "primary", replica=f"localhost:{two.beta.port}")
    await two.beta.carry("primary", "replica", yes=True)
    assert [disk.index for disk in two.alpha.vm.record.disks] == [0, 1]
    assert two.beta.copy.ledger.vm.apart == [1] and [disk.index for disk in two.beta.copy.ledger.vm.disks] == [0]
    parts = two.alpha.vm.parts
    await two.until("a cause", lambda: parts.replication.record.causes and parts.link.healthy())
    # Somebody uses it: that is told, with what helps.
    used = two.beta.ports.ports.files.open(str(removed), write=True)
    used.lock()
    await two.alpha.vm.resume(resynchronize=True)
    await two.until("the refusal", lambda: parts.replication.record.problem)
    problem = parts.replication.record.problem
    assert problem is not None and problem.code == "storage" and f"{removed} is in the way" in problem.text
    assert "`vmreplica resume web` at the primary" in problem.remedy
    used.close()
    await two.alpha.vm.resume(resynchronize=False)
    await resynchronized(two, two.alpha)
    await two.same(two.alpha)
    assert two.beta.paths()[1] == removed and two.beta.copy.ledger.vm.apart == []
    (kept,) = (two.beta.folder / "store" / "removed").glob("*/disk-1.raw")
    assert kept.read_bytes() == content
    # --- and once more
    await two.fail_over(two.beta)
    await two.reverse(two.beta)
    assert newest_run(two.beta) == ("bounded", 0, 0)
    await two.same(two.beta)
    assert kept.read_bytes() == content


async def add(host: Host, path: Path) -> None:
    await host.call("primary", verbs.DISK_ADD, vm=NAME, disk={"path": str(path)})


async def resynchronized(two: TwoHosts, host: Host) -> None:
    """Wait until a resync has brought the present disks to the other host, and both sides are one again."""
    parts = host.vm.parts

    def known() -> bool:
        parts.link.poke.notify()
        theirs = two.other(host).copy.ledger.vm.disks
        return [disk.uuid for disk in theirs] == [disk.uuid for disk in host.vm.record.disks]

    await two.until("the same disks", known)
    await two.replicating(host)
