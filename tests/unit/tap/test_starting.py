"""What a start refuses, and what it concludes from disks, log and state that are not as they were left (I10)."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.log_files import LogFiles
from primary_agent.tap.recovery import WRITE_SLACK_NS, explained_by, read_tail, still_in_doubt
from primary_agent.tap.state import PAGE, STATE_BYTES, Loss, Stamp, StateFile, Status, TapState, Witness
from protocol.hrl import MAX_DISKS, SealReason
from shared.errors import DiskInUseError, InvalidStateError, NotFoundError, StorageError, VmreplicaError
from shared.nbd.backend import Mutation
from shared.planning import wrote_since
from shared.ports import FileIdentity
from shared.ports.file_system import RealFileSystem
from shared.sides import PrimaryView
from shared.tap_config import STATE_NAME
from shared.tap_control import DiskChange, DiskPart, LostReason, Tracking
from tests.unit.tap.rig import EPOCH, KIB, MIB, OTHER_EPOCH, Box, copy, make_box, trim, write, zeroes

SIZE = 64 * KIB


async def tracked(box: Box, *, kill: bool) -> dict[int, bytes]:
    """A tap's life with tracking begun and something written; the disks as they were when it began."""
    engine = box.engine()
    await engine.start()
    await engine.begin(EPOCH)
    base = box.images()
    assert engine.mutate(engine.disks[0], [write(0, b"w" * 4096)]) is None
    await (box.killed(engine) if kill else engine.stop())
    return base


async def status_after(box: Box) -> tuple[Tracking, LostReason | None, str]:
    """How the next start sees it; that tap is stopped again."""
    async with box.running() as engine:
        loss = engine.tracker.loss
        return engine.tracker.tracking, loss.reason if loss else None, loss.text if loss else ""


# --- refusals ------------------------------------------------------------------------------------------------------


async def refused(box: Box) -> VmreplicaError:
    with pytest.raises(VmreplicaError) as error:
        await box.engine().start()
    return error.value


async def test_missing_disk(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE, SIZE)) as box:
        box.disk(1).unlink()
        error = await refused(box)
        assert isinstance(error, NotFoundError) and error.exit_code == 3
        assert str(box.disk(1)) in error.text


@pytest.mark.parametrize("size", [SIZE - 512, SIZE + 512, 0])
async def test_disk_of_another_size(tmp_path: Path, size: int) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        os.truncate(box.disk(0), size)
        error = await refused(box)
        assert (error.code, error.exit_code) == ("disk_size", 8)
        assert str(size) in error.text and str(SIZE) in error.text


async def test_disk_that_is_no_file(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        box.disk(0).rename(tmp_path / "elsewhere")
        box.disk(0).symlink_to(tmp_path / "elsewhere")
        assert (await refused(box)).code == "not_a_file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write whatever the mode is")
async def test_read_only_disk(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        box.disk(0).chmod(0o400)
        error = await refused(box)
        assert isinstance(error, StorageError) and "can't be opened for writing" in error.text


async def test_disk_that_somebody_uses(tmp_path: Path) -> None:
    """The lock is that of the file, so whoever holds it under another name is found as well."""
    async with make_box(tmp_path, (SIZE,)) as box:
        os.link(box.disk(0), tmp_path / "link")
        holder = RealFileSystem().open(str(tmp_path / "link"), write=True)
        holder.lock()
        error = await refused(box)
        assert isinstance(error, DiskInUseError) and error.exit_code == 10
        assert str(box.disk(0)) in error.text
        holder.close()
        async with box.running():
            pass


async def test_second_tap_on_a_folder(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box, box.running():
        error = await refused(box)
        assert (error.code, error.exit_code) == ("tap_running", 10)


async def test_refused_start_leaves_nothing_locked(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE, SIZE)) as box:
        content = box.disk(1).read_bytes()
        box.disk(1).unlink()
        await refused(box)
        box.disk(1).write_bytes(content)
        async with box.running() as engine:
            assert engine.tracker.tracking is Tracking.OFF


async def test_log_folder_that_is_a_file(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,), log_folder=str(tmp_path / "log")) as box:
        (tmp_path / "log").write_bytes(b"")
        error = await refused(box)
        assert f"{tmp_path / 'log'} is a regular file, not a folder" in error.text


