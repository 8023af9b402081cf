"""A private certificate authority in a folder: make it, issue a host's certificate, revoke one, show one.

The folder holds ``ca.pem``, ``ca-key.pem``, ``crl.pem`` and ``issued/``, with a copy of every certificate. What
a host gets lies in a folder of its own: ``ca.pem``, ``certificate.pem``, ``key.pem`` and ``crl.pem``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from shared import certificates
from shared.errors import NotFoundError, UsageError

CA_LIFETIME = timedelta(days=3652)
LEAF_LIFETIME = timedelta(days=825)
BACKDATED = timedelta(hours=1)
"""How far the clock of the other host may be behind ours when a fresh certificate is put to use."""

CA, CA_KEY, CRL, ISSUED = "ca.pem", "ca-key.pem", "crl.pem", "issued"
CERTIFICATE, KEY = "certificate.pem", "key.pem"
COMMON_NAME_MAX = 64

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just made: where it lies, its names, and the fingerprint to authorize."""

    folder: Path
    names: tuple[str, ...]
    fingerprint: str
    serial: str
    not_after: datetime


def init_ca(folder: Path, name: str = "vmreplica CA", *, now: datetime | None = None) -> str:
    """Make a certificate authority and its empty revocation list in ``folder``; its fingerprint.

    Raises UsageError where the folder holds one already, or the name is no common name.
    """
    now = _whole_second(now)
    if not 0 < len(name) <= COMMON_NAME_MAX:
        raise UsageError(f"The CA's name has {len(name)} characters.", f"Use 1 to {COMMON_NAME_MAX}.")
    _refuse_existing(folder, (CA, CA_KEY, CRL, ISSUED))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / ISSUED).mkdir(mode=0o700)
    _write(folder / CA_KEY, _key_pem(key), 0o600)
    _write(folder / CRL, _crl(certificate, key, (), 1, now), 0o644)
    _write(folder / CA, certificate.public_bytes(Encoding.PEM), 0o644)
    return certificates.fingerprint(certificate)


def issue(folder: Path, host_names: Sequence[str], out: Path, *, now: datetime | None = None) -> Issued:
    """Make a key and a certificate for the host with these DNS names and IP addresses, into ``out``.

    It is good for both roles, since they swap at a failover. Raises UsageError for a name that is none and
    where ``out`` holds such files already, NotFoundError where ``folder`` holds no certificate authority.
    """
    now = _whole_second(now)
    authority, authority_key = _authority(folder)
    alternatives = [_general_name(name) for name in dict.fromkeys(host_names)]
    if not alternatives:
        raise UsageError("A certificate needs at least one name.", "Name the host as the others dial it.")
    _refuse_existing(out, (CA, CERTIFICATE, KEY, CRL))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign_leaf(authority, authority_key, key.public_key(), host_names[0], alternatives, now)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The copy comes first: a certificate that exists can always be revoked.
    pem = _keep_copy(folder, certificate)
    _write(out / KEY, _key_pem(key), 0o600)
    _write(out / CA, (folder / CA).read_bytes(), 0o644)
    _write(out / CRL, (folder / CRL).read_bytes(), 0o644)
    _write(out / CERTIFICATE, pem, 0o644)
    return _issued(out, certificate)


def renew(folder: Path, which: Sequence[str], out: Path, *, now: datetime | None = None) -> list[Issued]:
    """Issue certificates of the authority in ``folder`` that take the place of others: same names, same key.

    Each of ``which`` is the file of a certificate, of this authority or of the one before it, or a serial number or
    host name of this one. What is made lies in ``out/<first name>/certificate.pem``: the key stays on its host, and
    with it the fingerprint that others have authorized. Raises as :func:`issue`.
    """
    now = _whole_second(now)
    authority, authority_key = _authority(folder)
    former = [_named(folder, each) for each in which]
    hosts = [certificates.names(each) for each in former]
    for certificate, names in zip(former, hosts, strict=True):
        if not names or certificates.is_ca(certificate):
            raise UsageError(
                f"The certificate of {certificates.common_name(certificate.subject)} is not that of a host.",
                "A CA is replaced by another one: vmreplica pki init.",
            )
        _refuse_existing(out / names[0], (CERTIFICATE,))
    if len({names[0] for names in hosts}) != len(hosts):
        raise UsageError("Two of the certificates are for the same host.", "Name each host once.")
    made = []
    for certificate, names in zip(former, hosts, strict=True):
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise UsageError(
                f"The key of {names[0]} is not one of this kind of CA.", "Issue a new pair: vmreplica pki issue."
            )
        alternatives = [_general_name(name) for name in names]
        fresh = _sign_leaf(
            authority, authority_key, key, certificates.common_name(certificate.subject), alternatives, now
        )
        place = out / names[0]
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(place / CERTIFICATE, _keep_copy(folder, fresh), 0o644)
        made.append(_issued(place, fresh))
    return made


def bundle(folders: Sequence[Path], out: Path) -> list[str]:
    """Join the CAs of these authorities, and their revocation lists, into ``out/ca.pem`` and ``out/crl.pem``.

    Files of an earlier bundle there are replaced, each at once. The CAs' names. Raises NotFoundError and UsageError.
    """
    authorities: dict[bytes, x509.Certificate] = {}
    lists: dict[bytes, None] = {}
    for folder in folders:
        for certificate in _load_all(folder / CA, _read(folder / CA)):
            authorities[certificate.public_bytes(Encoding.PEM)] = certificate
        for each in _load_lists(folder / CRL):
            lists[each.public_bytes(Encoding.PEM)] = None
    out.mkdir(mode=0o755, parents=True, exist_ok=True)
    _replace(out / CRL, b"".join(lists))
    _replace(out / CA, b"".join(authorities))
    return [certificates.common_name(each.subject) for each in authorities.values()]


