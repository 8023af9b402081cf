"""Tests that a peer accepted once is judged again: by CAs and lists that were loaded since, and by the time."""

from __future__ import annotations

import dataclasses
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from shared.certificates import split_lists
from shared.errors import ForbiddenError, UsageError
from shared.ports import Address, Peer
from shared.ports.network import RealNetwork
from shared.ports.tls import TlsIdentity, load_contexts
from shared.ports.tls_trust import TlsTrust
from shared.ports.trust import Trust
from tests.unit.ports.authority import DAY, Authority
from tests.unit.ports.collecting import Collector, connected

LOOPBACK = Address("127.0.0.1", tls=True)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def peers(one: TlsIdentity, other: TlsIdentity) -> tuple[Peer, Peer]:
    """What each of the two says of the other after a handshake."""
    async with connected(LOOPBACK, RealNetwork(one), RealNetwork(other)) as (near, far):
        near.attach(Collector())
        far.attach(Collector())
        return far.peer, near.peer


def objection(identity: TlsIdentity, peer: Peer) -> str:
    """What a host that loads its files now says of the peer; empty if nothing."""
    found = load_contexts(identity).trust.objection(peer)
    assert found is None or found.remedy
    return str(found or "")


async def test_verified_chain_of_both_sides_is_kept(ca: Authority) -> None:
    middle = Authority(ca.folder, "middle", ca)
    client, server = await peers(middle.issue("client", chain=middle.pem, ca=ca.path), ca.issue("server"))
    assert [subject(each) for each in client.certificates] == ["client", "middle", "test CA"]
    assert [subject(each) for each in server.certificates] == ["server", "test CA"]
    assert (client.issuer, server.issuer) == ("middle", "test CA")
    assert client.not_before < datetime.now(UTC).timestamp() < client.not_after


def subject(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).subject.rfc4514_string().removeprefix("CN=")


async def test_ca_that_was_removed(ca: Authority, tmp_path: Path) -> None:
    both, mine = tmp_path / "both.pem", Authority(tmp_path / "next", "next CA")
    both.write_bytes(ca.pem + mine.pem)
    server = mine.issue("server", ca=both)
    client, _ = await peers(ca.issue("client", ["client.example"], ca=both), server)
    assert objection(server, client) == ""
    both.write_bytes(mine.pem)
    said = objection(server, client)
    assert "(client.example) is from a CA, test CA, that" in said
    assert "both.pem does not hold any more" in said and "pki renew" in said


async def test_ca_that_was_renewed_with_its_key_is_still_trusted(ca: Authority, tmp_path: Path) -> None:
    server = ca.issue("server")
    client, _ = await peers(ca.issue("client"), server)
    again = Authority(tmp_path / "again", ca.name, key=ca.key)
    assert again.pem != ca.pem
    Path(server.ca).write_bytes(again.pem)
    assert objection(server, client) == ""
    other = Authority(tmp_path / "other", ca.name)
    Path(server.ca).write_bytes(other.pem)
    assert "does not hold any more" in objection(server, client)


async def test_intermediate_ca_may_stay_as_the_anchor(ca: Authority, tmp_path: Path) -> None:
    middle = Authority(tmp_path / "middle", "middle", ca)
    server = ca.issue("server")
    client, _ = await peers(middle.issue("client", chain=middle.pem, ca=ca.path), server)
    Path(server.ca).write_bytes(middle.pem)
    assert objection(server, client) == ""


async def test_certificate_that_was_revoked(ca: Authority) -> None:
    crl = ca.revoke()
    mine, yours = ca.issue("server", crl=crl), ca.issue("client", crl=crl)
    client, server = await peers(yours, mine)
    assert objection(mine, client) == objection(yours, server) == ""
    ca.revoke(yours)
    assert "is revoked (" in objection(mine, client)
    assert objection(yours, server) == ""
    ca.revoke(mine)
    assert "is revoked (" in objection(yours, server)
    assert objection(mine, client) == ""


async def test_lists_that_cannot_tell_object_to_everybody(ca: Authority) -> None:
    crl = ca.revoke()
    mine = ca.issue("server", crl=crl)
    client, _ = await peers(ca.issue("client"), mine)
    ca.revoke(ends=-DAY)
    assert "ran out" in objection(mine, client)
    foreign = Authority(ca.folder / "foreign")
    crl.write_bytes(foreign.revoke().read_bytes())
    # A CA of the same name: its list is none of ours.
    assert "no revocation list of the CA test CA" in objection(mine, client)
    crl.write_bytes(foreign.revoke().read_bytes() + ca.revoke(file_name="again.pem").read_bytes())
    assert objection(mine, client) == ""


