"""Completion scripts, run by the shells they are for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shared.cli.arguments import SHELLS
from shared.cli.completion import grammar, script
from tests.unit.cli.conftest import ROOT, Command
from tests.unit.cli.samples import OTHER_UUID, healthy

PACKAGED = {"bash": "vmreplica.bash", "zsh": "_vmreplica", "fish": "vmreplica.fish"}


def completed(command: Command, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    shim = command.folder / "vmreplica"
    shim.write_text(f'#!/bin/sh\nexec {" ".join(command.line())} "$@"\n')
    shim.chmod(0o755)
    program = (
        f"PATH={command.folder}:$PATH; compopt() {{ :; }}; source {command.folder}/script\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vmreplica; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    (command.folder / "script").write_text(script("bash"))
    done = subprocess.run(
        ["bash", "-c", program, "bash", "vmreplica", *words],
        env=command.environment,
        cwd=command.folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return sorted(line for line in done.stdout.splitlines() if line)


def test_bash_completes_verbs_options_and_values(vmreplica: Command) -> None:
    assert completed(vmreplica, "s") == ["set", "setup", "status", "stop", "support-bundle", "suspend"]
    assert completed(vmreplica, "pki", "") == ["init", "issue", "revoke", "show"]
    assert completed(vmreplica, "enable", "--in") == ["--interval"]
    assert completed(vmreplica, "pki", "issue", "--") == ["--ca", "--help", "--json", "--out"]
    assert completed(vmreplica, "status", "--role", "") == ["primary", "replica"]
    assert completed(vmreplica, "status", "web", "--wa") == ["--watch"]
    assert completed(vmreplica, "enable", "--interval", "") == []


@pytest.mark.slow
def test_bash_completes_files_and_names_of_vms(vmreplica: Command) -> None:
    (vmreplica.folder / "disk.raw").touch()
    assert completed(vmreplica, "enable", "--disk", "disk") == ["disk.raw"]
    assert completed(vmreplica, "hrl", "check", "disk") == ["disk.raw"]
    assert completed(vmreplica, "suspend", "") == []
    vmreplica.agent(vms=[healthy(), healthy(name="mail", uuid=OTHER_UUID)])
    assert completed(vmreplica, "suspend", "") == ["mail", "web"]
    assert completed(vmreplica, "status", "--json", "m") == ["mail"]


def test_name_of_a_vm_is_never_run(vmreplica: Command) -> None:
    vmreplica.agent(vms=[healthy(name="$(touch ran)`touch ran`;touch ran")])
    [name] = completed(vmreplica, "suspend", "")
    # What is offered is quoted, so that running the line runs nothing of it either.
    shown = subprocess.run(["bash", "-c", f"printf %s {name}"], capture_output=True, text=True, check=True)
    assert shown.stdout == "$(touch ran)`touch ran`;touch ran"
    assert not (vmreplica.folder / "ran").exists()


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script("fish"))
    lines = f"source {tmp_path}/script; complete -C 'vmreplica pki issue --c'"
    shown = subprocess.run(["fish", "-N", "-c", lines], capture_output=True, text=True, check=True)
    assert shown.stdout == "--ca\tfolder of the authority\n"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_the_script(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script("zsh"))
    subprocess.run(["zsh", "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_script_names_every_verb_and_option(shell: str, vmreplica: Command) -> None:
    printed = vmreplica("completion", shell).out
    assert printed == script(shell)
    for each in grammar():
        words = [word for word, _ in each.verbs] + [option.name for option in each.options]
        assert all((word if shell != "fish" else word.removeprefix("--")) in printed for word in words)


@pytest.mark.parametrize("shell", SHELLS)
def test_packaged_script_is_current(shell: str) -> None:
    path = ROOT / "packaging/completion" / PACKAGED[shell]
    assert path.read_text() == script(shell), f"make it anew: vmreplica completion {shell} > {path.relative_to(ROOT)}"
