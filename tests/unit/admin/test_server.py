"""Server and client over real unix sockets: typed errors, bounds, notifications, orderly ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.admin import client as client_module
from shared.admin import server as server_module
from shared.admin.access import Access
from shared.admin.client import JsonRpcClient
from shared.admin.codec import CLIENT_MESSAGE_MAX, Request, encode
from shared.admin.methods import Methods, NoParams, Params
from shared.admin.server import Client, JsonRpcServer
from shared.errors import (
    ForbiddenError,
    NoSpaceError,
    UnreachableError,
    UsageError,
    VmreplicaError,
)
from shared.ports import Address, Peer
from shared.ports.links import HIGH_WATER
from shared.ports.network import RealNetwork

WAIT = 20.0
"""Seconds after which something that should happen counts as not happening."""


class Number(Params, frozen=True):
    """The parameters of the methods below."""

    number: int


class Count(Params, frozen=True):
    """How many of something."""

    count: int


class Served:
    """A server with a few methods, and what they noticed."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.network = RealNetwork()
        self.clients: list[Client] = []
        self.gate = asyncio.Event()
        self.begun: list[int] = []
        self.large_answers = 0
        self.stop_requested = asyncio.Event()
        methods = Methods()
        methods.add("double", Number, self.double)
        methods.add("fail", NoParams, self.fail)
        methods.add("crash", NoParams, self.crash)
        methods.add("wait", Number, self.wait)
        methods.add("large", Count, self.large)
        methods.add("remember", NoParams, self.remember)
        methods.add("notify", Count, self.notify)
        methods.add("unspeakable", NoParams, self.unspeakable)
        methods.add("stop", NoParams, self.stop)
        options.setdefault("authorize", Access(own_uid=os.getuid()))
        self.server = JsonRpcServer(self.network, Address(unix_path=str(path)), methods, **options)

    async def double(self, params: Number, client: Client) -> int:
        return 2 * params.number

    async def fail(self, params: NoParams, client: Client) -> None:
        raise NoSpaceError("The volume is full.", "Make room.")

    async def crash(self, params: NoParams, client: Client) -> None:
        raise ZeroDivisionError("secret detail")

    async def wait(self, params: Number, client: Client) -> int:
        self.begun.append(params.number)
        await self.gate.wait()
        return params.number

    async def large(self, params: Count, client: Client) -> str:
        self.large_answers += 1
        return "x" * params.count

    async def remember(self, params: NoParams, client: Client) -> None:
        self.clients.append(client)

    async def notify(self, params: Count, client: Client) -> None:
        for number in range(params.count):
            client.notify("tick", {"number": number})

    async def unspeakable(self, params: NoParams, client: Client) -> object:
        return object()

    async def stop(self, params: NoParams, client: Client) -> str:
        self.stop_requested.set()
        return "stopping"

    async def connect(self, **options: Any) -> JsonRpcClient:
        return await JsonRpcClient.connect(self.network, self.server.address, WAIT, **options)


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Served]:
    served = Served(folder / "s", **options)
    await served.server.start()
    try:
        yield served
    finally:
        await served.server.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until ``condition`` holds."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.001)


