"""Disks that come and go while a VM is replicated: only what is new crosses, and each point has the disks it had."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from primary_agent import disk_changes, unfencing
from primary_agent.disk_changes import add_disk, remove_disk
from primary_agent.resync_report import history
from primary_agent.tap_link import TapLink
from protocol.messages import ResyncKind
from protocol.position import Position
from replica_agent.points import points_of, set_rules
from replica_agent.vm_status import status_of
from shared.cli.console import Palette
from shared.cli.page import page_lines
from shared.errors import InvalidStateError, NotFoundError, StorageError, UsageError
from shared.events import EventId
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair
from tests.pair.test_pair_identity import stop_primary
from tests.pair.test_replica_failover import image_of, qemu_io
from tests.places import is_thorough

SIZE = 8 * MIB


async def add(pair: Pair, path: Path, export: str = "") -> None:
    await add_disk(pair.vm, str(path), export, [pair.vm.record])


async def compared(pair: Pair, epoch: bytes) -> None:
    """Wait until the resync has committed that followed the baseline ``epoch``, and was merged."""
    await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != epoch)
    await pair.state(ReplicationState.REPLICATING)
    await pair.cut()


async def exported(pair: Pair, position: Position, folder: Path) -> list[bytes]:
    """The disks of a point, as its export serves them."""
    export = await pair.copy.exports.start(pair.copy.describe, position)
    folder.mkdir()
    try:
        return [await image_of(uri, folder) for uri in export.uris]
    finally:
        await pair.copy.exports.stop(export.id)


class Guest:
    """Writes to a disk of the VM over NBD all the time, and reconnects as a guest's QEMU does."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._end = False
        self.writes = 0

    async def run(self) -> None:
        while not self._end:
            self.writes += 1
            await self._write(f"write -P {self.writes % 251 + 1} {self.writes % 32 * 64}k 64k")

    async def _write(self, command: str) -> None:
        uri = self._pair.uris[0]
        socket = uri.partition("socket=")[2]
        options = f"driver=nbd,server.type=unix,server.path={socket},export=disk0,reconnect-delay=30,open-timeout=30"
        process = await asyncio.create_subprocess_exec(
            "qemu-io", "--image-opts", options, "-c", command, "-c", "flush", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert b"failed" not in output and b"error" not in output, output.decode()

    def stop(self) -> None:
        self._end = True


@pytest.mark.slow
async def test_a_disk_is_added_and_one_removed_while_the_guest_writes(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.replicate(SIZE, MIB)
    disk = pair.disk(2)
    disk.write_bytes(os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB))
    content = disk.read_bytes()
    await set_rules(pair.copy, {"newest": 1000, "hourly": 0})
    await pair.assert_same()
    before, old = await pair.cut(), [pair.disk(index).read_bytes() for index in (0, 1)]
    epoch = pair.vm.parts.replication.record.epoch
    guest = Guest(pair)
    writing = asyncio.create_task(guest.run())
    # --- added
    await add(pair, disk, "data")
    assert [each.uri for each in (await pair.vm.status()).disks][2].startswith("nbd+unix:///data?")
    await pair.write(2, "write -P 7 1M 64k")
    await compared(pair, epoch)
    writes = guest.writes
    await pair.until("more writes", lambda: guest.writes > writes + 2)
    guest.stop()
    await writing
    await pair.assert_same()
    run = history(pair.vm, 5).runs[0]
    assert run.kind == ResyncKind.BOUNDED, run
    scope = {each.index: each.compared_bytes for each in run.disks}
    assert scope[2] == 4 * MIB and scope[1] == 0 and scope[0] < SIZE, "nothing of the others but what was just written"
    both, new = await pair.cut(), [pair.disk(index).read_bytes() for index in (0, 1, 2)]
    assert new[2] == content[:MIB] + b"\x07" * 65536 + content[MIB + 65536 :]
    assert await exported(pair, before, tmp_path / "old") == old
    assert await exported(pair, both, tmp_path / "both") == new
    # --- removed: its points keep it, over a restart of that side
    epoch = pair.vm.parts.replication.record.epoch
    await remove_disk(pair.vm, "disk1", exclude=True)
    await compared(pair, epoch)
    await pair.write(0, "write -P 9 0 64k")
    await pair.write(1, "write -P 8 0 64k")
    last, newest = await pair.cut(), [pair.disk(index).read_bytes() for index in (0, 2)]
    assert pair.vm.record.excluded == [str(pair.disk(1))]
    await pair.replica.stop()
    await pair.start_replica()
    await pair.healthy()
    await pair.cut()
    assert await exported(pair, before, tmp_path / "old again") == old
    assert await exported(pair, both, tmp_path / "both again") == new
    assert await exported(pair, last, tmp_path / "last") == newest
    # --- a failover to a point of before has its disks; undone it is as if there had been none
    monkeypatch.setattr(unfencing, "ASK_SECONDS", 0.2)
    await pair.copy.failover(before)
    promoted = status_of(pair.copy)
    assert [each.index for each in promoted.disks] == [0, 1] and [each.index for each in promoted.former_disks] == [2]
    assert [await image_of(uri, tmp_path) for uri in promoted.uris] == old
    code, output = await qemu_io(promoted.uris[1], "write -P 0x31 0 256k", "flush", "read -P 0x31 0 256k")
    assert code == 0 and "failed" not in output, output
    await pair.copy.undo_failover()
    await pair.until("a replica", lambda: pair.copy.ledger.promotion is None and pair.copy.point())
    await pair.state(ReplicationState.REPLICATING)
    await pair.until("writes", lambda: pair.vm.parts.tap.config.fenced == "" and pair.vm.parts.link.healthy())
    assert pair.vm.parts.replication.record.causes == []
    await pair.assert_same()
    assert await exported(pair, before, tmp_path / "old after all") == old
    assert [each.index for each in status_of(pair.copy).disks] == [0, 2]
    status = status_of(pair.copy)
    assert [each.index for each in status.former_disks] == [1]
    page = "\n".join(page_lines(status, 0.0, None, Palette(False)))
    assert "removed disk" in page and pair.copy.parts.layout.disk(1) in page
    told = [(each["data"]["disk"], each["data"]["path"]) for each in await pair.events(EventId.DISK_REMOVED)]
    assert told == [(1, str(pair.disk(1)))] and pair.disk(1).read_bytes() == old[1]
    # --- its content goes with the last point that has it
    kept = Path(pair.copy.parts.layout.disk(1))
    assert kept.exists() and len(points_of(pair.copy).points) > 3
    await set_rules(pair.copy, {"newest": 1, "hourly": 0})
    await pair.until("the removed disk's end", lambda: not kept.exists())
    assert pair.copy.ledger.vm.former == []
    status = await pair.vm.status()
    assert status.protected, status.summary


async def test_disks_that_can_not_be_added_or_removed(pair: Pair) -> None:
    await pair.replicate(MIB)
    record, fresh = pair.vm.record, pair.disk(5)
    fresh.write_bytes(bytes(MIB + 100))
    with pytest.raises(UsageError, match="is replicated already"):
        await add(pair, pair.disk(0))
    with pytest.raises(UsageError, match="whole number of sectors"):
        await add(pair, fresh)
    fresh.write_bytes(bytes(MIB))
    with pytest.raises(UsageError, match="same export"):
        await add(pair, fresh, "disk0")
    with pytest.raises(UsageError, match="can't be served"):
        await add(pair, fresh, "a b")
    with pytest.raises(NotFoundError, match="does not exist"):
        await add(pair, pair.disk(6))
    folder = pair.disk(7)
    folder.mkdir()
    with pytest.raises(StorageError):
        await add(pair, folder)
    with pytest.raises(NotFoundError, match="has no disk 4"):
        await remove_disk(pair.vm, "4", exclude=False)
    with pytest.raises(UsageError, match="is the only disk"):
        await remove_disk(pair.vm, "0", exclude=False)
    await pair.vm.suspend()
    with pytest.raises(InvalidStateError, match="can't be changed now"):
        await add(pair, fresh)
    assert pair.vm.record == record
    # Nothing of all that was begun: the tap still has its log.
    await pair.vm.resume(resynchronize=False)
    await pair.assert_same()
    assert pair.vm.parts.replication.record.causes == []


@pytest.mark.skipif(not is_thorough(), reason="--thorough runs it: each step has a test of its own")
@pytest.mark.slow
async def test_an_order_that_is_on_record_is_carried_out_whatever_ends(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tap is killed with the disks of before, and started with them again: it leaves its log before others come."""
    # Before the first copy there is nothing to keep: the set is exchanged at once.
    await pair.enable(SIZE)
    await pair.healthy()
    pair.disk(1).write_bytes(os.urandom(MIB))
    await add(pair, pair.disk(1))
    await pair.healthy()
    await pair.vm.initial()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    pair.disk(2).write_bytes(os.urandom(MIB))
    await pair.assert_same()
    epoch, tap = pair.vm.parts.replication.record.epoch, pair.vm.parts.tap.require().status.pid
    monkeypatch.setattr(TapLink, "reconnect", lambda _link: None)
    monkeypatch.setattr(disk_changes, "SERVED_SECONDS", 0.05)
    await add(pair, pair.disk(2))
    await pair.primary.stop()
    monkeypatch.undo()
    os.kill(tap, signal.SIGKILL)
    await pair.start_primary()
    await compared(pair, epoch)
    assert history(pair.vm, 1).runs[0].kind == ResyncKind.BOUNDED
    await pair.write(2, "write -P 3 0 64k")
    await pair.assert_same()


@pytest.mark.skipif(not is_thorough(), reason="--thorough runs it: each step has a test of its own")
@pytest.mark.slow
async def test_a_disk_that_is_gone_is_removed_without_a_tap_that_could_serve_it(pair: Pair) -> None:
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    await stop_primary(pair)
    pair.disk(1).unlink()
    await pair.start_primary()
    await pair.until("the refusal", lambda: pair.vm.parts.tap.failure)
    await remove_disk(pair.vm, str(pair.disk(1)), exclude=False)
    await pair.until("the tap", lambda: pair.vm.parts.tap.connection)
    # The tap was not stopped for it, so nothing proves what its log knew.
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    epoch = pair.vm.parts.replication.record.epoch
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await compared(pair, epoch)
    await pair.write(0, "write -P 4 0 64k")
    await pair.assert_same()
    assert [disk.index for disk in pair.copy.ledger.vm.disks] == [0]
