"""Block devices as disks: claimed, tracked, and judged by the policy after every kind of stop (R18, R27)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from primary_agent.tap import devices
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.hot_regions import HotNote
from shared.admin.verbs import EnableParams
from shared.block_devices import BlockDevicePolicy
from shared.ports.clock import RealClock
from shared.states import ReplicationState
from shared.tap_config import SAMPLES_NAME, TapDisk
from shared.tap_control import LostReason, Tracking
from tests.pair.loop_device import LoopDevice, loop_device, mounted
from tests.pair.rig import Pair
from tests.pair.tap_rig import EPOCH, TapRun, Writer, needs, tap_run
from tests.unit.tap.rig import MIB, OTHER_EPOCH, Box, make_box, write

SIZE = 8 * MIB
COMPARE, TRUST, STRICT = BlockDevicePolicy.COMPARE, BlockDevicePolicy.TRUST, BlockDevicePolicy.STRICT


@pytest.fixture
def device(tmp_path: Path) -> Iterator[LoopDevice]:
    with loop_device(tmp_path, SIZE) as device:
        yield device


def disks(device: LoopDevice, folder: Path) -> list[TapDisk]:
    """The device, and a file beside it."""
    return [
        TapDisk(index=0, uuid="1" * 32, path=device.path, size=SIZE, export="disk0"),
        TapDisk(index=1, uuid="2" * 32, path=str(folder / "file.raw"), size=MIB, export="disk1"),
    ]


@contextlib.contextmanager
def device_run(device: LoopDevice, policy: BlockDevicePolicy) -> Iterator[TapRun]:
    folder = device.file.parent
    with tap_run((), disks=disks(device, folder), block_device_policy=policy) as run:
        yield run


@needs("libnbd")
async def test_tracked_through_kills_where_it_is_trusted(device: LoopDevice) -> None:
    """R26: what a kill leaves in doubt is logged anew; the client notices nothing, and log and disks agree."""
    with device_run(device, TRUST) as run:
        base = run.images()
        tap = await run.start()
        await tap.begin(EPOCH)
        with Writer(run, 71, pause=0.001) as writer:
            await writer.go()
            for _ in range(3):
                before = (await run.status()).writes
                await run.until(lambda status, before=before: status.writes > before + 100)  # type: ignore[misc]
                run.kill()
                await run.start()
                assert (await run.status()).tracking is Tracking.ON
            assert await run.stop() == 0
            await run.start()
            assert (await run.status()).tracking is Tracking.ON
            await run.until(lambda status: status.writes > 100)
            content = await writer.settle()
        assert run.images() == content
        assert await run.stop() == 0
        assert {index: bytes(image) for index, image in run.replay(base).images.items()} == content


async def test_a_mounted_device_is_refused(device: LoopDevice, tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    with device_run(device, COMPARE) as run, mounted(device, folder):
        code, reason = run.refused()
        assert (code, reason["code"]) == (10, "disk_in_use")
        assert f"{device.path} is in use: it is mounted at {folder}" in reason["text"]
        assert "Unmount it" in reason["remedy"]


async def test_while_a_tap_has_it_it_cannot_be_mounted(device: LoopDevice, tmp_path: Path) -> None:
    subprocess.run(["/sbin/mkfs.ext2", "-q", "-F", device.path], check=True)
    with device_run(device, COMPARE) as run:
        await run.start()
        mount = subprocess.run(["mount", device.path, str(tmp_path)], capture_output=True, text=True, check=False)
        if mount.returncode == 0:
            subprocess.run(["umount", str(tmp_path)], check=True)
        assert mount.returncode != 0
        assert await run.stop() == 0


# --- in one process ------------------------------------------------------------------------------------------------


class OtherBoot(RealClock):
    """The clock of the host after it was started again."""

    def boot_id(self) -> str:
        return "another boot"


@contextlib.asynccontextmanager
async def device_box(device: LoopDevice, policy: BlockDevicePolicy, count: int = 2) -> AsyncIterator[Box]:
    """A tap's folder for the device and perhaps a file."""
    folder = device.file.parent / "box"
    folder.mkdir()
    async with make_box(folder, (), disks=disks(device, folder)[:count], block_device_policy=policy) as box:
        yield box


async def after_power_loss(box: Box) -> TapEngine:
    """A tap after power loss: nothing of the pages is lost, which a start can't know."""
    box.ports = replace(box.ports, clock=OtherBoot())
    engine = box.engine()
    await engine.start()
    return engine