async def raw(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(served.server.address.unix_path, limit=2 << 20)


# --- calls and errors


async def test_call_returns_the_result(served: Served) -> None:
    client = await served.connect()
    assert await client.call("double", {"number": 21}) == 42
    client.close()


async def test_typed_error_arrives_as_its_class(served: Served) -> None:
    client = await served.connect()
    with pytest.raises(NoSpaceError) as caught:
        await client.call("fail")
    assert (caught.value.text, caught.value.remedy) == ("The volume is full.", "Make room.")
    client.close()


async def test_unexpected_error_is_logged_and_neutral_and_the_server_goes_on(served: Served) -> None:
    client = await served.connect()
    with capture_logs() as logs, pytest.raises(VmreplicaError) as caught:
        await client.call("crash")
    assert caught.value.code == "internal"
    assert "secret" not in str(caught.value)
    assert [(entry["log_level"], entry["method"], entry["exc_info"]) for entry in logs] == [("error", "crash", True)]
    assert await client.call("double", {"number": 1}) == 2
    client.close()


async def test_unknown_method(served: Served) -> None:
    client = await served.connect()
    with pytest.raises(UsageError) as caught:
        await client.call("nothing")
    assert caught.value.code == "unknown_method"
    assert "no method nothing" in caught.value.text
    client.close()


@pytest.mark.parametrize(
    "params",
    [{}, {"number": "1"}, {"number": 1, "extra": 2}, {"number": None}],
    ids=["missing", "text", "more", "null"],
)
async def test_invalid_params_name_what_is_wrong(served: Served, params: dict[str, Any]) -> None:
    client = await served.connect()
    with pytest.raises(UsageError) as caught:
        await client.call("double", params)
    assert caught.value.code == "invalid_params"
    assert "parameters of double" in caught.value.text
    assert served.begun == []
    client.close()


async def test_result_that_json_can_not_carry_is_an_internal_error(served: Served) -> None:
    client = await served.connect()
    with capture_logs() as logs, pytest.raises(VmreplicaError) as caught:
        await client.call("unspeakable")
    assert caught.value.code == "internal"
    assert len(logs) == 1
    client.close()


async def test_answer_larger_than_a_client_takes_is_an_internal_error(served: Served) -> None:
    client = await served.connect()
    assert len(await client.call("large", {"count": CLIENT_MESSAGE_MAX - 100})) == CLIENT_MESSAGE_MAX - 100
    with capture_logs(), pytest.raises(VmreplicaError) as caught:
        await client.call("large", {"count": CLIENT_MESSAGE_MAX})
    assert caught.value.code == "internal"
    client.close()


@pytest.mark.parametrize(
    "line, code",
    [
        (b"garbage\n", b"-32700"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"double"}]\n', b"-32600"),
        (b'{"jsonrpc":"2.0","id":1,"method":"double","params":[1]}\n', b"-32602"),
    ],
)
async def test_malformed_line_is_answered_and_the_connection_stays(served: Served, line: bytes, code: bytes) -> None:
    reader, writer = await raw(served)
    writer.write(line + encode(Request(2, "double", {"number": 4})))
    assert code in await reader.readline()
    assert b'"result":8' in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_line_that_is_too_long_ends_the_connection_after_saying_so(served: Served) -> None:
    reader, writer = await raw(served)
    writer.write(b"x" * (64 << 10) + b"\n")
    assert b"longer than 65536 bytes" in await reader.readline()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await until(lambda: not served.server.clients)


async def test_notifications_and_answers_from_a_client_are_ignored(served: Served) -> None:
    reader, writer = await raw(served)
    writer.write(b'{"jsonrpc":"2.0","method":"stop"}\n{"jsonrpc":"2.0","id":1,"result":1}\n')
    writer.write(encode(Request(2, "double", {"number": 4})))
    assert b'"id":2' in await reader.readline()
    assert not served.stop_requested.is_set()
    writer.close()
    await writer.wait_closed()


# --- authorization


async def test_unauthorized_peer_is_refused_whatever_it_asks(tmp_path: Path) -> None:
    def nobody(peer: Peer, method: str) -> None:
        assert peer.uid == os.getuid()
        raise ForbiddenError(f"not {method}")

    async with serving(tmp_path, authorize=nobody) as served:
        client = await served.connect()
        for method in ("double", "there_is_no_such_method"):
            with pytest.raises(ForbiddenError, match=f"not {method}"):
                await client.call(method, {"number": 1})
        client.close()


# --- bounds


async def test_requests_run_beside_each_other_and_begin_in_order(served: Served) -> None:
    client = await served.connect()
    calls = [asyncio.ensure_future(client.call("wait", {"number": number})) for number in range(10)]
    await until(lambda: len(served.begun) == 10)
    assert served.begun == list(range(10))
    served.gate.set()
    assert await asyncio.gather(*calls) == list(range(10))
    client.close()


