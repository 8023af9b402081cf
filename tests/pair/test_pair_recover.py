"""Either side loses its database while its agent is away: listed, recovered, and in the end both sides are equal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from primary_agent.admin import with_settings
from primary_agent.vm import PrimaryVm
from protocol.messages import ErrorCode
from protocol.position import Position
from shared.errors import InvalidStateError, UsageError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import ReplicationState
from shared.status import VmStatus
from shared.tap_control import LostReason
from tests.pair.hosts import VM, Hosts
from tests.pair.rig import MIB, Pair

ORDER = {"uid": 0, "pid": 1}


def delete(folder: Path) -> None:
    for path in folder.glob("state.db*"):
        path.unlink()


def flip(folder: Path) -> None:
    # What a killed agent had not yet moved from the log to the database lies in the log.
    for path in (folder / "state.db", folder / "state.db-wal"):
        data = bytearray(path.read_bytes()) if path.exists() else bytearray()
        for place in range(0, len(data), 1000):
            data[place] ^= 0x40
        if data:
            path.write_bytes(data)


def home(pair: Pair) -> Path:
    """The VM's folder at the primary."""
    (folder,) = (pair.folder / "state" / "vms").iterdir()
    return folder


def copy_home(pair: Pair) -> Path:
    """The VM's folder at the replica."""
    (folder,) = (path for path in (pair.folder / "store").iterdir() if path.name != "removed")
    return folder


def cause_codes(pair: Pair) -> list[str]:
    return [cause.code for cause in pair.vm.parts.replication.record.causes]


async def lose_primary(pair: Pair) -> VmStatus:
    """Stop the primary's agent, lose its database, and start it: what it then lists."""
    await pair.primary.stop()
    delete(home(pair))
    await pair.start_primary()
    (status,) = (await pair.primary.status("web")).vms
    assert (status.state, status.name, status.uuid) == ("Error", "web", home(pair).name)
    assert status.problem is not None and f"vmreplica recover {status.uuid}" in status.problem.remedy
    return status


async def recover_primary(pair: Pair, replica: str = "") -> PrimaryVm:
    vm = await pair.primary.recover("web", replica, ORDER)
    vm.parts.link.poke.notify()
    return vm


async def compares(pair: Pair) -> int:
    return len(await pair.events(EventId.RESYNC_STARTED))


