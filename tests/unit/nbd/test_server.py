"""The server's life: listening, caps, timeouts, clients that send garbage, hang, vanish or come back."""

from __future__ import annotations

import asyncio
import socket as sockets
import stat
import struct
from collections.abc import Awaitable
from pathlib import Path

import pytest

from shared.errors import StorageError, UsageError
from shared.nbd.backend import Mutation
from shared.nbd.connection import MAXIMUM_PENDING
from shared.nbd.constants import MAXIMUM_PAYLOAD, Command, Option, OptionReply
from shared.nbd.ending import EndReason
from shared.nbd.requests import MAXIMUM_BATCH
from shared.nbd.server import NbdServer, SocketInUseError
from tests.unit.nbd.conftest import SIZE
from tests.unit.nbd.file_backend import Directory, FileBackend
from tests.unit.nbd.raw_client import RawClient

BLOCK = 4096


def block(number: int) -> bytes:
    return bytes([number]) * BLOCK


# --- unix sockets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_socket_has_its_mode_and_is_removed_at_the_end(server: NbdServer, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "nbd.sock"
    await server.start_unix(path, mode)
    assert stat.S_IMODE(path.lstat().st_mode) == mode
    await server.close()
    assert not path.exists()


async def test_stale_socket_is_replaced(server: NbdServer, tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(path))
    await server.start_unix(path)
    client = await RawClient.attach(path)
    await client.close()


async def test_socket_of_a_live_server_is_left_alone(server: NbdServer, socket: Path, export: FileBackend) -> None:
    second = NbdServer(Directory(export))
    with pytest.raises(SocketInUseError, match=r"another process serves .*nbd\.sock"):
        await second.start_unix(socket)
    await second.close()
    client = await RawClient.attach(socket)
    await client.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link to a stale socket"])
async def test_what_is_no_socket_is_left_alone(server: NbdServer, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "nbd.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        with sockets.socket(sockets.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead.sock"))
        path.symlink_to(tmp_path / "dead.sock")
    with pytest.raises(SocketInUseError, match="is no socket"):
        await server.start_unix(path)
    assert path.exists()


async def test_socket_that_another_server_put_in_our_place_is_not_removed(server: NbdServer, socket: Path) -> None:
    socket.unlink()
    with sockets.socket(sockets.AF_UNIX) as other:
        other.bind(str(socket))
        await server.close()
        assert socket.exists()


async def test_missing_folder_is_named(server: NbdServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        await server.start_unix(tmp_path / "nowhere" / "nbd.sock")


async def test_path_that_is_too_long_is_named(server: NbdServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"path too long\. Check .* 107 bytes"):
        await server.start_unix(tmp_path / ("x" * 108))


# --- TCP --------------------------------------------------------------------------------------------------------------


async def test_tcp_on_loopback(server: NbdServer) -> None:
    port = await server.start_tcp("127.0.0.1", 0)
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port))
    await client.greet()
    assert (await client.option(Option.LIST))[-1][0] == OptionReply.ACK
    (statistics,) = server.connections
    assert statistics.peer.startswith("127.0.0.1:")
    await client.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
async def test_tcp_refuses_what_other_hosts_can_reach(server: NbdServer, host: str) -> None:
    with pytest.raises(UsageError, match=r"other hosts can reach\. Use 127\.0\.0\.1"):
        await server.start_tcp(host, 0)


async def test_tcp_names_an_address_that_is_none(server: NbdServer) -> None:
    with pytest.raises(UsageError, match="'no such host'"):
        await server.start_tcp("no such host", 0)


async def test_tcp_names_a_port_that_is_taken(server: NbdServer) -> None:
    port = await server.start_tcp("127.0.0.1", 0)
    with pytest.raises(UsageError, match=f"port {port}"):
        await server.start_tcp("127.0.0.1", port)


# --- caps and timeouts ------------------------------------------------------------------------------------------------


