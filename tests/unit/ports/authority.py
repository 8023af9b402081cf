"""Certificates of every wrong kind, made for tests."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from shared.ports.tls import TlsIdentity

BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
DAY = timedelta(days=1)


def general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Authority:
    """A CA, root or intermediate, with its files in ``folder``."""

    folder: Path
    name: str = "test CA"
    issuer: Authority | None = None
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        now = datetime.now(UTC)
        issuer = self.issuer or self
        builder = (
            x509.CertificateBuilder(issuer.subject, self.subject, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage(ca=True), critical=True)
        )
        self.certificate = with_identifiers(builder, self.key, issuer.key).sign(issuer.key, hashes.SHA256())
        self.path = self.folder / f"{self.name.replace(' ', '-')}.pem"
        self.path.write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        file_name: str,
        names: Sequence[str] = ("127.0.0.1", "localhost"),
        *,
        starts: timedelta = -DAY,
        ends: timedelta = DAY,
        usages: Sequence[ObjectIdentifier] | None = BOTH,
        chain: bytes = b"",
        key_identifiers: bool = True,
        self_signed: bool = False,
        crl: Path | None = None,
        ca: Path | None = None,
    ) -> TlsIdentity:
        """An identity with a certificate of the given kind."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file_name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(
                subject if self_signed else self.subject, subject, key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage(ca=False), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([general(name) for name in names]), critical=False
            )
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        signer = key if self_signed else self.key
        if key_identifiers:
            builder = with_identifiers(builder, key, signer)
        certificate = builder.sign(signer, hashes.SHA256())
        path, key_path = self.folder / f"{file_name}.pem", self.folder / f"{file_name}-key.pem"
        path.write_bytes(certificate.public_bytes(Encoding.PEM) + chain)
        key_path.touch(mode=0o600)
        key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return TlsIdentity(str(ca or self.path), str(path), str(key_path), str(crl or ""))

    def revoke(
        self,
        *identities: TlsIdentity,
        made: timedelta = -2 * DAY,
        ends: timedelta = DAY,
        file_name: str = "crl.pem",
    ) -> Path:
        """A revocation list with the identities' certificates."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.subject)
            .last_update(now + made)
            .next_update(now + ends)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for identity in identities:
            certificate = x509.load_pem_x509_certificate(Path(identity.certificate).read_bytes())
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(now - 3 * DAY)
                .build()
            )
        path = self.folder / file_name
        path.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return path


def usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


def with_identifiers(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
