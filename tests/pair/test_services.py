"""Agents and taps as services: what they tell the service manager, in which order, and when they must be silent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pair.hosts import ROOT, Hosts

pytestmark = pytest.mark.quick

WATCHDOG_SECONDS = 0.4
WAIT_SECONDS = 60.0
SILENCE_SECONDS = 4 * WATCHDOG_SECONDS
"""A living loop would have answered eight times meanwhile."""


class Manager:
    """The receiving end of sd_notify(3), as systemd has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def environment(self, *, watched: bool = True) -> dict[str, str]:
        usec = {"WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6))} if watched else {}
        return {"NOTIFY_SOCKET": str(self.path), **usec}

    def hear(self, seconds: float) -> None:
        """Take what is told within so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                self.heard += self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                return

    def wait(self, what: str, after: int = 0) -> int:
        """Wait for a line that matches, behind so many others; returns the number of lines up to and with it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            for number, line in enumerate(self.heard[after:], after + 1):
                if re.fullmatch(what, line):
                    return number
            self.hear(0.05)
        raise AssertionError(f"{what} was not told: {self.heard}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    end = Manager(tmp_path / "notify")
    yield end
    end.close()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    # The paths of sockets are bounded.
    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:
        made = Hosts(Path(folder))
        made.prepare(cuttable=False)
        yield made
        made.stop()


@pytest.fixture
def start(hosts: Hosts, manager: Manager) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a program of ours under the manager."""
    started = []

    def run(*words: str, watched: bool = True, **more: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **manager.environment(watched=watched), **more}
        with (hosts.folder / "service.log").open("ab") as log:
            started.append(
                subprocess.Popen([sys.executable, "-P", "-m", *words], env=environment, stdout=log, stderr=log)
            )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def agent(hosts: Hosts, role: str) -> tuple[str, ...]:
    return f"{role}_agent.main", "--config", str(hosts.folder / f"{role}.toml")


@pytest.mark.parametrize("role", ["primary", "replica"])
def test_an_agent_tells_its_life_in_order(
    role: str, hosts: Hosts, manager: Manager, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = start(*agent(hosts, role))
    ready = manager.wait("READY=1")
    # Nobody is told to come before somebody answers.
    with socket.socket(socket.AF_UNIX) as line:
        assert line.connect_ex(str(hosts.sockets[role])) == 0
    assert manager.heard[ready] == "STATUS=No VMs."
    assert not {"WATCHDOG=1", "RELOADING=1", "STOPPING=1"} & set(manager.heard[:ready])
    assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.heard[:ready])
    beat = manager.wait("WATCHDOG=1", ready)
    again = manager.wait("WATCHDOG=1", beat)

    process.send_signal(signal.SIGHUP)
    reloading = manager.wait("RELOADING=1", again)
    told = int(manager.heard[reloading].removeprefix("MONOTONIC_USEC="))
    assert told <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    ready = manager.wait("READY=1", reloading)
    assert manager.heard[ready] == "STATUS=No VMs."

    configuration = hosts.folder / f"{role}.toml"
    configuration.write_text("worker_thread = 3\n" + configuration.read_text())
    process.send_signal(signal.SIGHUP)
    ready = manager.wait("READY=1", manager.wait("RELOADING=1", ready))
    assert re.match(r"STATUS=Not reloaded: .*worker_thread is no known key.* No VMs\.", manager.heard[ready])

    process.send_signal(signal.SIGTERM)
    stopping = manager.wait("STOPPING=1", ready)
    assert process.wait(WAIT_SECONDS) == 0
    manager.hear(0.1)
    assert [line for line in manager.heard[stopping:] if line.startswith("EXTEND_TIMEOUT_USEC=")]
    assert not {"READY=1", "RELOADING=1"} & set(manager.heard[stopping:])


def test_a_loop_that_stands_still_is_not_answered_for(
    hosts: Hosts, manager: Manager, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """The agent's threads are alive, and its loop is kept from turning by a call that does not return."""
    patch = hosts.folder / "stuck"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: time.sleep(1000))\n"
    )
    path = f"{patch}:{ROOT}"
    process = start(*agent(hosts, "replica"), PYTHONPATH=path)
    beat = manager.wait("WATCHDOG=1", manager.wait("READY=1"))
    manager.wait("WATCHDOG=1", beat)
    process.send_signal(signal.SIGUSR1)
    # What is on its way comes; after that nothing does.
    manager.hear(WATCHDOG_SECONDS)
    count = len(manager.heard)
    manager.hear(SILENCE_SECONDS)
    assert process.poll() is None
    assert manager.heard[count:] == []
    # What systemd does then: the stacks tell where it stood.
    process.send_signal(signal.SIGABRT)
    assert process.wait(WAIT_SECONDS) == -signal.SIGABRT
    assert "sitecustomize.py" in (hosts.folder / "service.log").read_text()


