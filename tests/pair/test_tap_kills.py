"""Kills the tap's process at random moments under load: clients reconnect, and the log names all that changed (I3)."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from shared.tap_control import Tracking
from tests.pair.tap_rig import EPOCH, TapRun, Writer, needs, run_client, tap_run
from tests.unit.tap.rig import MIB, OTHER_EPOCH


@needs("libnbd")
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.thorough)])
async def test_killed_under_load(seed: int) -> None:
    """I1, I3, R26: 12 kills at random moments; no client sees an error, tracking is never lost, every cut holds."""
    moments = random.Random(seed)
    with tap_run((8 * MIB, 2 * MIB), log_limit_bytes=1024 * MIB) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        cuts = {}
        with Writer(run, seed=seed, depth=16) as writer:
            for _ in range(12):
                await writer.go()
                if moments.random() < 0.5:
                    await client.cut()
                # The moment is what the test is about; nothing has to have happened by then.
                await asyncio.sleep(moments.uniform(0.0, 0.25))
                run.kill()
                client = await run.start()
                status = await client.status()
                assert (status.tracking, status.lost) == (Tracking.ON, None)
                shadow = await writer.settle()
                cuts[(await client.cut()).position()] = shadow
        assert await run.stop() == 0
        result = run.replay(base)
        assert {position: result.cuts[position] for position in cuts} == cuts
        assert run.images() == shadow


@needs("libnbd")
async def test_killed_on_a_disk_file_system(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same where pages are written back meanwhile and times are those of another file system."""
    moments = random.Random(3)
    with tap_run((8 * MIB,), parent=tmp_path_factory.getbasetemp(), log_limit_bytes=512 * MIB) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        with Writer(run, seed=3) as writer:
            for _ in range(6):
                await writer.go()
                await asyncio.sleep(moments.uniform(0.0, 0.2))
                run.kill()
                client = await run.start()
                assert (await client.status()).lost is None
            shadow = await writer.settle()
        assert await run.stop() == 0
        assert run.images() == shadow == {disk: bytes(image) for disk, image in run.replay(base).images.items()}


@needs("qemu-io")
async def test_qemu_reconnects() -> None:
    """I14: QEMU with a reconnect delay sends again what was not answered; its guest sees no error."""
    with tap_run((16 * MIB,)) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        commands = [f"write -P {number % 250 + 1} {number * 8}k 8k" for number in range(1500)]
        words = [word for command in [*commands, "flush"] for word in ("-c", command)]
        image = f"driver=nbd,server.type=unix,server.path={run.config.nbd_socket},export=disk0,reconnect-delay=30"
        qemu = asyncio.ensure_future(run_client("qemu-io", "--image-opts", image, *words))
        for _ in range(3):
            await written(run, 150)
            assert not qemu.done(), "it was over before the tap was killed"
            run.kill()
            await run.start()
        code, text = await qemu
        assert code == 0 and "rror" not in text, text[-2000:]
        content = b"".join(bytes([number % 250 + 1]) * 8192 for number in range(1500))
        assert run.images()[0][: len(content)] == content
        assert await run.stop() == 0
        assert run.replay(base).images[0] == run.images()[0]


async def written(run: TapRun, count: int) -> None:
    """Wait until this run of the tap has done so many writes."""
    while (await run.status()).writes < count:  # noqa: ASYNC110 - it is another process that counts
        await asyncio.sleep(0.002)


@needs("qemu-io")
async def test_edited_after_a_kill() -> None:
    """I10, R27: whoever writes the disk before the next start is found out; the evidence and the way out are told."""
    with tap_run((1 * MIB,)) as run:
        client = await run.start()
        await client.begin(EPOCH)
        await run_client("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", run.uri(0))
        run.kill()
        code, text = await run_client("qemu-io", "-f", "raw", "-c", "write -P 2 512k 512", str(run.disk(0)))
        assert code == 0, text
        client = await run.start()
        status = await client.status()
        assert status.tracking is Tracking.LOST and status.lost is not None
        assert status.lost.reason == "disk_changed" and "mtime" in status.lost.text
        # The guest is served all the same, and a new epoch may begin.
        code, text = await run_client("qemu-io", "-f", "raw", "-c", "read -P 2 512k 512", run.uri(0))
        assert code == 0 and "failed" not in text, text
        assert (await client.begin(OTHER_EPOCH)).tracking is Tracking.ON
        assert await run.stop() == 0


@needs("qemu-io")
async def test_edited_while_stopped() -> None:
    """I10: the same after an orderly stop."""
    with tap_run((1 * MIB,)) as run:
        client = await run.start()
        await client.begin(EPOCH)
        assert await run.stop() == 0
        await run_client("qemu-io", "-f", "raw", "-c", "write -P 2 0 512", str(run.disk(0)))
        client = await run.start()
        status = await client.status()
        assert status.lost is not None and status.lost.reason == "disk_changed"
        assert await run.stop() == 0


@needs("libnbd")
async def test_orderly_restarts_under_load() -> None:
    """I14: SIGTERM refuses nothing: what was not begun is sent to the next tap; the log goes on where it ended."""
    with tap_run((4 * MIB, 1 * MIB), log_limit_bytes=512 * MIB) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        with Writer(run, seed=5, depth=16) as writer:
            for number in range(6):
                await writer.go()
                await client.cut()
                if number % 2:
                    await client.stop()
                    assert run.process is not None
                    assert await asyncio.to_thread(run.process.wait, 60) == 0
                else:
                    assert await run.stop() == 0
                client = await run.start()
                status = await client.status()
                assert (status.tracking, status.lost) == (Tracking.ON, None)
            shadow = await writer.settle()
        assert await run.stop() == 0
        result = run.replay(base)
        assert run.images() == shadow == {disk: bytes(image) for disk, image in result.images.items()}


async def test_memory_stays_small() -> None:
    """I13: well under 100 MiB after a start."""
    with tap_run((1 * MIB,)) as run:
        await run.start()
        assert run.process is not None
        with open(f"/proc/{run.process.pid}/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 100 * MIB
        assert await run.stop() == 0
