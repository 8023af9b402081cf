"""Mutual TLS 1.3: the identity of this host, what is demanded of a peer, and refusals that say what is wrong.

OpenSSL does the cryptography and the verification of the chain; here stands which rules it gets and what is
checked beside. The rules are fixed, there is nothing to configure but four files.
"""

from __future__ import annotations

import os
import ssl
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from shared import certificates
from shared.certificates import day, moment
from shared.errors import ForbiddenError, UsageError
from shared.ports import Peer
from shared.ports.tls_trust import TlsTrust

ALPN = "vmreplica/1"
CA_CERTIFICATES_MAX = 16
"""A private CA file holds one certificate, or a few while one is replaced; a public bundle holds hundreds."""

OPTIONS = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
VERIFY_FLAGS = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN

_RENEW = "Renew it with: vmreplica pki issue, and reload the agent."


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """The files of this host's identity, all PEM: private CA, own certificate with chain, key, revocations.

    Without ``crl`` nothing is ever revoked; with it, a missing or outdated list refuses everybody.
    """

    ca: str
    certificate: str
    key: str
    crl: str = ""


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """An identity as loaded at one moment: one context for each direction, our own certificate, and what is trusted."""

    client: ssl.SSLContext
    server: ssl.SSLContext
    own: x509.Certificate
    identity: TlsIdentity
    trust: TlsTrust

    def own_name(self) -> str:
        """Our certificate for messages: its file, names and end."""
        names = ", ".join(certificates.names(self.own)) or "no names"
        return f"our certificate {self.identity.certificate} ({names}; valid until {self.own_not_after()})"

    def own_not_after(self) -> str:
        return day(self.own.not_valid_after_utc)


def load_contexts(identity: TlsIdentity) -> TlsContexts:
    """Read and check the identity's files; raises UsageError naming the file, what is wrong, and the remedy."""
    authorities = _check_ca(identity.ca)
    _check_key_mode(identity.key)
    chain = _load_certificates(identity.certificate)
    own = chain[0]
    if missing := certificates.missing_usages(own):
        raise UsageError(
            f"The certificate {identity.certificate} lacks the extended key usage {', '.join(missing)}.",
            "A host's certificate needs both serverAuth and clientAuth: roles swap at a failover.",
        )
    contexts = [_context(identity, protocol) for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)]
    lists = _load_lists(identity.crl) if identity.crl else None
    trust = TlsTrust(identity.ca, authorities, identity.crl, lists, identity.certificate, chain)
    return TlsContexts(contexts[0], contexts[1], own, identity, trust)