def qemu_write(uri: str, *commands: str) -> None:
    words = [word for command in (*commands, "flush") for word in ("-c", command)]
    result = subprocess.run(["qemu-io", "-f", "raw", *words, uri], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# --- the primary's state -------------------------------------------------------------------------------------------


async def test_primary_goes_on_without_a_resync_when_its_log_proves_it(pair: Pair) -> None:
    """R34, I14: the tap served all the time, and its log holds exactly the cut at which the replica stands."""
    await pair.replicate(8 * MIB, 2 * MIB)
    await pair.write(0, "write -P 1 1M 64k")
    await pair.cut()
    uris, tap = pair.uris, pair.vm.parts.tap.require().status.pid
    record, epoch = pair.vm.record, pair.vm.parts.replication.record.epoch
    status = await lose_primary(pair)
    await asyncio.to_thread(qemu_write, uris[0], "write -P 2 2M 64k")
    vm = await recover_primary(pair)
    assert vm.record == record
    assert vm.parts.replication.record.epoch == epoch
    await pair.until("the proof", lambda: vm.parts.replication.record.recovered is None)
    await pair.write(1, "write -P 3 0 64k")
    await pair.assert_same()
    assert vm.parts.replication.state is ReplicationState.REPLICATING
    assert await compares(pair) == 0
    assert (status.tap is None or status.tap.pid in (None, tap)) and vm.parts.tap.require().status.pid == tap
    recovered = await pair.events(EventId.RECOVERED)
    assert (recovered[0]["before"], recovered[0]["after"]) == ("Error", "Replicating")
    assert recovered[0]["data"]["description"] == "sound"
    assert "proven" in recovered[1]["text"]
    with pytest.raises(InvalidStateError, match="sound"):
        await recover_primary(pair)


async def test_damaged_vm_keeps_its_tap_running(pair: Pair) -> None:
    """I14: after a boot the guest gets its disks, whatever became of the database; and a recover keeps that tap."""
    await pair.replicate(4 * MIB)
    tap = pair.vm.parts.tap.require().status.pid
    assert tap > 1
    await pair.primary.stop()
    os.kill(tap, signal.SIGKILL)
    flip(home(pair))
    await pair.start_primary()
    (damaged,) = pair.primary.damaged.values()
    link = damaged.tap
    assert link is not None
    async with asyncio.timeout(30):
        connection = await link.connected()
    (status,) = (await pair.primary.status()).vms
    assert status.state == "Error" and status.tap is not None and status.tap.running
    assert status.uris
    await asyncio.to_thread(qemu_write, status.uris[0], "write -P 9 1M 4k")
    vm = await recover_primary(pair)
    await pair.until("the proof", lambda: vm.parts.replication.record.recovered is None)
    await pair.assert_same()
    assert await compares(pair) == 0
    assert vm.parts.tap.require().status.pid == connection.status.pid


async def test_log_that_lost_track_is_no_proof(pair: Pair) -> None:
    """Never less safe than with its database: what the log does not name is found by a compare of everything."""
    await pair.replicate(8 * MIB)
    await pair.cut()
    uris = pair.uris
    await pair.vm.parts.tap.require().client.stop_tracking("the test")
    await lose_primary(pair)
    await asyncio.to_thread(qemu_write, uris[0], "write -P 7 5M 64k")
    vm = await recover_primary(pair)
    await pair.until("the verdict", lambda: ResyncCause.STATE_LOST in cause_codes(pair))
    assert vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    await pair.healthy()
    await vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


@pytest.mark.parametrize("described", [False, True], ids=["unknown", "proposed"])
async def test_resync_that_was_being_committed_when_the_state_was_lost(pair: Pair, described: bool) -> None:
    """R33, I8: an epoch that is not known here needs a whole compare, and an order; a proposed one is adopted."""
    await pair.replicate(8 * MIB)
    file = home(pair) / "vm.description"
    replication = pair.vm.parts.replication
    first = replication.record.epoch
    kept = {"before": file.read_bytes()}
    propose = replication.propose

    async def proposed(end: Position) -> None:
        await propose(end)
        kept["proposed"] = file.read_bytes()

    replication.propose = proposed  # type: ignore[method-assign]
    await pair.vm.resume(resynchronize=True)
    await pair.until("another baseline", lambda: replication.record.epoch != first)
    second = replication.record.epoch
    await pair.cut()
    uris = pair.uris
    await pair.primary.stop()
    file.write_bytes(kept["proposed" if described else "before"])
    delete(home(pair))
    await pair.start_primary()
    await asyncio.to_thread(qemu_write, uris[0], "write -P 5 3M 64k")
    vm = await recover_primary(pair)
    if described:
        await pair.until("the proof", lambda: vm.parts.replication.record.recovered is None)
        assert vm.parts.replication.record.epoch == second
        await pair.assert_same()
        assert await compares(pair) == 0
        return
    await pair.until("the verdict", lambda: ResyncCause.HISTORY_LOST in cause_codes(pair))
    await vm.set(with_settings(vm.record, {"resync_mode": "automatic"}), {"resync_mode": "automatic"})
    await pair.healthy()
    pair.cut_link()
    await pair.until("the end of the session", lambda: vm.parts.link.dialled is None)
    vm.parts.link.poke.notify()
    await pair.healthy()
    assert vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    point = pair.copy.point()
    assert point is not None and point.epoch == second
    await vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    (compared,) = await pair.events(EventId.RESYNC_COMPARED)
    assert compared["data"]["bytes_compared"] == 8 * MIB


async def test_commit_that_was_proposed_and_never_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R33: the replica still stands at the baseline before, so what was compared is void: all of it again."""
    await pair.replicate(8 * MIB)
    replication = pair.vm.parts.replication
    first, propose, reached = replication.record.epoch, replication.propose, asyncio.Event()

    async def proposed(end: Position) -> None:
        await propose(end)
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(replication, "propose", proposed)
    await pair.vm.resume(resynchronize=True)
    await reached.wait()
    uris = pair.uris
    await lose_primary(pair)
    await asyncio.to_thread(qemu_write, uris[0], "write -P 5 3M 64k")
    vm = await recover_primary(pair)
    assert (vm.parts.replication.record.epoch, vm.parts.replication.record.proposed) != (first, None)
    await pair.until("the verdict", lambda: ResyncCause.STATE_LOST in cause_codes(pair))
    assert vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    assert vm.parts.replication.record.resync is None
    await pair.healthy()
    await vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    (compared,) = await pair.events(EventId.RESYNC_COMPARED)
    assert compared["data"]["bytes_compared"] == 8 * MIB


async def test_primary_without_a_description_is_told_its_replica(pair: Pair) -> None:
    """An older version's folder: the tap's configuration names the disks, the administrator the replica."""
    await pair.replicate(4 * MIB)
    record = pair.vm.record
    await pair.primary.stop()
    (home(pair) / "vm.description").unlink()
    delete(home(pair))
    await pair.start_primary()
    with pytest.raises(UsageError, match="where the replica of web is") as refused:
        await recover_primary(pair)
    assert "--replica" in refused.value.remedy
    vm = await recover_primary(pair, f"localhost:{pair.port}")
    assert (vm.record.disks, vm.record.replica) == (record.disks, record.replica)
    await pair.until("the verdict", lambda: ResyncCause.HISTORY_LOST in cause_codes(pair))
    await pair.healthy()
    await vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_suspended_vm_stays_suspended(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await pair.vm.suspend()
    await lose_primary(pair)
    vm = await recover_primary(pair)
    assert vm.parts.replication.state is ReplicationState.SUSPENDED
    await vm.resume(resynchronize=False)
    await pair.until("the proof", lambda: vm.parts.replication.record.recovered is None)
    await pair.assert_same()


# --- the replica's state -------------------------------------------------------------------------------------------


async def test_replica_is_compared_as_a_whole(pair: Pair) -> None:
    """A24, I6: listed with its remedy, recovered, compared; nothing is served of it before."""
    await pair.replicate(8 * MIB)
    await pair.cut()
    await pair.replica.stop()
    flip(copy_home(pair))
    await pair.write(0, "write -P 4 2M 64k")
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.until("the refusal", lambda: pair.vm.parts.link.last_error_code == ErrorCode.DAMAGED)
    await pair.replica.recover("web", ORDER)
    pair.vm.parts.link.poke.notify()
    await pair.until("the request", lambda: ResyncCause.REPLICA_REQUEST in cause_codes(pair))
    assert pair.copy.point() is None
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_failover_is_still_one(pair: Pair) -> None:
    """I8: the fence and the promoted disks outlive the database, and so does the tap that serves them (R42)."""
    await pair.replicate(4 * MIB)
    await pair.cut()
    await pair.copy.failover()
    tap = pair.copy.promotion.tap
    assert tap is not None and tap.status is not None
    pid, (uri,) = tap.status.pid, tap.uris
    epoch = pair.copy.ledger.replication.epoch
    await asyncio.to_thread(qemu_write, uri, "write -P 6 1M 64k")
    await pair.replica.stop()
    flip(copy_home(pair))
    await pair.start_replica()
    await pair.replica.recover("web", ORDER)
    await pair.until("the tap", lambda: pair.copy.promotion.tap and pair.copy.promotion.tap.status)
    tap = pair.copy.promotion.tap
    assert tap is not None and tap.status is not None
    assert (tap.status.pid, tap.status.epoch) == (pid, epoch.hex())
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.FAILED_OVER)
    await asyncio.to_thread(qemu_write, uri, "read -P 6 1M 64k")


# --- the tap's state -----------------------------------------------------------------------------------------------


async def test_tap_serves_with_its_state_damaged(pair: Pair) -> None:
    """I14: both slots are gone: the guest has its disks, no epoch is taken up again, and everything is compared."""
    await pair.replicate(8 * MIB)
    await pair.cut()
    before = pair.vm.parts.replication.record.epoch
    connection = pair.vm.parts.tap.require()
    state = home(pair) / "tap" / "tap.state"
    data = bytearray(state.read_bytes())
    data[100] ^= 1
    data[4096 + 100] ^= 1
    os.kill(connection.status.pid, signal.SIGSTOP)
    state.write_bytes(data)
    os.kill(connection.status.pid, signal.SIGKILL)
    await pair.until("another tap", lambda: pair.vm.parts.tap.connection not in (None, connection))
    await pair.write(0, "write -P 8 6M 64k")
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    lost = pair.vm.parts.tap.require().lost
    assert lost is not None and lost.reason is LostReason.STATE_DAMAGED
    # The session that was open may have found the same in its own words.
    assert set(cause_codes(pair)) == {ResyncCause.TRACKING_LOST}
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    assert pair.vm.parts.replication.record.epoch != before
    await pair.assert_same()


# --- as an administrator does it -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_sides_by_the_command(hosts: Hosts) -> None:
    """Killed agents, lost databases, and nothing but what the command says: in the end both sides are equal."""
    hosts.replicate(8 * MIB)
    hosts.caught_up()
    for role, folder in (("replica", hosts.copy(0).parent), ("primary", hosts.log_folder.parents[1])):
        hosts.kill(role)
        flip(folder)
        hosts.start(role)
        status = hosts.wait_state("Error", role)
        assert f"vmreplica recover {folder.name} --role {role}" in status["remedy"]
        asked = hosts.command("recover", VM, "--role", role)
        assert asked.returncode == 2 and "add --yes" in asked.stderr
        ran = hosts.command("recover", VM, "--role", role, "--yes")
        assert ran.returncode == 0, ran.stderr
        assert hosts.events(role)[0]["event"] == EventId.RECOVERED
        assert hosts.events(role)[0]["data"]["uid"] == os.getuid()
    hosts.wait("the request", "primary", lambda vm: vm["causes"])
    hosts.connect()
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    # It may have begun, and ended, with the order by which the agents were brought together.
    ran = hosts.command("resume", VM, "--resynchronize", "--no-wait", "--yes")
    assert ran.returncode == 0, ran.stderr
    hosts.wait_state("Replicating")
    hosts.caught_up()
    assert hosts.copy(0).read_bytes() == hosts.disks[0].read_bytes()
