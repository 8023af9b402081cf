"""A support bundle has what helps, and no secret: private keys are looked for in every byte of it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from shared import pki
from shared.cli.bundle import Bundle, cleaned, without_secret_settings, without_secrets
from tests.pair.hosts import MIB, VM, Hosts


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read()
        return found


@pytest.mark.slow
def test_bundle_of_a_pair_has_no_key_and_nothing_of_the_disks(hosts: Hosts) -> None:
    hosts.make_disks(4 * MIB)
    marker = b"this is what a guest wrote"
    with hosts.disks[0].open("r+b") as disk:
        disk.write(marker)
    hosts.prepare()
    config = hosts.folder / "primary.toml"
    config.write_text(
        config.read_text()
        + "[[alarms]]\nname = 'hook'\nwebhook = 'https://user:geheim@example.com/hook?token=geheim'\n"
        "[[alarms]]\nname = 'mail'\ncommand = ['/bin/true', '--password', 'geheim']\n"
    )
    hosts.start_both()
    hosts.enable()
    out = hosts.folder / "bundle.tar.gz"
    ran = hosts.command("support-bundle", "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    found = contents(out)
    everything = b"".join(found.values())
    for key in hosts.folder.rglob("*key.pem"):
        for line in key.read_bytes().splitlines()[1:-1]:
            assert line not in everything, key
    assert b"PRIVATE KEY-----" not in everything
    assert b"geheim" not in everything
    assert marker not in everything
    uuid = hosts.status("primary")["uuid"]
    for name in ("primary/status.json", "primary/config.json", "primary/primary.toml", "replica/replica.toml",
                 "primary/events.json", "primary/audit.json", f"primary/vms/{uuid}/events.json",
                 f"primary/vms/{uuid}/files.json",
                 "versions.json", "doctor.json", "os/uname", "MISSING.json"):  # fmt: skip
        assert name in found, sorted(found)
    settings = json.loads(found["primary/config.json"])["settings"]
    assert settings["worker_threads"]["value"] == 8
    assert settings["tls.key"]["value"].endswith("key.pem")
    assert VM.encode() in found["primary/status.json"]
    again = hosts.command("support-bundle", "--out", str(out))
    assert again.returncode == 8, "what is there is not written over"


def test_key_is_taken_out_wherever_it_stands(tmp_path: Path) -> None:
    pki.init_ca(tmp_path / "ca")
    key = (tmp_path / "ca" / pki.CA_KEY).read_bytes()
    for data in (b"log: " + key + b" end", key[:-40]):
        assert b"PRIVATE" not in cleaned(data)
        assert key.splitlines()[1] not in cleaned(data)
    bundle = Bundle(files={"x": b"before " + key})
    bundle.write(tmp_path / "b.tar.gz")
    assert contents(tmp_path / "b.tar.gz")["x"].startswith(b"before (private key")


def test_secrets_are_blotted_and_paths_stay() -> None:
    value = {"tls": {"key": "/etc/key.pem"}, "password": "x", "list": [{"api_token": "x", "n": 1}],
             "url": "see https://u:p@example.com/a?b=c"}  # fmt: skip
    assert without_secrets(value) == {
        "tls": {"key": "/etc/key.pem"}, "password": "(secret)", "list": [{"api_token": "(secret)", "n": 1}],
        "url": "see https://example.com/...",
    }  # fmt: skip
    text = "key = '/etc/key.pem'\npassword = 'x'\n[[alarms]]\ncommand = ['a',\n 'secret']\n[points]\nnewest = 2\n"
    assert without_secret_settings(text) == (
        "key = '/etc/key.pem'\npassword = \"(secret)\"\n# [[alarms]] (left out)\n[points]\nnewest = 2\n"
    )