async def test_newest_of_several_lists_counts(ca: Authority, tmp_path: Path) -> None:
    crl = tmp_path / "crl.pem"
    yours = ca.issue("client")
    older, newer = ca.revoke(yours, file_name="a.pem", made=-2 * DAY), ca.revoke(file_name="b.pem", made=-DAY)
    crl.write_bytes(newer.read_bytes() + older.read_bytes())
    mine = ca.issue("server", crl=crl)
    client, _ = await peers(yours, mine)
    assert objection(mine, client) == ""


@pytest.mark.parametrize(
    "later, words", [(DAY / 2, ""), (2 * DAY, "expired on"), (40 * DAY, "expired on")], ids=["now", "leaf", "all"]
)
async def test_session_that_outlives_its_certificate(ca: Authority, later: timedelta, words: str) -> None:
    mine = ca.issue("server")
    client, _ = await peers(ca.issue("client"), mine)
    found = at(mine, later).objection(client)
    assert words in str(found or "") and (found is None) == (not words)


async def test_session_that_outlives_its_ca(ca: Authority) -> None:
    mine = ca.issue("server", ends=90 * DAY)
    client, _ = await peers(ca.issue("client", ends=90 * DAY), mine)
    assert "is from the CA test CA, which expired on" in str(at(mine, 40 * DAY).objection(client))


def at(identity: TlsIdentity, later: timedelta) -> TlsTrust:
    """What a host trusts, as it will be at that time."""
    lists = list(split_lists(Path(identity.crl).read_bytes())) if identity.crl else None
    authorities = x509.load_pem_x509_certificates(Path(identity.ca).read_bytes())
    own = x509.load_pem_x509_certificates(Path(identity.certificate).read_bytes())
    wall = (datetime.now(UTC) + later).timestamp
    return TlsTrust(identity.ca, authorities, identity.crl, lists, identity.certificate, own, wall=wall)


async def test_changed_list_is_noticed(ca: Authority) -> None:
    crl = ca.revoke()
    yours, mine = ca.issue("client"), ca.issue("server", crl=crl)
    client, server = RealNetwork(yours), RealNetwork(mine)
    async with connected(LOOPBACK, client, server) as (near, far):
        near.attach(Collector())
        far.attach(Collector())
        assert not server.has_other_crl()
        assert server.trust.objection(far.peer) is None
        fresh = ca.revoke(yours, file_name="fresh.pem")
        os.replace(fresh, crl)
        assert server.has_other_crl()
        server.reload_tls()
        found = server.trust.objection(far.peer)
        assert isinstance(found, ForbiddenError) and "revoked" in found.text
        assert not server.has_other_crl()
        crl.write_text("half of a li")
        for _ in range(2):
            # It is tried again, and what was loaded stays in force.
            assert server.has_other_crl()
            with pytest.raises(UsageError, match=r"crl\.pem"):
                server.reload_tls()
            assert server.trust.objection(far.peer) is not None
        crl.unlink()
        assert server.has_other_crl()


async def test_chain_that_can_not_be_read_is_objected_to(ca: Authority) -> None:
    mine = ca.issue("server")
    client, _ = await peers(ca.issue("client"), mine)
    broken = dataclasses.replace(client, certificates=(client.certificates[0], b"no certificate"))
    Path(mine.ca).write_bytes(Authority(ca.folder / "next", "next CA").pem)
    assert "can't be read" in objection(mine, broken)


def test_own_certificate_of_a_ca_that_nobody_holds_is_complained_about(ca: Authority, tmp_path: Path) -> None:
    mine = ca.issue("server", ca=Authority(tmp_path / "next", "next CA").path)
    ((text, remedy),) = load_contexts(mine).trust.complaints()
    assert "is from a CA, test CA, that" in text and "refuse it" in text and "pki renew" in remedy
    assert load_contexts(ca.issue("server")).trust.complaints() == ()


def test_ca_without_a_list_is_complained_about(ca: Authority, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(ca.pem + Authority(tmp_path / "next", "next CA").pem)
    ((text, remedy),) = load_contexts(ca.issue("server", crl=ca.revoke(), ca=both)).trust.complaints()
    assert "no revocation list of the CA next CA" in text and "pki bundle" in remedy


def test_network_without_certificates_objects_to_nobody() -> None:
    trust = RealNetwork().trust
    assert type(trust) is Trust
    assert (trust.objection(Peer(address="x")), trust.credentials(), trust.complaints()) == (None, (), ())
