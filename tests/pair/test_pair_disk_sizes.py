"""A disk that is enlarged by order while the guest writes: nothing that it held is compared; points keep their size."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from primary_agent import disk_changes
from primary_agent.disk_sizes import resize_disk
from primary_agent.resizing import take_sizes
from primary_agent.resync_report import history
from primary_agent.tap_link import TapLink
from protocol.messages import DISK_SIZES, Open, ResyncKind
from replica_agent.authorize import Grant
from replica_agent.points import set_rules
from replica_agent.quota import Quotas
from replica_agent.record import VmRecord as CopyRecord
from shared.errors import InvalidStateError, NoSpaceError, UsageError, VmreplicaError
from shared.events import EventId
from shared.states import ReplicationState
from shared.tap_control import TapClient
from tests.pair.loop_device import LoopDevice, loop_device
from tests.pair.rig import MIB, Pair
from tests.pair.test_pair_disk_changes import Guest, compared, exported
from tests.pair.test_replica_failover import image_of
from tests.places import is_thorough

SIZE, LARGER = 8 * MIB, 12 * MIB


def takes(folder: Path, size: int) -> bool:
    """Whether the file system takes a file of so many bytes."""
    trial = folder / "trial"
    trial.touch()
    try:
        os.truncate(trial, size)
    except OSError:
        return False
    finally:
        trial.unlink()
    return True


def content(pair: Pair) -> list[bytes]:
    return [Path(disk.path).read_bytes() for disk in pair.vm.record.disks]


@pytest.mark.skipif(not is_thorough(), reason="--thorough runs it: each step has a test of its own")
@pytest.mark.slow
async def test_a_disk_is_enlarged_while_the_guest_writes(pair: Pair, tmp_path: Path) -> None:
    await pair.replicate(SIZE, MIB)
    await set_rules(pair.copy, {"newest": 1000, "hourly": 0})
    await pair.write(0, "write -P 1 3M 1M")
    await pair.assert_same()
    before, old = await pair.cut(), content(pair)
    epoch, inode = pair.vm.parts.replication.record.epoch, pair.disk(0).stat().st_ino
    guest = Guest(pair)
    writing = asyncio.create_task(guest.run())
    await resize_disk(pair.vm, "disk0", LARGER)
    assert pair.disk(0).stat().st_size == LARGER and pair.disk(0).stat().st_ino == inode
    await pair.write(0, f"write -P 2 {LARGER - MIB} 64k")
    await compared(pair, epoch)
    writes = guest.writes
    await pair.until("more writes", lambda: guest.writes > writes + 1)
    guest.stop()
    await writing
    await pair.write(0, f"write -P 3 {SIZE - 4096} 64k")
    await pair.assert_same()
    (run,) = history(pair.vm, 1).runs
    (scope,) = [each.compared_bytes for each in run.disks if each.index == 0]
    # What the guest of this test writes lies in the first 2 MiB; of the end there is one block.
    assert run.kind == ResyncKind.BOUNDED and scope <= 2 * MIB + 2 * 65536, run
    after, new = await pair.cut(), content(pair)
    assert await exported(pair, before, tmp_path / "before") == old
    assert await exported(pair, after, tmp_path / "after") == new
    told = [(event["cause"], event["level"]) for event in await pair.events(EventId.DISK_ENLARGED)]
    assert told == [("begun", "info"), ("administrator", "info")]
    assert await pair.events(EventId.DISK_RESIZED) == []
    status = await pair.vm.status()
    assert (status.health, status.protected, status.disks[0].size_bytes) == ("Normal", True, LARGER), status.summary
    assert pair.vm.record.disk_set == 1 == pair.copy.ledger.vm.disk_set
    # Whichever point is served has its own size.
    for point, images in ((before, old), (after, new)):
        await pair.copy.failover(point)
        serving = pair.copy.promotion.tap
        assert serving is not None and serving.status is not None
        assert [await image_of(disk.uri, tmp_path) for disk in serving.status.disks] == images
        await pair.copy.undo_failover()
        await pair.until("the copy", lambda: pair.copy.ledger.promotion is None and pair.copy.point() is not None)


async def test_what_can_not_be_enlarged_is_refused_before_anything_changes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.replicate(MIB)
    record, vm = pair.vm.record, pair.vm
    for size, text in ((MIB, "can only be enlarged"), (512, "can only be enlarged"), (MIB + 100, "can't have")):
        with pytest.raises(UsageError, match=text):
            await resize_disk(vm, "0", size)
    with pytest.raises(UsageError, match="new size is missing"):
        await resize_disk(vm, "0", None)
    with pytest.raises(VmreplicaError, match="has no disk 4"):
        await resize_disk(vm, "4", LARGER)
    if not takes(pair.folder, 64 << 40):
        with pytest.raises(InvalidStateError, match="can't grow to"):
            await resize_disk(vm, "0", 64 << 40)
    assert vm.parts.link.dialled is not None
    welcome = vm.parts.link.dialled.welcome
    welcome.capabilities.remove(DISK_SIZES)
    with pytest.raises(InvalidStateError, match="its version does not know that"):
        await resize_disk(vm, "0", LARGER)
    welcome.capabilities.append(DISK_SIZES)
    # The replica has no room for it.
    judge = Quotas.judge

    def limited(quotas: Quotas, grant: Grant, body: Open | CopyRecord) -> None:
        judge(quotas, dataclasses.replace(grant, quota=MIB), body)

    monkeypatch.setattr(Quotas, "judge", limited)
    with pytest.raises(NoSpaceError, match="can't take disk 0"):
        await resize_disk(vm, "0", LARGER)
    monkeypatch.undo()
    await vm.suspend()
    with pytest.raises(InvalidStateError, match="can't be changed now"):
        await resize_disk(vm, "0", LARGER)
    await vm.resume(resynchronize=False)
    # Nothing of all that was begun, but the file whose file system refused it: the tap still has its log.
    assert (vm.record, pair.disk(0).stat().st_size) == (record, MIB)
    await pair.assert_same()
    assert vm.parts.replication.record.causes == []


# --- the guest ------------------------------------------------------------------------------------------------------


class Machine:
    """A QEMU with the disk behind its tap, which runs no guest; commands go over QMP."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri, self._qmp = uri, folder / "qmp.sock"

    async def __aenter__(self) -> Machine:
        socket = self._uri.partition("socket=")[2]
        place = f"server.type=unix,server.path={socket},export=disk0,reconnect-delay=30,open-timeout=10"
        self._process = await asyncio.create_subprocess_exec(
            *("qemu-system-x86_64", "-S", "-M", "pc", "-m", "64", "-nodefaults", "-display", "none"),
            *("-qmp", f"unix:{self._qmp},server=on,wait=off"),
            *("-blockdev", f"driver=nbd,node-name=replicated0,{place}"),
            *("-device", "virtio-blk-pci,drive=replicated0,werror=stop,rerror=stop"),
        )
        async with asyncio.timeout(30):
            while not self._qmp.exists():  # noqa: ASYNC110 - QEMU tells nobody
                await asyncio.sleep(0.02)
        self._reader, self._writer = await asyncio.open_unix_connection(self._qmp)
        await self._reader.readline()
        await self.call("qmp_capabilities")
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._writer.close()
        self._process.kill()
        await self._process.wait()

    async def call(self, name: str, **arguments: Any) -> Any:
        """What it returns, or the text of its error."""
        self._writer.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(await self._reader.readline())
            if "return" in answer or "error" in answer:
                return answer["return"] if "return" in answer else answer["error"]["desc"]

    async def size(self) -> int:
        (node,) = await self.call("query-named-block-nodes")
        size: int = node["image"]["virtual-size"]
        return size