# --- disks that were changed behind our back -----------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_untouched_disk(tmp_path: Path, kill: bool) -> None:
    """The other side of the tests below: without a change tracking goes on, time after time."""
    async with make_box(tmp_path, (SIZE, SIZE)) as box:
        base = await tracked(box, kill=kill)
        for _ in range(3):
            assert await status_after(box) == (Tracking.ON, None, "")
        assert copy(box.replay(base).images) == box.images()


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("index", [0, 1])
async def test_edited_disk(tmp_path: Path, kill: bool, index: int) -> None:
    """I10, R27: a byte written while no tap ran is noticed, and the evidence is shown; the guest is served."""
    async with make_box(tmp_path, (SIZE, SIZE)) as box:
        await tracked(box, kill=kill)
        with box.disk(index).open("r+b") as file:
            file.seek(SIZE - 1)
            file.write(b"!")
        tracking, reason, text = await status_after(box)
        assert (tracking, reason) == (Tracking.LOST, LostReason.DISK_CHANGED)
        assert str(box.disk(index)) in text and "mtime" in text
        assert (await status_after(box))[:2] == (Tracking.LOST, LostReason.DISK_CHANGED)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_edited_disk_with_its_time_put_back(tmp_path: Path, kill: bool) -> None:
    """I10: the ctime can't be put back."""
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=kill)
        before = box.disk(0).stat()
        with box.disk(0).open("r+b") as file:
            file.write(b"!")
        os.utime(box.disk(0), ns=(before.st_atime_ns, before.st_mtime_ns))
        tracking, reason, text = await status_after(box)
        assert (tracking, reason) == (Tracking.LOST, LostReason.DISK_CHANGED)
        assert "ctime" in text and "mtime" not in text


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_replaced_disk(tmp_path: Path, kill: bool) -> None:
    """I10: a copy with the same content and time is another file."""
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=kill)
        shutil.copy2(box.disk(0), tmp_path / "copy")
        box.disk(0).unlink()
        (tmp_path / "copy").rename(box.disk(0))
        tracking, reason, text = await status_after(box)
        assert (tracking, reason) == (Tracking.LOST, LostReason.DISK_CHANGED)
        assert "inode" in text


async def test_another_set_of_disks(tmp_path: Path) -> None:
    async with make_box(tmp_path / "two", (SIZE, SIZE)) as box:
        await tracked(box, kill=False)
        async with make_box(tmp_path / "other", (SIZE,)) as other:
            shutil.rmtree(other.tap_folder)
            shutil.copytree(box.tap_folder, other.tap_folder)
            tracking, reason, text = await status_after(other)
            assert (tracking, reason) == (Tracking.LOST, LostReason.DISK_CHANGED)
            assert "[0, 1]" in text


