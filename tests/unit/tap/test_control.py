"""The control socket: an agent's commands, typed refusals, and notifications that are few but current."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primary_agent.tap.exports import DiskDirectory
from primary_agent.tap.process import Identity, TapProcess
from shared.admin.access import Access, Authorize
from shared.errors import ForbiddenError, InvalidStateError, UnreachableError, UsageError, VmreplicaError
from shared.ports import Peer
from shared.ports.file_system import RealFileSystem
from shared.tap_config import (
    CONFIG_NAME,
    ERROR_NAME,
    MIN_LOG_LIMIT,
    decode_config,
    encode_config,
    load_config,
    save_config,
)
from shared.tap_control import (
    LostReason,
    Notification,
    Progress,
    Sealed,
    TapClient,
    Tracking,
    TrackingChanged,
    read_notification,
)
from tests.unit.tap.rig import EPOCH, KIB, MIB, OTHER_EPOCH, Box, make_box, make_config, write

SIZE = 256 * KIB


class Served:
    """A tap that runs in this process, and a client of its control socket."""

    def __init__(self, box: Box, process: TapProcess, running: asyncio.Task[None]) -> None:
        self.box = box
        self.process = process
        self.running = running

    async def client(self) -> TapClient:
        while True:
            with contextlib.suppress(UnreachableError):
                return await TapClient.connect(self.box.ports.network, self.box.config.control_socket, timeout=10)
            assert not self.running.done(), self.running.result()
            await asyncio.sleep(0)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:
        async with serve(Path(folder), Access(os.getuid())) as tap:
            yield tap


@contextlib.asynccontextmanager
async def serve(folder: Path, authorize: Authorize) -> AsyncIterator[Served]:
    async with make_box(folder, (SIZE, SIZE)) as box:
        save_config(box.ports.files, box.tap_folder, box.config)
        process = TapProcess(box.tap_folder, box.ports, Identity(4711, "1.2.3"), authorize=authorize)
        running = asyncio.ensure_future(process.run(serve_nbd=False))
        yield Served(box, process, running)
        process.stop.set()
        await running


async def test_status_says_everything(served: Served) -> None:
    client = await served.client()
    status = await client.status()
    assert (status.vm, status.name, status.pid, status.version) == (served.box.config.vm, "web", 4711, "1.2.3")
    assert (status.tracking, status.epoch, status.position, status.sealed) == (Tracking.OFF, None, None, None)
    assert [disk.export for disk in status.disks] == ["disk0", "disk1"]
    assert status.disks[1].uri.startswith("nbd+unix:///disk1?socket=/")
    status = await client.begin(EPOCH)
    assert status.tracking is Tracking.ON and status.epoch == EPOCH.hex()
    assert status.position is not None and status.position.segment == status.first_segment == 1
    # The same beginning again, after a lost answer, changes nothing.
    assert (await client.begin(EPOCH)).position == status.position
    client.close()


async def test_settings(served: Served) -> None:
    client = await served.client()
    status = await client.set(interval=1.5, log_limit=128 * MIB)
    assert (status.interval, status.log.limit) == (1.5, 128 * MIB)
    status = await client.set(interval=30.0)
    assert (status.interval, status.log.limit) == (30.0, 128 * MIB)
    for wrong in ({"interval": 0.5}, {"interval": "1"}, {"log_limit": -1}, {"log_limit": 4 * MIB}, {"speed": 1}):
        with pytest.raises(UsageError):
            await client.rpc.call("set", wrong)
    assert (await client.status()).interval == 30.0
    client.close()


async def test_map_in_the_place_of_the_log_by_order(served: Served) -> None:
    """R41: it names what changed after the last cut that was released, and nothing that the replica has."""
    client = await served.client()
    with pytest.raises(InvalidStateError, match="does not track"):
        await client.to_map()
    await client.begin(EPOCH)
    engine = served.process.engine
    assert engine is not None
    await (engine.mutate(engine.disks[0], [write(0, b"r" * 512, fua=True)]) or asyncio.sleep(0))
    cut = (await client.cut()).position()
    await (engine.mutate(engine.disks[1], [write(128 * KIB, b"d" * 512, fua=True)]) or asyncio.sleep(0))
    await client.cut()
    await client.release(EPOCH, cut.segment)
    for _ in range(2):
        status = await client.to_map()
        while status.doubt is not None and not status.doubt.complete:
            status = await client.status()
        assert status.doubt is not None and status.lost is not None
        assert (status.tracking, status.lost.reason) == (Tracking.MAP, LostReason.REVERSED)
        assert (status.doubt.base_segment, status.doubt.bytes) == (cut.segment, 64 * KIB)
    assert await client.knows_cut(cut)
    assert not await client.knows_cut(cut._replace(chain=bytes(16)))
    assert list(engine.tracker.maps.dirty.file.ranges(1) if engine.tracker.maps.dirty else ()) == [
        (128 * KIB, 64 * KIB)
    ]
    client.close()


async def test_fenced_disks_are_read_only_for_who_connects_then(served: Served) -> None:
    """I8, I14: also for the next tap, by its configuration."""
    client = await served.client()
    engine = served.process.engine
    assert engine is not None
    export = DiskDirectory(engine).find("disk0")
    assert export is not None and not export.read_only
    assert (await client.set(fenced="failed over to beta")).fenced == "failed over to beta"
    assert export.read_only
    assert (await client.set(interval=2.0)).fenced == "failed over to beta"
    assert (await client.set(fenced="")).fenced == "" and not export.read_only
    assert decode_config(encode_config(engine.config), "tap.json").fenced == ""
    client.close()


async def test_refusals_are_typed(served: Served) -> None:
    client = await served.client()
    with pytest.raises(InvalidStateError, match="does not track"):
        await client.cut()
    with pytest.raises(InvalidStateError):
        await client.release(EPOCH, 1)
    await client.begin(EPOCH)
    for wrong in ({"epoch": "zz"}, {"epoch": EPOCH.hex().upper()}, {}, {"epoch": EPOCH.hex() * 2}):
        with pytest.raises(UsageError):
            await client.rpc.call("begin", wrong)
    with pytest.raises(UsageError, match="entry and chain"):
        await client.rpc.call("locate", {"epoch": EPOCH.hex(), "segment": 1, "entry": 0})
    status = await client.stop_tracking("test")
    assert (status.tracking, status.log.used, status.log.files) == (Tracking.OFF, 0, 0)
    with pytest.raises(InvalidStateError, match="taken up again"):
        await client.begin(EPOCH)
    assert (await client.begin(OTHER_EPOCH)).tracking is Tracking.ON
    client.close()


async def test_strangers_are_refused() -> None:
    """I19: default deny."""
    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:

        def nobody(peer: Peer, method: str) -> None:
            raise ForbiddenError(f"not {method}")

        async with serve(Path(folder), nobody) as served:
            client = await served.client()
            with pytest.raises(ForbiddenError):
                await client.status()
            client.close()


async def test_notifications(served: Served) -> None:
    """Progress is told at once and then seldom, but the last one is the log's end; cuts are told one by one."""
    client, other = await served.client(), await served.client()
    await client.subscribe()
    news: list[Notification] = []
    changed = asyncio.Event()

    async def listen() -> None:
        async for notification in client.notifications():
            news.append(notification)
            changed.set()

    listener = asyncio.ensure_future(listen())

    async def heard(kind: type[Notification], count: int) -> list[Notification]:
        while len(found := [one for one in news if isinstance(one, kind)]) < count:
            changed.clear()
            await changed.wait()
        return found

    await other.begin(EPOCH)
    assert await heard(TrackingChanged, 1) == [TrackingChanged(tracking=Tracking.ON, epoch=EPOCH.hex(), lost=None)]
    engine = served.process.engine
    assert engine is not None
    for number in range(500):
        done = engine.mutate(engine.disks[0], [write(number * 512 % SIZE, b"x" * 512)])
        # Only the first one waits, until its region is hot.
        assert (done is None) == (number > 0)
        if done is not None:
            await done
    for number in range(3):
        cut = await other.cut()
        assert (await heard(Sealed, number + 1))[-1] == cut
    while not (progress := [one for one in news if isinstance(one, Progress)]) or progress[-1].entry < 500:
        changed.clear()
        await changed.wait()
    log = engine.tracker.log
    assert log is not None
    assert (progress[-1].epoch, progress[-1].entry, progress[-1].file) == (EPOCH.hex(), 500, 1)
    assert progress[-1].offset <= log.place[1]
    assert len(progress) < 100
    await other.stop_tracking("enough")
    assert (await heard(TrackingChanged, 2))[-1] == TrackingChanged(tracking=Tracking.OFF, epoch=EPOCH.hex(), lost=None)
    client.close()
    other.close()
    await listener