async def written(engine: TapEngine) -> None:
    done = engine.mutate(engine.disks[0], [write(MIB, os.urandom(4096))])
    if done is not None:
        await done


@pytest.mark.parametrize("policy, kill, tracked", [
    (COMPARE, True, False), (COMPARE, False, True), (TRUST, True, True), (TRUST, False, True), (STRICT, False, False),
    (STRICT, True, False),
])  # fmt: skip
async def test_what_a_stop_costs_under_each_policy(
    device: LoopDevice, policy: BlockDevicePolicy, kill: bool, tracked: bool
) -> None:
    """The disks are served in any case, and tracking can be begun again."""
    async with device_box(device, policy) as box:
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        await written(engine)
        if kill:
            await box.killed(engine)
        else:
            await engine.stop()
        async with box.running() as engine:
            assert engine.tracker.tracking is (Tracking.ON if tracked else Tracking.LOST)
            if not tracked:
                lost = engine.tracker.loss
                assert lost is not None and lost.reason is LostReason.DISK_UNPROVEN
                assert device.path in lost.text and f"block-device-policy is {policy}" in lost.text
            await written(engine)
            await engine.begin(OTHER_EPOCH)
            assert engine.tracker.tracking is Tracking.ON


def edited(device: LoopDevice, _folder: Path) -> None:
    """Write without asking anybody."""
    with Path(device.path).open("r+b", buffering=0) as file:
        file.seek(1 * MIB + 1024)
        file.write(os.urandom(512))


def rolled_back(device: LoopDevice, _folder: Path) -> None:
    """Another content altogether, as of an old snapshot."""
    with Path(device.path).open("r+b", buffering=0) as file:
        file.write(os.urandom(SIZE))


def attached_anew(device: LoopDevice, _folder: Path) -> None:
    device.detach()
    device.attach()


def without_samples(_device: LoopDevice, folder: Path) -> None:
    (folder / SAMPLES_NAME).unlink()


def with_other_samples(_device: LoopDevice, folder: Path) -> None:
    """Of another stop, say, or damaged."""
    with (folder / SAMPLES_NAME).open("r+b") as file:
        file.write(b"?")


@pytest.mark.parametrize("change, reason, words", [
    (edited, LostReason.DISK_CHANGED, f"its {64 << 10} bytes at {MIB} are not what the tap left there"),
    (rolled_back, LostReason.DISK_CHANGED, "not what the tap left there"),
    (attached_anew, LostReason.DISK_CHANGED, "its attachment was"),
    (without_samples, LostReason.DISK_UNPROVEN, "its samples are missing or damaged"),
    (with_other_samples, LostReason.DISK_UNPROVEN, "its samples are missing or damaged"),
])  # fmt: skip
@pytest.mark.parametrize("policy", [COMPARE, TRUST])
async def test_changed_while_no_tap_ran(
    device: LoopDevice, policy: BlockDevicePolicy, change: object, reason: LostReason, words: str
) -> None:
    """I10, P16, P18: after an orderly stop the samples tell, and name the place."""
    assert callable(change)
    async with device_box(device, policy) as box:
        async with box.running() as engine:
            await engine.begin(EPOCH)
        change(device, Path(box.tap_folder))
        async with box.running() as engine:
            lost = engine.tracker.loss
            assert lost is not None and lost.reason is reason
            assert device.path in lost.text and words in lost.text


@pytest.mark.parametrize("policy, tracking, reason", [
    (TRUST, Tracking.MAP, LostReason.UNCLEAN_STOP),
    (COMPARE, Tracking.LOST, LostReason.DISK_UNPROVEN),
    (STRICT, Tracking.LOST, LostReason.DISK_UNPROVEN),
])  # fmt: skip
async def test_power_loss_under_each_policy(
    device: LoopDevice, policy: BlockDevicePolicy, tracking: Tracking, reason: LostReason
) -> None:
    """R3: trusted, the hot regions bound what is compared."""
    async with device_box(device, policy) as box:
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        await written(engine)
        await box.killed(engine)
        engine = await after_power_loss(box)
        await engine.tracker.settle()
        assert engine.tracker.tracking is tracking
        assert engine.tracker.loss is not None and engine.tracker.loss.reason is reason
        if tracking is Tracking.MAP:
            dirty = engine.tracker.maps.dirty
            assert dirty is not None and dirty.file.is_set(0, MIB >> dirty.file.region_bits)
        await engine.stop()


