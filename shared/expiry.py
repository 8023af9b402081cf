"""When certificates, CAs and revocation lists run out: what a status tells of them, and how it is judged.

A warning comes 30 days before and a critical health 7 days before, of what lives shorter when a third and a tenth of
its life is left. Pure functions of what was loaded and the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from shared.rates import duration_text
from shared.states import Health

if TYPE_CHECKING:
    from shared.ports import Peer
    from shared.ports.trust import Credential, Trust

WARNING_SECONDS, WARNING_SHARE = 30 * 86400.0, 1 / 3
CRITICAL_SECONDS, CRITICAL_SHARE = 7 * 86400.0, 1 / 10

Reason = tuple[Health, str, str]
"""Health, text, and remedy."""


class Ending(NamedTuple):
    """Something that runs out soon, or has."""

    certificate: CertificateStatus
    level: Health
    text: str
    remedy: str

    @property
    def sentence(self) -> str:
        """What is so, and what to do."""
        return f"{self.text} {self.remedy}"


class CertificateStatus(msgspec.Struct, kw_only=True):
    """Something that lasts until a day. Times are in seconds since the Unix epoch."""

    what: str
    """``own`` or ``peer``: a host's certificate; ``ca``; ``crl``: a CA's revocation list."""
    subject: str
    """The common name, of a peer all names, of a list its CA's."""
    issuer: str = ""
    """The CA that it is from."""
    path: str = ""
    """The file on this host; empty for a peer's."""
    not_before_time: float
    not_after_time: float


def certificates_of(trust: Trust) -> list[CertificateStatus]:
    """All that this host's TLS rests on."""
    return [_status(each) for each in trust.credentials()]


def certificates_told(
    certificates: Sequence[CertificateStatus], own_end: float | None, host: str
) -> Sequence[CertificateStatus]:
    """What an agent tells of its ``certificates``; of an older one, that tells only when its own ends, this one."""
    if certificates or own_end is None:
        return certificates
    return [CertificateStatus(what="own", subject=host, not_before_time=0.0, not_after_time=own_end)]


def certificates_of_link(trust: Trust, peer: Peer | None, now: float) -> list[CertificateStatus]:
    """The peer's certificate, where there is a session, and what of this host's own is soon to run out."""
    found = []
    if peer is not None and peer.not_after:
        found.append(
            CertificateStatus(
                what="peer",
                subject=", ".join(peer.names) or peer.address,
                issuer=peer.issuer,
                not_before_time=peer.not_before,
                not_after_time=peer.not_after,
            )
        )
    return found + [_status(each) for each in trust.credentials() if _level(each.not_before, each.not_after, now)]


def _status(found: Credential) -> CertificateStatus:
    return CertificateStatus(
        what=found.what,
        subject=found.subject,
        issuer=found.issuer,
        path=found.path,
        not_before_time=found.not_before,
        not_after_time=found.not_after,
    )


def level_of(certificate: CertificateStatus, now: float) -> Health:
    """Normal, Warning or Critical."""
    return _level(certificate.not_before_time, certificate.not_after_time, now) or Health.NORMAL


def _level(begins: float, ends: float, now: float) -> Health | None:
    """Warning or Critical, or None: of hundreds of VMs each status asks for it."""
    left, life = ends - now, max(0.0, ends - begins)
    if left <= min(CRITICAL_SECONDS, CRITICAL_SHARE * life):
        return Health.CRITICAL
    return Health.WARNING if left <= min(WARNING_SECONDS, WARNING_SHARE * life) else None


def judge(certificates: Iterable[CertificateStatus], now: float) -> list[Reason]:
    """Those that run out soon or have run out, as reasons of a health."""
    return [(each.level, each.text, each.remedy) for each in endings(certificates, now)]


def endings(certificates: Iterable[CertificateStatus], now: float) -> list[Ending]:
    """Those that run out soon or have run out."""
    found: list[Ending] = []
    for certificate in certificates:
        level = level_of(certificate, now)
        if level is not Health.NORMAL:
            subject, consequence, remedy = _words(certificate)
            left = certificate.not_after_time - now
            end = datetime.fromtimestamp(certificate.not_after_time, UTC).strftime("%Y-%m-%d %H:%M UTC")
            when = f"runs out on {end}, in {duration_text(left)}" if left > 0 else f"ran out on {end}"
            found.append(Ending(certificate, level, f"{subject} {when}{consequence if left > 0 else ''}.", remedy))
    return found


def agent_problems(trust: Trust, now: float) -> list[str]:
    """What an agent tells of its own certificates, each with its remedy."""
    told = [each.sentence for each in endings(certificates_of(trust), now)]
    return told + [f"{text} {remedy}" for text, remedy in trust.complaints()]


def _words(certificate: CertificateStatus) -> tuple[str, str, str]:
    """What it is, what its end means, and what to do."""
    subject, path = certificate.subject, certificate.path
    match certificate.what:
        case "own":
            return (
                f"The certificate of this host ({subject})",
                ": no session will be possible then",
                f"Renew {path or 'it'} with `vmreplica pki renew`, and reload the agent: see docs/certificates.md.",
            )
        case "peer":
            return (
                f"The certificate of the other host ({subject})",
                ": no session will be possible then",
                "Renew it with `vmreplica pki renew`, copy it there, and reload that host's agent.",
            )
        case "ca":
            return (
                f"The CA {subject} in {path}",
                ": no certificate of it will be accepted then",
                "Make another with `vmreplica pki init`, and change over as docs/certificates.md tells.",
            )
        case _:
            return (
                f"The revocation list of the CA {subject} in {path}",
                ": all certificates of that CA will be refused then",
                f"Have the CA make another, and copy it to {path}.",
            )