async def test_connections_are_capped(export: FileBackend, tmp_path: Path) -> None:
    """I13: one more than the cap is turned away, and its place is free again when another leaves."""
    server = NbdServer(Directory(export), max_connections=2)
    path = tmp_path / "nbd.sock"
    await server.start_unix(path)
    clients = [await RawClient.attach(path) for _ in range(2)]
    third = await RawClient.open(path)
    assert await third.wait_ended() == b""
    assert server.endings == {EndReason.TOO_MANY_CONNECTIONS: 1}
    clients[0].send(Command.DISC, 1)
    await clients[0].wait_ended()
    fourth = await RawClient.attach(path)
    for client in (*clients, third, fourth):
        await client.close()
    await server.close()


async def test_handshake_times_out(export: FileBackend, tmp_path: Path) -> None:
    server = NbdServer(Directory(export), handshake_timeout=0.05)
    path = tmp_path / "nbd.sock"
    await server.start_unix(path)
    silent = await RawClient.open(path)
    halfway = await RawClient.open(path)
    await halfway.greet()
    halfway.writer.write(b"IHAVEOPT" + struct.pack(">II", Option.GO, 100) + b"slow")
    assert await silent.wait_ended() == b"NBDMAGICIHAVEOPT\x00\x03"
    assert await halfway.wait_ended() == b""
    assert server.endings == {EndReason.HANDSHAKE_TIMEOUT: 2}
    await server.close()
    await silent.close()
    await halfway.close()


async def test_attached_client_outlives_the_handshake_timeout(export: FileBackend, tmp_path: Path) -> None:
    """The other client's timeout, which began later, shows that the first one's time is up."""
    server = NbdServer(Directory(export), handshake_timeout=0.05)
    path = tmp_path / "nbd.sock"
    await server.start_unix(path)
    idle = await RawClient.attach(path)
    silent = await RawClient.open(path)
    await silent.wait_ended()
    assert (await idle.ask(Command.READ, 1, 0, 512)).error == 0
    await server.close()
    await idle.close()
    await silent.close()


async def test_memory_limit_must_hold_one_request(export: FileBackend) -> None:
    with pytest.raises(UsageError, match="too small for one request"):
        NbdServer(Directory(export), memory_limit=MAXIMUM_PAYLOAD)


# --- garbage ----------------------------------------------------------------------------------------------------------


async def test_garbage_instead_of_a_handshake_ends_that_connection_only(socket: Path, server: NbdServer) -> None:
    """I18."""
    healthy = await RawClient.attach(socket)
    garbage = await RawClient.open(socket)
    garbage.writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    assert await garbage.wait_ended() == b"NBDMAGICIHAVEOPT\x00\x03"
    options = await RawClient.open(socket)
    await options.greet()
    options.writer.write(b"\x00" * 64)
    assert await options.wait_ended() == b""
    assert server.endings == {EndReason.BAD_CLIENT_FLAGS: 1, EndReason.BAD_OPTION_MAGIC: 1}
    assert (await healthy.ask(Command.READ, 1, 0, 512)).error == 0
    for client in (healthy, garbage, options):
        await client.close()


async def test_garbage_after_requests_ends_after_their_answers(socket: Path, server: NbdServer) -> None:
    """I18: what came before the garbage was valid and is answered."""
    client = await RawClient.attach(socket)
    client.send(Command.WRITE, 1, 0, payload=block(1))
    client.send(Command.READ, 2, 0, BLOCK)
    client.writer.write(b"\xde\xad\xbe\xef" * 20)
    assert (await client.reply()).error == 0
    assert (await client.reply()).data == block(1)
    assert await client.wait_ended() == b""
    assert server.endings == {EndReason.BAD_REQUEST_MAGIC: 1}
    await client.close()