async def test_without_hot_regions_a_device_is_not_tracked(device: LoopDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """R30: a file's mtime tells of a write that no lease covers; a device tells nothing, so that tracking is lost."""
    async with device_box(device, TRUST) as box:
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        hot = engine.tracker.maps.hot
        assert hot is not None
        monkeypatch.setattr("primary_agent.tap.hot_regions.LEASE_SLACK_SECONDS", -60.0)
        hot.failure = "Input/output error"
        hot._lease_until = -1.0
        await written(engine)
        assert engine.tracker.tracking is Tracking.LOST
        assert engine.tracker.loss is not None and engine.tracker.loss.reason is LostReason.MAP_FAILED
        assert "Input/output error" in engine.tracker.loss.text
        await engine.stop()


async def test_a_log_that_is_later_than_the_lease_is_noticed(
    device: LoopDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R30: the loss of the hot regions itself may have been lost with the power; the log's times tell of it."""
    async with device_box(device, TRUST, count=1) as box:
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        await written(engine)
        await engine.flush(engine.disks[0])
        await box.killed(engine)
        monkeypatch.setattr(HotNote, "decode", staticmethod(lambda note: HotNote(lease_ns=2)))
        engine = await after_power_loss(box)
        assert engine.tracker.tracking is Tracking.LOST
        assert engine.tracker.loss is not None and engine.tracker.loss.reason is LostReason.DISK_UNPROVEN
        await engine.stop()


async def test_samples_take_no_longer_than_they_may(device: LoopDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a slow device fewer places are taken; those that were still vouch for it."""
    monkeypatch.setattr(devices, "SAMPLING_SECONDS", 0.0)
    async with device_box(device, COMPARE) as box:
        async with box.running() as engine:
            await engine.begin(EPOCH)
        assert (Path(box.tap_folder) / SAMPLES_NAME).stat().st_size < 100
        async with box.running() as engine:
            assert engine.tracker.tracking is Tracking.ON


# --- a pair --------------------------------------------------------------------------------------------------------


async def same(pair: Pair, device: LoopDevice, file: Path) -> None:
    await pair.cut()
    for index, content in enumerate((device.read_bytes(), file.read_bytes())):
        assert Path(pair.copy.parts.layout.disk(index)).read_bytes() == content


async def test_a_device_is_replicated_to_a_file(pair: Pair, device: LoopDevice) -> None:
    """Initial replication, writes, discards, kills under both policies, and the compare that one of them asks for."""
    file = pair.folder / "file.raw"
    file.write_bytes(os.urandom(MIB))
    with Path(device.path).open("r+b", buffering=0) as content:
        content.write(os.urandom(SIZE // 2))
    params = EnableParams(
        name="web",
        disks=[device.path, str(file)],
        replica=f"localhost:{pair.port}",
        interval_seconds=1.0,
        block_device_policy=TRUST,
    )
    await pair.primary.enable(params)
    await pair.healthy()
    await pair.vm.initial()
    await pair.state(ReplicationState.REPLICATING)
    await same(pair, device, file)
    await pair.write(0, "write -P 5 3M 1M", "discard 0 1M", "write -z 4M 2M", "write -P 6 4M 512")
    await pair.write(1, "write -P 8 0 4k")
    await same(pair, device, file)
    await pair.kill_tap()
    await pair.write(0, "write -P 9 5M 64k")
    await same(pair, device, file)
    assert not pair.vm.parts.replication.record.causes
    record = msgspec.structs.replace(pair.vm.record, block_device_policy=COMPARE)
    await pair.vm.set(record, {"block_device_policy": "compare"})
    await pair.kill_tap()
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    (cause,) = pair.vm.parts.replication.record.causes
    assert cause.evidence["reason"] == "disk_unproven" and device.path in cause.text
    await pair.write(0, "write -P 10 6M 64k")
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await same(pair, device, file)
    status = await pair.vm.status()
    assert status.settings["block_device_policy"] == "compare"


async def test_enabling_a_mounted_device_leaves_nothing_behind(pair: Pair, device: LoopDevice, tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    with mounted(device, folder):
        params = EnableParams(name="web", disks=[device.path], replica=f"localhost:{pair.port}")
        with pytest.raises(Exception, match="is mounted at"):
            await pair.primary.enable(params)
    assert not pair.primary.vms
    assert os.listdir(pair.folder / "state" / "vms") == []


def test_the_words_of_policies_never_change() -> None:
    assert [policy.value for policy in BlockDevicePolicy] == ["compare", "trust", "strict"]
