"""The man pages: every verb, program and key has its place, and what formats them finds nothing to complain about."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shared.cli.arguments import VERBS
from shared.cli.manual import pages
from shared.cli.settings import tables

PAGES = pages()


def test_every_verb_and_program_has_a_page() -> None:
    programs = {"vmreplica-primary.8", "vmreplica-replica.8", "vmreplica-tap.8"}
    assert set(PAGES) == {"vmreplica.1", "vmreplica.toml.5", *programs, *(f"vmreplica-{v.name}.1" for v in VERBS)}
    for verb in VERBS:
        assert rf"\fBvmreplica\-{verb.name.replace('-', chr(92) + '-')}(1)\fR" in PAGES["vmreplica.1"]


def test_every_key_is_on_its_page() -> None:
    page = PAGES["vmreplica.toml.5"]
    for table in tables():
        assert f'"{table.written}' in page
        for setting in table.settings:
            assert rf"\fB{setting.key}\fR" in page


def test_nothing_is_taken_for_a_request(tmp_path: Path) -> None:
    """Text that begins with a dot or a quote would vanish."""
    requests = (".TH", ".SH", ".SS", ".PP", ".TP", ".br", ".ad", ".nh")
    for name, page in PAGES.items():
        for line in page.splitlines():
            assert not line.startswith("'"), (name, line)
            assert not line.startswith(".") or line.startswith(requests), (name, line)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not here")
def test_the_formatter_warns_of_nothing(tmp_path: Path) -> None:
    for name, page in PAGES.items():
        (tmp_path / name).write_text(page)
    # -ww: all warnings; -z: nothing is printed.
    words = ["groff", "-man", "-ww", "-z", "-Tutf8", "-Kutf8", *(str(tmp_path / name) for name in PAGES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_source_gives_the_same_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    first = pages()
    assert first == pages()
    assert '"2026-01-01"' in first["vmreplica.1"]
