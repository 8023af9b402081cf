"""What a look at the machine says where it is not as it should be; and of what it says so when it is."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from shared.cli import machine
from shared.cli.findings import Finding, Level
from shared.config_sections import PrimaryConfig, ReplicaConfig
from tests.unit.cli.conftest import Command

TLS = {"ca": "/a", "certificate": "/b", "key": "/c"}
MIB = 1 << 20


def found(subject: str) -> Finding:
    """The finding of a look at the whole machine."""
    (finding,) = [each for each in machine.machine_findings("") if each.subject == subject]
    return finding


@pytest.mark.parametrize(("version", "level"), [((3, 10, 14), Level.PROBLEM), ((3, 11, 0), Level.OK)])
def test_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], level: Level) -> None:
    monkeypatch.setattr(machine, "sys", SimpleNamespace(version_info=version, executable="/usr/bin/python3"))
    python = found("Python")
    assert python.level is level
    assert level is Level.OK or "Install Python 3.11" in python.remedy


@pytest.mark.parametrize(
    ("tls13", "version", "level"),
    [
        (False, (3, 0, 0), Level.PROBLEM),
        (True, (1, 1, 1), Level.WARNING),
        (True, (3, 0, 0), Level.OK),
    ],
)
def test_openssl_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, tls13: bool, version: tuple[int, ...], level: Level
) -> None:
    monkeypatch.setattr(ssl, "HAS_TLSv1_3", tls13)
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_INFO", version)
    openssl = found("OpenSSL")
    assert openssl.level is level
    assert level is Level.OK or "OpenSSL 3" in openssl.remedy


class Kernel:
    """Its clock, as adjtimex(2) tells it."""

    def __init__(self, status: int, refused: int = 0) -> None:
        self.status = status
        self.refused = refused

    def adjtimex(self, timex: Any) -> int:
        timex._obj.status, timex._obj.maxerror = self.status, 16_000
        ctypes.set_errno(self.refused)
        return -1 if self.refused else 0


@pytest.mark.parametrize(
    ("kernel", "level", "text"),
    [
        (Kernel(0x0040), Level.WARNING, "Nothing keeps it right."),
        (Kernel(0x2001), Level.OK, "It is kept right, to 16 ms at worst."),
        (Kernel(0, errno.EPERM), Level.NOTE, "does not tell whether it is kept right: Operation not permitted."),
    ],
)
def test_clock_that_nothing_keeps_right(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel, level: Level, text: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: kernel)
    clock = found("clock")
    assert clock.level is level
    assert text in clock.text
    assert level is Level.OK or "chrony" in clock.remedy


@pytest.mark.parametrize(
    ("free", "level"),
    [
        (64 * MIB - 1, Level.PROBLEM),
        (64 * MIB, Level.WARNING),
        (1024 * MIB - 1, Level.WARNING),
        (1024 * MIB, Level.OK),
    ],
)
def test_volume_with_little_or_no_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, level: Level
) -> None:
    usage = SimpleNamespace(free=free, total=4096 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage)
    (room,) = [each for each in machine.folder_findings("x", str(tmp_path)) if "free_bytes" in each.evidence]
    assert room.level is level
    assert room.evidence == {"free_bytes": free, "total_bytes": usage.total}


def test_volume_in_memory_is_warned_of() -> None:
    memory, *_ = machine.folder_findings("x", "/dev/shm/vmreplica-not-there")
    assert memory.level is Level.WARNING
    assert "memory" in memory.text


# --- ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def replica(listen: int, metrics: int) -> ReplicaConfig:
    return msgspec.convert(
        {
            "tls": TLS,
            "listen": {"host": "127.0.0.1", "port": listen},
            "metrics": {"listen": f"127.0.0.1:{metrics}"},
        },
        ReplicaConfig,
    )


def test_port_that_is_taken_is_told_with_who_has_it(taken: int) -> None:
    free = free_port()
    levels = {each.subject: each for each in machine.port_findings(replica(taken, free))}
    assert levels[f"port {taken}"].level is Level.PROBLEM
    assert levels[f"port {taken}"].evidence["pid"] == os.getpid()
    assert levels[f"port {free} of [metrics]"].level is Level.OK
    levels = {each.subject: each for each in machine.port_findings(replica(free, taken))}
    assert levels[f"port {free}"].level is Level.OK
    assert levels[f"port {taken} of [metrics]"].level is Level.PROBLEM
    assert levels[f"port {taken} of [metrics]"].evidence["pid"] == os.getpid()
    assert "[metrics]" in levels[f"port {taken} of [metrics]"].remedy


def test_primary_has_only_the_port_of_its_metrics(taken: int) -> None:
    assert not list(machine.port_findings(msgspec.convert({"tls": TLS}, PrimaryConfig)))
    config = msgspec.convert({"tls": TLS, "metrics": {"listen": f"127.0.0.1:{taken}"}}, PrimaryConfig)
    assert [each.level for each in machine.port_findings(config)] == [Level.PROBLEM]


def test_port_of_the_other_agent_is_not_free(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Each agent needs a port of its own for its metrics; one that listens already is the same agent's."""
    config = msgspec.convert({"tls": TLS, "metrics": {"listen": f"127.0.0.1:{taken}"}}, PrimaryConfig)
    for role, level in (("replica", Level.PROBLEM), ("primary", Level.OK)):
        monkeypatch.setattr(machine, "listener_of", lambda _port, role=role: (42, f"/usr/bin/vmreplica-{role}"))
        (port,) = machine.port_findings(config)
        assert (port.level, port.evidence["pid"]) == (level, 42)


def test_address_that_is_not_of_this_host() -> None:
    config = msgspec.convert({"tls": TLS, "metrics": {"listen": "192.0.2.1:9441"}}, PrimaryConfig)
    (port,) = machine.port_findings(config)
    assert port.level is Level.PROBLEM
    assert "No interface" in port.text and "[metrics]" in port.remedy


def test_setup_looks_at_the_machine_and_its_ports(vmreplica: Command, tmp_path: Path, taken: int) -> None:
    path = tmp_path / "primary.toml"
    path.write_text(
        f'state_dir = "{tmp_path}"\n[tls]\nca = "/a"\ncertificate = "/b"\nkey = "/c"\n'
        f'[metrics]\nlisten = "127.0.0.1:{taken}"\n'
    )
    ran = vmreplica("setup", "primary", "--check", "--json", "--config", str(path))
    levels = {each["subject"]: each["level"] for each in json.loads(ran.out)["findings"]}
    assert {"Python", "OpenSSL", "kernel", "uvloop", "systemd", "clock"} <= levels.keys()
    assert (ran.code, levels[f"port {taken} of [metrics]"]) == (1, "problem")
