"""Requests on a live server: order, FUA, FLUSH, cold reads, draining, refusals, and what each of them answers."""

from __future__ import annotations

import asyncio
import errno
import struct
from pathlib import Path
from random import Random

import pytest

from shared.nbd.constants import Command, CommandFlag, Errno
from shared.nbd.ending import EndReason
from shared.nbd.querying import MAXIMUM_COLD_BYTES, MAXIMUM_RUNNING
from shared.nbd.server import NbdServer
from tests.unit.nbd.conftest import SIZE
from tests.unit.nbd.file_backend import Directory, FileBackend
from tests.unit.nbd.raw_client import RawClient

BLOCK = 4096


def block(number: int) -> bytes:
    return bytes([number]) * BLOCK


@pytest.mark.parametrize("structured", [False, True])
async def test_write_then_read(socket: Path, disk: Path, structured: bool) -> None:
    client = await RawClient.attach(socket, structured=structured)
    assert (await client.ask(Command.WRITE, 1, BLOCK, payload=block(7))).error == 0
    reply = await client.ask(Command.READ, 2, 0, 3 * BLOCK)
    assert reply.data == block(0) + block(7) + block(0)
    assert (await client.ask(Command.READ, 3, 0, BLOCK)).data == block(0)
    assert disk.read_bytes()[: 3 * BLOCK] == reply.data
    await client.close()


async def test_requests_of_one_read_are_one_batch(socket: Path, export: FileBackend) -> None:
    client = await RawClient.attach(socket)
    for cookie in range(20):
        client.send(Command.WRITE, cookie, cookie * BLOCK, payload=block(cookie))
    assert [(await client.reply()).cookie for _ in range(20)] == list(range(20))
    assert sum(export.batches) == 20
    assert len(export.batches) < 20
    await client.close()


async def test_overlapping_writes_keep_their_order(socket: Path, disk: Path) -> None:
    client = await RawClient.attach(socket)
    for cookie in range(200):
        client.send(Command.WRITE, cookie, 0, payload=block(cookie))
    for _ in range(200):
        assert (await client.reply()).error == 0
    assert disk.read_bytes()[:BLOCK] == block(199)
    await client.close()


async def test_zeroes_and_trim_read_as_zeroes(socket: Path) -> None:
    client = await RawClient.attach(socket)
    await client.ask(Command.WRITE, 1, 0, payload=block(1) * 4)
    assert (await client.ask(Command.WRITE_ZEROES, 2, BLOCK, BLOCK)).error == 0
    assert (await client.ask(Command.TRIM, 3, 2 * BLOCK, BLOCK, flags=CommandFlag.FUA)).error == 0
    assert (await client.ask(Command.READ, 4, 0, 4 * BLOCK)).data == block(1) + bytes(2 * BLOCK) + block(1)
    await client.close()


async def test_block_status(socket: Path) -> None:
    client = await RawClient.attach(socket, allocation=True)
    await client.ask(Command.WRITE, 1, 1 << 20, payload=block(1) * 256)
    reply = await client.ask(Command.BLOCK_STATUS, 2, 0, 4 << 20)
    assert struct.unpack(">7I", reply.data) == (1, 1 << 20, 3, 1 << 20, 0, 2 << 20, 3)
    reply = await client.ask(Command.BLOCK_STATUS, 3, 1 << 20, 4 << 20, flags=CommandFlag.REQ_ONE)
    assert struct.unpack(">3I", reply.data) == (1, 1 << 20, 0)
    await client.close()


async def test_cache_reaches_the_export(socket: Path, export: FileBackend) -> None:
    client = await RawClient.attach(socket)
    assert (await client.ask(Command.CACHE, 1, BLOCK, 2 * BLOCK)).error == 0
    assert export.cached == [(BLOCK, 2 * BLOCK)]
    await client.close()


# --- changes that wait ------------------------------------------------------------------------------------------------


async def test_later_changes_wait_but_reads_and_other_connections_go_on(
    socket: Path, export: FileBackend, disk: Path
) -> None:
    export.mutate_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    assert (await client.ask(Command.READ, 2, BLOCK, BLOCK)).data == block(0)
    client.send(Command.WRITE, 3, 0, payload=block(3))
    client.send(Command.WRITE, 4, BLOCK, payload=block(4))
    assert (await client.ask(Command.READ, 5, 0, BLOCK)).data == block(0)
    assert export.events == ["begin 1"]
    gate, export.mutate_gate = export.mutate_gate, None
    other = await RawClient.attach(socket)
    assert (await other.ask(Command.WRITE, 1, 2 * BLOCK, payload=block(9))).error == 0
    gate.set()
    assert [(await client.reply()).cookie for _ in range(3)] == [1, 3, 4]
    assert disk.read_bytes()[: 3 * BLOCK] == block(3) + block(4) + block(9)
    await client.close()
    await other.close()


