"""Tests of links under mutual TLS 1.3: bytes, ends, and every misuse with what is said about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared import certificates
from shared.errors import ForbiddenError, UnreachableError, UsageError
from shared.ports import Address, Link
from shared.ports.links import HIGH_WATER, StreamLink
from shared.ports.network import RealListener, RealNetwork
from shared.ports.tls import ALPN, TlsIdentity, load_contexts
from tests.unit.ports.authority import BOTH, DAY, Authority
from tests.unit.ports.collecting import Accepting, Collector, connected

LOOPBACK = Address("127.0.0.1", tls=True)
MIB = 1 << 20


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def client(ca: Authority) -> RealNetwork:
    return RealNetwork(ca.issue("client", ["client.example", "10.9.8.7"]))


class Server:
    """A listening network that keeps what it accepted and what it refused."""

    def __init__(self, identity: TlsIdentity, **options: float) -> None:
        self.refusals: asyncio.Queue[tuple[str, Exception]] = asyncio.Queue()
        self.network = RealNetwork(
            identity,
            refused=lambda address, error: self.refusals.put_nowait((address, error)),
            half_open_max=int(options.get("half_open_max", 64)),
            handshake_seconds=options.get("handshake_seconds", 5.0),
        )
        self.accepting = Accepting()
        self.listener: RealListener | None = None

    async def __aenter__(self) -> Server:
        self.listener = await self.network.listen(LOOPBACK, self.accepting)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.listener is not None
        await self.listener.close()
        await self.accepting.end()

    @property
    def address(self) -> Address:
        assert self.listener is not None
        return self.listener.address

    async def refusal(self) -> Exception:
        """Why the next connection was refused."""
        async with asyncio.timeout(20):
            return (await self.refusals.get())[1]


@pytest.fixture
def server(ca: Authority) -> Server:
    return Server(ca.issue("server"))


async def refused_later(network: RealNetwork, address: Address) -> Exception | None:
    """Connect and say a lot; what the link is lost with.

    A client under TLS 1.3 sees its handshake succeed before the server has looked at its certificate.
    """
    link = await network.connect(address, timeout=10)
    collector = Collector()
    link.attach(collector)
    link.write(os.urandom(300_000))
    error = await collector.wait_lost()
    assert collector.data == b""
    return error


# --- bytes ---


async def test_bytes_arrive_in_order_both_ways(client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):
        at_near, at_far = Collector(), Collector(size=70_000)
        near.attach(at_near)
        far.attach(at_far)
        data = os.urandom(5 * MIB + 3)
        words = memoryview(data[:4096]).cast("I")
        near.write(b"a", data[:1], bytearray(data[1:20_000]), memoryview(data)[20_000:MIB], b"")
        near.write(memoryview(data)[MIB:], words)
        far.write(data)
        assert await at_far.wait(5 * MIB + 4 + 4096) == b"a" + data + data[:4096]
        assert await at_near.wait(5 * MIB + 3) == data


async def test_many_sizes_of_pieces(client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):
        collector = Collector(size=12_345)
        far.attach(collector)
        sizes = [0, 1, 2, 16_383, 16_384, 16_385, 5, 131_072, 131_073, 32, 65_536, 8_000, 8_000, 8_000]
        data = os.urandom(sum(sizes))
        pieces, at = [], 0
        for size in sizes:
            pieces.append(data[at : at + size])
            at += size
        near.write(*pieces)
        for piece in pieces:
            near.write(piece)
            await near.drain()
        assert await collector.wait(2 * len(data)) == data + data


async def test_large_reads_come_through(client: RealNetwork, server: Server) -> None:
    """Several hundred KiB a call: many small ones would cost a call of Python each."""
    async with connected(LOOPBACK, client, server.network) as (near, far):
        for _ in range(8):
            near.write(os.urandom(MIB))
        await asyncio.sleep(0.05)
        collector = Collector(size=MIB)
        far.attach(collector)
        await collector.wait(8 * MIB)
        assert max(collector.counts) > 200 << 10


async def test_what_arrives_before_attach_is_not_lost(client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):
        data = os.urandom(2 * MIB)
        near.write(data)
        near.close()
        await asyncio.sleep(0.1)
        collector = Collector(size=5000)
        far.attach(collector)
        assert await collector.wait_lost() is None
        assert collector.data == data


async def test_bytes_that_come_with_the_end_of_the_handshake(client: RealNetwork, server: Server) -> None:
    async with server:
        link = await client.connect(server.address, timeout=10)
        link.write(b"hello at once")
        collector = Collector()
        (await server.accepting.next()).attach(collector)
        assert await collector.wait(13) == b"hello at once"
        link.abort()


async def test_pause_stops_delivery_and_makes_the_sender_wait(client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):

        class PausesAtOnce(Collector):
            def buffer_updated(self, count: int) -> None:
                super().buffer_updated(count)
                far.pause()

        collector = PausesAtOnce(size=1000)
        far.attach(collector)
        data = os.urandom(MIB)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64:
                near.write(data)
                sent += 1
                async with asyncio.timeout(0.3):
                    await near.drain()
        assert sent < 64
        assert len(collector.data) == 1000
        for expected in range(2, 40):
            far.resume()
            await collector.wait(expected * 1000)
            assert len(collector.data) == expected * 1000
        near.abort()


async def test_receivers_error_ends_its_link_and_reaches_it(client: RealNetwork, server: Server) -> None:
    for where in ("get_buffer", "buffer_updated"):
        async with connected(LOOPBACK, client, server.network) as (near, far):
            collector, trouble = Collector(), ValueError("bad frame")

            def fail(_: int, trouble: Exception = trouble) -> bytearray:
                raise trouble

            setattr(collector, where, fail)
            far.attach(collector)
            near.write(bytes(10))
            assert await collector.wait_lost() is trouble


# --- ends ---


async def test_close_sends_what_is_queued_and_ends_in_order(client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):
        at_near, at_far = Collector(), Collector()
        near.attach(at_near)
        data = os.urandom(HIGH_WATER)
        near.write(data)
        near.close()
        near.write(b"too late")
        far.attach(at_far)
        assert await at_far.wait_lost() is None
        assert at_far.data == data
        assert await at_near.wait_lost() is None


async def test_last_words_arrive_although_the_peer_goes_on_sending(client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):
        at_near = Collector()
        near.attach(at_near)
        far.attach(Collector())
        for _ in range(20):
            near.write(os.urandom(MIB))
        far.write(b"you are fenced")
        far.close()
        assert await at_near.wait_lost() is None
        assert at_near.data == b"you are fenced"


async def test_cut_stream_is_told_from_an_orderly_end(client: RealNetwork, server: Server) -> None:
    """Anybody on the way can cut a stream: without close_notify it did not end in order (A23)."""
    async with connected(LOOPBACK, client, server.network) as (near, far):
        collector = Collector()
        far.attach(collector)
        near.write(b"half a frame")
        await collector.wait(12)
        assert near._transport is not None
        near._transport.write_eof()
        error = await collector.wait_lost()
        assert isinstance(error, UnreachableError)
        assert "close_notify" in str(error)


async def test_flipped_bit_ends_the_link(client: RealNetwork, server: Server) -> None:
    """N9: nothing of a record that was changed on the way is delivered; both sides learn why."""
    async with connected(LOOPBACK, client, server.network) as (near, far):
        at_near, at_far = Collector(), Collector()
        near.attach(at_near)
        far.attach(at_far)
        near.write(b"good")
        await at_far.wait(4)
        assert near._transport is not None
        near._transport.write(b"\x17\x03\x03\x00\x20" + os.urandom(32))
        error = await at_far.wait_lost()
        assert isinstance(error, UnreachableError)
        assert "damaged" in str(error)
        assert at_far.data == b"good"
        assert await at_near.wait_lost() is not None


# --- who is at the other end ---


async def test_both_sides_know_the_peer(ca: Authority, client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):
        for link, file_name in ((near, "server"), (far, "client")):
            certificate = x509.load_pem_x509_certificate((ca.folder / f"{file_name}.pem").read_bytes())
            assert link.peer.fingerprint == certificates.fingerprint(certificate)
            assert link.peer.not_after == certificate.not_valid_after_utc.timestamp()
            assert link.peer.address.startswith("127.0.0.1:")
        assert far.peer.names == ("client.example", "10.9.8.7")
        assert near.peer.names == ("localhost", "127.0.0.1")


async def test_name_or_address_that_is_dialled_has_to_be_in_the_certificate(ca: Authority, client: RealNetwork) -> None:
    """RFC 9525: subject alternative names only, the common name never."""
    for names, dialled, good in (
        (["localhost"], "localhost", True),
        (["127.0.0.1"], "127.0.0.1", True),
        (["localhost"], "127.0.0.1", False),
        (["127.0.0.1"], "localhost", False),
        (["other.example", "10.0.0.1"], "localhost", False),
        ([], "localhost", False),
    ):
        async with Server(ca.issue("localhost", names)) as server:
            address = Address(dialled, server.address.port, tls=True)
            if good:
                (await client.connect(address, timeout=10)).abort()
                continue
            with pytest.raises(ForbiddenError) as caught:
                await client.connect(address, timeout=10)
            assert f"not for the name we dialled, {dialled}" in caught.value.text
            for name in names:
                assert name in caught.value.text
            assert isinstance(await server.refusal(), ForbiddenError)


# --- wrong certificates: each side says what is wrong with which one ---


def day(offset: float) -> str:
    return datetime.fromtimestamp(datetime.now(UTC).timestamp() + offset * 86400, UTC).strftime("%Y-%m-%d")


Make = Callable[[Authority, Authority], TlsIdentity]

WRONG: dict[str, tuple[Make, list[str], list[str]]] = {
    # What is wrong with it; what whoever refuses it says; what the refused one says.
    "expired": (
        lambda ca, _: ca.issue("bad", starts=-3 * DAY, ends=-2 * DAY),
        ["expired"],
        ["expired"],
    ),
    "not yet valid": (
        lambda ca, _: ca.issue("bad", starts=2 * DAY, ends=3 * DAY),
        ["is not valid"],
        ["bad.pem"],
    ),
    "foreign CA": (
        lambda ca, foreign: foreign.issue("bad", ca=ca.path),
        ["is from a CA", "test-CA.pem does not hold", "same CA"],
        ["it does not know the CA that issued it", "same CA"],
    ),
    "self-signed": (
        lambda ca, _: ca.issue("bad", self_signed=True),
        ["is from a CA", "does not hold"],
        ["it does not know the CA that issued it"],
    ),
    "usage for neither role": (
        lambda ca, _: ca.issue("bad", usages=[ExtendedKeyUsageOID.CODE_SIGNING]),
        ["not made for this use", "serverAuth and clientAuth"],
        ["not made for this use", "serverAuth and clientAuth"],
    ),
    "without key identifiers": (
        lambda ca, _: ca.issue("bad", key_identifiers=False),
        ["can't be verified", "Issue a well-made one"],
        ["bad.pem"],
    ),
    "intermediate CA missing": (
        lambda ca, _: Authority(ca.folder, "intermediate", ca).issue("bad", ca=ca.path),
        ["is from a CA", "does not hold"],
        ["it does not know the CA that issued it"],
    ),
}


def unchecked(monkeypatch: pytest.MonkeyPatch, identity: TlsIdentity) -> RealNetwork:
    """A network that does not look at its own certificate first, as another program might."""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "missing_usages", lambda _: ())
        network = RealNetwork(identity)
    monkeypatch.setattr("shared.ports.tls.check_own_validity", lambda _: None)
    return network


@pytest.mark.parametrize("kind", WRONG)
async def test_wrong_certificate_of_a_client(
    kind: str, ca: Authority, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1-A5: refused by the server, which says what is wrong, and the client learns it too."""
    make, says, learns = WRONG[kind]
    network = unchecked(monkeypatch, make(ca, Authority(ca.folder, "foreign")))
    async with server:
        error = await refused_later(network, server.address)
        assert isinstance(error, ForbiddenError)
        for text in (f"127.0.0.1:{server.address.port} refused our certificate", "bad.pem", *learns):
            assert text in str(error)
        refusal = await server.refusal()
        assert isinstance(refusal, ForbiddenError)
        for text in ("The certificate of 127.0.0.1:", *says):
            assert text in str(refusal)
        assert not server.accepting.links