def _context(identity: TlsIdentity, protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= OPTIONS
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= VERIFY_FLAGS
    context.set_alpn_protocols([ALPN])
    context.post_handshake_auth = False
    if protocol == ssl.PROTOCOL_TLS_CLIENT:
        context.check_hostname = True
        context.hostname_checks_common_name = False
    else:
        context.num_tickets = 0
    try:
        context.load_cert_chain(identity.certificate, identity.key, password=_refuse_encrypted_key)
    except (ssl.SSLError, OSError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"The key {identity.key} does not belong to the certificate {identity.certificate}.",
                "Configure the pair that was issued together.",
            ) from error
        raise _unreadable("key or certificate", f"{identity.key}, {identity.certificate}", error) from error
    _load_trust(context, "CA", identity.ca)
    if identity.crl:
        _load_trust(context, "revocation list", identity.crl)
        if not context.cert_store_stats()["crl"]:
            raise UsageError(f"{identity.crl} holds no revocation list.", "Copy crl.pem of your CA.")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _refuse_encrypted_key() -> str:
    raise UsageError("The private key is encrypted.", "Store it without a passphrase, with mode 0600.")


def _load_trust(context: ssl.SSLContext, what: str, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise _unreadable(what, path, error) from error


def _load_certificates(path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable("certificate", path, error) from error


def _load_lists(path: str) -> list[x509.CertificateRevocationList]:
    try:
        return list(certificates.split_lists(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise _unreadable("revocation list", path, error) from error


def _unreadable(what: str, path: str, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UsageError(
        f"The {what} {path} can't be used: {reason}.",
        "It has to be a PEM file that the agent may read; vmreplica pki issue makes all of them.",
    )


def _check_ca(path: str) -> list[x509.Certificate]:
    found = _load_certificates(path)
    public = {value for value in ssl.get_default_verify_paths() if isinstance(value, str)}
    if len(found) > CA_CERTIFICATES_MAX or os.path.realpath(path) in {os.path.realpath(p) for p in public}:
        raise UsageError(
            f"{path} looks like a bundle of public certificate authorities ({len(found)} certificates).",
            "Configure the CA of your own hosts only: whoever it vouches for may knock here.",
        )
    for certificate in found:
        if not certificates.is_ca(certificate):
            raise UsageError(
                f"{path} holds {certificates.common_name(certificate.subject)}, which is no CA.",
                "Configure ca.pem of your certificate authority.",
            )
    return found


# --- the key file ---

_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK = 0x02, 0x04, 0x08, 0x10


def _check_key_mode(path: str) -> None:
    try:
        state = os.stat(path)
    except OSError as error:
        raise _unreadable("key", path, error) from error
    mode = stat.S_IMODE(state.st_mode)
    if mode & 0o007 or (mode & 0o070 and not _acl_is_ours_alone(path)):
        raise UsageError(
            f"The private key {path} has mode {mode:04o}: others than its owner may use it.",
            f"Run: chmod 600 {path}; if others could read it, issue a new one.",
        )


def _acl_is_ours_alone(path: str) -> bool:
    """Whether the group bits are only the mask of an access list that lets our own user read.

    This is how systemd hands a credential to a service that does not run as root.
    """
    try:
        acl = os.getxattr(path, "system.posix_acl_access")
    except OSError:
        return False
    entries = list(_ACL_ENTRY.iter_unpack(acl[4:]))
    mask = next((permissions for tag, permissions, _ in entries if tag == _ACL_MASK), 7)
    for tag, permissions, who in entries:
        if tag in (_ACL_GROUP_OBJ, _ACL_GROUP) and permissions & mask:
            return False
        if tag == _ACL_USER and permissions & mask and who != os.geteuid():
            return False
    return True


# --- what is demanded of a peer ---


_DER = 2
"""ENCODING_DER of the ssl module's own certificates."""


def check_peer(connection: ssl.SSLObject, address: str) -> Peer:
    """The peer behind a finished handshake; raises ForbiddenError for what OpenSSL does not demand."""
    if connection.version() != "TLSv1.3":
        raise ForbiddenError(f"{address} speaks {connection.version()}.", "Only TLS 1.3 is accepted.")
    if connection.selected_alpn_protocol() != ALPN:
        raise ForbiddenError(f"{address} speaks TLS, but not the protocol {ALPN}.", "Is it really a vmreplica agent?")
    der = connection.getpeercert(binary_form=True)
    if not der:
        raise ForbiddenError(f"{address} showed no certificate.", "Configure its certificate and key.")
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificates.names(certificate)
        missing = certificates.missing_usages(certificate)
        print_of_key = certificates.fingerprint(certificate)
    except certificates.UNREADABLE as error:
        raise ForbiddenError(
            f"The certificate of {address} can't be read: {error}.", "Issue a well-made one."
        ) from error
    shown = f"The certificate of {address} ({', '.join(names) or 'no names'})"
    if missing:
        raise ForbiddenError(
            f"{shown} lacks the extended key usage {', '.join(missing)}.",
            "Issue one that has both, for example with: vmreplica pki issue.",
        )
    return Peer(
        address=address,
        fingerprint=print_of_key,
        names=names,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        issuer=certificates.common_name(certificate.issuer),
        certificates=_verified_chain(connection, der),
    )


def _verified_chain(connection: ssl.SSLObject, own: bytes) -> tuple[bytes, ...]:
    """The peer's chain as OpenSSL verified it, from its own certificate to the CA, each as DER.

    Before Python 3.13 only the inner object tells it.
    """
    for holder in (connection, getattr(connection, "_sslobj", None)):
        told = getattr(holder, "get_verified_chain", None)
        if told is not None:
            chain = told() or []
            return tuple(each if isinstance(each, bytes) else each.public_bytes(_DER) for each in chain) or (own,)
    return (own,)


def check_own_validity(contexts: TlsContexts) -> None:
    """Raises ForbiddenError where our own certificate has run out or is not valid yet: no peer would take it."""
    now = moment(time.time())
    if now > contexts.own.not_valid_after_utc:
        raise ForbiddenError(
            f"Our certificate {contexts.identity.certificate} expired on {contexts.own_not_after()}.", _RENEW
        )
    if now < contexts.own.not_valid_before_utc:
        raise ForbiddenError(
            f"Our certificate {contexts.identity.certificate} is valid from "
            f"{day(contexts.own.not_valid_before_utc)} only; it is {day(now)} here.",
            "Correct this host's clock.",
        )
