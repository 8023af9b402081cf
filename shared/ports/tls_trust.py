"""Judges a peer's certificate again after its handshake: by the CAs and revocation lists that are loaded by now.

OpenSSL verifies a chain in the handshake and never again. What can change afterwards is checked here: that a CA is
still trusted, that the certificate was not revoked, and that nothing of the chain has run out.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from shared import certificates
from shared.certificates import UNREADABLE, day
from shared.errors import ForbiddenError
from shared.ports import Peer
from shared.ports.trust import Credential, Trust

JUDGED_MAX = 1024
"""So many chains are remembered with what was found of them; signatures are checked once for each."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What was found of a chain: a complaint that stays, or what it is valid until, and what is said afterwards."""

    complaint: tuple[str, str] | None
    ends: tuple[tuple[datetime, str, str], ...] = ()


class TlsTrust(Trust):
    """The CAs, the revocation lists (None: revocation is not checked) and the own certificate, as loaded together."""

    def __init__(
        self,
        ca_path: str,
        authorities: Sequence[x509.Certificate],
        crl_path: str,
        lists: Sequence[x509.CertificateRevocationList] | None,
        own_path: str,
        own_chain: Sequence[x509.Certificate],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ca_path, self._crl_path, self._own_path = ca_path, crl_path, own_path
        self._authorities = tuple(authorities)
        self._encoded = {_der(authority) for authority in authorities}
        self._lists = tuple(lists) if lists is not None else None
        self._own_chain = tuple(own_chain)
        self._wall = wall
        self._judged: dict[tuple[bytes, ...], _Verdict] = {}

    # --- a peer ------------------------------------------------------------------------------------------------------

    def objection(self, peer: Peer) -> ForbiddenError | None:
        if not peer.certificates:
            return None
        verdict = self._judged.get(peer.certificates)
        if verdict is None:
            if len(self._judged) >= JUDGED_MAX:
                self._judged.clear()
            verdict = self._judged[peer.certificates] = self._judgement(peer.certificates)
        shown = f"The certificate of {peer.address} ({', '.join(peer.names) or 'no names'})"
        if verdict.complaint is not None:
            text, remedy = verdict.complaint
            return ForbiddenError(f"{shown} {text}", remedy)
        now = certificates.moment(self._wall())
        for end, text, remedy in verdict.ends:
            if now > end:
                return ForbiddenError(f"{shown} {text} on {day(end)}; it is {day(now)} here.", remedy)
        return None

    def _judgement(self, encoded: Sequence[bytes]) -> _Verdict:
        try:
            return self._judge(encoded)
        except UNREADABLE as error:
            return _Verdict((f"can't be read: {error}.", "Issue a well-made one: vmreplica pki issue."))

    def _judge(self, encoded: Sequence[bytes]) -> _Verdict:
        """What is to be said of a chain, the peer's own certificate first, that a handshake verified once."""
        chain = [x509.load_der_x509_certificate(each) for each in encoded]
        path = self._anchored(chain)
        if path is None:
            issuer = certificates.common_name(chain[0].issuer)
            return _Verdict(
                (
                    f"is from a CA, {issuer}, that {self._ca_path} does not hold any more.",
                    "Renew it with a CA that both hosts hold: vmreplica pki renew.",
                )
            )
        ends = [(path[0].not_valid_after_utc, "expired", "Renew it on that host: vmreplica pki renew.")]
        for above in path[1:]:
            name = certificates.common_name(above.subject)
            remedy = "Change to another CA, as docs/certificates.md tells."
            ends.append((above.not_valid_after_utc, f"is from the CA {name}, which expired", remedy))
        if self._lists is not None:
            lists = [each for each in self._lists if _is_signed_by(each, path[1])]
            if not lists:
                return _Verdict((f"can't be checked for revocation: {self._no_list(path[1])}", self._copy_list))
            newest = max(lists, key=lambda each: each.last_update_utc)
            if newest.get_revoked_certificate_by_serial_number(path[0].serial_number) is not None:
                return _Verdict((f"is revoked ({path[0].serial_number:x}).", "Issue a new one: vmreplica pki issue."))
            if newest.next_update_utc is not None:
                text = "can't be checked for revocation: the list of its CA ran out"
                ends.append((newest.next_update_utc, text, self._copy_list))
        return _Verdict(None, tuple(ends))

    def _anchored(self, chain: Sequence[x509.Certificate]) -> list[x509.Certificate] | None:
        """The chain up to the first CA that is trusted now; None where there is none. It has two at least."""
        for number, certificate in enumerate(chain):
            if number and _der(certificate) in self._encoded:
                return list(chain[: number + 1])
            for authority in self._authorities:
                if _is_issued_by(certificate, authority):
                    return [*chain[: number + 1], authority]
        return None

    # --- this host ---------------------------------------------------------------------------------------------------

    # Both follow from what was loaded, and each status asks for them: of credentials, that of every VM.

    def credentials(self) -> tuple[Credential, ...]:
        return self._credentials

    def complaints(self) -> tuple[tuple[str, str], ...]:
        return self._complaints

    @functools.cached_property
    def _credentials(self) -> tuple[Credential, ...]:
        found = [_credential("own", self._own_chain[0], self._own_path)]
        found += [_credential("ca", authority, self._ca_path) for authority in self._authorities]
        for each in self._lists or ():
            if each.next_update_utc is not None:
                name = certificates.common_name(each.issuer)
                start, end = each.last_update_utc.timestamp(), each.next_update_utc.timestamp()
                found.append(Credential("crl", name, name, start, end, self._crl_path))
        return tuple(found)

    @functools.cached_property
    def _complaints(self) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        if self._anchored(self._own_chain) is None:
            issuer = certificates.common_name(self._own_chain[0].issuer)
            text = (
                f"Our certificate {self._own_path} is from a CA, {issuer}, that {self._ca_path} does not hold: "
                "hosts with the same CA file refuse it."
            )
            found.append((text, "Renew it with a CA that all hosts hold: vmreplica pki renew."))
        if self._lists is not None:
            for authority in self._authorities:
                if not any(_is_signed_by(each, authority) for each in self._lists):
                    found.append((f"Certificates of a CA are refused: {self._no_list(authority)}", self._copy_list))
        return tuple(found)

    def _no_list(self, authority: x509.Certificate) -> str:
        name = certificates.common_name(authority.subject)
        return f"{self._crl_path} has no revocation list of the CA {name}."

    @property
    def _copy_list(self) -> str:
        return f"Copy a current list of that CA to {self._crl_path}; vmreplica pki bundle joins those of several."


def _credential(what: str, certificate: x509.Certificate, path: str) -> Credential:
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    subject, issuer = certificates.common_name(certificate.subject), certificates.common_name(certificate.issuer)
    return Credential(what, subject, issuer, start, end, path)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_signed_by(found: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    if found.issuer != authority.subject:
        return False
    try:
        return found.is_signature_valid(cast("CertificateIssuerPublicKeyTypes", authority.public_key()))
    except (ValueError, TypeError):
        return False