def test_a_watchdog_of_another_process_is_not_answered(
    hosts: Hosts, manager: Manager, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    start(*agent(hosts, "replica"), WATCHDOG_PID=str(os.getpid()))
    manager.wait("READY=1")
    manager.hear(SILENCE_SECONDS)
    assert "WATCHDOG=1" not in manager.heard


def test_a_refused_start_says_why(
    hosts: Hosts, manager: Manager, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    (hosts.folder / "replica.toml").write_text("hots = 'beta'\n")
    assert start(*agent(hosts, "replica")).wait(WAIT_SECONDS) == 2
    assert manager.wait("STATUS=.*hots is no known key.*Did you mean host.*")
    assert "READY=1" not in manager.heard


def test_a_key_comes_as_a_credential(
    hosts: Hosts, manager: Manager, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    configuration = hosts.folder / "replica.toml"
    text, changed = re.subn(r'key = "[^"]*/key.pem"', 'key = "credential:host.key"', configuration.read_text())
    assert changed == 1
    configuration.write_text(text)
    assert start(*agent(hosts, "replica")).wait(WAIT_SECONDS) == 2
    manager.wait("STATUS=tls.key = 'credential:host.key' names a credential.*LoadCredential=host.key.*")
    credentials = hosts.folder / "credentials"
    credentials.mkdir()
    shutil.copy(hosts.folder / "pki/localhost/key.pem", credentials / "host.key")
    start(*agent(hosts, "replica"), CREDENTIALS_DIRECTORY=str(credentials))
    manager.wait("READY=1")


def test_a_primary_is_ready_when_its_taps_serve_and_its_line_tells_its_vms(
    hosts: Hosts, manager: Manager, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    hosts.make_disks(1 << 20)
    hosts.start("primary")
    hosts.enable()
    assert hosts.uris
    pid, folder = hosts.tap_pid(), hosts.tap_folder
    os.kill(pid, signal.SIGKILL)
    hosts.kill("primary")
    process = start(*agent(hosts, "primary"))
    ready = manager.wait("READY=1")
    with socket.socket(socket.AF_UNIX) as line:
        assert line.connect_ex(str(folder / "nbd.sock")) == 0
    assert re.match(r"STATUS=1 VM: 1 Warning \(demo: .*\)\.", manager.heard[ready])
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_SECONDS) == 0


def test_a_tap_tells_its_life_in_order(
    hosts: Hosts, manager: Manager, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    hosts.make_disks(1 << 20)
    hosts.start("primary")
    hosts.enable()
    assert hosts.uris
    pid, sockets = hosts.tap_pid(), hosts.tap_folder
    hosts.kill("primary")
    os.kill(pid, signal.SIGKILL)
    (folder,) = hosts.state.glob("vms/*/tap")
    process = start("primary_agent.tap.main", str(folder))
    ready = manager.wait("READY=1")
    with socket.socket(socket.AF_UNIX) as line:
        assert line.connect_ex(str(sockets / "nbd.sock")) == 0
    manager.wait(r"STATUS=demo: 1 disk, \d clients?, tracking off\.", ready)
    manager.wait("WATCHDOG=1", manager.wait("WATCHDOG=1", ready))
    process.send_signal(signal.SIGTERM)
    stopping = manager.wait("STOPPING=1", ready)
    assert process.wait(WAIT_SECONDS) == 0
    assert "READY=1" not in manager.heard[stopping:]
