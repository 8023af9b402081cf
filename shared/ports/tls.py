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
from cryptography.exceptions import UnsupportedAlgorithm

from shared import certificates
from shared.certificates import day, moment
from shared.errors import ForbiddenError, UnreachableError, UsageError, VmreplicaError
from shared.ports import Peer
from shared.ports.tls_damage import damaged, is_damage

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
    """An identity as loaded at one moment: one context for each direction, and our own certificate."""

    client: ssl.SSLContext
    server: ssl.SSLContext
    own: x509.Certificate
    identity: TlsIdentity

    def own_name(self) -> str:
        """Our certificate for messages: its file, names and end."""
        names = ", ".join(certificates.names(self.own)) or "no names"
        return f"our certificate {self.identity.certificate} ({names}; valid until {self.own_not_after()})"

    def own_not_after(self) -> str:
        return day(self.own.not_valid_after_utc)


def load_contexts(identity: TlsIdentity) -> TlsContexts:
    """Read and check the identity's files; raises UsageError naming the file, what is wrong, and the remedy."""
    _check_ca(identity.ca)
    _check_key_mode(identity.key)
    own = _load_certificates(identity.certificate)[0]
    if missing := certificates.missing_usages(own):
        raise UsageError(
            f"The certificate {identity.certificate} lacks the extended key usage {', '.join(missing)}.",
            "A host's certificate needs both serverAuth and clientAuth: roles swap at a failover.",
        )
    contexts = [_context(identity, protocol) for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)]
    return TlsContexts(contexts[0], contexts[1], own, identity)


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