async def test_stop_is_answered_when_all_is_durable(served: Served) -> None:
    """Several may ask; each is answered, and then the connection ends."""
    clients = [await served.client() for _ in range(3)]
    await clients[0].begin(EPOCH)
    await asyncio.gather(*(client.stop() for client in clients))
    await asyncio.gather(*(client.rpc.closed for client in clients))
    await served.running
    async with served.box.running() as engine:
        assert engine.tracker.tracking is Tracking.ON


async def test_refused_start_leaves_its_reason(tmp_path: Path) -> None:
    """Whoever started the tap finds there why it did not; a later start that works takes it away."""
    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:
        async with make_box(Path(folder), (SIZE,)) as box:
            save_config(box.ports.files, box.tap_folder, box.config)
            held = RealFileSystem().open(str(box.disk(0)), write=True)
            held.lock()
            process = TapProcess(box.tap_folder, box.ports, Identity(1, "1"), authorize=Access(os.getuid()))
            with pytest.raises(VmreplicaError) as refused:
                await process.run(serve_nbd=False)
            reason = json.loads((Path(box.tap_folder) / ERROR_NAME).read_bytes())
            assert reason == {
                "code": "disk_in_use",
                "text": refused.value.text,
                "remedy": refused.value.remedy,
            }
            held.close()
            process = TapProcess(box.tap_folder, box.ports, Identity(1, "1"), authorize=Access(os.getuid()))
            process.stop.set()
            await process.run(serve_nbd=False)
            assert not (Path(box.tap_folder) / ERROR_NAME).exists()