@pytest.mark.skipif(not is_thorough(), reason="--thorough runs it: it is about QEMU's client")
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
@pytest.mark.slow
async def test_a_machine_that_runs_is_told_the_size_after_its_next_read(pair: Pair) -> None:
    """As docs/resync.md has it: QEMU reconnects with the next request, and then block_resize works."""
    await pair.replicate(SIZE)
    await pair.assert_same()
    async with Machine(pair.uris[0], pair.sockets) as machine:
        resize = {"node-name": "replicated0", "size": LARGER}
        epoch = pair.vm.parts.replication.record.epoch
        await resize_disk(pair.vm, "0", LARGER)
        assert await machine.call("block_resize", **resize) == "Cannot grow NBD nodes"
        read = await machine.call("human-monitor-command", **{"command-line": 'qemu-io replicated0 "read 0 512"'})
        assert "error" not in read and await machine.size() == SIZE
        assert await machine.call("block_resize", **resize) == {}
        assert await machine.size() == LARGER
        await compared(pair, epoch)
        await pair.assert_same()


# --- what ends in between ------------------------------------------------------------------------------------------


def held(reached: asyncio.Event, before: Callable[..., Awaitable[Any]] | None = None) -> Callable[..., Awaitable[Any]]:
    """What never returns, ``before`` which something is done."""

    async def hold(*args: Any, **options: Any) -> Any:
        if before is not None:
            await before(*args, **options)
        reached.set()
        await asyncio.Event().wait()

    return hold