@pytest.mark.parametrize("kind", WRONG)
async def test_wrong_certificate_of_a_server(
    kind: str, ca: Authority, client: RealNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by the client, which says what is wrong with it: names and dates included."""
    make, says, learns = WRONG[kind]
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "missing_usages", lambda _: ())
        server = Server(make(ca, Authority(ca.folder, "foreign")))
    async with server:
        with pytest.raises(ForbiddenError) as caught:
            await client.connect(server.address, timeout=10)
        for text in ("The certificate of 127.0.0.1:", "(bad)", *says):
            assert text in str(caught.value)
        refusal = await server.refusal()
        assert isinstance(refusal, ForbiddenError)
        for text in ("refused our certificate", *learns):
            assert text in str(refusal)
        assert not server.accepting.links


async def test_dates_of_a_servers_wrong_certificate_are_told(ca: Authority, client: RealNetwork) -> None:
    for starts, ends, expected in (
        (-3 * DAY, -2 * DAY, f"expired on {day(-2)}"),
        (2 * DAY, 3 * DAY, f"is not valid before {day(2)}"),
    ):
        async with Server(ca.issue("bad", starts=starts, ends=ends)) as server:
            with pytest.raises(ForbiddenError, match=expected) as caught:
                await client.connect(server.address, timeout=10)
            assert day(0) in str(caught.value)
            assert "clock" in caught.value.remedy


@pytest.mark.parametrize("usage", BOTH)
async def test_certificate_for_one_role_only(
    ca: Authority, client: RealNetwork, server: Server, usage: x509.ObjectIdentifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles swap at a failover: a certificate that would fail then is refused now, on both sides."""
    identity = ca.issue("bad", usages=[usage])
    with pytest.raises(UsageError, match="lacks the extended key usage"):
        RealNetwork(identity)
    network = unchecked(monkeypatch, identity)
    async with server:
        assert await refused_later(network, server.address) is not None
        assert isinstance(await server.refusal(), ForbiddenError)
        assert not server.accepting.links
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "missing_usages", lambda _: ())
        bad = Server(identity)
    async with bad:
        with pytest.raises(ForbiddenError, match="Auth"):
            await client.connect(bad.address, timeout=10)