async def test_only_so_many_requests_of_a_client_run_at_once_i13(served: Served) -> None:
    client = await served.connect()
    other = await served.connect()
    limit = server_module.REQUESTS_AT_ONCE_MAX
    calls = [asyncio.ensure_future(client.call("wait", {"number": number})) for number in range(limit + 5)]
    await until(lambda: len(served.begun) == limit)
    # Another client is served meanwhile, and the rest of the first one's requests stay where they are.
    assert await other.call("double", {"number": 1}) == 2
    assert served.begun == list(range(limit))
    served.gate.set()
    assert await asyncio.gather(*calls) == list(range(limit + 5))
    client.close()
    other.close()


async def test_flooding_client_is_not_read_while_it_takes_no_answers_i13(served: Served) -> None:
    reader, writer = await raw(served)
    flood = asyncio.ensure_future(_flood(writer, encode(Request(1, "large", {"count": 1 << 20}))))
    await until(lambda: any(client._paused for client in served.server.clients))
    # Answers fill the socket, the link and the outbox up to its limit; then only requests that ran already end.
    bound = HIGH_WATER + server_module.ANSWERS_QUEUED_MAX
    assert served.large_answers <= bound // (1 << 20) + server_module.REQUESTS_AT_ONCE_MAX + 8
    assert not flood.done()
    # As soon as it takes its answers, it is served again.
    before = served.large_answers
    while served.large_answers < before + 20:
        assert len(await reader.readuntil()) > 1 << 20
    flood.cancel()
    writer.transport.abort()
    await until(lambda: not served.server.clients)


async def _flood(writer: asyncio.StreamWriter, request: bytes) -> None:
    while True:
        writer.write(request)
        await writer.drain()


async def test_client_that_takes_no_output_is_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STALLED_SECONDS", 0.05)
    _, writer = await raw(served)
    with capture_logs() as logs:
        for _ in range(8):
            writer.write(encode(Request(1, "large", {"count": 8 << 20})))
        await writer.drain()
        await until(lambda: served.server.clients)
        await until(lambda: not served.server.clients)
    assert "takes no output" in logs[0]["event"]
    writer.close()


async def test_clients_beyond_the_limit_are_told_and_places_become_free_again(tmp_path: Path) -> None:
    async with serving(tmp_path, max_clients=2) as served:
        first, second = await served.connect(), await served.connect()
        assert await first.call("double", {"number": 1}) == 2
        third = await served.connect()
        with pytest.raises(VmreplicaError) as caught:
            await third.call("double", {"number": 1})
            await third.call("double", {"number": 1})
        assert caught.value.code == "busy"
        assert "already serves 2 clients" in caught.value.text
        first.close()
        await until(lambda: len(served.server.clients) == 1)
        fourth = await served.connect()
        assert await fourth.call("double", {"number": 2}) == 4
        second.close()
        fourth.close()


# --- notifications


async def test_notifications_come_in_order_and_before_the_answer(served: Served) -> None:
    heard: list[int] = []
    client = await served.connect(on_notification=lambda method, params: heard.append(params["number"]))
    await client.call("notify", {"count": 100})
    assert heard == list(range(100))
    client.close()


async def test_iterator_gets_every_notification_and_ends_with_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "NOTIFICATIONS_HELD_MAX", 10)
    client = await served.connect()
    await client.call("remember")
    notifications = client.notifications()
    heard: list[int] = []

    async def listen() -> None:
        async for method, params in notifications:
            assert method == "tick"
            heard.append(params["number"])

    listener = asyncio.ensure_future(listen())
    await until(lambda: client._iterated)
    for number in range(500):
        served.clients[0].notify("tick", {"number": number})
    await until(lambda: len(heard) == 500)
    assert heard == list(range(500))
    client.close()
    await listener


async def test_unsent_notification_is_replaced_by_a_newer_one(served: Served) -> None:
    heard: list[tuple[str, int]] = []
    client = await served.connect(on_notification=lambda method, params: heard.append((method, params["number"])))
    await client.call("remember")
    # Within one turn of the loop nothing is sent, so all but the newest progress is dropped; the order stays.
    for number in range(3):
        served.clients[0].notify("progress", {"number": number}, replaces="progress")
    served.clients[0].notify("sealed", {"number": 7})
    served.clients[0].notify("progress", {"number": 8}, replaces="progress")
    await client.call("double", {"number": 1})
    assert heard == [("sealed", 7), ("progress", 8)]
    client.close()