def issue_hosts(
    folder: Path, hosts: Sequence[Sequence[str]], out: Path, *, now: datetime | None = None
) -> list[Issued]:
    """Issue one certificate for each host, given as the list of its names, into ``out/<its first name>``."""
    for names in hosts:
        for name in names:
            _general_name(name)
        if names:
            _refuse_existing(out / names[0], (CA, CERTIFICATE, KEY, CRL))
    return [issue(folder, names, out / names[0] if names else out, now=now) for names in hosts]


def revoke(folder: Path, which: str, *, now: datetime | None = None) -> str:
    """Put a certificate on the authority's revocation list; its serial number in hex.

    ``which`` is a serial number in hex, a host name whose newest certificate is meant, or the path of a
    certificate. The list, ``crl.pem``, then has to be copied to the hosts. Raises NotFoundError.
    """
    now = _whole_second(now)
    authority, authority_key = _authority(folder)
    certificate = _find_issued(folder, which)
    old = x509.load_pem_x509_crl(_read(folder / CRL))
    serials = dict.fromkeys(entry.serial_number for entry in old)
    number = old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    if certificate.serial_number not in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now).build()
        _replace(folder / CRL, _crl(authority, authority_key, [*old, entry], number + 1, now))
    return f"{certificate.serial_number:x}"


def show(path: Path, *, now: datetime | None = None) -> str:
    """The certificates in a PEM file, or the revocation list in it, for people.

    Raises NotFoundError for a missing file and UsageError for one that holds neither.
    """
    data = _read(path)
    if lists := _load_lists(path):
        return "\n\n".join(_describe_list(each) for each in lists)
    now = _whole_second(now)
    return "\n\n".join(certificates.describe(certificate, now) for certificate in _load_all(path, data))


def fingerprint(pem: bytes) -> str:
    """The fingerprint of a PEM certificate, as authorization entries name it; raises UsageError."""
    return certificates.fingerprint(_load_all(Path("certificate"), pem)[0])


# --- parts ---


def _sign_leaf(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    alternatives: Sequence[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_MAX])])
    return (
        x509.CertificateBuilder(authority.subject, subject, key, x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + LEAF_LIFETIME, authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(list(certificates.REQUIRED_USAGES)), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _keep_copy(folder: Path, certificate: x509.Certificate) -> bytes:
    """Put a copy beside the authority; the certificate as PEM."""
    pem = certificate.public_bytes(Encoding.PEM)
    _write(folder / ISSUED / f"{certificate.serial_number:x}.pem", pem, 0o644)
    return pem


def _issued(place: Path, certificate: x509.Certificate) -> Issued:
    names, serial = certificates.names(certificate), f"{certificate.serial_number:x}"
    return Issued(place, names, certificates.fingerprint(certificate), serial, certificate.not_valid_after_utc)


def _load_lists(path: Path) -> list[x509.CertificateRevocationList]:
    try:
        return list(certificates.split_lists(_read(path)))
    except ValueError as error:
        raise UsageError(f"{path} holds a revocation list that can't be read: {error}.") from error


def _describe_list(crl: x509.CertificateRevocationList) -> str:
    lines = [
        f"revocation list of {certificates.common_name(crl.issuer)}",
        f"made {certificates.day(crl.last_update_utc)}",
        *(f"revoked {entry.serial_number:x}" for entry in crl),
    ]
    return "\n".join(lines)


def _named(folder: Path, which: str) -> x509.Certificate:
    """A certificate by its file, whoever issued it, or by what the authority knows it by."""
    if Path(which).is_file():
        return _load_all(Path(which), _read(Path(which)))[0]
    return _find_issued(folder, which)


def _whole_second(now: datetime | None) -> datetime:
    return (now or datetime.now(UTC)).replace(microsecond=0)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise UsageError(f"{name!r} is neither a DNS name nor an IP address.", "Name the host itself.")
    return x509.DNSName(name)


def _crl(
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    entries: Sequence[x509.RevokedCertificate],
    number: int,
    now: datetime,
) -> bytes:
    # A list that runs out refuses everybody (it fails closed), and hosts get a new one by hand only: it is
    # valid as long as the authority itself.
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - BACKDATED)
        .next_update(authority.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = _load_all(folder / CA, _read(folder / CA))[0]
    try:
        key = load_pem_private_key(_read(folder / CA_KEY), None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{folder / CA_KEY} holds no usable key: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise UsageError(f"{folder / CA_KEY} is not the key of {folder / CA}.")
    return certificate, key


def _find_issued(folder: Path, which: str) -> x509.Certificate:
    issued = [_load_all(path, _read(path))[0] for path in sorted((folder / ISSUED).glob("*.pem"))]
    serial = which.lower().removeprefix("0x").lstrip("0")
    matching = [c for c in issued if f"{c.serial_number:x}" == serial]
    if not matching:
        matching = [c for c in issued if which.lower() in certificates.names(c)]
        matching.sort(key=lambda c: c.not_valid_after_utc)
    if not matching and Path(which).is_file():
        given = _load_all(Path(which), _read(Path(which)))[0]
        matching = [c for c in issued if c == given]
    if not matching:
        raise NotFoundError(
            f"The certificate authority in {folder} has issued no certificate {which}.",
            f"The serial numbers are the file names in {folder / ISSUED}.",
        )
    return matching[-1]


def _load_all(path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise UsageError(f"{path} holds no PEM certificate: {error}.") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _refuse_existing(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(folder / name):
            raise UsageError(f"{folder / name} exists already.", "Name another folder; nothing was changed.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{path} does not exist.", "Check the path. A CA is made with: vmreplica pki init FOLDER"
        ) from error


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    _write(fresh, data, 0o644)
    fresh.replace(path)