def test_unknown_notifications_are_passed_over() -> None:
    """A tap of a newer version may tell more."""
    assert read_notification("weather", {"rain": True}) is None
    progress = {"file": 1, "offset": 2, "epoch": EPOCH.hex(), "segment": 3, "entry": 4, "more": 5}
    assert isinstance(read_notification("progress", progress), Progress)
    with pytest.raises(VmreplicaError, match="progress"):
        read_notification("progress", {"file": "1"})


# --- configuration -------------------------------------------------------------------------------------------------


def test_configuration_survives_writing(tmp_path: Path) -> None:
    config = make_config(str(tmp_path), (512, SIZE))
    save_config(RealFileSystem(), str(tmp_path), config)
    assert load_config(RealFileSystem(), str(tmp_path)) == config
    assert not (tmp_path / f"{CONFIG_NAME}.part").exists()


def test_default_limits() -> None:
    """Half of the disks, at least 64 MiB; files of an eighth, from 4 to 64 MiB."""

    def limits(*sizes: int) -> tuple[int, int]:
        config = make_config("/vm", sizes, log_limit_bytes=0, log_file_bytes=0)
        config.check()
        return config.log_limit, config.log_file_size

    assert limits(512) == (MIN_LOG_LIMIT, 8 * MIB)
    assert limits(1 << 30, 1 << 30) == (1 << 30, 64 * MIB)
    assert limits(512 * MIB) == (256 * MIB, 32 * MIB)
    assert limits(64 << 40) == (32 << 40, 64 * MIB)


@pytest.mark.parametrize(
    "field, value",
    [
        ("vm", "no-uuid"),
        ("vm", "12345678-1234-5678-1234-56781234567G"),
        ("disks", []),
        ("log_folder", "relative"),
        ("interval_seconds", 0.5),
        ("log_file_bytes", 4 * MIB + 512),
        ("log_file_bytes", MIB),
        ("log_limit_bytes", 7 * MIB),
        ("surprise", 1),
    ],
)
def test_wrong_configurations_are_refused(field: str, value: object) -> None:
    """A21: with the field named, before anything is opened."""
    plain = json.loads(encode_config(make_config("/vm", (SIZE,))))
    plain[field] = value
    with pytest.raises(UsageError):
        decode_config(json.dumps(plain).encode(), "tap.json")


@pytest.mark.parametrize(
    "field, value",
    [
        ("size", 1000),
        ("size", 0),
        ("size", (64 << 40) + 512),
        ("export", "a/b"),
        ("export", "a\n"),
        ("uuid", "0" * 32 + "\n"),
    ],
)
def test_wrong_disks_are_refused(field: str, value: object) -> None:
    plain = json.loads(encode_config(make_config("/vm", (SIZE,))))
    plain["disks"][0][field] = value
    with pytest.raises(UsageError, match=field):
        decode_config(json.dumps(plain).encode(), "tap.json")


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid"):
        decode_config(b'{"name": "\xff"}', "tap.json")


@pytest.mark.parametrize("field", ["index", "uuid", "path", "export"])
def test_disks_that_are_not_told_apart_are_refused(field: str) -> None:
    plain = json.loads(encode_config(make_config("/vm", (SIZE, SIZE))))
    plain["disks"][1][field] = plain["disks"][0][field]
    with pytest.raises(UsageError, match=field):
        decode_config(json.dumps(plain).encode(), "tap.json")
