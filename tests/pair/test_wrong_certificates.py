"""Wrong certificates at the ports of real agents: who shows one learns nothing and changes nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocol.messages import Open, Role, WireDisk
from protocol.session import Identity, PrimarySession
from shared.channel import Channel, ChannelClosed
from shared.ports import Address
from shared.ports.clock import RealClock
from shared.ports.network import RealNetwork
from shared.ports.tls import ALPN, TlsIdentity
from tests.pair.hosts import MIB, VM, Hosts
from tests.unit.ports.authority import DAY, Authority

pytestmark = pytest.mark.slow
Make = Callable[[Authority], TlsIdentity]

WRONG: dict[str, tuple[Make, str, str]] = {
    # How to make it; the alert that a client with it gets; what a primary says of a server with it.
    "foreign CA": (lambda ca: Authority(ca.folder, "foreign").issue("bad", ca=ca.path), "UNKNOWN_CA", "is from a CA"),
    "self-signed": (lambda ca: ca.issue("bad", self_signed=True), "UNKNOWN_CA", "is from a CA"),
    "expired": (lambda ca: ca.issue("bad", starts=-3 * DAY, ends=-2 * DAY), "CERTIFICATE_EXPIRED", "expired on"),
    "not yet valid": (lambda ca: ca.issue("bad", starts=2 * DAY, ends=3 * DAY), "", "is not valid before"),
    "usage for neither role": (
        lambda ca: ca.issue("bad", usages=[ExtendedKeyUsageOID.CODE_SIGNING]),
        "UNSUPPORTED_CERTIFICATE",
        "not made for this use",
    ),
    # What OpenSSL has no objection to is refused after the handshake, without an alert.
    "usage for one role": (lambda ca: ca.issue("bad", usages=[ExtendedKeyUsageOID.SERVER_AUTH]), "", "Auth"),
}


@pytest.fixture
def ca(hosts: Hosts) -> Authority:
    """The authority of both hosts, which are prepared with certificates of it."""
    hosts.prepare(cuttable=False)
    ca = Authority(hosts.folder / "authority")
    for host in ("alpha", "localhost"):
        install(hosts, host, ca.issue(host, [host]))
    return ca


def install(hosts: Hosts, host: str, identity: TlsIdentity) -> None:
    folder = hosts.folder / "pki" / host
    for source, name in ((identity.ca, "ca"), (identity.certificate, "certificate"), (identity.key, "key")):
        (folder / f"{name}.pem").write_bytes(Path(source).read_bytes())


def context(identity: TlsIdentity | None, protocol: int = ssl.PROTOCOL_TLS_CLIENT) -> ssl.SSLContext:
    """Another program's TLS, which does not look at its own certificate first and trusts everybody."""
    made = ssl.SSLContext(protocol)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.set_alpn_protocols([ALPN])
    if identity is not None:
        made.load_cert_chain(identity.certificate, identity.key)
    return made


def knock(port: int, identity: TlsIdentity | None) -> tuple[bytes, str]:
    """Connect as far as it goes and greet; what is answered, and the alert at the end."""
    answered = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        try:
            with context(identity).wrap_socket(line) as link:
                # The handshake is over for the client before the server has looked at its certificate.
                link.sendall(hello())
                while data := link.recv(1 << 16):
                    answered += data
        except ssl.SSLError as error:
            return answered, str(error.reason)
        except ConnectionError as error:
            return answered, type(error).__name__
    return answered, ""


def hello() -> bytes:
    """The first frame of a primary."""
    session = PrimarySession(Identity("test", "mallory"))
    return b"".join(bytes(piece) for piece in session.send(session.hello()))


def test_replica_answers_no_certificate_but_the_right_ones(hosts: Hosts, ca: Authority) -> None:
    """A1-A5, I19: an alert and the end, before a single byte of the protocol."""
    hosts.start("replica")
    good = ca.issue("good", ["good.example"])
    answered, _ = knock(hosts.port, good)
    assert answered, "a valid certificate is greeted, although it may do nothing"
    for kind, (make, alert, _) in WRONG.items():
        answered, reason = knock(hosts.port, make(ca))
        assert answered == b"", kind
        assert alert in reason, (kind, reason)
    answered, reason = knock(hosts.port, None)
    assert (answered, "CERTIFICATE_REQUIRED" in reason) == (b"", True), reason
    assert hosts.call("replica", "status")["vms"] == []
    # On record: the first at once; the others of the minute are one line, at the end of the agent if not before.
    hosts.stop()
    lines = (hosts.folder / "replica" / "audit.jsonl").read_text().splitlines()
    refused = [entry for entry in map(json.loads, lines) if entry["verb"] == "peer.refused"]
    assert [entry["result"] for entry in refused] == ["forbidden"] * len(refused)
    assert sum(1 + entry["left_out"] for entry in refused) == len(WRONG) + 1
    assert "is from a CA" in refused[0]["text"] and refused[0]["source"].startswith("127.0.0.1:")