async def test_disk_edited_under_the_running_tap(tmp_path: Path) -> None:
    """I10: noticed before the next cut is declared; the guest goes on."""
    async with make_box(tmp_path, (SIZE, SIZE)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        assert engine.mutate(engine.disks[0], [write(0, b"w" * 512)]) is None
        later = box.disk(1).stat().st_mtime_ns + 10**9
        with box.disk(1).open("r+b") as file:
            file.write(b"!")
        os.utime(box.disk(1), ns=(later, later))
        with pytest.raises(VmreplicaError, match="changed under the tap"):
            await engine.cut(SealReason.COMMAND)
        assert engine.tracker.loss is not None and engine.tracker.loss.reason is LostReason.DISK_CHANGED
        assert engine.mutate(engine.disks[1], [write(0, b"x" * 512)]) is None


async def test_mode_changed_under_the_running_tap(tmp_path: Path) -> None:
    """A chmod changes no content: tracking goes on, also after a kill."""
    async with make_box(tmp_path, (SIZE,)) as box:
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        box.disk(0).chmod(0o640)
        await engine.cut(SealReason.COMMAND)
        await box.killed(engine)
        assert await status_after(box) == (Tracking.ON, None, "")


SECOND = 10**9
AT = 1_700_000_000 * SECOND


@pytest.mark.parametrize(
    "done, before, mtime, ctime, touched, evidence",
    [
        (AT, AT, AT, AT, True, ""),
        (AT, AT, AT, AT, False, ""),
        (AT - SECOND, AT - SECOND, AT + 1, AT + 1, True, ""),
        (AT - SECOND, AT - SECOND, AT + WRITE_SLACK_NS, AT + WRITE_SLACK_NS, True, ""),
        (AT - SECOND, AT + SECOND, AT + SECOND + 5, AT + SECOND + 5, True, ""),
        # Too late for the write that was under way.
        (AT - SECOND, AT - SECOND, AT + WRITE_SLACK_NS + 1, AT + WRITE_SLACK_NS + 1, True, "mtime"),
        # The last group was seen through, so nothing explains another time.
        (AT, AT, AT + 1, AT + 1, True, "mtime"),
        # The last group did not touch this disk.
        (AT - SECOND, AT - SECOND, AT + 1, AT + 1, False, "mtime"),
        # An older image was put back.
        (AT - SECOND, AT - SECOND, AT - 2 * SECOND, AT + 1, True, "mtime"),
        # The mtime was put back, but not the ctime.
        (AT, AT, AT, AT + 1, True, "ctime"),
    ],
)
def test_explanation_of_a_killed_taps_disk(
    done: int, before: int, mtime: int, ctime: int, touched: bool, evidence: str
) -> None:
    """R27: the times must be those of the last batch that was seen through, or of the group that was under way.

    The group under way is of time AT; the file had the time of ``done`` when its batch was seen through.
    """
    witness = Witness(done, before, done, done)
    found = explained_by(witness, FileIdentity(1, 2, 3, mtime, ctime), AT, touched)
    assert (evidence in found) if evidence else found == ""


def test_lost_witness_explains_nothing() -> None:
    assert explained_by(None, FileIdentity(1, 2, 3, AT, AT), AT, True)


# --- log and state that were damaged -------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("slot", [0, 1])
async def test_damaged_state(tmp_path: Path, kill: bool, slot: int) -> None:
    """I3, A24: whichever slot is damaged, it may have been the newer one: tracking is lost, the guest is served."""
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=kill)
        flip(Path(box.tap_folder) / STATE_NAME, slot * PAGE + 70)
        tracking, reason, text = await status_after(box)
        assert (tracking, reason) == (Tracking.LOST, LostReason.STATE_DAMAGED)
        assert f"slot {'AB'[slot]}" in text
        # Both slots were written anew: the next start knows why.
        assert (await status_after(box))[:2] == (Tracking.LOST, LostReason.STATE_DAMAGED)


