"""GET /metrics over real sockets: the answer, every refusal, slow and many clients, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from shared import metrics_server
from shared.metrics_server import CONNECTIONS_MAX, REQUEST_MAX, MetricsServer
from shared.ports import Address
from shared.ports.network import RealNetwork

TEXT = b"vmreplica_agent_vms 1.0\n"
KIND = "text/plain; version=0.0.4; charset=utf-8"
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def text() -> bytes:
    return TEXT


@asynccontextmanager
async def serving(render: metrics_server.Render = text) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(RealNetwork(), Address(host="127.0.0.1", port=0), render, KIND)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def connect(server: MetricsServer) -> Ends:
    return await asyncio.open_connection("127.0.0.1", server.address.port)


async def exchange(server: MetricsServer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of the answer, read to the connection's end."""
    reader, writer = await connect(server)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


async def until(reached: Callable[[], object]) -> None:
    while not reached():  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.01)


def get(path: str = "/metrics", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n".encode()


async def test_get_answers_with_the_text_and_its_type() -> None:
    async with serving() as server:
        for request in (get(), get("/metrics?name=x"), get().replace(b"1.1", b"1.0")):
            status, headers, body = await exchange(server, request)
            assert (status, body) == (200, TEXT)
            assert headers == {"Content-Type": KIND, "Content-Length": str(len(TEXT)), "Connection": "close"}
        status, headers, body = await exchange(server, get(method="HEAD"))
        assert (status, headers["Content-Length"], body) == (200, str(len(TEXT)), b"")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/"), 404),
        (get("/metrics/../etc/passwd"), 404),
        (get(method="POST"), 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /metrics SMTP\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * REQUEST_MAX, 431),
    ],
)
async def test_anything_else_is_refused(request_bytes: bytes, status: int) -> None:
    async with serving() as server:
        told, headers, body = await exchange(server, request_bytes)
        assert told == status
        assert TEXT not in body
        assert ("Allow" in headers) == (status == 405)


async def test_a_request_may_come_byte_by_byte() -> None:
    async with serving() as server:
        reader, writer = await connect(server)
        for byte in get():
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).endswith(TEXT)
        writer.close()


async def test_a_slow_request_and_an_answer_nobody_takes_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(metrics_server, "ANSWER_SECONDS", 0.05)

    async def large() -> bytes:
        return bytes(32 << 20)

    async with serving(large) as server:
        reader, writer = await connect(server)
        writer.write(b"GET /metr")
        assert await reader.read() == b""
        writer.close()
        reader, writer = await connect(server)
        writer.write(get())
        await until(lambda: not server._tasks)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(32 << 20)
        writer.transport.abort()


async def test_too_many_clients_are_turned_away_and_the_others_answered() -> None:
    async with serving() as server:
        idle = [await connect(server) for _ in range(CONNECTIONS_MAX)]
        await until(lambda: len(server._tasks) == CONNECTIONS_MAX)
        reader, writer = await connect(server)
        writer.write(get())
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        for reader, writer in idle:
            writer.write(get())
            assert (await reader.read()).endswith(TEXT)
            writer.close()


async def test_a_failure_is_logged_a_few_times_and_told_without_its_reason() -> None:
    async def failing() -> bytes:
        raise RuntimeError("a secret")

    with capture_logs() as logs:
        async with serving(failing) as server:
            for _ in range(6):
                status, _, body = await exchange(server, get())
                assert (status, b"secret" in body) == (500, False)
    assert 1 <= len(logs) < 6


async def test_close_ends_those_who_wait() -> None:
    async with serving() as server:
        reader, writer = await connect(server)
        await until(lambda: server._tasks)
    assert await reader.read() == b""
    writer.close()
