"""Tests of the private CA: what it makes is accepted by OpenSSL and by our own TLS, and nothing is overwritten."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from shared import certificates, pki
from shared.errors import NotFoundError, UsageError
from shared.ports import Address
from shared.ports.network import RealNetwork
from shared.ports.tls import TlsIdentity
from tests.unit.ports.collecting import connected

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    pki.init_ca(tmp_path / "ca")
    return tmp_path / "ca"


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def openssl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)


def identity(folder: Path) -> TlsIdentity:
    return TlsIdentity(*(str(folder / name) for name in (pki.CA, pki.CERTIFICATE, pki.KEY, pki.CRL)))


async def test_two_hosts_can_talk(ca: Path, tmp_path: Path) -> None:
    """A working CA and certificates for two hosts in two calls."""
    first, second = pki.issue_hosts(ca, [["alpha.example"], ["beta.example", "127.0.0.1"]], tmp_path / "hosts")
    assert first.folder == tmp_path / "hosts" / "alpha.example"
    client, server = RealNetwork(identity(first.folder)), RealNetwork(identity(second.folder))
    async with connected(Address("127.0.0.1", tls=True), client, server) as (near, far):
        assert near.peer.fingerprint == second.fingerprint
        assert near.peer.names == second.names == ("beta.example", "127.0.0.1")
        assert far.peer.fingerprint == first.fingerprint


@needs_openssl
@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
def test_openssl_accepts_the_certificate_in_both_roles(ca: Path, tmp_path: Path, purpose: str) -> None:
    pki.issue(ca, ["alpha.example"], tmp_path / "out")
    done = openssl(
        *("verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", "alpha.example", "-crl_check"),
        *("-CAfile", str(ca / pki.CA), "-CRLfile", str(ca / pki.CRL), str(tmp_path / "out" / pki.CERTIFICATE)),
    )
    assert done.returncode == 0, done.stderr


def test_certificate_has_what_is_demanded(ca: Path, tmp_path: Path) -> None:
    issued = pki.issue(ca, ["Alpha.example", "10.0.0.1", "fd00::1", "Alpha.example"], tmp_path / "out", now=NOW)
    certificate = load(tmp_path / "out" / pki.CERTIFICATE)
    assert issued.names == ("alpha.example", "10.0.0.1", "fd00::1")
    assert certificates.missing_usages(certificate) == ()
    assert not certificates.is_ca(certificate)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_before_utc == NOW - pki.BACKDATED
    assert certificate.not_valid_after_utc == issued.not_after == NOW + timedelta(days=825)
    assert issued.fingerprint == certificates.fingerprint(certificate)
    assert issued.fingerprint == pki.fingerprint((tmp_path / "out" / pki.CERTIFICATE).read_bytes())
    assert len(issued.fingerprint) == 64
    extensions = certificate.extensions
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert own != issuer
    assert issuer == load(ca / pki.CA).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.KeyUsage).critical


def test_ca_has_what_is_demanded(tmp_path: Path) -> None:
    fingerprint = pki.init_ca(tmp_path / "ca", "Our CA", now=NOW)
    certificate = load(tmp_path / "ca" / pki.CA)
    assert certificates.fingerprint(certificate) == fingerprint
    assert certificates.is_ca(certificate)
    assert certificates.common_name(certificate.subject) == "Our CA"
    assert certificate.not_valid_after_utc == NOW + timedelta(days=3652)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_certificate_never_outlives_its_ca(tmp_path: Path) -> None:
    pki.init_ca(tmp_path / "ca", now=NOW)
    late = NOW + pki.CA_LIFETIME - timedelta(days=10)
    issued = pki.issue(tmp_path / "ca", ["a"], tmp_path / "out", now=late)
    assert issued.not_after == NOW + pki.CA_LIFETIME


def test_only_certificates_are_readable_for_others(ca: Path, tmp_path: Path) -> None:
    pki.issue(ca, ["a"], tmp_path / "out")
    for path, mode in (
        (ca / pki.CA_KEY, 0o600),
        (ca, 0o700),
        (ca / pki.CA, 0o644),
        (tmp_path / "out" / pki.KEY, 0o600),
        (tmp_path / "out" / pki.CERTIFICATE, 0o644),
        (tmp_path / "out", 0o700),
    ):
        assert path.stat().st_mode & 0o777 == mode, path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", [pki.CA, pki.CA_KEY, pki.CRL])
def test_existing_ca_is_not_overwritten(ca: Path, name: str) -> None:
    for other in (pki.CA, pki.CA_KEY, pki.CRL, pki.ISSUED):
        if other != name:
            path = ca / other
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = tree(ca)
    with pytest.raises(UsageError, match=f"{name} exists already"):
        pki.init_ca(ca)
    assert tree(ca) == before


@pytest.mark.parametrize("name", [pki.CA, pki.CERTIFICATE, pki.KEY, pki.CRL])
def test_existing_identity_is_not_overwritten(ca: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(tmp_path / "nowhere")
    before = tree(ca)
    with pytest.raises(UsageError, match="exists already"):
        pki.issue(ca, ["a"], out)
    with pytest.raises(UsageError, match="exists already"):
        pki.issue_hosts(ca, [["fine"], ["out"]], tmp_path)
    assert tree(ca) == before
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "fine").exists()


@pytest.mark.parametrize(
    "name",
    ["", "a b", "*.example", "a..b", "-a.example", "a" * 64, ".".join(["a" * 60] * 5), "../x", "a/b", "é.example"],
)
def test_what_is_no_name_is_refused(ca: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="neither a DNS name nor an IP address"):
        pki.issue(ca, ["good", name], tmp_path / "out")
    with pytest.raises(UsageError, match="neither a DNS name nor an IP address"):
        pki.issue_hosts(ca, [["good"], [name]], tmp_path)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "good").exists()


def test_certificate_without_names_is_refused(ca: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one name"):
        pki.issue(ca, [], tmp_path / "out")


@pytest.mark.parametrize("length", [0, 65])
def test_senseless_name_of_a_ca_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(UsageError, match=f"{length} characters"):
        pki.init_ca(tmp_path / "ca", "x" * length)


def test_missing_ca_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"ca\.pem does not exist") as caught:
        pki.issue(tmp_path, ["a"], tmp_path / "out")
    assert "pki init" in caught.value.remedy


def test_key_of_another_ca_is_told(ca: Path, tmp_path: Path) -> None:
    pki.init_ca(tmp_path / "other")
    shutil.copy(tmp_path / "other" / pki.CA_KEY, ca / pki.CA_KEY)
    with pytest.raises(UsageError, match="is not the key of"):
        pki.issue(ca, ["a"], tmp_path / "out")


def revoked(ca: Path) -> list[str]:
    return [f"{entry.serial_number:x}" for entry in x509.load_pem_x509_crl((ca / pki.CRL).read_bytes())]


def test_revocation_by_serial_name_and_file(ca: Path, tmp_path: Path) -> None:
    issued = [pki.issue(ca, [f"host-{number}"], tmp_path / str(number)) for number in range(4)]
    assert pki.revoke(ca, issued[0].serial.upper()) == issued[0].serial
    assert pki.revoke(ca, "host-1") == issued[1].serial
    assert pki.revoke(ca, str(tmp_path / "2" / pki.CERTIFICATE)) == issued[2].serial
    # Once more is no error and changes nothing.
    before = (ca / pki.CRL).read_bytes()
    assert pki.revoke(ca, "host-1") == issued[1].serial
    assert (ca / pki.CRL).read_bytes() == before
    assert revoked(ca) == [each.serial for each in issued[:3]]


def test_revocation_by_name_means_the_newest_certificate(ca: Path, tmp_path: Path) -> None:
    pki.issue(ca, ["a"], tmp_path / "1", now=datetime.now(UTC) - timedelta(days=5))
    newest = pki.issue(ca, ["a"], tmp_path / "2")
    assert pki.revoke(ca, "a") == newest.serial


def test_certificate_of_somebody_else_is_not_revoked(ca: Path, tmp_path: Path) -> None:
    pki.init_ca(tmp_path / "other")
    pki.issue(tmp_path / "other", ["stranger"], tmp_path / "out")
    for which in ("stranger", "abcdef", str(tmp_path / "out" / pki.CERTIFICATE)):
        with pytest.raises(NotFoundError, match="has issued no certificate"):
            pki.revoke(ca, which)
    assert revoked(ca) == []


@needs_openssl
def test_openssl_refuses_a_revoked_certificate(ca: Path, tmp_path: Path) -> None:
    pki.issue(ca, ["a"], tmp_path / "out")
    pki.revoke(ca, "a")
    done = openssl(
        *("verify", "-crl_check", "-CAfile", str(ca / pki.CA), "-CRLfile", str(ca / pki.CRL)),
        str(tmp_path / "out" / pki.CERTIFICATE),
    )
    assert "certificate revoked" in done.stderr


def test_revocation_list_lasts_as_long_as_the_ca(ca: Path) -> None:
    crl = x509.load_pem_x509_crl((ca / pki.CRL).read_bytes())
    assert crl.next_update_utc == load(ca / pki.CA).not_valid_after_utc


# --- renewing and replacing ---


def test_renewed_certificate_has_the_same_names_and_key(ca: Path, tmp_path: Path) -> None:
    first = pki.issue(ca, ["alpha.example", "10.0.0.1"], tmp_path / "alpha", now=NOW)
    later = NOW + timedelta(days=800)
    (again,) = pki.renew(ca, ["alpha.example"], tmp_path / "out", now=later)
    assert again.folder == tmp_path / "out" / "alpha.example"
    assert [path.name for path in again.folder.iterdir()] == [pki.CERTIFICATE]
    assert (again.names, again.fingerprint) == (first.names, first.fingerprint)
    assert again.serial != first.serial and again.not_after == later + timedelta(days=825)
    # The copy is there, so that it can be revoked.
    assert pki.revoke(ca, again.serial) == again.serial
    with pytest.raises(UsageError, match="exists already"):
        pki.renew(ca, ["alpha.example"], tmp_path / "out", now=later)


async def test_ca_is_replaced_with_an_overlap(ca: Path, tmp_path: Path) -> None:
    """Each step of docs/certificates.md, on two hosts that go one after the other: they can talk at any time."""
    following = tmp_path / "next"
    hosts = [each.folder for each in pki.issue_hosts(ca, [["alpha"], ["beta", "127.0.0.1"]], tmp_path / "hosts")]
    pki.init_ca(following, "next CA")

    async def check() -> None:
        client, server = (RealNetwork(identity(host)) for host in hosts)
        async with connected(Address("127.0.0.1", tls=True), client, server):
            pass

    def copy(source: Path, host: Path, *names: str) -> None:
        for name in names:
            shutil.copyfile(source / name, host / name)

    await check()
    assert pki.bundle([ca, following], tmp_path / "both") == ["vmreplica CA", "next CA"]
    for host in hosts:
        copy(tmp_path / "both", host, pki.CA, pki.CRL)
        await check()
    made = pki.renew(following, [str(host / pki.CERTIFICATE) for host in hosts], tmp_path / "renewed")
    for fresh, host in zip(made, hosts, strict=True):
        copy(fresh.folder, host, pki.CERTIFICATE)
        await check()
    assert pki.bundle([following], tmp_path / "both") == ["next CA"]
    for host in hosts:
        copy(tmp_path / "both", host, pki.CA, pki.CRL)
        await check()
    assert (tmp_path / "both" / pki.CA).read_bytes() == (following / pki.CA).read_bytes()


def test_bundle_holds_each_once_and_shows_all(ca: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pki.init_ca(other, "other CA")
    serial = pki.issue(other, ["a"], tmp_path / "out").serial
    pki.revoke(other, "a")
    assert pki.bundle([ca, other, ca], tmp_path / "both") == ["vmreplica CA", "other CA"]
    text = pki.show(tmp_path / "both" / pki.CRL)
    assert "revocation list of vmreplica CA" in text and f"revoked {serial}" in text
    assert pki.show(tmp_path / "both" / pki.CA).count("subject ") == 2
    with pytest.raises(NotFoundError, match="missing"):
        pki.bundle([ca, tmp_path / "missing"], tmp_path / "both")
    assert pki.show(tmp_path / "both" / pki.CA).count("subject ") == 2


@pytest.mark.parametrize("which", ["twice", "a CA", "unknown"])
def test_what_can_not_be_renewed_is_told_and_nothing_is_made(ca: Path, tmp_path: Path, which: str) -> None:
    pki.issue(ca, ["a"], tmp_path / "a")
    wrong = {"twice": "a", "a CA": str(ca / pki.CA), "unknown": "nobody"}[which]
    with pytest.raises((UsageError, NotFoundError)) as refused:
        pki.renew(ca, ["a", wrong], tmp_path / "out")
    assert refused.value.remedy
    assert not (tmp_path / "out").exists()
    assert len(list((ca / pki.ISSUED).iterdir())) == 1


@needs_openssl
@pytest.mark.parametrize("behind, good", [(59, True), (61, False)])
def test_clock_of_the_other_host_may_be_behind_by_an_hour(ca: Path, tmp_path: Path, behind: int, good: bool) -> None:
    pki.issue(ca, ["a"], tmp_path / "out")
    start = load(tmp_path / "out" / pki.CERTIFICATE).not_valid_before_utc + pki.BACKDATED
    then = int((start - timedelta(minutes=behind)).timestamp())
    done = openssl(
        *("verify", "-attime", str(then), "-partial_chain", "-CAfile", str(ca / pki.CA)),
        str(tmp_path / "out" / pki.CERTIFICATE),
    )
    assert (done.returncode == 0) == good
    assert good or "not yet valid" in done.stderr


def test_description_of_a_certificate(ca: Path, tmp_path: Path) -> None:
    issued = pki.issue(ca, ["a.example", "10.0.0.1"], tmp_path / "out", now=NOW)
    path = tmp_path / "out" / pki.CERTIFICATE
    text = pki.show(path, now=NOW + timedelta(days=800))
    for fact in (
        "a.example, 10.0.0.1",
        "issuer       vmreplica CA",
        f"serial       {issued.serial}",
        "2026-01-31 11:00 UTC to 2028-05-05 12:00 UTC",
        "25 days left",
        "EC secp256r1",
        "serverAuth, clientAuth",
        f"fingerprint  {issued.fingerprint}",
    ):
        assert fact in text
    assert "expired" in pki.show(path, now=NOW + timedelta(days=826))
    assert "not yet valid" in pki.show(path, now=NOW - timedelta(days=1))
    assert "usages       CA" in pki.show(ca / pki.CA)


def test_description_of_a_revocation_list(ca: Path, tmp_path: Path) -> None:
    serial = pki.issue(ca, ["a"], tmp_path / "out").serial
    pki.revoke(ca, "a")
    text = pki.show(ca / pki.CRL)
    assert "revocation list of vmreplica CA" in text
    assert f"revoked {serial}" in text


def test_what_can_not_be_described_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        pki.show(tmp_path / "missing")
    (tmp_path / "garbage").write_text("x")
    with pytest.raises(UsageError, match="holds no PEM certificate"):
        pki.show(tmp_path / "garbage")
    with pytest.raises(UsageError, match="holds no PEM certificate"):
        pki.fingerprint(b"")
