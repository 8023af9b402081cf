"""The tap's process with real NBD clients: what they write is on the disks and in the log, cut by cut (I1, I2)."""

from __future__ import annotations

import asyncio
import json

import pytest

from protocol.position import Position
from shared.tap_control import Progress, Sealed, Tracking
from tests.pair.tap_rig import EPOCH, Writer, needs, run_client, tap_run
from tests.unit.tap.rig import MIB

PROMISES = (
    "can_cache can_df can_fast_zero can_flush can_fua can_multi_conn can_trim can_zero is_read_only is_rotational"
).split()


@needs("nbdinfo")
@pytest.mark.quick
async def test_exports_are_listed_with_all_they_can() -> None:
    with tap_run((4 * MIB, 512), nbd_tcp="127.0.0.1:0") as run:
        await run.start()
        code, text = await run_client("nbdinfo", "--json", "--list", f"nbd+unix:///?socket={run.config.nbd_socket}")
        assert code == 0, text
        found = {export["export-name"]: export for export in json.loads(text)["exports"]}
        assert {name: export["export-size"] for name, export in found.items()} == {"disk0": 4 * MIB, "disk1": 512}
        for export in found.values():
            assert {name: export[name] for name in PROMISES} == {name: not name.startswith("is_") for name in PROMISES}
            assert (export["block_size_minimum"], export["block_size_maximum"]) == (512, 32 * MIB)
        code, text = await run_client("nbdinfo", f"nbd+unix:///nothing?socket={run.config.nbd_socket}")
        assert code != 0 and "nothing" in text
        assert await run.stop() == 0


