"""Tests of when certificates, CAs and lists that run out are told, how gravely, and with which remedy."""

from __future__ import annotations

import pytest

from shared.cli.configured import ending_findings
from shared.cli.findings import Level
from shared.expiry import (
    CertificateStatus,
    agent_problems,
    certificates_of_link,
    certificates_told,
    endings,
    judge,
    level_of,
)
from shared.health import assess
from shared.ports import Peer
from shared.ports.trust import Credential, Trust
from shared.states import Health
from shared.status import LinkStatus
from tests.unit.test_health import NOW, vm

DAY = 86400.0


def certificate(left: float, *, life: float = 825 * DAY, what: str = "own") -> CertificateStatus:
    return CertificateStatus(
        what=what, subject="alpha", path="/etc/x.pem", not_before_time=NOW + left - life, not_after_time=NOW + left
    )


@pytest.mark.parametrize(
    "left, life, level",
    [
        (30 * DAY + 1, 825 * DAY, Health.NORMAL),
        (30 * DAY, 825 * DAY, Health.WARNING),
        (7 * DAY + 1, 825 * DAY, Health.WARNING),
        (7 * DAY, 825 * DAY, Health.CRITICAL),
        (-1, 825 * DAY, Health.CRITICAL),
        # What lives for a week is renewed in the last third of it.
        (3 * DAY, 7 * DAY, Health.NORMAL),
        (2 * DAY, 7 * DAY, Health.WARNING),
        (0.6 * DAY, 7 * DAY, Health.CRITICAL),
        (0, 0, Health.CRITICAL),
        (DAY, -DAY, Health.NORMAL),
    ],
)
def test_level(left: float, life: float, level: Health) -> None:
    assert level_of(certificate(left, life=life), NOW) is level


@pytest.mark.parametrize(
    "what, words, remedy",
    [
        ("own", "The certificate of this host (alpha)", "vmreplica pki renew"),
        ("peer", "The certificate of the other host (alpha)", "vmreplica pki renew"),
        ("ca", "The CA alpha in /etc/x.pem", "docs/certificates.md"),
        ("crl", "The revocation list of the CA alpha in /etc/x.pem", "copy it to /etc/x.pem"),
    ],
)
def test_words(what: str, words: str, remedy: str) -> None:
    ((level, text, told),) = judge([certificate(10 * DAY, what=what), certificate(100 * DAY, what=what)], NOW)
    assert level is Health.WARNING
    assert text.startswith(f"{words} runs out on 2023-11-24 22:13 UTC, in 10 d 0 h: ")
    assert remedy in told
    ((level, text, _),) = judge([certificate(-DAY, what=what)], NOW)
    assert (level, text) == (Health.CRITICAL, f"{words} ran out on 2023-11-13 22:13 UTC.")


def test_health_of_a_vm_goes_by_both_sides_certificates() -> None:
    link = LinkStatus(connected=True, healthy=True, peer="b:7000", certificates=[certificate(20 * DAY, what="peer")])
    assert vm(link=link).health == "Warning"
    link.certificates.append(certificate(DAY))
    found = assess(vm(link=link), NOW)
    assert found.health is Health.CRITICAL
    assert [reason[0] for reason in found.reasons] == [Health.CRITICAL, Health.WARNING]
    # It says when protection will end, and takes none away before.
    assert found.protected


class Soon(Trust):
    def credentials(self) -> tuple[Credential, ...]:
        return (
            Credential("own", "alpha", "a CA", NOW - 800 * DAY, NOW + 3 * DAY, "/etc/certificate.pem"),
            Credential("ca", "a CA", "a CA", NOW - 800 * DAY, NOW + 2000 * DAY, "/etc/ca.pem"),
        )

    def complaints(self) -> tuple[tuple[str, str], ...]:
        return (("Something else.", "Mend it."),)


def test_link_tells_its_peers_certificate_and_what_ends_soon_here() -> None:
    peer = Peer(address="b:1", names=("b", "c"), not_before=NOW - DAY, not_after=NOW + 900 * DAY, issuer="a CA")
    shown = [(each.what, each.subject, each.issuer) for each in certificates_of_link(Soon(), peer, NOW)]
    assert shown == [("peer", "b, c", "a CA"), ("own", "alpha", "a CA")]
    assert [each.what for each in certificates_of_link(Soon(), None, NOW)] == ["own"]
    assert certificates_of_link(Trust(), Peer(address="/socket", uid=0), NOW) == []


def test_findings_of_doctor_and_config_check_go_by_the_same_rule() -> None:
    soon = [certificate(20 * DAY), certificate(100 * DAY, what="ca"), certificate(DAY, what="crl")]
    first, second = ending_findings("tls", soon, NOW)
    assert (first.level, second.level) == (Level.WARNING, Level.PROBLEM)
    assert [(each.text, each.remedy) for each in (first, second)] == [tell[1:] for tell in judge(soon, NOW)]
    # A status that tells only when its own ends is that of an older agent.
    (only,) = endings(certificates_told([], NOW + 5 * DAY, "alpha"), NOW)
    assert only.level is Health.CRITICAL and only.sentence.startswith("The certificate of this host (alpha) runs out")
    assert certificates_told(soon, NOW, "alpha") == soon


def test_agent_tells_what_concerns_all_its_vms() -> None:
    first, second = agent_problems(Soon(), NOW)
    assert first.startswith("The certificate of this host (alpha) runs out on ") and "pki renew" in first
    assert second == "Something else. Mend it."
    assert agent_problems(Trust(), NOW) == []