async def test_payloads_that_wait_are_not_overwritten(socket: Path, export: FileBackend, disk: Path) -> None:
    """I17: more data than the receive buffers hold arrive while the first changes wait."""
    export.mutate_gate = asyncio.Event()
    random = Random(5)
    client = await RawClient.attach(socket)
    expected = bytearray(SIZE)
    total = 2000
    for cookie in range(total):
        offset = random.randrange(SIZE // BLOCK) * BLOCK
        payload = random.randbytes(BLOCK)
        expected[offset : offset + BLOCK] = payload
        client.send(Command.WRITE, cookie, offset, payload=payload)
    # Another connection's answers show that the server took all it would take of the first one.
    other = await RawClient.attach(socket)
    for cookie in range(20):
        await other.ask(Command.READ, cookie, 0, 512)
    assert export.batches, "the first batch must be waiting"
    assert sum(export.batches) < total
    gate, export.mutate_gate = export.mutate_gate, None
    gate.set()
    for _ in range(total):
        assert (await client.reply()).error == 0
    assert disk.read_bytes() == expected
    await client.close()
    await other.close()


async def test_flush_waits_for_the_changes_before_it(socket: Path, export: FileBackend) -> None:
    """I4: a FLUSH covers every change of its connection that was received before."""
    export.mutate_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    await client.ask(Command.READ, 2, 0, 512)
    client.send(Command.WRITE, 3, 0, payload=block(3))
    client.send(Command.FLUSH, 4)
    await client.ask(Command.READ, 5, 0, 512)
    assert export.events == ["begin 1"]
    export.mutate_gate.set()
    assert [(await client.reply()).cookie for _ in range(3)] == [1, 3, 4]
    assert export.events == ["begin 1", "end 1", "flush"]
    await client.close()


async def test_flush_alone_behind_a_waiting_change(socket: Path, export: FileBackend) -> None:
    export.mutate_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    await client.ask(Command.READ, 2, 0, 512)
    client.send(Command.FLUSH, 3)
    await client.ask(Command.READ, 4, 0, 512)
    assert export.flushes == 0
    export.mutate_gate.set()
    assert [(await client.reply()).cookie for _ in range(2)] == [1, 3]
    await client.close()


async def test_fua_is_answered_only_after_a_flush(socket: Path, export: FileBackend) -> None:
    """I4: the other writes of the same batch need not wait for it."""
    export.flush_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    client.send(Command.WRITE, 2, BLOCK, payload=block(2), flags=CommandFlag.FUA)
    client.send(Command.WRITE_ZEROES, 3, 2 * BLOCK, BLOCK, flags=CommandFlag.FUA)
    client.send(Command.WRITE, 4, 3 * BLOCK, payload=block(4))
    assert [(await client.reply()).cookie for _ in range(2)] == [1, 4]
    await client.ask(Command.READ, 5, 0, 512)
    assert export.flushes == 1
    export.flush_gate.set()
    assert [(await client.reply()).cookie for _ in range(2)] == [2, 3]
    await client.close()


async def test_fua_is_accepted_on_every_command(socket: Path) -> None:
    client = await RawClient.attach(socket, allocation=True)
    for cookie, command in enumerate(
        (Command.READ, Command.CACHE, Command.BLOCK_STATUS, Command.TRIM, Command.WRITE_ZEROES)
    ):
        assert (await client.ask(command, cookie, 0, BLOCK, flags=CommandFlag.FUA)).error == 0
    assert (await client.ask(Command.FLUSH, 9, flags=CommandFlag.FUA)).error == 0
    await client.close()


async def test_failed_flush_reaches_flush_and_fua(socket: Path, export: FileBackend) -> None:
    export.flush_error = Errno.EIO
    client = await RawClient.attach(socket)
    assert (await client.ask(Command.FLUSH, 1)).error == Errno.EIO
    reply = await client.ask(Command.WRITE, 2, 0, payload=block(1), flags=CommandFlag.FUA)
    assert reply.error == Errno.EIO
    assert (await client.ask(Command.WRITE, 3, 0, payload=block(1))).error == 0
    await client.close()


async def test_flushes_of_several_connections_share_one(socket: Path, export: FileBackend) -> None:
    export.flush_gate = asyncio.Event()
    clients = [await RawClient.attach(socket) for _ in range(4)]
    clients[0].send(Command.FLUSH, 0)
    await clients[0].ask(Command.READ, 100, 0, 512)
    assert export.flushes == 1
    for cookie, client in enumerate(clients):
        client.send(Command.FLUSH, cookie + 1)
        client.send(Command.READ, 200, 0, 512)
    assert [(await client.reply()).cookie for client in clients] == [200] * 4
    export.flush_gate.set()
    assert (await clients[0].reply()).cookie == 0
    assert [(await client.reply()).cookie for client in clients] == [1, 2, 3, 4]
    assert export.flushes == 2
    for client in clients:
        await client.close()


# --- reads ------------------------------------------------------------------------------------------------------------


async def test_cold_reads_run_at_once_and_answer_in_any_order(socket: Path, export: FileBackend) -> None:
    export.inline = False
    export.read_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    for cookie in range(40):
        client.send(Command.READ, cookie, cookie * BLOCK, BLOCK)
    assert (await client.ask(Command.WRITE, 100, 0, payload=block(5))).error == 0
    export.read_gate.set()
    replies = {reply.cookie: reply for reply in [await client.reply() for _ in range(40)]}
    assert set(replies) == set(range(40))
    assert all(len(reply.data) == BLOCK for reply in replies.values())
    assert replies[0].data == block(5)
    await client.close()


@pytest.mark.parametrize(("length", "at_once"), [(BLOCK, MAXIMUM_RUNNING), (1 << 20, MAXIMUM_COLD_BYTES >> 20)])
async def test_cold_reads_under_way_are_capped(socket: Path, export: FileBackend, length: int, at_once: int) -> None:
    """I13: in number and in bytes; the others wait their turn and none is forgotten."""
    export.inline = False
    export.read_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    for cookie in range(40):
        client.send(Command.READ, cookie, 0, length)
    await client.ask(Command.WRITE, 100, 0, payload=block(5))
    assert export.reads == at_once
    export.read_gate.set()
    assert {(await client.reply()).cookie for _ in range(40)} == set(range(40))
    await client.close()


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.slow
async def test_reads_of_every_size(socket: Path, export: FileBackend, inline: bool, structured: bool) -> None:
    export.inline = inline
    client = await RawClient.attach(socket, structured=structured)
    content = Random(3).randbytes(32 << 20)
    assert (await client.ask(Command.WRITE, 0, 0, payload=content)).error == 0
    for cookie, length in enumerate((512, 65536 - 512, 65536, 1 << 20, 2 << 20, (2 << 20) + 512, 32 << 20), 1):
        assert (await client.ask(Command.READ, cookie, 0, length)).data == content[:length]
    await client.close()


async def test_failed_read_has_its_error_and_text(socket: Path, export: FileBackend) -> None:
    export.fail_reads_at = {BLOCK: errno.EIO, 2 * BLOCK: errno.ENOMEM, 3 * BLOCK: errno.ESTALE}
    client = await RawClient.attach(socket)
    reply = await client.ask(Command.READ, 1, BLOCK, BLOCK)
    assert reply.error == Errno.EIO
    assert f"{BLOCK} bytes at {BLOCK}" in reply.text
    assert (await client.ask(Command.READ, 2, 2 * BLOCK, BLOCK)).error == Errno.ENOMEM
    assert (await client.ask(Command.READ, 3, 3 * BLOCK, BLOCK)).error == Errno.EIO
    assert (await client.ask(Command.READ, 4, 0, BLOCK)).error == 0
    await client.close()


@pytest.mark.parametrize("inline", [False, True])
async def test_read_past_a_shrunken_file_is_an_error_not_a_short_answer(
    socket: Path, export: FileBackend, disk: Path, inline: bool
) -> None:
    export.inline = inline
    with disk.open("r+b") as file:
        file.truncate(BLOCK)
    client = await RawClient.attach(socket)
    assert (await client.ask(Command.READ, 1, 0, 2 * BLOCK)).error == Errno.EIO
    assert (await client.ask(Command.READ, 2, 0, BLOCK)).error == 0
    await client.close()


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_refused_writes_are_drained_and_the_connection_lives(socket: Path, disk: Path) -> None:
    client = await RawClient.attach(socket)
    assert (await client.ask(Command.WRITE, 1, SIZE, payload=block(1))).error == Errno.ENOSPC
    assert (await client.ask(Command.WRITE, 2, 1, payload=block(1))).error == Errno.EINVAL
    assert (await client.ask(Command.WRITE, 3, 0, payload=bytes((32 << 20) + 512))).error == Errno.EINVAL
    assert (await client.ask(Command.WRITE, 4, 0, payload=block(4))).error == 0
    assert disk.read_bytes()[:BLOCK] == block(4)
    await client.close()


async def test_an_export_error_fails_its_request_only(socket: Path) -> None:
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    client.send(Command.WRITE, 2, SIZE, payload=block(2))
    client.send(Command.WRITE, 3, BLOCK, payload=block(3))
    errors = {reply.cookie: reply.error for reply in [await client.reply() for _ in range(3)]}
    assert errors == {1: 0, 2: Errno.ENOSPC, 3: 0}
    await client.close()


async def test_read_only_export(disk: Path, tmp_path: Path) -> None:
    disk.write_bytes(block(3) * 4)
    backend = FileBackend(disk, read_only=True)
    server = NbdServer(Directory(backend))
    await server.start_unix(tmp_path / "ro.sock")
    client = await RawClient.attach(tmp_path / "ro.sock")
    assert (await client.ask(Command.WRITE, 1, 0, payload=block(1))).error == Errno.EPERM
    assert (await client.ask(Command.TRIM, 2, 0, BLOCK)).error == Errno.EPERM
    assert (await client.ask(Command.READ, 3, 0, BLOCK)).data == block(3)
    assert (await client.ask(Command.FLUSH, 4)).error == 0
    await client.close()
    await server.close()
    backend.close()


async def test_draining_refuses_new_changes_and_waits_for_old_ones(
    socket: Path, server: NbdServer, export: FileBackend, disk: Path
) -> None:
    export.mutate_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    await client.ask(Command.READ, 2, 0, 512)
    client.send(Command.WRITE, 3, BLOCK, payload=block(3))
    await client.ask(Command.READ, 4, 0, 512)
    server.drain()
    assert (await client.ask(Command.WRITE, 5, 0, payload=block(5))).error == Errno.ESHUTDOWN
    assert (await client.ask(Command.TRIM, 6, 0, BLOCK)).error == Errno.ESHUTDOWN
    drained = asyncio.ensure_future(server.drained())
    await client.ask(Command.READ, 7, 0, 512)
    assert not drained.done()
    export.mutate_gate.set()
    await drained
    assert disk.read_bytes()[: 2 * BLOCK] == block(1) + block(3)
    assert [(await client.reply()).cookie for _ in range(2)] == [1, 3]
    assert (await client.ask(Command.FLUSH, 8)).error == 0
    await client.close()


# --- several connections, statistics, goodbye -------------------------------------------------------------------------


@pytest.mark.slow
async def test_several_connections_write_at_once(socket: Path, disk: Path) -> None:
    share = SIZE // 8
    content = Random(8).randbytes(SIZE)

    async def work(number: int) -> None:
        client = await RawClient.attach(socket)
        base = number * share
        for cookie in range(share >> 18):
            offset = base + (cookie << 18)
            client.send(Command.WRITE, cookie, offset, payload=content[offset : offset + (1 << 18)])
        for _ in range(share >> 18):
            assert (await client.reply()).error == 0
        await client.close()

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(work(number))
    assert disk.read_bytes() == content


async def test_statistics_tell_who_does_what(socket: Path, server: NbdServer) -> None:
    client = await RawClient.attach(socket)
    await client.ask(Command.WRITE, 1, 0, payload=block(1) * 2)
    await client.ask(Command.READ, 2, 0, BLOCK)
    await client.ask(Command.FLUSH, 3)
    (statistics,) = server.connections
    assert statistics.export == "disk"
    assert statistics.peer.startswith("pid ")
    assert (statistics.requests, statistics.bytes_written, statistics.bytes_read) == (3, 2 * BLOCK, BLOCK)
    await client.close()


async def test_goodbye_finishes_what_is_under_way(
    socket: Path, server: NbdServer, export: FileBackend, disk: Path
) -> None:
    export.mutate_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    await client.ask(Command.READ, 2, 0, 512)
    client.send(Command.WRITE, 3, BLOCK, payload=block(3), flags=CommandFlag.FUA)
    client.send(Command.DISC, 4)
    other = await RawClient.attach(socket)
    await other.ask(Command.READ, 1, 0, 512)
    export.mutate_gate.set()
    assert {(await client.reply()).cookie, (await client.reply()).cookie} == {1, 3}
    assert await client.wait_ended() == b""
    assert disk.read_bytes()[: 2 * BLOCK] == block(1) + block(3)
    assert server.endings[EndReason.DISCONNECTED] == 1
    await client.close()
    await other.close()