async def test_client_too_slow_for_its_notifications_is_ended(served: Served) -> None:
    client = await served.connect()
    await client.call("remember")
    gone = asyncio.Event()
    served.clients[0].on_closed(gone.set)
    with capture_logs() as logs:
        for number in range(server_module.NOTIFICATIONS_QUEUED_MAX + 1):
            served.clients[0].notify("tick", {"number": number})
        await asyncio.wait_for(gone.wait(), WAIT)
    assert "too slow" in logs[0]["event"]
    await client.closed
    served.clients[0].notify("tick", {"number": 0})


async def test_server_learns_that_a_client_went_away(served: Served) -> None:
    client = await served.connect()
    await client.call("remember")
    gone = asyncio.Event()
    served.clients[0].on_closed(gone.set)
    client.close()
    await asyncio.wait_for(gone.wait(), WAIT)


# --- ends


async def test_request_runs_to_its_end_although_its_client_left(served: Served) -> None:
    client = await served.connect()
    call = asyncio.ensure_future(client.call("wait", {"number": 1}))
    await until(lambda: served.begun)
    client.close()
    with pytest.raises(UnreachableError):
        await call
    await until(lambda: not served.server.clients)
    served.gate.set()
    await until(lambda: not served.server._tasks)


async def test_answer_of_the_request_that_stops_the_server_still_arrives(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    await served.server.start()
    client = await served.connect()
    call = asyncio.ensure_future(client.call("stop"))
    await served.stop_requested.wait()
    await served.server.close()
    assert await call == "stopping"
    await client.closed
    with pytest.raises(UnreachableError):
        await served.connect()


async def test_close_ends_running_requests_and_their_callers_know(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    await served.server.start()
    client = await served.connect()
    call = asyncio.ensure_future(client.call("wait", {"number": 1}))
    await until(lambda: served.begun)
    await served.server.close()
    with pytest.raises(UnreachableError, match="closed the connection"):
        await call
    assert served.server._tasks == set()


async def test_call_gives_up_in_time_and_the_connection_stays(served: Served) -> None:
    client = await served.connect()
    with pytest.raises(UnreachableError, match=r"did not answer wait within 0\.01 seconds"):
        await client.call("wait", {"number": 1}, timeout=0.01)
    served.gate.set()
    assert await client.call("double", {"number": 3}) == 6
    client.close()


async def test_call_after_the_end_fails_at_once(served: Served) -> None:
    client = await served.connect()
    client.close()
    with pytest.raises(UnreachableError):
        await client.call("double", {"number": 1})
    assert client.closed.done()


@pytest.mark.parametrize(
    "answer, words",
    [
        (b"220 smtp.example.org ESMTP\n", "does not speak JSON-RPC"),
        (b'{"jsonrpc":"2.0","id":1,"method":"call_me"}\n', "sent a request"),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":6,"message":"m","data":{"text":"go away"}}}\n', "go away"),
    ],
)
async def test_server_that_misbehaves_ends_the_connection(tmp_path: Path, answer: bytes, words: str) -> None:
    ended = asyncio.Event()

    async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(misbehave, path)
    client = await JsonRpcClient.connect(RealNetwork(), Address(unix_path=path), WAIT)
    with pytest.raises(VmreplicaError, match=words):
        await client.call("double", {"number": 1})
    await client.closed
    assert client.error is not None
    await ended.wait()
    server.close()
    await server.wait_closed()


async def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        await JsonRpcClient.connect(RealNetwork(), Address(unix_path=str(tmp_path / "none")), WAIT)


def test_name_offered_twice_is_a_mistake_in_the_program() -> None:
    methods = Methods()

    @methods.method("a", NoParams)
    async def first(params: NoParams, client: Client) -> None: ...

    assert list(methods) == ["a"]
    assert len(methods) == 1
    with pytest.raises(AssertionError, match="offered twice"):
        methods.add("a", NoParams, first)
