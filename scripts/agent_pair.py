"""Two agents of this checkout as real processes in one folder: what demonstration, benchmarks and tests start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.link_cutter import LinkCutter

PROGRAMS = Path(sys.executable).parent
WAIT_SECONDS = 90.0
START_SECONDS = 20.0
CALL_SECONDS = 120.0
STOP_SECONDS = 15.0
ROLES = ("primary", "replica")


class PairError(Exception):
    """A step did not do what it should have done."""


class AgentPair:
    """Two agents on one machine, in one folder, over loopback with certificates of their own.

    ``port`` is where the replica listens. ``link``, once made by ``prepare``, is a forwarder between the two that can
    be cut; ``address`` is what the primary is told to dial. Every process started here ends with ``stop``.
    """

    def __init__(
        self, folder: Path, *, storage: Path | None = None, state: Path | None = None, sessions: bool = False
    ) -> None:
        """``sessions``: each agent has a session of its own, as a service has."""
        self.folder = folder
        self.sessions = sessions
        self.storage = storage or folder / "store"
        self.state = state or folder / "primary"
        self.sockets = {role: folder / f"{role}.sock" for role in ROLES}
        self.environment = {**os.environ, "VMREPLICA_SOCKETS": ":".join(map(str, self.sockets.values()))}
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.link: LinkCutter | None = None
        self.port = LinkCutter.free_port()

    @property
    def address(self) -> str:
        return f"localhost:{self.link.port if self.link is not None else self.port}"

    # --- the command -------------------------------------------------------------------------------------------------

    def run(self, *arguments: str) -> str:
        """Run ``vmreplica`` and return what it printed. Raises PairError if it fails."""
        result = subprocess.run(
            [str(PROGRAMS / "vmreplica"), *arguments], env=self.environment, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise PairError(f"vmreplica {' '.join(arguments)} failed:\n{result.stdout}{result.stderr}")
        return result.stdout

    def status(self, role: str, vm: str = "demo") -> dict[str, Any]:
        """The status of the VM as one side tells it."""
        for agent in json.loads(self.run("status", vm, "--json", "--socket", str(self.sockets[role])))["agents"]:
            for status in agent["vms"]:
                if status["role"] == role:
                    return dict(status)
        raise PairError(f"the {role} does not know the VM {vm}")

    def wait(self, what: str, role: str, until: Callable[[dict[str, Any]], object], vm: str = "demo") -> dict[str, Any]:
        """Wait until the status satisfies ``until``; PairError with the last status after WAIT_SECONDS."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            status = self.status(role, vm)
            if until(status):
                return status
            if time.monotonic() > deadline:
                raise PairError(f"waited {WAIT_SECONDS:.0f} s for {what}: {json.dumps(status, indent=1)}")
            time.sleep(0.1)

    # --- processes ---------------------------------------------------------------------------------------------------

    def certify(self, run: Callable[..., object]) -> None:
        """Certificates for two hosts in two commands, in ``ca`` and ``pki`` of the folder."""
        folder = self.folder
        run("pki", "init", str(folder / "ca"))
        run("pki", "issue", "--ca", str(folder / "ca"), "--out", str(folder / "pki"), "alpha", "localhost")

    def prepare(self, *, cuttable: bool = True, run: Callable[..., object] | None = None) -> None:
        """Certificates, and a configuration for each agent."""
        self.certify(run or self.run)
        if cuttable:
            self.link = LinkCutter(("127.0.0.1", self.port))
        self.storage.mkdir(mode=0o700, exist_ok=True)
        # What starts a resync must not depend on the time of the day.
        self._configure("primary", "alpha", "alpha", '[resync]\nmode = "manual"\n')
        listen = f'[listen]\nhost = "127.0.0.1"\nport = {self.port}\n'
        entry = f'[[authorize]]\nname = "alpha"\nvms = ["*"]\nstorage = "{self.storage}"\n'
        self._configure("replica", "beta", "localhost", listen + entry)

    def _configure(self, role: str, host: str, certificate: str, more: str) -> None:
        folder, pki = self.folder, self.folder / "pki" / certificate
        state = self.state if role == "primary" else folder / role
        own = f'replica_config = "{folder}/replica.toml"\n' if role == "primary" else ""
        (folder / f"{role}.toml").write_text(
            f'host = "{host}"\nstate_dir = "{state}"\nruntime_dir = "{folder}/run-{role}"\n'
            f'admin_socket = "{self.sockets[role]}"\n'
            f'{own}[tls]\nca = "{pki}/ca.pem"\ncertificate = "{pki}/certificate.pem"\nkey = "{pki}/key.pem"\n{more}'
        )

    def start(self, role: str) -> None:
        """Start an agent and wait until its socket answers."""
        output = self.folder / f"{role}.log"
        with output.open("ab") as log:
            agent = subprocess.Popen(
                [str(PROGRAMS / f"vmreplica-{role}"), "--config", str(self.folder / f"{role}.toml")],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=self.sessions,
            )
        self.agents[role] = agent
        deadline = time.monotonic() + START_SECONDS
        while not self._answers(role):
            if agent.poll() is not None or time.monotonic() > deadline:
                raise PairError(f"the {role} agent did not start:\n{output.read_text()}")
            time.sleep(0.02)

    def _answers(self, role: str) -> bool:
        """Whether the agent listens; it does when it is ready for orders."""
        with socket.socket(socket.AF_UNIX) as line:
            return line.connect_ex(str(self.sockets[role])) == 0

    def kill(self, role: str) -> None:
        """SIGKILL an agent; its taps go on."""
        agent = self.agents.pop(role)
        agent.kill()
        agent.wait()

    def tap_pid(self, role: str = "primary", vm: str = "demo") -> int:
        """The process that serves the VM's disks."""
        return int((self.status(role, vm)["tap"] or {})["pid"])

    def stop(self) -> None:
        """End everything that was started: agents, then the taps they left."""
        taps = self.taps()
        for agent in self.agents.values():
            agent.terminate()
        for agent in self.agents.values():
            try:
                agent.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        self.agents.clear()
        for pid in taps:
            signal_process(pid, signal.SIGTERM)
        if self.link is not None:
            self.link.close()

    def taps(self) -> list[int]:
        """The taps of our VMs: processes whose command line names a folder of ours."""
        pids = []
        homes = (f"{self.state}/", f"{self.storage}/")
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if "primary_agent.tap.main" in words and any(word.startswith(homes) for word in words):
                        pids.append(int(process.name))
        return pids


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def call(path: Path, method: str, params: dict[str, Any]) -> Any:
    """One call of the JSON-RPC socket ``path``. Raises PairError."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(CALL_SECONDS)
        try:
            line.connect(str(path))
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("rb") as answers:
                answer = json.loads(answers.readline() or b"null")
        except OSError as error:
            raise PairError(f"{method}: {path} does not answer: {error}") from error
    if answer is None or "error" in answer:
        raise PairError(f"{method}: {answer and answer['error']}")
    return answer["result"]


def fio(uri: str, name: str, *options: str) -> None:
    """Write to an NBD export as a real client does."""
    subprocess.run(
        ["fio", f"--name={name}", "--ioengine=nbd", f"--uri={uri}", "--minimal", "--randrepeat=0", *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
