"""Tests of who is heard: the cap on half-open connections and the rate of each address."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest

from shared.ports import Address
from shared.ports import admission as admission_module
from shared.ports.admission import SUCCESSES_PER_FAILURE, Admission, network_of
from shared.ports.network import RealNetwork
from shared.ports.tls_links import TlsLink
from tests.unit.ports.authority import Authority
from tests.unit.ports.collecting import Accepting

LOOPBACK = Address("127.0.0.1", tls=True)


def test_oldest_of_the_busiest_address_gives_way() -> None:
    admission: Admission[int] = Admission(4)
    for number, host in enumerate(("10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.1")):
        assert admission.begin(number, host) is None
    admission.end(0)
    assert admission.begin(4, "10.0.0.2") is None
    assert admission.begin(5, "10.0.0.3") == 1
    assert admission.begin(6, "10.0.0.3") == 2
    assert admission.half_open == 4
    assert admission.counts.displaced == 2


def test_address_that_only_fails_is_heard_less_and_comes_back_with_time() -> None:
    admission: Admission[int] = Admission(64, 60)
    assert [admission.may_try("10.0.0.1", 0.0) for _ in range(61)] == [True] * 60 + [False]
    assert admission.may_try("10.0.0.2", 0.0)
    assert not admission.may_try("10.0.0.1", 0.5)
    assert admission.may_try("10.0.0.1", 1.1)
    assert not admission.may_try("10.0.0.1", 1.2)
    assert admission.counts.over_rate == 3


def test_who_is_let_in_may_come_ten_times_as_often() -> None:
    admission: Admission[int] = Admission(64, 60)
    for number in range(60 * SUCCESSES_PER_FAILURE - SUCCESSES_PER_FAILURE):
        assert admission.may_try("10.0.0.1", 0.0), number
        admission.begin(number, "10.0.0.1")
        admission.let_in(number, 0.0)
    more = 0
    while admission.may_try("10.0.0.1", 0.0):
        admission.begin(-1, "10.0.0.1")
        admission.let_in(-1, 0.0)
        more += 1
    assert more <= 2 * SUCCESSES_PER_FAILURE


def test_no_rate_where_none_is_configured() -> None:
    admission: Admission[int] = Admission(64, 0)
    assert all(admission.may_try("10.0.0.1", 0.0) for _ in range(10_000))


def test_network_of_ipv6_counts_as_one_address() -> None:
    assert network_of("2001:db8:1:2::7") == network_of("2001:db8:1:2:ffff::1%eth0")
    assert network_of("2001:db8:1:2::7") != network_of("2001:db8:1:3::7")
    assert network_of("192.0.2.7") == "192.0.2.7"


def test_addresses_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "ADDRESSES_MAX", 10)
    admission: Admission[int] = Admission(64, 1)
    for number in range(100):
        assert admission.may_try(f"10.0.0.{number}", 0.0)
    assert not admission.may_try("10.0.0.99", 0.0)
    assert len(admission._left) == 10


async def test_address_over_its_rate_is_ended_unheard_and_another_gets_in(authority: Authority) -> None:
    """A17: with real sockets, from two addresses of this host."""
    refusals: list[tuple[str, Exception]] = []
    server = RealNetwork(
        authority.issue("server"),
        failures_per_minute=5,
        refused=lambda address, error: refusals.append((address, error)),
    )
    accepting = Accepting()
    listener = await server.listen(LOOPBACK, accepting)
    where = (listener.address.host, listener.address.port)
    try:
        for _ in range(12):
            with socket.socket() as stranger:
                stranger.bind(("127.0.0.9", 0))
                stranger.connect(where)
                stranger.sendall(b"nonsense" * 10)
                stranger.settimeout(20)
                await asyncio.to_thread(_read_to_end, stranger)
        link = await RealNetwork(authority.issue("client")).connect(listener.address, timeout=10)
        await accepting.next()
        link.abort()
    finally:
        await listener.close()
        await accepting.end()
    counts = server.arrivals()
    assert (counts.arrived, counts.secured, counts.refused_handshakes, counts.refused_rate) == (13, 1, 5, 7)
    unheard = [error for _, error in refusals if "not heard" in str(error)]
    assert len(unheard) == 7
    assert all(address.startswith("127.0.0.9:") for address, _ in refusals)


def _read_to_end(stranger: socket.socket) -> None:
    try:
        while stranger.recv(4096):
            pass
    except ConnectionResetError:
        pass


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


async def test_connection_that_the_loop_does_not_take_gives_its_place_back(authority: Authority) -> None:
    """A socket of the wrong kind stands for whatever keeps the loop from serving one, such as a lack of memory."""
    server = RealNetwork(authority.issue("server"), half_open_max=2, refused=lambda _address, _error: None)
    for _ in range(5):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
            wrong.bind(("127.0.0.1", 0))
            wrong.connect(wrong.getsockname())
            wrong.setblocking(False)
            with pytest.raises(ValueError, match="[Ss]tream"):
                await server.establish(wrong, LOOPBACK)
    assert (server.admission.half_open, server.admission.counts.displaced) == (0, 0)


async def test_refused_connections_leave_nothing_behind(authority: Authority) -> None:
    """A17: not even until the collector of cycles comes: thousands of them come between its visits."""
    server = RealNetwork(authority.issue("server"), half_open_max=2, refused=lambda _address, _error: None)
    listener = await server.listen(LOOPBACK, Accepting())
    gc.collect()
    gc.disable()
    try:
        for number in range(12):
            with socket.create_connection((listener.address.host, listener.address.port)) as stranger:
                stranger.settimeout(20)
                if number % 2:
                    stranger.sendall(b"nonsense" * 10)
                    await asyncio.to_thread(_read_to_end, stranger)
                else:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            while server.admission.half_open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert sum(isinstance(each, TlsLink) for each in gc.get_objects()) == 0
    finally:
        gc.enable()
        await listener.close()
