"""Tests of plain links over TCP and unix sockets: order, back-pressure, ends, refusals, and who may connect."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import grp
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest

from shared.errors import ForbiddenError, InvalidStateError, UnreachableError, UsageError
from shared.ports import Address
from shared.ports import network as network_module
from shared.ports.links import HIGH_WATER, STASH_BYTES, StreamLink
from shared.ports.network import RealNetwork
from tests.unit.ports.collecting import Accepting, Collector, connected

MIB = 1 << 20


@pytest.fixture
def network() -> RealNetwork:
    return RealNetwork()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:
        yield Path(folder)


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, short_path: Path) -> Address:
    if request.param == "tcp":
        return Address("127.0.0.1")
    return Address(unix_path=str(short_path / "socket"))


@pytest.fixture
async def pair(address: Address, network: RealNetwork) -> AsyncIterator[tuple[StreamLink, StreamLink]]:
    async with connected(address, network) as links:
        yield links


Pair = tuple[StreamLink, StreamLink]


async def test_bytes_arrive_in_order_both_ways(pair: Pair) -> None:
    near, far = pair
    at_near, at_far = Collector(), Collector(size=1000)
    near.attach(at_near)
    far.attach(at_far)
    data = os.urandom(3 * MIB)
    view = memoryview(data)
    near.write(b"head", bytearray(b"-"), view[:100], view[100:MIB])
    near.write(view[MIB:])
    far.write(data)
    assert await at_far.wait(3 * MIB + 5) == b"head-" + data
    assert await at_near.wait(3 * MIB) == data


async def test_what_arrives_before_attach_is_not_lost(pair: Pair) -> None:
    near, far = pair
    data = os.urandom(4 * STASH_BYTES + 7)
    near.write(data)
    await asyncio.sleep(0.05)
    collector = Collector(size=5000)
    far.attach(collector)
    # The receiver may be in the middle of its own construction.
    assert not collector.data
    assert await collector.wait(len(data)) == data


async def test_end_before_attach_comes_after_the_bytes(pair: Pair) -> None:
    near, far = pair
    near.write(b"last words")
    near.close()
    await asyncio.sleep(0.05)
    collector = Collector(size=3)
    far.attach(collector)
    assert await collector.wait_lost() is None
    assert collector.data == b"last words"


async def test_loss_before_attach_is_told(pair: Pair) -> None:
    _, far = pair
    far.abort()
    await asyncio.sleep(0.05)
    collector = Collector()
    far.attach(collector)
    assert await collector.wait_lost() is None


async def test_second_receiver_is_refused(pair: Pair) -> None:
    near, _ = pair
    near.attach(Collector())
    with pytest.raises(RuntimeError, match="receiver already"):
        near.attach(Collector())


async def test_pause_stops_delivery_and_makes_the_sender_wait(pair: Pair) -> None:
    near, far = pair
    collector = Collector()
    far.attach(collector)
    near.write(b"x")
    await collector.wait(1)
    far.pause()
    far.pause()
    data = os.urandom(MIB)
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while sent < 64:
                near.write(data)
                sent += 1
                async with asyncio.timeout(0.3):
                    await near.drain()
    assert sent < 64
    # What the kernel had handed over when the pause came may be delivered later only.
    assert len(collector.data) == 1
    far.resume()
    assert (await collector.wait(1 + sent * MIB))[1:] == data * sent
    await near.drain()


async def test_drain_waits_only_above_high_water(pair: Pair) -> None:
    near, _ = pair
    near.write(bytes(1000))
    async with asyncio.timeout(5):
        await near.drain()
    # Nobody reads: what the kernel does not take, stays queued.
    for _ in range(8):
        near.write(bytes(HIGH_WATER))
    waiting = asyncio.ensure_future(near.drain())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    near.abort()
    async with asyncio.timeout(5):
        await waiting


async def test_drain_lets_others_run(pair: Pair) -> None:
    near, far = pair
    collector = Collector()
    far.attach(collector)
    for _ in range(200):
        near.write(b"x")
        await near.drain()
    assert collector.data


async def test_pause_within_a_delivery_holds(pair: Pair) -> None:
    near, far = pair

    class PausesAtOnce(Collector):
        def buffer_updated(self, count: int) -> None:
            super().buffer_updated(count)
            far.pause()

    collector = PausesAtOnce(size=100)
    near.write(bytes(1000))
    await asyncio.sleep(0.05)
    far.attach(collector)
    for expected in range(1, 11):
        await collector.wait(expected * 100)
        await asyncio.sleep(0.002)
        assert len(collector.counts) == expected
        far.resume()
    assert len(collector.data) == 1000


async def test_close_sends_what_is_queued_and_ends_in_order(pair: Pair) -> None:
    near, far = pair
    at_near, at_far = Collector(), Collector()
    near.attach(at_near)
    data = os.urandom(HIGH_WATER)
    near.write(data)
    near.close()
    near.close()
    near.write(b"too late")
    far.attach(at_far)
    assert await at_far.wait_lost() is None
    assert at_far.data == data
    assert await at_near.wait_lost() is None


async def test_last_words_arrive_although_the_peer_goes_on_sending(pair: Pair) -> None:
    """The kernel would answer unread bytes with a reset, which destroys what is still on its way."""
    near, far = pair
    at_near = Collector()
    near.attach(at_near)
    far.attach(Collector())
    for _ in range(20):
        near.write(os.urandom(MIB))
    far.write(b"you are fenced")
    far.close()
    assert await at_near.wait(14) == b"you are fenced"
    assert await at_near.wait_lost() is None


async def test_close_does_not_wait_for_ever(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.ports.links.LINGER_SECONDS", 0.1)
    near, _ = pair
    collector = Collector()
    near.attach(collector)
    for _ in range(8):
        near.write(bytes(HIGH_WATER))
    near.close()
    assert await collector.wait_lost() is None


async def test_abort_ends_at_once(pair: Pair) -> None:
    near, far = pair
    at_near, at_far = Collector(), Collector()
    near.attach(at_near)
    far.attach(at_far)
    near.abort()
    assert await at_near.wait_lost() is None
    await at_far.wait_lost()
    near.write(b"x")
    near.pause()
    near.resume()
    near.close()
    await near.drain()


async def test_reset_by_the_peer_is_an_error(network: RealNetwork) -> None:
    async with connected(Address("127.0.0.1"), network) as (near, far):
        collector = Collector()
        far.attach(collector)
        assert near._transport is not None
        connection = near._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.abort()
        error = await collector.wait_lost()
        assert isinstance(error, UnreachableError)
        assert far.peer.address in str(error)


@pytest.mark.parametrize("where", ["get_buffer", "buffer_updated"])
async def test_receivers_error_ends_its_link_and_reaches_it(
    pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair
    at_far = Collector()
    trouble = ValueError("bad frame")

    def fail(_: int) -> bytearray:
        raise trouble

    monkeypatch.setattr(at_far, where, fail)
    far.attach(at_far)
    near.write(bytes(10))
    assert await at_far.wait_lost() is trouble


# --- TCP ---


async def test_peers_have_addresses(network: RealNetwork) -> None:
    async with connected(Address("127.0.0.1"), network) as (near, far):
        assert near.peer.address.startswith("127.0.0.1:")
        assert far.peer.address.startswith("127.0.0.1:")
        assert near.peer.address != far.peer.address
        assert (far.peer.fingerprint, far.peer.uid) == ("", None)


async def test_nobody_listening_is_unreachable(network: RealNetwork) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{port} can't be reached") as caught:
            await network.connect(Address("127.0.0.1", port), timeout=5)
        assert "firewalls" in caught.value.remedy


async def test_unknown_host_is_unreachable(network: RealNetwork) -> None:
    with pytest.raises(UnreachableError, match=r"no-such-host\.invalid can't be resolved"):
        await network.connect(Address("no-such-host.invalid", 1), timeout=20)


async def test_silent_host_is_unreachable_in_time(network: RealNetwork) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = Address("127.0.0.1", listening.getsockname()[1])
        links = []
        # A full queue makes the kernel drop what comes: like a host that is off.
        with pytest.raises(UnreachableError, match=r"does not answer within 0\.2 s"):
            for _ in range(10):
                links.append(await network.connect(address, timeout=0.2))
        for link in links:
            link.abort()


async def test_port_in_use_is_told(network: RealNetwork) -> None:
    accepting = Accepting()
    listener = await network.listen(Address("127.0.0.1"), accepting)
    assert listener.address.port > 0
    with pytest.raises(InvalidStateError, match="Another process listens on 127.0.0.1"):
        await network.listen(listener.address, accepting)
    await listener.close()
    again = await network.listen(listener.address, accepting)
    await again.close()


async def test_address_of_another_host_is_refused(network: RealNetwork) -> None:
    with pytest.raises(UsageError, match=r"listen on 192\.0\.2\.1:0"):
        await network.listen(Address("192.0.2.1"), Accepting())


async def test_every_address_of_this_host(network: RealNetwork) -> None:
    accepting = Accepting()
    listener = await network.listen(Address(""), accepting)
    for host in ("127.0.0.1", "localhost", "::1"):
        if host == "::1" and not has_ipv6():
            continue
        link = await network.connect(Address(host, listener.address.port), timeout=5)
        far = await accepting.next()
        assert far.peer.address.startswith("[::1]:" if host == "::1" else ("127.0.0.1:", "[::1]:"))
        far.abort()
        link.abort()
    await listener.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_closed_listener_leaves_links_alone(network: RealNetwork, address: Address) -> None:
    accepting = Accepting()
    listener = await network.listen(address, accepting)
    near = await network.connect(listener.address, timeout=5)
    far = await accepting.next()
    await listener.close()
    await listener.close()
    with pytest.raises(UnreachableError):
        await network.connect(listener.address, timeout=5)
    collector = Collector()
    far.attach(collector)
    near.write(b"still here")
    assert await collector.wait(10) == b"still here"
    near.abort()
    await accepting.end()


async def test_error_of_accept_ends_only_its_link(network: RealNetwork, address: Address) -> None:
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    accepting = Accepting()

    def accept(link: object) -> None:
        if not accepting.links and not errors:
            raise ValueError("first one")
        accepting(cast(StreamLink, link))

    listener = await network.listen(address, accept)
    first, collector = await network.connect(listener.address, timeout=5), Collector()
    first.attach(collector)
    await collector.wait_lost()
    second = await network.connect(listener.address, timeout=5)
    await accepting.next()
    assert [str(error) for error in errors] == ["first one"]
    second.abort()
    await listener.close()
    await accepting.end()


async def test_host_without_descriptors_goes_on_later(network: RealNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "ACCEPT_PAUSE_SECONDS", 0.01)
    accepting = Accepting()
    listener = await network.listen(Address("127.0.0.1"), accepting)
    client = socket.create_connection(("127.0.0.1", listener.address.port))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hoard: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, before[1]))
        with contextlib.suppress(OSError):
            while True:
                hoard.append(os.open("/dev/null", os.O_RDONLY))
        await asyncio.sleep(0.1)
        with contextlib.suppress(OSError):
            while True:
                hoard.append(os.open("/dev/null", os.O_RDONLY))
        second = None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in hoard:
            os.close(descriptor)
    second = socket.create_connection(("127.0.0.1", listener.address.port))
    for _ in range(2):
        (await accepting.next()).abort()
    client.close()
    second.close()
    await listener.close()


# --- unix sockets ---


async def test_credentials_of_a_unix_peer(network: RealNetwork, short_path: Path) -> None:
    async with connected(Address(unix_path=str(short_path / "s")), network) as (near, far):
        for link in (near, far):
            assert (link.peer.pid, link.peer.uid, link.peer.gid) == (os.getpid(), os.getuid(), os.getgid())
            assert set(link.peer.groups) == set(os.getgroups())


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
async def test_credentials_of_another_user(network: RealNetwork, short_path: Path) -> None:
    short_path.chmod(0o755)
    accepting = Accepting()
    address = Address(unix_path=str(short_path / "s"), mode=0o666)
    listener = await network.listen(address, accepting)
    code = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", code, address.unix_path], user=65534, group=65533, extra_groups=[4, 65533]
    ) as process:
        far = await accepting.next()
        assert (far.peer.uid, far.peer.gid, far.peer.pid) == (65534, 65533, process.pid)
        assert set(far.peer.groups) == {4, 65533}
        far.write(b"x")
        await asyncio.to_thread(process.wait)
    await listener.close()
    await accepting.end()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_socket_has_its_mode(network: RealNetwork, short_path: Path, mode: int) -> None:
    path = short_path / "s"
    before = os.umask(0o077)
    try:
        listener = await network.listen(Address(unix_path=str(path), mode=mode), Accepting())
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == mode
    await listener.close()
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the group needs root")
async def test_socket_has_its_group(network: RealNetwork, short_path: Path) -> None:
    group = grp.getgrall()[-1]
    listener = await network.listen(Address(unix_path=str(short_path / "s"), group=group.gr_name), Accepting())
    assert (short_path / "s").lstat().st_gid == group.gr_gid
    await listener.close()
    with pytest.raises(UsageError, match="no group no-such-group"):
        await network.listen(Address(unix_path=str(short_path / "s"), group="no-such-group"), Accepting())


async def test_dead_socket_is_replaced(network: RealNetwork, short_path: Path) -> None:
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with pytest.raises(UnreachableError, match=f"Nobody answers at {path}"):
        await network.connect(Address(unix_path=str(path)), timeout=5)
    async with connected(Address(unix_path=str(path)), network):
        pass


async def test_live_socket_is_not_replaced(network: RealNetwork, short_path: Path) -> None:
    address = Address(unix_path=str(short_path / "s"))
    async with connected(address, network) as (near, far):
        with pytest.raises(InvalidStateError, match="Another process serves"):
            await network.listen(address, Accepting())
        collector = Collector()
        far.attach(collector)
        near.write(b"undisturbed")
        await collector.wait(11)


@pytest.mark.parametrize("kind", ["file", "folder", "symlink", "fifo"])
async def test_only_a_socket_is_ever_removed(network: RealNetwork, short_path: Path, kind: str) -> None:
    path = short_path / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "symlink":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(short_path / "dead"))
            path.symlink_to(short_path / "dead")
    before = path.lstat()
    with pytest.raises(UsageError, match="is no socket"):
        await network.listen(Address(unix_path=str(path)), Accepting())
    assert path.lstat() == before


async def test_of_two_that_start_at_once_one_serves(short_path: Path) -> None:
    """Both may see the same dead socket; the second must not remove the first one's fresh one."""
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    address = Address(unix_path=str(path))
    accepting = Accepting()
    outcomes = await asyncio.gather(
        *(RealNetwork().listen(address, accepting) for _ in range(8)), return_exceptions=True
    )
    listeners = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(listeners) == 1
    assert all(isinstance(each, InvalidStateError) for each in outcomes if isinstance(each, BaseException))
    (await RealNetwork().connect(address, timeout=5)).abort()
    await asyncio.sleep(0.01)
    await listeners[0].close()
    await accepting.end()