def flip(path: Path, offset: int) -> None:
    """Flip a bit of a file, keeping its times."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep", [0, 100, PAGE, STATE_BYTES - 1])
async def test_cut_off_state(tmp_path: Path, keep: int) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=True)
        os.truncate(Path(box.tap_folder) / STATE_NAME, keep)
        tracking, _, _ = await status_after(box)
        # Only a piece of the witness page is missing at the last one, which nothing is known from.
        assert tracking is (Tracking.ON if keep == STATE_BYTES - 1 else Tracking.LOST)


async def test_missing_state(tmp_path: Path) -> None:
    """A log without a state is the rest of a tap that ran; without a log either, it is a first start."""
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=True)
        (Path(box.tap_folder) / STATE_NAME).unlink()
        assert (await status_after(box))[:2] == (Tracking.LOST, LostReason.STATE_DAMAGED)
        shutil.rmtree(box.tap_folder)
        Path(box.tap_folder).mkdir()
        assert (await status_after(box))[:2] == (Tracking.OFF, None)


def spoil_both(path: Path) -> None:
    for slot in (0, 1):
        flip(path, slot * PAGE + 70)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("lose", [spoil_both, Path.unlink, lambda path: path.write_bytes(b"")])
async def test_lost_state_serves_the_guest_and_takes_no_epoch_up_again(
    tmp_path: Path, kill: bool, lose: Callable[[Path], object]
) -> None:
    """I14, R36: the disks are served; the epoch that the log was of is not begun again: its segments are used."""
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=kill)
        lose(Path(box.tap_folder) / STATE_NAME)
        for _ in range(2):
            async with box.running() as engine:
                assert engine.mutate(engine.disks[0], [write(4096, b"x" * 4096)]) is None
                assert (engine.tracker.tracking, engine.tracker.epoch) == (Tracking.LOST, EPOCH)
                with pytest.raises(InvalidStateError, match="can't be taken up again"):
                    await engine.begin(EPOCH)
        async with box.running() as engine:
            await engine.begin(OTHER_EPOCH)
            assert engine.tracker.log is not None
            assert engine.tracker.log.place[0] > 1
        assert box.disk(0).read_bytes()[4096:8192] == b"x" * 4096


async def test_lost_state_of_a_tap_whose_map_tracked(tmp_path: Path) -> None:
    """There is no log then: the dirty map tells that something was tracked, and in which epoch."""
    async with make_box(tmp_path, (SIZE,)) as box:
        async with box.running() as engine:
            await engine.begin(EPOCH)
            engine.tracker.lose_log(OSError(errno.ENOSPC, "no room"))
            assert engine.mutate(engine.disks[0], [write(0, b"m" * 4096)]) is None
            await engine.tracker.settle()
            while any(Path(box.config.log_folder).glob("[0-9]*.hrl")):  # noqa: ASYNC110 - workers remove the files
                await asyncio.sleep(0.01)
        (Path(box.tap_folder) / STATE_NAME).unlink()
        async with box.running() as engine:
            assert (engine.tracker.tracking, engine.tracker.epoch) == (Tracking.LOST, EPOCH)
            with pytest.raises(InvalidStateError):
                await engine.begin(EPOCH)


async def test_older_copy_of_the_state(tmp_path: Path) -> None:
    """I3: a CLEAN state that was put back finds a log that went on."""
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=False)
        state = Path(box.tap_folder) / STATE_NAME
        saved = state.read_bytes()
        async with box.running() as engine:
            assert engine.tracker.tracking is Tracking.ON
        state.write_bytes(saved)
        assert (await status_after(box))[:2] == (Tracking.LOST, LostReason.LOG_DAMAGED)


@pytest.mark.parametrize("offset", [100, 4096 + 20, 4096 + 100, 4300])
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_damaged_log(tmp_path: Path, offset: int, kill: bool) -> None:
    """I3: damage before the log's end is not taken for its end."""
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=kill)
        flip(Path(box.config.log_folder) / "00000001.hrl", offset)
        assert (await status_after(box))[:2] == (Tracking.LOST, LostReason.LOG_DAMAGED)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_missing_log(tmp_path: Path, kill: bool) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        await tracked(box, kill=kill)
        shutil.rmtree(box.config.log_folder)
        assert (await status_after(box))[:2] == (Tracking.LOST, LostReason.LOG_DAMAGED)
        async with box.running() as engine:
            await engine.begin(OTHER_EPOCH)
            assert engine.tracker.tracking is Tracking.ON


async def test_numbers_of_files_rise_for_ever(tmp_path: Path) -> None:
    """R36: a file's number is never used again, whatever became of the log before."""
    async with make_box(tmp_path, (SIZE,)) as box:
        seen = []
        for number in range(4):
            async with box.running() as engine:
                await engine.begin(bytes([number + 1]) * 16)
                assert engine.tracker.log is not None
                seen.append(engine.tracker.log.place[0])
                if number % 2:
                    await engine.end_tracking()
        assert seen == sorted(set(seen))


async def test_huge_sparse_disk() -> None:
    """A disk of 64 TiB: its last sector, and zeroing and reading back 4 GiB of it, take no time to speak of."""
    folder = Path("/dev/shm") / f"vmreplica-huge-{os.getpid()}"
    try:
        async with make_box(folder, (512,)) as box:
            size = 64 << 40
            os.truncate(box.disk(0), size)
            disk = type(box.config.disks[0])(index=0, uuid="1" * 32, path=str(box.disk(0)), size=size, export="huge")
            box.config = type(box.config)(
                vm=box.config.vm,
                name="huge",
                disks=[disk],
                nbd_socket=box.config.nbd_socket,
                control_socket=box.config.control_socket,
                log_folder=box.config.log_folder,
                log_limit_bytes=64 * MIB,
            )
            engine = box.engine()
            await engine.start()
            await engine.begin(EPOCH)
            # The last sector has to become hot first; no NBD request is longer than the second.
            for mutation in (write(size - 512, b"e" * 512), zeroes(size - (4 << 30), (4 << 30) - 512)):
                done = engine.mutate(engine.disks[0], [mutation])
                assert done is not None
                await done
            assert await engine.read(engine.disks[0], size - 1024, 1024) == bytes(512) + b"e" * 512
            await box.killed(engine)
            # The zeroing is in doubt and is read back, as holes.
            assert await status_after(box) == (Tracking.ON, None, "")
    finally:
        shutil.rmtree(folder)