def hold_at(where: str, reached: asyncio.Event, patch: pytest.MonkeyPatch) -> None:
    """Let the order come to that step and no further."""
    enlarge, stop = TapClient.enlarge, TapClient.stop
    match where:
        case "on record":
            patch.setattr(TapLink, "save_disks", held(reached))
        case "configured" | "enlarged":
            hold = held(reached, enlarge if where == "enlarged" else None)

            async def looks(client: TapClient, disk: int, size: int = 0) -> Any:
                return await (hold if size else enlarge)(client, disk, size)

            patch.setattr(TapClient, "enlarge", looks)
        case "left the log":
            patch.setattr(TapClient, "stop", held(reached))
        case "stopped":
            patch.setattr(TapClient, "stop", held(reached, stop))


@pytest.mark.skipif(not is_thorough(), reason="--thorough runs it: the tap's steps and the replica's have their own")
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["the agent", "and the tap"])
@pytest.mark.parametrize("where", ["on record", "configured", "enlarged", "left the log", "stopped"])
async def test_whatever_ends_in_the_middle_of_the_order_leads_forward_or_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, where: str, killed: bool
) -> None:
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    epoch, tap = pair.vm.parts.replication.record.epoch, pair.vm.parts.tap.require().status.pid
    reached = asyncio.Event()
    hold_at(where, reached, monkeypatch)
    order = asyncio.create_task(resize_disk(pair.vm, "0", LARGER))
    async with asyncio.timeout(30):
        await reached.wait()
    order.cancel()
    await asyncio.gather(order, return_exceptions=True)
    await pair.primary.stop()
    monkeypatch.undo()
    if killed and where != "stopped":
        os.kill(tap, signal.SIGKILL)
    await pair.start_primary()
    await pair.until("the order's end", lambda: not any(disk.larger for disk in pair.vm.record.disks))
    if where in ("on record", "configured"):
        assert (pair.vm.record.disks[0].size, pair.disk(0).stat().st_size) == (SIZE, SIZE)
        assert [event["cause"] for event in await pair.events(EventId.DISK_ENLARGED)] == ["begun", "taken_back"]
        await pair.healthy()
        await pair.assert_same()
        assert pair.vm.parts.replication.record.epoch == epoch, "nothing had to be compared"
        await resize_disk(pair.vm, "0", LARGER)
    await compared(pair, epoch)
    assert history(pair.vm, 1).runs[0].kind == ResyncKind.BOUNDED
    await pair.write(0, f"write -P 4 {LARGER - 65536} 64k")
    await pair.assert_same()
    assert pair.vm.record.disks[0].size == LARGER == Path(pair.copy.parts.layout.disk(0)).stat().st_size
    assert (await pair.vm.status()).protected


@pytest.fixture
def device(tmp_path: Path) -> Iterator[LoopDevice]:
    with loop_device(tmp_path, SIZE) as made:
        yield made


@pytest.mark.skipif(not is_thorough(), reason="--thorough runs it: it needs a loop device")
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["disk resize", "resize"])
async def test_of_a_block_device_that_was_enlarged_only_what_is_new_is_compared(
    device: LoopDevice, pair: Pair, verb: str
) -> None:
    await pair.enable(MIB)
    Path(device.path).write_bytes(os.urandom(SIZE))
    await disk_changes.add_disk(pair.vm, device.path, "data", [pair.vm.record])
    await pair.healthy()
    await pair.vm.initial()
    await pair.state(ReplicationState.REPLICATING)
    await pair.cut()
    epoch = pair.vm.parts.replication.record.epoch
    with pytest.raises(InvalidStateError, match="lvextend|Enlarge it first"):
        await resize_disk(pair.vm, "data", None)
    device.resize(LARGER)
    with device.file.open("r+b") as file:
        file.seek(SIZE + MIB)
        file.write(b"old content of the volume group")
    with pytest.raises(UsageError, match="Enlarge it first"):
        await resize_disk(pair.vm, "data", LARGER + MIB)
    if verb == "resize":
        await take_sizes(pair.vm)
    else:
        await resize_disk(pair.vm, "data", None)
    await compared(pair, epoch)
    (run,) = history(pair.vm, 1).runs
    scope = {each.index: each.compared_bytes for each in run.disks}
    assert run.kind == ResyncKind.BOUNDED and LARGER - SIZE <= scope[1] <= LARGER - SIZE + MIB, run
    assert Path(pair.copy.parts.layout.disk(1)).read_bytes() == device.read_bytes()
