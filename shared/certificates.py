"""What a certificate says: names, fingerprint, usages, and a description for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

REQUIRED_USAGES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}
"""Extended key usages that every certificate of a host has, since roles swap at a failover."""

UNREADABLE = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm)
"""What cryptography raises for certificates it can't make sense of."""

_CRL_BEGIN, _CRL_END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in lower hex: it stays when a certificate is renewed with its key."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


def names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names, in lower case, and IP addresses of the certificate; empty where it has none."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    found = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    found += [str(address) for address in extension.value.get_values_for_type(x509.IPAddress)]
    return tuple(found)


def missing_usages(certificate: x509.Certificate) -> tuple[str, ...]:
    """Which of REQUIRED_USAGES the certificate does not state."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return tuple(REQUIRED_USAGES.values())
    return tuple(name for oid, name in REQUIRED_USAGES.items() if oid not in extension.value)


def common_name(name: x509.Name) -> str:
    """The name's common name, or all of it where it has none."""
    for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME):
        return str(attribute.value)
    return name.rfc4514_string()


def day(moment: datetime) -> str:
    """A moment as messages show it."""
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def describe(certificate: x509.Certificate, now: datetime) -> str:
    """The certificate for people, one fact a line."""
    missing = missing_usages(certificate)
    stated = [name for name in REQUIRED_USAGES.values() if name not in missing]
    lines = [
        f"subject      {common_name(certificate.subject)}",
        f"names        {', '.join(names(certificate)) or 'none'}",
        f"issuer       {common_name(certificate.issuer)}",
        f"serial       {certificate.serial_number:x}",
        f"valid        {day(certificate.not_valid_before_utc)} to {day(certificate.not_valid_after_utc)}",
        f"             {_validity(certificate, now)}",
        f"key          {_key(certificate)}",
        f"usages       {'CA' if is_ca(certificate) else ', '.join(stated) or 'none'}",
        f"fingerprint  {fingerprint(certificate)}",
    ]
    return "\n".join(lines)


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether the certificate may issue others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def split_lists(data: bytes) -> Iterator[x509.CertificateRevocationList]:
    """The revocation lists in the bytes of a PEM file. Raises ValueError for one that is not well made."""
    for piece in data.split(_CRL_BEGIN)[1:]:
        body, end, _ = piece.partition(_CRL_END)
        yield x509.load_pem_x509_crl(_CRL_BEGIN + body + end + b"\n")


def _validity(certificate: x509.Certificate, now: datetime) -> str:
    if now < certificate.not_valid_before_utc:
        return "not yet valid"
    left = certificate.not_valid_after_utc - now
    return "expired" if left < timedelta(0) else f"{left.days} days left"


def _key(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key:
            return f"EC {key.curve.name}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case ed448.Ed448PublicKey():
            return "Ed448"
        case rsa.RSAPublicKey() as key:
            return f"RSA {key.key_size}"
    return "of another kind"


def moment(seconds: float) -> datetime:
    """Seconds since the epoch as a moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