# --- the last group after a kill -----------------------------------------------------------------------------------


async def killed_after(box: Box, *batches: list[Mutation]) -> tuple[TapEngine, dict[int, bytes]]:
    """A tap that was killed when it had done these; and the disks as they were when its epoch began."""
    engine = box.engine()
    await engine.start()
    await engine.begin(EPOCH)
    base = box.images()
    for batch in batches:
        done = engine.mutate(engine.disks[0], batch)
        if done is not None:
            await done
    await box.killed(engine)
    return engine, base


OVERLAPPING = [
    write(0, b"a" * 8192),
    zeroes(4096, 8192),
    write(2048, b"b" * 4096),
    trim(32768, 4096),
    write(34816, b"c" * 512),
]


async def test_kill_after_a_finished_group_logs_nothing_anew(tmp_path: Path) -> None:
    """R26: what the disk holds as the log says is not in doubt: this side has not moved on since that cut."""
    async with make_box(tmp_path, (SIZE, SIZE)) as box:
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        base = box.images()
        assert engine.mutate(engine.disks[0], OVERLAPPING) is None
        cut = (await engine.cut(SealReason.COMMAND)).position
        await box.killed(engine)
        async with box.running() as again:
            log = again.tracker.log
            assert log is not None and log.entry == cut.entry and log.segment > cut.segment
            assert (newest := again.tracker.newest_cut) is not None
            assert newest.position.entry == cut.entry
            result = box.replay(base)
            assert copy(result.images) == box.images()
            view = PrimaryView((), epoch=EPOCH, tracking="on", log_epoch=EPOCH, log_end=log.position, acked=cut)
            assert not wrote_since(view, cut)


@pytest.mark.parametrize("place", [0, 2048, 6143, 6144, 12287, 32768, 34816, 36863])
async def test_only_what_differs_is_in_doubt(tmp_path: Path, place: int) -> None:
    """R26: later entries of the group count, and a single byte that is not as they say puts its part in doubt."""
    async with make_box(tmp_path, (SIZE, SIZE)) as box:
        engine, _ = await killed_after(box, [write(place - place % 512, b"before" + bytes(506))], OVERLAPPING)
        sizes = {disk.index: disk.size for disk in engine.disks}
        files = LogFiles(box.ports.files, box.config.log_folder, box.config.vm_id, MIB, 4 * MIB, lambda: 0.0)
        tail = read_tail(box.ports.files, files.discover(EPOCH, 1), sizes)
        disk = Disk.open(box.ports.files, 0, box.config.disks[0])
        other = Disk.open(box.ports.files, 1, box.config.disks[1])
        assert still_in_doubt(box.ports.files, tail, [disk, other]) == {}
        before = disk.file.read(place, 1)
        disk.file.write(place, bytes([before[0] ^ 1]))
        ((start, length),) = still_in_doubt(box.ports.files, tail, [disk, other])[disk.index]
        assert start <= place < start + length < SIZE
        disk.file.close()
        other.file.close()


def test_the_largest_state_fits_its_slot(tmp_path: Path) -> None:
    """Every disk that a VM may have, each with the largest numbers, and all that a loss keeps."""
    big = (1 << 63) - 1
    changes = [DiskChange(disk=1 << 15, part=DiskPart.ATTACHMENT, old=big, new=big - 1)] * 9
    loss = Loss.of(LostReason.DISK_UNPROVEN, "\u20ac" * 1000, 1.5e9, changes)
    assert len(loss.changes) == 6 and len(loss.text.encode()) <= 400
    assert [each.old for each in loss.told().changes] == [big] * 6
    state = TapState(
        vm=b"v" * 16, status=Status.CLEAN, boot_id="b" * 36, tracking=Tracking.LOST, epoch=b"e" * 16, first_file=big,
        loss=loss, disks=[Stamp(index, 1 << 31, 1 << 40, 1 << 44, big, big, True) for index in range(MAX_DISKS)],
        end=None, doubt=True, samples=b"s" * 16, hotless=True,
    )  # fmt: skip
    file, _ = StateFile.open(RealFileSystem(), str(tmp_path / "tap.state"))
    file.write(state)
    file.close()