async def test_half_a_write_changes_nothing(socket: Path, server: NbdServer, disk: Path) -> None:
    """I18: a client that dies inside a payload wrote nothing."""
    client = await RawClient.attach(socket)
    whole = struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, BLOCK) + block(1)
    client.writer.write(whole[:-1])
    client.writer.write_eof()
    await client.wait_ended()
    assert server.endings == {EndReason.CLOSED_BY_CLIENT: 1}
    assert disk.read_bytes()[:BLOCK] == block(0)
    await client.close()


async def test_abort_is_answered_and_ends(socket: Path, server: NbdServer) -> None:
    client = await RawClient.open(socket)
    await client.greet()
    assert await client.option(Option.ABORT) == [(OptionReply.ACK, b"")]
    assert await client.wait_ended() == b""
    assert server.endings == {EndReason.DISCONNECTED: 1}
    await client.close()


# --- clients that do not read, or hang --------------------------------------------------------------------------------


@pytest.mark.slow
async def test_client_that_never_reads_is_not_served_without_end(
    socket: Path, server: NbdServer, export: FileBackend
) -> None:
    """I13: its replies wait in a bounded queue; the other clients are served; nothing is lost when it reads at last."""
    slow = await RawClient.attach(socket)
    await slow.ask(Command.WRITE, 0, 0, payload=b"x" * (1 << 20))
    total = 4000
    for cookie in range(total):
        slow.send(Command.READ, cookie, 0, 65536)
    # StreamReader stops reading at twice its limit; from then on only the server's bounds hold the bytes.
    other = await RawClient.attach(socket)
    before = -1
    turns = 0
    while (served := server.connections[0].bytes_read + server.connections[1].bytes_read) != before or turns < 50:
        turns = turns + 1 if served == before else 0
        before = served
        await other.ask(Command.READ, 1, 0, 512)
        before += 512
    assert served < 16 << 20
    for cookie in range(total):
        reply = await slow.reply()
        assert (reply.cookie, len(reply.data)) == (cookie, 65536)
    await slow.close()
    await other.close()


@pytest.mark.slow
async def test_large_reads_of_a_client_that_never_reads_are_bounded(
    socket: Path, server: NbdServer, export: FileBackend
) -> None:
    """I13: replies of 32 MiB take their memory from the budget, also once they were read from the disk."""
    slow = await RawClient.attach(socket)
    await slow.ask(Command.WRITE, 0, 0, payload=b"y" * (32 << 20))
    for cookie in range(6):
        slow.send(Command.READ, cookie, 0, 32 << 20)
    other = await RawClient.attach(socket)
    for cookie in range(50):
        await other.ask(Command.READ, cookie, 0, 512)
        assert server.budget.used <= server.budget.limit
    assert server.budget.used > 0
    for _ in range(6):
        assert (await slow.reply()).data == b"y" * (32 << 20)
    await other.ask(Command.READ, 1, 0, 512)
    assert server.budget.used == 0
    await slow.close()
    await other.close()


@pytest.mark.slow
async def test_large_replies_hold_their_memory_until_they_are_taken(
    socket: Path, server: NbdServer, export: FileBackend
) -> None:
    """I13: of three clients that do not read, only two get 32 MiB; the third is served when one of them has."""
    writer = await RawClient.attach(socket)
    await writer.ask(Command.WRITE, 0, 0, payload=b"y" * (32 << 20))
    slow = [await RawClient.attach(socket) for _ in range(3)]
    for client in slow:
        client.send(Command.READ, 1, 0, 32 << 20)
    while sum(each.bytes_read for each in server.connections) < 64 << 20:
        await writer.ask(Command.CACHE, 2, 0, 512)
    for cookie in range(50):
        await writer.ask(Command.CACHE, cookie, 0, 512)
    assert export.reads == 2
    assert server.budget.used == 64 << 20
    for client in slow:
        assert len((await client.reply()).data) == 32 << 20
    for client in (writer, *slow):
        await client.close()