@needs("qemu-io", "qemu-img", "nbdcopy", "libnbd")
async def test_what_clients_write_is_what_disks_and_log_hold() -> None:
    """I1, I2: QEMU's and libnbd's tools, one after the other; every cut replays to what the disks held."""
    with tap_run((8 * MIB, 1 * MIB)) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        cuts: dict[Position, dict[int, bytes]] = {}

        async def cut() -> None:
            sealed = await client.cut("test")
            cuts[sealed.position()] = run.images()

        for commands in (
            ("write -P 1 0 64k", "write -P 2 512 512", "write -z 64k 128k", "write -z -u 256k 1M", "flush"),
            ("discard 0 1M", "aio_write -P 3 1M 2M", "aio_write -P 4 3M 2M", "aio_flush", "write -f -P 5 7M 512"),
            ("writev -P 6 4M 4k 512 8k", "read -P 6 4M 4k", "read -P 0 0 1M"),
        ):
            words = [word for command in commands for word in ("-c", command)]
            code, text = await run_client("qemu-io", "-f", "raw", "-d", "unmap", *words, run.uri(0))
            assert code == 0 and "failed" not in text, text
            await cut()
        source = run.folder / "source.raw"
        source.write_bytes(bytes(range(256)) * (MIB // 256))
        code, text = await run_client("nbdcopy", str(source), run.uri(1))
        assert code == 0, text
        await cut()
        assert run.images()[1] == source.read_bytes()
        code, text = await run_client("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), run.uri(1))
        assert code == 0, text
        assert await run.stop() == 0
        result = run.replay(base)
        assert {position: result.cuts[position] for position in cuts} == cuts


@needs("libnbd")
async def test_cuts_under_load_of_two_disks() -> None:
    """I1, I2: cuts while two clients write, and at rest, where the image must be the clients' own shadow."""
    with tap_run((6 * MIB, 2 * MIB), log_limit_bytes=512 * MIB) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        heard: list[Sealed | Progress] = []
        await client.subscribe()

        async def listen() -> None:
            async for news in client.notifications():
                if isinstance(news, Sealed | Progress):
                    heard.append(news)

        listener = asyncio.ensure_future(listen())
        cuts: dict[Position, dict[int, bytes]] = {}
        told: list[Position] = []
        with Writer(run, seed=1, depth=16) as writer:
            for _ in range(8):
                await writer.go()
                for _ in range(5):
                    told.append((await client.cut("load")).position())
                shadow = await writer.settle()
                cuts[(await client.cut("rest")).position()] = shadow
        status = await run.status()
        assert await run.stop() == 0
        await listener
        result = run.replay(base)
        assert {position: result.cuts[position] for position in cuts} == cuts
        assert set(told) <= set(result.cuts)
        assert status.writes > 100 and status.bytes_written > 0 and status.last_write_time is not None
        sealed = [news.segment for news in heard if isinstance(news, Sealed)]
        assert sealed == list(range(1, len(result.cuts) + 1))
        ends = [(news.file, news.offset) for news in heard if isinstance(news, Progress)]
        assert ends == sorted(ends) and len(ends) > 5


@needs("qemu-io")
async def test_latency_of_clients_is_told_by_kind() -> None:
    with tap_run((4 * MIB,)) as run:
        client = await run.start()
        before = await client.latency(30)
        assert (before.reads, before.writes, before.flushes) == (0, 0, 0)
        words = ["-c", "write -P 1 0 64k", "-c", "flush", "-c", "write -f -P 2 64k 4k", "-c", "read -P 1 0 64k"]
        code, text = await run_client("qemu-io", "-t", "writeback", "-f", "raw", *words, run.uri(0))
        assert code == 0, text
        told = await client.latency(30)
        assert told.reads > 0 < told.writes
        assert told.flushes >= 2, "the change with FUA is one, too"
        assert min(told.read_seconds, told.write_seconds, told.flush_seconds) > 0
        assert told.passes >= 4
        assert told.starved_seconds >= before.starved_seconds >= 0
        status = (await client.status()).latency
        assert (status.reads, status.writes, status.flush_seconds) == (told.reads, told.writes, told.flush_seconds)
        assert await run.stop() == 0


@needs("fio", "qemu-img")
async def test_load_with_verification() -> None:
    """fio reads back what it wrote through the tap, while segments are cut and released all the time."""
    with tap_run((64 * MIB,), log_limit_bytes=64 * MIB, interval_seconds=1.0) as run:
        client = await run.start()
        await client.begin(EPOCH)
        status = await client.subscribe()

        async def release() -> None:
            async for news in client.notifications():
                if isinstance(news, Sealed):
                    await client.release(EPOCH, news.segment)
                elif isinstance(news, Progress) and news.segment == status.first_segment:
                    await client.cut("soon")

        releaser = asyncio.ensure_future(release())
        code, text = await run_client(
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={run.uri(0)}", "--rw=randwrite", "--bsrange=4k-256k",
            "--iodepth=16", "--size=48m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7",
            "--verify_state_save=0",
        )  # fmt: skip
        assert code == 0, text
        status = await run.status()
        assert (status.tracking, status.disks[0].failed) == (Tracking.ON, "")
        assert status.log.used <= status.log.limit
        assert status.disks[0].bytes_written >= 48 * MIB
        # It would take the end of the tap in the middle of an order for an error.
        releaser.cancel()
        await asyncio.wait([releaser])
        assert releaser.cancelled() or releaser.exception() is None
        assert await run.stop() == 0


@needs("qemu-io")
async def test_lease_and_release_over_the_control_socket() -> None:
    """R36, I5: a lease holds what is released; what was never sealed can't be released."""
    with tap_run((2 * MIB,)) as run:
        client = await run.start()
        await client.begin(EPOCH)
        await client.lease(1, 600.0)
        for number in range(12):
            code, text = await run_client("qemu-io", "-f", "raw", "-c", f"write -P {number} 0 1M", run.uri(0))
            assert code == 0, text
            cut = await client.cut()
            await client.release(EPOCH, cut.segment)
        status = await run.status()
        assert status.log.files >= 3 and status.first_segment == 13
        assert (await client.locate_segment(EPOCH, 1)).file == 1
        await client.lease(1, 0.0)
        cut = await client.cut()
        await client.release(EPOCH, cut.segment)
        assert (await run.status()).log.files == 1
        with pytest.raises(Exception, match="newest durable cut"):
            await client.release(EPOCH, cut.segment + 1)
        assert await run.stop() == 0
