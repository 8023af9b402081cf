"""Verbs that work on files and need no agent: pki and hrl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import ROOT, Command

VECTORS = ROOT / "tests/vectors"

# Every run imports cryptography or numpy, which costs more than what it checks.
pytestmark = pytest.mark.slow


def test_certificates_for_two_hosts_in_two_commands(vmreplica: Command) -> None:
    folder = vmreplica.folder
    assert vmreplica("pki", "init", "ca").code == 0
    ran = vmreplica("pki", "issue", "--ca", "ca", "--out", "pki", "alpha,10.0.0.1", "beta")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].startswith("alpha, 10.0.0.1: pki/alpha, valid until ")
    assert ran.lines[1].startswith("  fingerprint ")
    for host in ("alpha", "beta"):
        assert {path.name for path in (folder / "pki" / host).iterdir()} >= {"ca.pem", "certificate.pem", "key.pem"}
    shown = vmreplica("pki", "show", "pki/alpha/certificate.pem")
    assert any(line.split() == ["names", "alpha,", "10.0.0.1"] for line in shown.lines)


def test_pki_as_json(vmreplica: Command) -> None:
    made = json.loads(vmreplica("pki", "init", "ca", "--json").out)
    assert made["folder"] == "ca"
    [certificate] = json.loads(vmreplica("pki", "issue", "--ca", "ca", "--out", "pki", "alpha", "--json").out)[
        "certificates"
    ]
    assert certificate["names"] == ["alpha"]
    assert certificate["not_after_time"] > 1_700_000_000
    assert certificate["fingerprint"] in vmreplica("pki", "show", "pki/alpha/certificate.pem").out


def test_revoking(vmreplica: Command) -> None:
    vmreplica("pki", "init", "ca")
    vmreplica("pki", "issue", "--ca", "ca", "--out", "pki", "alpha")
    ran = vmreplica("pki", "revoke", "--ca", "ca", "alpha")
    assert ran.lines[0].endswith(" is revoked.")
    serial = ran.lines[0].split()[0]
    assert f"revoked {serial}" in vmreplica("pki", "show", "ca/crl.pem").lines


@pytest.mark.parametrize(
    "line, code",
    [
        ("pki issue --ca nowhere --out pki alpha", 3),
        ("pki init ca", 2),
        ("pki issue --ca ca --out pki -- bad_host!", 2),
        ("pki show missing.pem", 3),
        ("pki revoke --ca ca stranger", 3),
        ("pki init /proc/ca", 8),
    ],
)
def test_pki_refuses(vmreplica: Command, line: str, code: int) -> None:
    assert vmreplica("pki", "init", "ca").code == 0
    ran = vmreplica(*line.split())
    assert ran.code == code
    assert ran.err.startswith("vmreplica: ")


@pytest.mark.parametrize(
    "vector, verdict, code",
    [
        ("log-clean", "sound", 0),
        ("log-torn", "torn", 0),
        ("log-damaged-middle", "damaged", 8),
        ("log-bad-header", "unreadable", 8),
    ],
)
def test_log_is_checked(vmreplica: Command, vector: str, verdict: str, code: int) -> None:
    path = VECTORS / f"{vector}.hrl"
    ran = vmreplica("hrl", "check", str(path))
    assert (ran.code, ran.err) == (code, "")
    assert ran.lines[0].startswith(f"{path}: ")
    report = vmreplica("hrl", "check", str(path), "--json")
    assert (report.code, json.loads(report.out)["verdict"]) == (code, verdict)


def test_log_is_dumped(vmreplica: Command) -> None:
    path = str(VECTORS / "log-clean.hrl")
    *records, report = [json.loads(line) for line in vmreplica("hrl", "dump", path, "--json").lines]
    assert report == json.loads(vmreplica("hrl", "check", path, "--json").out)
    assert len(records) == sum(report["records"].values())
    lines = vmreplica("hrl", "dump", path).lines
    assert sum("  segment" in line for line in lines) >= len(records)
    assert lines[-len(vmreplica("hrl", "check", path).lines) :] == vmreplica("hrl", "check", path).lines


def test_damaged_log_is_dumped_as_far_as_it_goes(vmreplica: Command) -> None:
    ran = vmreplica("hrl", "dump", str(VECTORS / "log-damaged-middle.hrl"), "--json")
    assert ran.code == 8
    assert len(ran.lines) > 1


def test_link_to_a_log_is_followed(vmreplica: Command) -> None:
    (vmreplica.folder / "link.hrl").symlink_to(VECTORS / "log-clean.hrl")
    assert vmreplica("hrl", "check", "link.hrl").code == 0


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file(vmreplica: Command, kind: str) -> None:
    path = Path(vmreplica.folder) / kind
    if kind == "folder":
        path.mkdir()
    ran = vmreplica("hrl", "check", str(path))
    assert ran.code == (3 if kind == "missing" else 8)
    assert str(path) in ran.err