def _unreadable(what: str, path: str, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UsageError(
        f"The {what} {path} can't be used: {reason}.",
        "It has to be a PEM file that the agent may read; vmreplica pki issue makes all of them.",
    )


def _check_ca(path: str) -> None:
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


_UNREADABLE = (
    ValueError,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)
"""What cryptography raises for certificates it can't make sense of."""


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
    except _UNREADABLE as error:
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
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


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


# --- refusals in words ---


def explain(
    error: ssl.SSLError, address: str, contexts: TlsContexts, connection: ssl.SSLObject, *, secured: bool = False
) -> VmreplicaError:
    """What a TLS failure means for the administrator: our refusal of the peer, its refusal of us, or noise.

    ``secured``: the handshake was over, so that the peer does speak TLS.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        explained: VmreplicaError = _peer_refused(error, address, contexts, connection)
    elif isinstance(error, ssl.SSLEOFError):
        explained = UnreachableError(
            f"{address} ended the connection in the middle of the TLS handshake.",
            "Is it a vmreplica agent, on the right port, with nothing in between?",
        )
    elif error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        explained = ForbiddenError(
            f"{address} wants a certificate and got none from us.", "Configure certificate and key here."
        )
    elif (alert := _ALERTS.get(error.reason or "")) is not None:
        complaint, remedy = alert
        explained = ForbiddenError(f"{address} refused {contexts.own_name()}: it says that {complaint}.", remedy)
    elif is_damage(error.reason or "", secured=secured):
        explained = damaged(address, noticed_there="ALERT" in error.reason)
    elif (known := _FAULTS.get(error.reason or "")) is not None:
        text, remedy = known
        explained = ForbiddenError(text.format(address=address), remedy)
    else:
        explained = UnreachableError(f"TLS with {address} failed: {error.reason or error}.")
    explained.__cause__ = error
    return explained


_CHECK_ITS_CLOCK = "Renew it on that host, or correct the clock of the host whose time is wrong."
_SAME_CA = "Both hosts need certificates of the same CA, and its ca.pem in their configuration."

_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": ("it does not know the CA that issued it", _SAME_CA),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        "the certificate has expired, or is not valid yet",
        "Renew it here with: vmreplica pki issue; or correct the clock of the host whose time is wrong.",
    ),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": (
        "the certificate is revoked",
        "Issue a new one with: vmreplica pki issue.",
    ),
    "SSLV3_ALERT_BAD_CERTIFICATE": (
        "the certificate is not well made",
        "Compare: vmreplica pki show. It may lack an extension, or be valid at another time.",
    ),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": (
        "the certificate is not made for this use",
        "It needs the extended key usages serverAuth and clientAuth.",
    ),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": (
        "it can't verify the certificate",
        "Its log says why; a missing or outdated revocation list there is one reason.",
    ),
    "TLSV1_ALERT_DECRYPT_ERROR": (
        "the key does not fit the certificate",
        "Configure the pair that was issued together.",
    ),
    "TLSV1_ALERT_ACCESS_DENIED": ("it denies access", "Ask for an authorization entry there."),
}

_FAULTS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "{address} showed no certificate.",
        "Configure certificate and key on that host.",
    ),
    "WRONG_VERSION_NUMBER": (
        "{address} does not speak TLS.",
        "Is it a vmreplica agent, on the right port, with nothing in between?",
    ),
    "HTTP_REQUEST": ("{address} speaks HTTP.", "Only vmreplica agents may connect to this port."),
    "UNSUPPORTED_PROTOCOL": ("{address} does not offer TLS 1.3.", "No older version is accepted."),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("{address} does not accept TLS 1.3.", "No older version is offered."),
    "NO_SHARED_CIPHER": ("{address} offers no cipher of TLS 1.3.", "Update its TLS library."),
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": (
        "{address} speaks TLS, but not the protocol " + ALPN + ".",
        "Is it really a vmreplica agent?",
    ),
}

# X509_V_ERR_* of OpenSSL; these numbers are part of its interface.
_EXPIRED, _NOT_YET, _CRL_EXPIRED, _CRL_NOT_YET, _NO_CRL = 10, 9, 12, 11, 3
_UNKNOWN_CA = (2, 18, 19, 20, 21)
_REVOKED, _WRONG_PURPOSE, _WRONG_HOST, _WRONG_ADDRESS = 23, 26, 62, 64


def _peer_refused(
    error: ssl.SSLCertVerificationError, address: str, contexts: TlsContexts, connection: ssl.SSLObject
) -> ForbiddenError:
    certificate = _shown_certificate(connection)
    shown, start, end, names = f"The certificate of {address}", "", "", "others"
    if certificate is not None:
        names = ", ".join(certificates.names(certificate)) or "none at all"
        shown += f" ({certificates.common_name(certificate.subject)})"
        start = f" before {day(certificate.not_valid_before_utc)}"
        end = f" on {day(certificate.not_valid_after_utc)}"
    code = error.verify_code
    if code == _EXPIRED:
        return ForbiddenError(f"{shown} expired{end}; it is {day(moment(time.time()))} here.", _CHECK_ITS_CLOCK)
    if code == _NOT_YET:
        return ForbiddenError(f"{shown} is not valid{start}; it is {day(moment(time.time()))} here.", _CHECK_ITS_CLOCK)
    if code in (_WRONG_HOST, _WRONG_ADDRESS):
        return ForbiddenError(
            f"{shown} is not for the name we dialled, {connection.server_hostname}: its names are {names}.",
            "Dial one of its names, or issue it with the name that is dialled.",
        )
    if code in _UNKNOWN_CA:
        issuer = f", {certificates.common_name(certificate.issuer)}," if certificate is not None else ""
        return ForbiddenError(f"{shown} is from a CA{issuer} that {contexts.identity.ca} does not hold.", _SAME_CA)
    if code == _REVOKED:
        return ForbiddenError(f"{shown} is revoked.", "Issue a new one with: vmreplica pki issue.")
    if code == _WRONG_PURPOSE:
        return ForbiddenError(
            f"{shown} is not made for this use.",
            "It needs the extended key usages serverAuth and clientAuth.",
        )
    if code in (_NO_CRL, _CRL_EXPIRED, _CRL_NOT_YET):
        return ForbiddenError(
            f"{shown} can't be checked for revocation: {error.verify_message}.",
            f"Copy a current list of the same CA to {contexts.identity.crl} and reload the agent.",
        )
    return ForbiddenError(f"{shown} can't be verified: {error.verify_message}.", "Issue a well-made one.")


def _shown_certificate(connection: ssl.SSLObject) -> x509.Certificate | None:
    """The certificate that failed, where the TLS library still has it.

    Before Python 3.13 only the inner object tells, and only on the client's side.
    """
    for holder in (connection, getattr(connection, "_sslobj", None)):
        chain = getattr(holder, "get_unverified_chain", None)
        try:
            first = (chain() or [None])[0] if chain is not None else None
            if isinstance(first, bytes):
                return x509.load_der_x509_certificate(first)
            if first is not None:
                return x509.load_pem_x509_certificate(first.public_bytes().encode())
        except (ssl.SSLError, ValueError, TypeError, AttributeError):
            continue
    return None
