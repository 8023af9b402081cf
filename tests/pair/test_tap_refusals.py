"""What the tap refuses, with which exit code and words, and faults of its volumes that its guest survives."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from shared.ports.file_system import RealFileSystem
from shared.tap_config import CONFIG_NAME, ERROR_NAME, save_config
from shared.tap_control import Tracking
from tests.pair.tap_rig import EPOCH, TapRun, Writer, needs, run_client, tap_run
from tests.unit.tap.rig import MIB, OTHER_EPOCH


@pytest.mark.quick
@pytest.mark.parametrize("damage, code, words", [
    (lambda run: run.disk(0).unlink(), 3, "does not exist"),
    (lambda run: os.truncate(run.disk(0), 512), 8, "512 bytes"),
    (lambda run: (run.home / CONFIG_NAME).unlink(), 3, CONFIG_NAME),
    (lambda run: (run.home / CONFIG_NAME).write_bytes(b"{}"), 2, "vm"),
    (lambda run: (run.disk(0).rename(run.folder / "d"), run.disk(0).symlink_to(run.folder / "d")), 8, "symbolic link"),
], ids=["missing", "cut-off", "no-config", "bad-config", "symlink"])  # fmt: skip
async def test_refusals(damage: Callable[[TapRun], object], code: int, words: str) -> None:
    """Each names the thing and the remedy, to whoever started the tap and in its folder."""
    with tap_run((1 * MIB,)) as run:
        damage(run)
        exit_code, reason = run.refused()
        assert exit_code == code
        assert words in reason["text"] and reason["remedy"]
        assert reason["text"] in run.output()


@needs("qemu-io")
async def test_disk_in_use_by_qemu() -> None:
    """A disk that QEMU has open for writing is refused; while the tap has it, QEMU refuses it."""
    with tap_run((1 * MIB,)) as run:
        holder = subprocess.Popen(
            ["qemu-io", "-f", "raw", str(run.disk(0))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        # Only when it has answered does it hold the disk for certain.
        holder.stdout.readline()
        exit_code, reason = run.refused()
        assert (exit_code, reason["code"]) == (10, "disk_in_use")
        assert str(run.disk(0)) in reason["text"]
        holder.communicate()
        await run.start()
        assert not (run.home / ERROR_NAME).exists()
        code, text = await run_client("qemu-io", "-f", "raw", "-c", "write 0 512", str(run.disk(0)))
        assert code != 0 and "lock" in text
        assert await run.stop() == 0


async def test_second_tap() -> None:
    with tap_run((1 * MIB,)) as run:
        await run.start()
        first = run.process
        exit_code, reason = run.refused()
        assert (exit_code, reason["code"]) == (10, "tap_running")
        run.process = first
        assert await run.stop() == 0


@needs("qemu-io")
async def test_log_on_a_full_volume() -> None:
    """R21, R28, I14: the log's volume is full: the dirty map takes over, the guest goes on, a log may begin anew."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    with tap_run((16 * MIB,), log_limit_bytes=1024 * MIB) as run:
        volume = Path(run.config.log_folder)
        volume.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(volume)], check=True)
        try:
            client = await run.start()
            await client.begin(EPOCH)
            for number in range(3):
                code, text = await run_client("qemu-io", "-f", "raw", "-c", f"write -P {number} 0 16M", run.uri(0))
                assert code == 0 and "failed" not in text, text
            status = await run.until(lambda status: status.doubt is not None and status.doubt.complete)
            assert status.doubt is not None
            assert status.tracking is Tracking.MAP and status.lost is not None
            assert status.lost.reason == "log_full"
            assert status.doubt.bytes == 16 * MIB
            assert (await client.begin(OTHER_EPOCH)).tracking is Tracking.ON
            assert await run.stop() == 0
        finally:
            subprocess.run(["umount", str(volume)], check=True)


@needs("qemu-io")
async def test_log_folder_that_vanishes() -> None:
    """P14, I14: the log's folder is gone under the tap: then nothing tells what it knew, and tracking is lost."""
    with tap_run((8 * MIB,), log_limit_bytes=64 * MIB) as run:
        client = await run.start()
        await client.begin(EPOCH)
        Path(run.config.log_folder).rename(run.folder / "elsewhere")
        for number in range(4):
            code, text = await run_client("qemu-io", "-f", "raw", "-c", f"write -P {number} 0 8M", run.uri(0))
            assert code == 0 and "failed" not in text, text
        status = await run.until(lambda status: status.tracking is Tracking.LOST)
        assert status.lost is not None
        assert status.lost.reason == "log_damaged"
        assert run.images()[0] == bytes([3]) * 8 * MIB
        assert await run.stop() == 0


@needs("qemu-io", "libnbd")
async def test_disk_on_a_full_volume() -> None:
    """R26: where the disk's volume is full the guest hears of it, and the log has what the disk has."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    with tap_run((1 * MIB,)) as run:
        # A sparse disk, larger than its volume.
        volume = run.folder / "volume"
        volume.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(volume)], check=True)
        try:
            (volume / "disk.raw").touch()
            os.truncate(volume / "disk.raw", 32 * MIB)
            replace_disk(run, volume / "disk.raw", 32 * MIB)
            client = await run.start()
            await client.begin(EPOCH)
            base = run.images()
            code, text = await run_client("qemu-io", "-f", "raw", "-c", "write -P 1 0 16M", run.uri(0))
            assert "No space left" in text, (code, text)
            code, text = await run_client("qemu-io", "-f", "raw", "-d", "unmap", "-c", "discard 0 4M", run.uri(0))
            assert code == 0 and "failed" not in text, text
            code, text = await run_client("qemu-io", "-f", "raw", "-c", "write -P 2 0 512", run.uri(0))
            assert code == 0 and "failed" not in text, text
            assert (await run.status()).tracking is Tracking.ON
            cut = await client.cut()
            expected = run.images()
            assert await run.stop() == 0
            assert run.replay(base).cuts[cut.position()] == expected
        finally:
            run.close()
            subprocess.run(["umount", str(volume)], check=True)


def replace_disk(run: TapRun, path: Path, size: int) -> None:
    """Configure the run's only disk anew."""
    disk = msgspec.structs.replace(run.config.disks[0], path=str(path), size=size)
    run.config = msgspec.structs.replace(run.config, disks=[disk])
    save_config(RealFileSystem(), str(run.home), run.config)


@needs("libnbd")
async def test_garbage_at_the_sockets() -> None:
    """I18: whatever comes to either socket ends that connection, and no other."""
    with tap_run((1 * MIB,)) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        with Writer(run, seed=9) as writer:
            await writer.go()
            # Neither client flags that exist, nor the end of a line within the limit.
            for path in (run.config.nbd_socket, run.config.control_socket) * 5:
                reader, sender = await asyncio.open_unix_connection(path)
                sender.write(b"\xff" * 100_000)
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    while True:
                        await reader.readexactly(1 << 16)
                sender.close()
            shadow = await writer.settle()
        assert (await run.status()).tracking is Tracking.ON
        assert await run.stop() == 0
        assert run.images() == shadow == {disk: bytes(image) for disk, image in run.replay(base).images.items()}
