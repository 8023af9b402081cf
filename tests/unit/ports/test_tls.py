"""Tests of the files of a TLS identity: each mistake is refused with the file, what is wrong, and the remedy."""

from __future__ import annotations

import os
import ssl
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from shared.errors import UsageError
from shared.ports.tls import TlsIdentity, load_contexts
from tests.unit.ports.authority import Authority


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def identity(ca: Authority) -> TlsIdentity:
    return ca.issue("host")


def refusal(identity: TlsIdentity) -> str:
    with pytest.raises(UsageError) as caught:
        load_contexts(identity)
    assert caught.value.remedy
    return str(caught.value)


def test_contexts_have_the_rules(identity: TlsIdentity) -> None:
    loaded = load_contexts(identity)
    for context in (loaded.client, loaded.server):
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert not context.post_handshake_auth
        # The private CA alone: nothing of the system's store.
        assert len(context.get_ca_certs()) == 1
    assert loaded.client.check_hostname
    assert loaded.server.num_tickets == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601, 0o777])
def test_key_that_others_may_use_is_refused(identity: TlsIdentity, mode: int) -> None:
    os.chmod(identity.key, mode)
    text = refusal(identity)
    assert f"{identity.key} has mode {mode:04o}" in text
    assert f"chmod 600 {identity.key}" in text


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_private_key_is_taken(identity: TlsIdentity, mode: int) -> None:
    os.chmod(identity.key, mode)
    load_contexts(identity)


def access_list(*, user: int, user_bits: int = 4, group_bits: int = 0, named_group_bits: int = 0) -> bytes:
    """A POSIX access list as the kernel keeps it: version 2, then entries of tag, permissions and id."""
    nobody = 0xFFFFFFFF
    entries = [(0x01, 4, nobody), (0x02, user_bits, user), (0x04, group_bits, nobody)]
    if named_group_bits:
        entries.append((0x08, named_group_bits, 4))
    entries += [(0x10, 4, nobody), (0x20, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_access_list(path: str, acl: bytes) -> None:
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no access lists on this file system: {error}")
    assert os.stat(path).st_mode & 0o077 == 0o040


def test_systemds_credential_is_taken(identity: TlsIdentity) -> None:
    """It gives the file to the service's user by an access list, whose mask looks like rights of the group."""
    os.chmod(identity.key, 0o400)
    set_access_list(identity.key, access_list(user=os.geteuid()))
    load_contexts(identity)


@pytest.mark.parametrize(
    "acl",
    [
        access_list(user=os.geteuid() + 1),
        access_list(user=os.geteuid(), group_bits=4),
        access_list(user=os.geteuid(), named_group_bits=4),
    ],
    ids=["another user", "the group", "another group"],
)
def test_access_list_that_lets_others_read_is_refused(identity: TlsIdentity, acl: bytes) -> None:
    os.chmod(identity.key, 0o400)
    set_access_list(identity.key, acl)
    assert "others than its owner" in refusal(identity)


def test_encrypted_key_is_refused_and_nobody_is_asked(ca: Authority, identity: TlsIdentity) -> None:
    Path(identity.key).write_bytes(
        ca.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    assert "encrypted" in refusal(identity)


def test_key_of_another_certificate_is_refused(ca: Authority, identity: TlsIdentity) -> None:
    other = ca.issue("other")
    text = refusal(TlsIdentity(identity.ca, identity.certificate, other.key))
    assert f"{other.key} does not belong to the certificate {identity.certificate}" in text


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
@pytest.mark.parametrize("state", ["missing", "empty", "garbage"])
def test_unusable_file_is_named(identity: TlsIdentity, which: str, state: str) -> None:
    path = Path(getattr(identity, which))
    path.unlink()
    if state != "missing":
        path.touch(mode=0o600)
        path.write_text("" if state == "empty" else "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")
    assert str(path) in refusal(identity)


def test_bundle_of_public_cas_is_refused(ca: Authority, identity: TlsIdentity, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(Authority(tmp_path / "many", f"CA {number}").pem for number in range(17)))
    text = refusal(TlsIdentity(str(bundle), identity.certificate, identity.key))
    assert "bundle of public certificate authorities (17 certificates)" in text


def test_systems_store_is_refused(identity: TlsIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", identity.ca)
    assert "public certificate authorities" in refusal(identity)


def test_two_cas_while_one_is_replaced(ca: Authority, identity: TlsIdentity, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(ca.pem + Authority(tmp_path, "next CA").pem)
    loaded = load_contexts(TlsIdentity(str(both), identity.certificate, identity.key))
    assert len(loaded.server.get_ca_certs()) == 2


def test_certificate_in_place_of_the_ca_is_refused(identity: TlsIdentity) -> None:
    text = refusal(TlsIdentity(identity.certificate, identity.certificate, identity.key))
    assert "holds host, which is no CA" in text
