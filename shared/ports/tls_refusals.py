"""Refusals in words: what a TLS failure means for the administrator, whose certificate it is about, and the remedy."""

from __future__ import annotations

import ssl
import time

from cryptography import x509

from shared import certificates
from shared.certificates import day, moment
from shared.errors import ForbiddenError, UnreachableError, VmreplicaError
from shared.ports.tls import ALPN, TlsContexts
from shared.ports.tls_damage import damaged, is_damage


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