@contextlib.contextmanager
def server_with(identity: TlsIdentity) -> Iterator[int]:
    """A TLS server with this certificate; its port."""
    made = context(identity, ssl.PROTOCOL_TLS_SERVER)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    with contextlib.suppress(OSError), made.wrap_socket(line, server_side=True) as link:
                        link.recv(1)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_primary_refuses_every_replica_but_the_right_one(hosts: Hosts, ca: Authority) -> None:
    """A1-A5: it says what is wrong, with a remedy, and never gets as far as to name a VM."""
    hosts.start("primary")
    name: Make = lambda ca: ca.issue("bad", ["other.example"])  # noqa: E731
    wrong = {**WRONG, "wrong name": (name, "", "not for the name we dialled, localhost")}
    for kind, (make, _, words) in wrong.items():
        with server_with(make(ca)) as port:
            report = hosts.call("primary", "test_connection", replica=f"localhost:{port}")
        last = report["steps"][-1]
        assert (report["ok"], last["name"], last["ok"]) == (False, "tls", False), kind
        assert words in last["text"] and last["remedy"], (kind, last)


async def answer(port: int, identity: TlsIdentity, vm: UUID, role: Role = Role.CONTROL) -> tuple[str, str]:
    """What the replica answers to an OPEN for this VM: code and text."""
    link = await RealNetwork(identity).connect(Address(host="localhost", port=port, tls=True), timeout=60)
    channel = Channel(link, PrimarySession(Identity("test", "alpha")), RealClock())
    try:
        await channel.greet()
        disks = [WireDisk(index=0, uuid=bytes(15) + b"\1", size=MIB)] if role is not Role.PROBE else []
        channel.send(Open(role=role, vm=vm.bytes, name="vm", disks=disks, epoch=bytes(16)))
        with pytest.raises(ChannelClosed) as ended:
            while True:
                await channel.receive()
        return str(ended.value.code), ended.value.text
    finally:
        channel.abort()


async def test_unknown_and_forbidden_are_answered_alike(hosts: Hosts, ca: Authority) -> None:
    """I19: a certificate without an entry, or with one for other VMs, does not learn which VMs exist."""
    hosts.make_disks(MIB)
    mine, nobodys = UUID(int=1 << 100 | 77), UUID(int=1 << 100 | 78)
    stranger, neighbour = ca.issue("stranger", ["stranger.example"]), ca.issue("neighbour", ["neighbour.example"])
    with (hosts.folder / "replica.toml").open("a") as file:
        store = hosts.folder / "neighbours"
        file.write(f'[[authorize]]\nname = "neighbour.example"\nvms = ["{UUID(int=1 << 100 | 79)}"]\n')
        file.write(f'storage = "{store}"\n')
    hosts.start_both()
    hosts.call(
        "primary", "vm.enable", name=VM, uuid=str(mine), disks=[str(hosts.disks[0])],
        replica=f"localhost:{hosts.port}", log_limit_bytes=64 * MIB,
    )  # fmt: skip
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    answers = {
        (who.certificate, vm, role): await answer(hosts.port, who, vm, role)
        for who in (stranger, neighbour)
        for vm in (mine, nobodys)
        for role in Role
    }
    assert len(set(answers.values())) == 1, answers
    ((code, text),) = set(answers.values())
    assert code == "unauthorized"
    assert str(mine) not in text and VM not in text
    seen = [entry for entry in hosts.call("replica", "audit", limit=100)["entries"] if entry["verb"] == "peer.refused"]
    assert {tuple(entry["params"]["names"]) for entry in seen} == {("stranger.example",), ("neighbour.example",)}
    assert {entry["result"] for entry in seen} == {"unauthorized"}
    told = [each for each in hosts.call("replica", "agent.events", limit=100)["events"] if each["event"] == 60207]
    assert len(told) == 1, "one event for an address"
    # The one that is entitled was not disturbed.
    assert hosts.status("primary")["link"]["connected"]
    listed = subprocess.run(["find", str(store)], capture_output=True, text=True, check=False).stdout
    assert str(nobodys) not in listed and str(mine) not in listed