async def test_client_that_says_goodbye_and_does_not_read_is_cut_off(
    socket: Path, server: NbdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I13: replies that nobody takes do not keep a connection, and its place, for ever."""
    monkeypatch.setattr("shared.nbd.connection.LINGER_SECONDS", 0.05)
    monkeypatch.setattr("shared.nbd.server.SEND_BUFFER", 4096)
    # A plain socket: asyncio's streams would take what arrives.
    with sockets.socket(sockets.AF_UNIX) as plain:
        await asyncio.to_thread(plain.connect, str(socket))
        option = b"IHAVEOPT" + struct.pack(">II", Option.EXPORT_NAME, 4) + b"disk"
        read = struct.pack(">IHHQQI", 0x25609513, 0, Command.READ, 1, 0, 7 << 18)
        goodbye = struct.pack(">IHHQQI", 0x25609513, 0, Command.DISC, 2, 0, 0)
        plain.sendall(struct.pack(">I", 3) + option + read + goodbye)
        other = await RawClient.attach(socket)
        async with asyncio.timeout(30):
            while not server.endings:
                await other.ask(Command.READ, 1, 0, 512)
        assert server.endings == {EndReason.DISCONNECTED: 1}
        await other.close()


@pytest.mark.parametrize("kind", ["cold reads", "changes", "flushes"])
async def test_requests_that_wait_are_capped(socket: Path, server: NbdServer, export: FileBackend, kind: str) -> None:
    """I13: what one connection may have waiting is bounded, whatever it waits for."""
    gate = asyncio.Event()
    export.inline = False
    export.read_gate = export.mutate_gate = export.flush_gate = gate
    client = await RawClient.attach(socket)
    total = 4 * MAXIMUM_PENDING
    for cookie in range(total):
        match kind:
            case "cold reads":
                client.send(Command.READ, cookie, 0, 512)
            case "changes":
                client.send(Command.TRIM, cookie, 0, 512)
            case _:
                client.send(Command.FLUSH, cookie)
    await client.writer.drain()
    other = await RawClient.attach(socket, allocation=True)
    for cookie in range(20):
        await other.ask(Command.BLOCK_STATUS, cookie, 0, 512)
    taken = sum(each.requests for each in server.connections) - 20
    assert MAXIMUM_PENDING <= taken <= MAXIMUM_PENDING + MAXIMUM_BATCH
    gate.set()
    assert {(await client.reply()).cookie for _ in range(total)} == set(range(total))
    await client.close()
    await other.close()


async def test_hung_client_loses_its_memory_only_when_others_need_it(
    export: FileBackend, disk: Path, tmp_path: Path
) -> None:
    """I13, I14: a client that stops inside a large write can't stop another client's large write for ever."""
    server = NbdServer(Directory(export), memory_limit=MAXIMUM_PAYLOAD + 28, stall_timeout=0.05)
    path = tmp_path / "nbd.sock"
    await server.start_unix(path)
    hung = await RawClient.attach(path)
    header = struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, MAXIMUM_PAYLOAD)
    hung.writer.write(header + bytes(4 << 20))
    await hung.writer.drain()
    other = await RawClient.attach(path)
    while not server.budget.used:
        await other.ask(Command.READ, 1, 0, 512)
    assert (await other.ask(Command.WRITE, 2, 0, payload=block(2) * 1024)).error == 0
    assert await hung.wait_ended() == b""
    assert server.endings == {EndReason.STALLED: 1}
    assert disk.read_bytes()[: 4 << 20] == block(2) * 1024
    await server.close()
    await hung.close()
    await other.close()


@pytest.mark.slow
async def test_large_writes_take_turns_within_the_limit(export: FileBackend, disk: Path, tmp_path: Path) -> None:
    """I13: eight clients write 32 MiB each at once; never more than the limit is held."""
    server = NbdServer(Directory(export), memory_limit=MAXIMUM_PAYLOAD + 28)
    path = tmp_path / "nbd.sock"
    await server.start_unix(path)
    highest = 0
    payloads = [bytes([number]) * MAXIMUM_PAYLOAD for number in (1, 2)]

    async def write(number: int) -> None:
        nonlocal highest
        client = await RawClient.attach(path)
        half = number % 2
        client.send(Command.WRITE, 1, half * MAXIMUM_PAYLOAD, payload=payloads[half])
        assert (await client.reply()).error == 0
        highest = max(highest, server.budget.used)
        await client.close()

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(write(number))
    assert highest <= server.budget.limit
    assert disk.read_bytes() == payloads[0] + payloads[1]
    assert server.budget.used == 0
    await server.close()


# --- clients that vanish and come back --------------------------------------------------------------------------------


@pytest.mark.parametrize("queued", [1, 3 * MAXIMUM_PENDING])
async def test_what_a_dead_client_left_never_overtakes_its_next_connection(
    socket: Path, server: NbdServer, export: FileBackend, disk: Path, queued: int
) -> None:
    """I11: a client whose connection broke sends its unanswered writes again, and then newer ones.

    With many requests the server has stopped reading: it can't see the end of the connection behind them.
    """
    gate = export.mutate_gate = asyncio.Event()
    dead = await RawClient.attach(socket)
    dead.send(Command.WRITE, 0, 0, payload=block(1))
    await dead.ask(Command.READ, 1, 0, 512)
    for cookie in range(queued):
        dead.send(Command.WRITE, cookie, 0, payload=block(2))
    other = await RawClient.attach(socket)
    for cookie in range(20):
        await other.ask(Command.READ, cookie, 0, 512)
    dead.drop()
    export.mutate_gate = None
    again = await RawClient.attach(socket)
    assert (await again.ask(Command.WRITE, 1, 0, payload=block(9))).error == 0
    gate.set()
    for cookie in range(20):
        await again.ask(Command.READ, cookie, 0, 512)
    assert disk.read_bytes()[:BLOCK] == block(9)
    expected = {EndReason.SUPERSEDED} if queued > 1 else {EndReason.SUPERSEDED, EndReason.CLOSED_BY_CLIENT}
    assert set(server.endings) <= expected
    assert server.endings.total() == 1
    await again.close()
    await other.close()


async def test_the_next_connection_waits_for_a_change_that_had_begun(
    socket: Path, server: NbdServer, export: FileBackend
) -> None:
    """I11: a change that can't be called back any more is over before the next connection's first one begins."""
    release = asyncio.Event()
    calls: list[str] = []

    async def finish() -> None:
        calls.append("old begins")
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                calls.append("too late to cancel")
        calls.append("old ends")

    def mutate(batch: list[Mutation]) -> Awaitable[None] | None:
        if not calls:
            return finish()
        calls.append("new")
        return None

    export.mutate = mutate  # type: ignore[method-assign]
    dead = await RawClient.attach(socket)
    dead.send(Command.WRITE, 0, 0, payload=block(1))
    await dead.ask(Command.READ, 1, 0, 512)
    # A second connection keeps the export shared, so that the dead one is still known to it.
    other = await RawClient.attach(socket)
    for cookie in range(3 * MAXIMUM_PENDING):
        dead.send(Command.WRITE, cookie, 0, payload=block(2))
    for cookie in range(20):
        await other.ask(Command.READ, cookie, 0, 512)
    dead.drop()
    again = await RawClient.attach(socket)
    again.send(Command.WRITE, 1, 0, payload=block(9))
    for cookie in range(20):
        await other.ask(Command.READ, cookie, 0, 512)
    so_far = list(calls)
    release.set()
    assert so_far == ["old begins", "too late to cancel"]
    assert (await again.reply()).error == 0
    assert calls == ["old begins", "too late to cancel", "old ends", "new"]
    await again.close()
    await other.close()


# --- bugs in an export, and the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["mutate", "awaited", "queued", "read_cached", "read", "flush"])
async def test_an_export_that_raises_ends_one_connection_and_is_reported(
    socket: Path, server: NbdServer, export: FileBackend, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exception dies silently: the loop's handler hears of it, and the reason is typed."""
    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    healthy = await RawClient.attach(socket)
    client = await RawClient.attach(socket)

    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    async def fail_later(*arguments: object) -> int:
        raise RuntimeError("a bug")

    match where:
        case "mutate":
            monkeypatch.setattr(export, "mutate", fail)
        case "awaited":
            monkeypatch.setattr(export, "mutate", fail_later)
        case "queued":
            export.mutate_gate = asyncio.Event()
            client.send(Command.WRITE, 7, 0, payload=block(7))
            await client.ask(Command.READ, 8, 0, 512)
            client.send(Command.WRITE, 9, 0, payload=block(7))
            await client.ask(Command.READ, 10, 0, 512)
            monkeypatch.setattr(export, "mutate", fail)
            export.mutate_gate.set()
        case "read_cached":
            monkeypatch.setattr(export, "read_cached", fail)
        case "read":
            export.inline = False
            monkeypatch.setattr(export, "read", fail_later)
        case _:
            export.flush_raises = RuntimeError("a bug")
    client.send(Command.WRITE, 1, 0, payload=block(1))
    client.send(Command.READ, 2, 0, BLOCK)
    client.send(Command.FLUSH, 3)
    if where == "flush":
        replies = {reply.cookie: reply.error for reply in [await client.reply() for _ in range(3)]}
        assert replies == {1: 0, 2: 0, 3: 5}
    else:
        await client.wait_ended()
        assert server.endings == {EndReason.INTERNAL_ERROR: 1}
    assert str(reported[0]) == "a bug"
    monkeypatch.undo()
    export.inline = True
    assert (await healthy.ask(Command.READ, 1, 0, 512)).error == 0
    await client.close()
    await healthy.close()


async def test_close_finishes_changes_under_way(
    socket: Path, server: NbdServer, export: FileBackend, disk: Path
) -> None:
    export.mutate_gate = asyncio.Event()
    client = await RawClient.attach(socket)
    idle = await RawClient.attach(socket)
    waiting = await RawClient.open(socket)
    await waiting.greet()
    client.send(Command.WRITE, 1, 0, payload=block(1))
    await client.ask(Command.READ, 2, 0, 512)
    closing = asyncio.ensure_future(server.close(grace=60))
    assert await idle.wait_ended() == b""
    assert await waiting.wait_ended() == b""
    export.mutate_gate.set()
    assert (await client.reply()).cookie == 1
    assert await client.wait_ended() == b""
    await closing
    assert disk.read_bytes()[:BLOCK] == block(1)
    assert server.endings == {EndReason.SERVER_CLOSED: 3}
    assert server.connections == []
    for each in (client, idle, waiting):
        await each.close()


async def test_close_does_not_wait_for_a_client_that_never_reads(socket: Path, server: NbdServer) -> None:
    client = await RawClient.attach(socket)
    await client.ask(Command.WRITE, 0, 0, payload=b"z" * (4 << 20))
    for cookie in range(50):
        client.send(Command.READ, cookie, 0, 4 << 20)
    await client.writer.drain()
    other = await RawClient.attach(socket)
    await other.ask(Command.READ, 1, 0, 512)
    await server.close(grace=0.05)
    assert server.connections == []
    assert server.budget.used == 0
    await client.close()
    await other.close()


async def test_two_exports(disk: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_bytes(block(5))
    exports = [FileBackend(disk, name="system"), FileBackend(second, name="data")]
    server = NbdServer(Directory(*exports))
    path = tmp_path / "nbd.sock"
    await server.start_unix(path)
    client = await RawClient.attach(path, "data")
    assert (await client.ask(Command.READ, 1, 0, BLOCK)).data == block(5)
    assert (await client.ask(Command.READ, 2, BLOCK, BLOCK)).error == 22
    await client.close()
    client = await RawClient.attach(path, "system")
    assert (await client.ask(Command.READ, 1, SIZE - BLOCK, BLOCK)).data == block(0)
    await client.close()
    await server.close()
    for export in exports:
        export.close()