async def test_start_waits_for_another_start(network: RealNetwork, short_path: Path) -> None:
    folder = os.open(short_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    starting = asyncio.ensure_future(network.listen(Address(unix_path=str(short_path / "s")), Accepting()))
    await asyncio.sleep(0.05)
    assert not starting.done()
    os.close(folder)
    async with asyncio.timeout(10):
        await (await starting).close()


async def test_replaced_socket_of_another_is_not_removed_at_close(network: RealNetwork, short_path: Path) -> None:
    path = short_path / "s"
    listener = await network.listen(Address(unix_path=str(path)), Accepting())
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        await listener.close()
        assert path.exists()


async def test_long_path_is_refused(network: RealNetwork, short_path: Path) -> None:
    path = str(short_path / ("x" * 108))
    with pytest.raises(UsageError, match="At most 107"):
        await network.listen(Address(unix_path=path), Accepting())
    with pytest.raises(UsageError, match="At most 107"):
        await network.connect(Address(unix_path=path), timeout=5)


async def test_missing_folder_is_told(network: RealNetwork, short_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be made: No such file"):
        await network.listen(Address(unix_path=str(short_path / "missing" / "s")), Accepting())
    with pytest.raises(UnreachableError, match="No such file"):
        await network.connect(Address(unix_path=str(short_path / "s")), timeout=5)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_socket_one_may_not_use_is_forbidden(short_path: Path) -> None:
    code = (
        "import asyncio, os, sys\n"
        "from shared.errors import ForbiddenError\n"
        "from shared.ports import Address\n"
        "from shared.ports.network import RealNetwork\n"
        "os.setuid(65534)\n"
        "try: asyncio.run(RealNetwork().connect(Address(unix_path=sys.argv[1]), timeout=5))\n"
        "except ForbiddenError as error: print(error)\n"
    )
    short_path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short_path / "s"))
        (short_path / "s").chmod(0o600)
        listening.listen()
        done = subprocess.run(
            [sys.executable, "-c", code, str(short_path / "s")],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )
    assert "You may not use the socket" in done.stdout, done.stderr


async def test_full_queue_of_a_unix_socket_is_waited_for(network: RealNetwork, short_path: Path) -> None:
    path = str(short_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        first = await network.connect(Address(unix_path=path), timeout=5)
        with pytest.raises(UnreachableError, match="does not answer within"):
            await network.connect(Address(unix_path=path), timeout=0.1)
        waiting = asyncio.ensure_future(network.connect(Address(unix_path=path), timeout=10))
        await asyncio.sleep(0.05)
        listening.accept()[0].close()
        second = await waiting
        for link in (first, second):
            link.abort()


def test_forbidden_is_not_unreachable() -> None:
    """The first can't heal by itself, the second can: callers tell them apart by type."""
    assert not issubclass(ForbiddenError, UnreachableError)