async def test_certificate_without_usages_is_refused(
    ca: Authority, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For OpenSSL no extended key usage means every use."""
    network = unchecked(monkeypatch, ca.issue("bad", usages=None))
    async with server:
        await refused_later(network, server.address)
        assert "serverAuth, clientAuth" in str(await server.refusal())
        assert not server.accepting.links


async def test_chain_with_its_intermediate_ca_is_accepted(ca: Authority, client: RealNetwork) -> None:
    intermediate = Authority(ca.folder, "intermediate", ca)
    identity = intermediate.issue("server", chain=intermediate.pem, ca=ca.path)
    async with connected(LOOPBACK, client, RealNetwork(identity)):
        pass


async def test_intermediate_ca_alone_can_be_trusted(ca: Authority, client: RealNetwork) -> None:
    intermediate = Authority(ca.folder, "intermediate", ca)
    trusting = RealNetwork(intermediate.issue("client"))
    async with Server(intermediate.issue("server", chain=intermediate.pem)) as server:
        (await trusting.connect(server.address, timeout=10)).abort()


async def test_own_expired_certificate_is_told_before_dialling(ca: Authority) -> None:
    expired = RealNetwork(ca.issue("bad", starts=-3 * DAY, ends=-2 * DAY))
    with pytest.raises(ForbiddenError, match=rf"Our certificate .*bad\.pem expired on {day(-2)}"):
        await expired.connect(Address("127.0.0.1", 9, tls=True), timeout=5)
    early = RealNetwork(ca.issue("bad", starts=2 * DAY, ends=3 * DAY))
    with pytest.raises(ForbiddenError, match=f"valid from {day(2)}") as caught:
        await early.connect(Address("127.0.0.1", 9, tls=True), timeout=5)
    assert "clock" in caught.value.remedy


# --- revocation ---


async def test_revoked_client_is_refused(ca: Authority, client: RealNetwork) -> None:
    revoked = ca.issue("bad")
    crl = ca.revoke(revoked)
    async with Server(ca.issue("server", crl=crl)) as server:
        error = await refused_later(RealNetwork(revoked), server.address)
        assert isinstance(error, ForbiddenError)
        assert "revoked" in str(error)
        assert "revoked" in str(await server.refusal())
        (await client.connect(server.address, timeout=10)).abort()
        await server.accepting.next()


async def test_revoked_server_is_refused(ca: Authority) -> None:
    revoked = ca.issue("bad")
    crl = ca.revoke(revoked)
    async with Server(revoked) as server:
        with pytest.raises(ForbiddenError, match=r"\(bad\) is revoked"):
            await RealNetwork(ca.issue("client", crl=crl)).connect(server.address, timeout=10)


async def test_outdated_revocation_list_refuses_everybody(ca: Authority, client: RealNetwork) -> None:
    crl = ca.revoke(ends=-DAY)
    async with Server(ca.issue("server", crl=crl)) as server:
        assert isinstance(await refused_later(client, server.address), ForbiddenError)
        refusal = await server.refusal()
        assert "CRL has expired" in str(refusal)
        assert str(crl) in str(refusal)


async def test_revocation_list_of_another_ca_refuses_everybody(ca: Authority, client: RealNetwork) -> None:
    crl = Authority(ca.folder, "foreign").revoke()
    async with Server(ca.issue("server", crl=crl)) as server:
        assert isinstance(await refused_later(client, server.address), ForbiddenError)
        assert "can't be checked for revocation" in str(await server.refusal())


def test_missing_revocation_list_fails_closed(ca: Authority) -> None:
    with pytest.raises(UsageError, match=r"revocation list .*missing\.pem can't be used: No such file"):
        RealNetwork(ca.issue("server", crl=ca.folder / "missing.pem"))
    with pytest.raises(UsageError, match="holds no revocation list"):
        RealNetwork(ca.issue("server", crl=ca.path))


# --- other programs ---


def raw_context(ca: Authority, identity: TlsIdentity | None, alpn: list[str] | None = None) -> ssl.SSLContext:
    """A client of another program, which does not verify anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    return context


def exchange(address: Address, context: ssl.SSLContext | None, first: bytes = b"hello") -> bytes:
    """Connect in a thread, say something, read all; raises what the socket raises."""
    with socket.create_connection((address.host, address.port), timeout=20) as plain:
        if context is None:
            plain.sendall(first)
            return read_all(plain)
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            secure.sendall(first)
            return read_all(secure)


def read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(65536):
        data += piece
    return bytes(data)


async def test_client_without_certificate(ca: Authority, server: Server) -> None:
    async with server:
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            await asyncio.to_thread(exchange, server.address, raw_context(ca, None, [ALPN]))
        assert "showed no certificate" in str(await server.refusal())
        assert not server.accepting.links


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_older_version_is_refused(ca: Authority, server: Server, version: ssl.TLSVersion) -> None:
    """A7."""
    context = raw_context(ca, ca.issue("client"), [ALPN])
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with server:
        with pytest.raises(ssl.SSLError, match="(?i)protocol.version"):
            await asyncio.to_thread(exchange, server.address, context)
        refusal = await server.refusal()
        assert isinstance(refusal, ForbiddenError)
        assert "does not offer TLS 1.3" in str(refusal)


@pytest.mark.parametrize("alpn", [None, ["h2", "http/1.1"], ["vmreplica/2"], ["vmreplica"]])
async def test_missing_or_other_application_protocol(ca: Authority, server: Server, alpn: list[str] | None) -> None:
    async with server:
        with contextlib.suppress(OSError):
            answer = await asyncio.to_thread(exchange, server.address, raw_context(ca, ca.issue("client"), alpn))
            assert answer == b""
        assert f"not the protocol {ALPN}" in str(await server.refusal())
        assert not server.accepting.links


async def test_our_protocol_among_others_is_found(ca: Authority, server: Server) -> None:
    async with server:
        exchanging = asyncio.create_task(
            asyncio.to_thread(exchange, server.address, raw_context(ca, ca.issue("client"), ["h2", ALPN]))
        )
        link = await server.accepting.next()
        collector = Collector()
        link.attach(collector)
        assert await collector.wait(5) == b"hello"
        link.write(b"and goodbye")
        link.close()
        assert await exchanging == b"and goodbye"


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"VR" + bytes(30), b"\x16\x03\x01\xff\xff", bytes(100_000)]
)
async def test_plaintext_on_the_port(server: Server, first: bytes) -> None:
    async with server:
        sending = asyncio.create_task(asyncio.to_thread(exchange, server.address, None, first))
        refusal = await server.refusal()
        assert isinstance(refusal, ForbiddenError | UnreachableError)
        with contextlib.suppress(OSError):
            assert len(await sending) < 100
        assert not server.accepting.links


