"""What doctor makes of virsh's answers, with a program in its place that answers as virsh does."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.attachment import Attachment
from shared.cli.findings import Level
from shared.cli.libvirt_disks import domain_findings

UUID = "11111111-1111-1111-1111-111111111111"
VM = Attachment(name="web", uuid=UUID, disks=("/d/web.raw",), sockets=("/run/nbd",), tap=None, clients=0)
XML = "<domain><devices><disk><source protocol='nbd'><host socket='/run/nbd'/></source><target dev='vda'/></disk>"
XML += "</devices></domain>"
UNKNOWN = "*web) echo \"error: failed to get domain 'web'\" >&2; exit 1;;"
"""libvirt has it by its UUID alone."""


def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: str) -> None:
    """In any other language than C's it says the same in other words, as virsh does."""
    program = tmp_path / "virsh"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$LC_ALL" = C ] || { echo "Fehler: Verbindung fehlgeschlagen" >&2; exit 1; }\n'
        f'case "$*" in --readonly*) ;; *) exit 3;; esac\ncase "$*" in\n{cases}\nesac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")


def test_domain_is_found_by_name_or_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path, monkeypatch, f'{UNKNOWN}\n*{VM.uuid}) echo "{XML}";;')
    (found,) = domain_findings(VM)
    assert (found.level, found.text) == (Level.OK, f"{VM.uuid}'s vda is on the tap.")


def test_unknown_domain_is_none_of_libvirts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path, monkeypatch, "*) echo \"error: failed to get domain 'x'\" >&2; exit 1;;")
    assert [*domain_findings(VM)] == []


@pytest.mark.parametrize("words", ["failed to connect to the hypervisor", "authentication failed: no agent"])
def test_whatever_else_keeps_it_from_answering_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    answering(tmp_path, monkeypatch, f'*) echo "error: {words}" >&2; exit 1;;')
    (found,) = domain_findings(VM)
    assert found.level is Level.NOTE
    assert words in found.text


def test_host_without_libvirt_has_nothing_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [*domain_findings(VM)] == []