async def test_server_without_tls_is_named(client: RealNetwork) -> None:
    async def chatter(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n" * 10)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    other = await asyncio.start_server(chatter, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    with pytest.raises(ForbiddenError, match=f"127.0.0.1:{port} does not speak TLS"):
        await client.connect(Address("127.0.0.1", port, tls=True), timeout=10)
    other.close()
    await other.wait_closed()


async def test_server_of_another_protocol_is_named(ca: Authority, client: RealNetwork) -> None:
    context = load_contexts(ca.issue("server")).server
    context.set_alpn_protocols(["h2"])
    context.verify_mode = ssl.CERT_NONE
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = other.sockets[0].getsockname()[1]
    with pytest.raises(ForbiddenError, match="not the protocol vmreplica/1"):
        await client.connect(Address("127.0.0.1", port, tls=True), timeout=10)
    other.close()
    await other.wait_closed()


async def test_server_that_hangs_up_is_unreachable(client: RealNetwork) -> None:
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}"):
        await client.connect(Address("127.0.0.1", port, tls=True), timeout=10)
    other.close()
    await other.wait_closed()


# --- resumption, renegotiation ---


async def test_no_session_can_be_resumed(ca: Authority, server: Server) -> None:
    """A8: a resumed session would skip the check of the certificate."""
    context = raw_context(ca, ca.issue("client"), [ALPN])

    def talk(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection((server.address.host, server.address.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
        ):
            secure.sendall(b"hello")
            # A ticket would come before the answer.
            assert secure.recv(100) == b"answer"
            return secure.session, secure.session_reused

    def answer(link: Link) -> None:
        server.accepting(link)
        link.attach(Collector())
        link.write(b"answer")

    listener = await server.network.listen(LOOPBACK, answer)
    server.listener = listener
    session, _ = await asyncio.to_thread(talk, None)
    assert session is None or not session.has_ticket
    _, reused = await asyncio.to_thread(talk, session)
    assert reused is False
    await listener.close()
    await server.accepting.end()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.parametrize("letter, flood", [("K", True), ("k", False)], ids=["that want answers", "that want none"])
async def test_key_updates(ca: Authority, server: Server, letter: str, flood: bool) -> None:
    """A few are well; a peer that asks for answers without an end, and need not read them, is ended."""
    async with server:
        identity = ca.issue("client")
        words = ["-connect", str(server.address), "-servername", "localhost", "-alpn", ALPN, "-CAfile", identity.ca]
        words += ["-cert", identity.certificate, "-key", identity.key]
        client = await asyncio.create_subprocess_exec(
            "openssl", "s_client", *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert client.stdin is not None
        link = await server.accepting.next()
        collector = Collector()
        link.attach(collector)
        for _ in range(20):
            # One command for each read of its input.
            client.stdin.write(f"{letter}\n".encode())
            await client.stdin.drain()
            await asyncio.sleep(0.005)
        client.stdin.write(b"hello\n")
        assert await collector.wait(6) == b"hello\n"
        losing = asyncio.create_task(collector.wait_lost())
        for _ in range(5000 if flood else 0):
            if losing.done():
                break
            with contextlib.suppress(ConnectionError):
                client.stdin.write(b"K\n")
                await client.stdin.drain()
            await asyncio.sleep(0.002)
        if flood:
            assert losing.done()
            assert "key updates without an end" in str(await losing)
        else:
            link.write(b"still here")
            link.close()
            await losing
        client.stdin.close()
        await client.wait()


# --- floods and slowness ---


async def test_handshake_that_never_ends_is_ended(ca: Authority) -> None:
    async with Server(ca.issue("server"), handshake_seconds=0.2) as server:
        with socket.create_connection((server.address.host, server.address.port)) as silent:
            silent.settimeout(20)
            refusal = await server.refusal()
            assert isinstance(refusal, UnreachableError)
            assert "did not finish the TLS handshake within 0.2 s" in str(refusal)
            assert await asyncio.to_thread(silent.recv, 100) == b""


async def test_handshake_byte_by_byte_is_bounded_too(ca: Authority) -> None:
    async with Server(ca.issue("server"), handshake_seconds=0.3) as server:
        with socket.create_connection((server.address.host, server.address.port)) as slow:
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(500)
            refusing = asyncio.create_task(server.refusal())
            for byte in hello:
                if refusing.done():
                    break
                with contextlib.suppress(OSError):
                    slow.send(bytes([byte]))
                await asyncio.sleep(0.01)
            assert isinstance(await refusing, UnreachableError)


async def test_silent_server_is_unreachable_in_time(ca: Authority) -> None:
    impatient = RealNetwork(ca.issue("client"), handshake_seconds=0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UnreachableError, match="did not finish the TLS handshake"):
            await impatient.connect(Address("127.0.0.1", silent.getsockname()[1], tls=True), timeout=10)


async def test_half_open_connections_are_capped_and_a_peer_still_gets_in(ca: Authority, client: RealNetwork) -> None:
    """A16: the flood ends its own connections; whoever finishes the handshake gets in."""
    async with Server(ca.issue("server"), half_open_max=8, handshake_seconds=30) as server:
        flood = []
        for _ in range(50):
            connection = socket.create_connection((server.address.host, server.address.port))
            connection.setblocking(False)
            flood.append(connection)
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while server.network.admission.half_open < 8 or server.refusals.qsize() < 42:
                await asyncio.sleep(0.01)
                assert server.network.admission.half_open <= 8
        near = await client.connect(server.address, timeout=10)
        far = await server.accepting.next()
        collector = Collector()
        far.attach(collector)
        near.write(b"in")
        await collector.wait(2)
        # Who got in is half-open no longer, and is not ended by the rest of the flood.
        assert server.network.admission.half_open < 8
        for _ in range(20):
            flood.append(socket.create_connection((server.address.host, server.address.port)))
            await asyncio.sleep(0)
        near.write(b" and stays")
        assert await collector.wait(12) == b"in and stays"
        near.abort()
        for connection in flood:
            connection.close()


async def test_cancelled_connect_leaves_nothing_open(ca: Authority, client: RealNetwork) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        connecting = asyncio.create_task(
            client.connect(Address("127.0.0.1", silent.getsockname()[1], tls=True), timeout=10)
        )
        accepted = await asyncio.to_thread(silent.accept)
        await asyncio.sleep(0.05)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        accepted[0].settimeout(20)
        await asyncio.to_thread(read_all, accepted[0])
        accepted[0].close()


async def test_refusals_are_logged_without_a_flood(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, object]] = []

    class Log:
        def warning(self, event: str, **fields: object) -> None:
            lines.append({"event": event, **fields})

    monkeypatch.setattr("shared.ports.network._log", Log())
    network = RealNetwork(ca.issue("server"))
    listener = await network.listen(LOOPBACK, Accepting())
    for _ in range(5):
        with contextlib.suppress(OSError):
            await asyncio.to_thread(exchange, listener.address, None, b"GET / HTTP/1.1\r\n\r\n")
    assert len(lines) == 1
    assert lines[0]["event"] == "connection refused"
    network._reported = float("-inf")
    with contextlib.suppress(OSError):
        await asyncio.to_thread(exchange, listener.address, None, b"GET / HTTP/1.1\r\n\r\n")
    assert lines[1]["left_out"] == 4
    await listener.close()


# --- reload ---


async def test_reload_changes_new_connections_only(tmp_path: Path) -> None:
    """A9: CA and certificate are exchanged while a link goes on."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new", "other CA")
    files = old.issue("server")
    server = Server(files)
    old_client, new_client = RealNetwork(old.issue("client")), RealNetwork(new.issue("client"))
    async with server:
        near = await old_client.connect(server.address, timeout=10)
        far = await server.accepting.next()
        with pytest.raises(ForbiddenError):
            await new_client.connect(server.address, timeout=10)
        fresh = new.issue("server")
        for target, source in ((files.ca, fresh.ca), (files.certificate, fresh.certificate), (files.key, fresh.key)):
            Path(target).write_bytes(Path(source).read_bytes())
        server.network.reload_tls()
        (await new_client.connect(server.address, timeout=10)).abort()
        with pytest.raises(ForbiddenError, match="other CA"):
            await old_client.connect(server.address, timeout=10)
        collector = Collector()
        far.attach(collector)
        near.write(b"undisturbed")
        assert await collector.wait(11) == b"undisturbed"
        near.abort()


async def test_reload_that_fails_changes_nothing(ca: Authority, client: RealNetwork, server: Server) -> None:
    async with server:
        (ca.folder / "server-key.pem").write_text("garbage")
        with pytest.raises(UsageError, match=r"server-key\.pem"):
            server.network.reload_tls()
        (await client.connect(server.address, timeout=10)).abort()
        await server.accepting.next()


async def test_address_with_tls_needs_an_identity() -> None:
    with pytest.raises(UsageError, match="no certificate is configured"):
        await RealNetwork().connect(Address("127.0.0.1", 1, tls=True), timeout=1)
    with pytest.raises(UsageError, match="no certificate is configured"):
        await RealNetwork().listen(LOOPBACK, Accepting())


async def test_write_during_loss_is_harmless(client: RealNetwork, server: Server) -> None:
    async with connected(LOOPBACK, client, server.network) as (near, far):
        collector = Collector()
        near.attach(collector)
        far.abort()
        for _ in range(100):
            near.write(bytes(100_000))
            await asyncio.sleep(0)
        await collector.wait_lost()
        near.write(b"x")
        near.close()
        near.abort()
        assert isinstance(near, StreamLink)
