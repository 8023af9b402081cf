"""The command as people run it: a process of its own, before agents that tell canned statuses over real sockets."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared.admin import verbs as admin
from shared.admin.access import Access
from shared.admin.methods import Methods, NoParams, Params
from shared.admin.server import Client, JsonRpcServer
from shared.errors import NotFoundError, VmreplicaError
from shared.ports import Address
from shared.ports.network import RealNetwork
from shared.status import AgentStatus, VmStatus, to_plain
from tests.unit.cli.samples import agent as sample_agent

ROOT = Path(__file__).parents[3]
WAIT = 30.0
"""Seconds after which a command or an agent that does not get on fails its test."""

PARAMETERS: dict[str, type[Params]] = {
    admin.STATUS: admin.AnyVmParams,
    admin.GET: admin.AnyVmParams,
    admin.MEASURE: admin.VmParams,
    admin.MEASURE_RESET: admin.VmParams,
    admin.METRICS: NoParams,
    admin.CHURN: admin.ChurnParams,
    admin.EVENTS: admin.EventsParams,
    admin.AUDIT: admin.AuditParams,
    admin.CONFIG: NoParams,
    admin.AGENT_EVENTS: admin.AgentEventsParams,
    admin.EVENTS_FOLLOW: admin.AnyVmParams,
    admin.ALARMS: NoParams,
    admin.ALARM_TEST: admin.AlarmTestParams,
    admin.SUSPEND: admin.VmParams,
    admin.RESUME: admin.ResumeParams,
    admin.STOP: admin.VmParams,
    admin.RESIZE: admin.VmParams,
    admin.DISK_ADD: admin.DiskAddParams,
    admin.DISK_REMOVE: admin.DiskRemoveParams,
    admin.DISK_RESIZE: admin.DiskResizeParams,
    admin.REMOVE: admin.RemoveParams,
    admin.RECOVER: admin.RecoverParams,
    admin.ENABLE: admin.EnableParams,
    admin.INITIAL: admin.InitialParams,
    admin.SET: admin.SetParams,
    admin.TEST_CONNECTION: admin.ConnectionParams,
    admin.RESYNC_SHOW: admin.VmParams,
    admin.RESYNC_HISTORY: admin.HistoryParams,
    admin.RESYNC_PLAN: admin.PlanParams,
    admin.VERIFY: admin.VerifyParams,
    admin.POINTS: admin.PointsParams,
    admin.MARK_POINT: admin.MarkPointParams,
    admin.PROVE: admin.ProveParams,
    admin.TEST_FAILOVER: admin.TestFailoverParams,
    admin.EXPORT: admin.ExportParams,
    admin.UNEXPORT: admin.UnexportParams,
    admin.FAILOVER: admin.FailoverParams,
    admin.FAILOVER_UNDO: admin.VmParams,
    admin.FAILOVER_COMMIT: admin.VmParams,
    admin.HAND_OVER: admin.HandOverParams,
    admin.HANDED_OVER: admin.HandedOverParams,
    admin.ADOPT: admin.AdoptParams,
    admin.ADOPT_PART: admin.AdoptPartParams,
    admin.DIFFERENCES: admin.VmParams,
    admin.RESOLVE: admin.ResolveParams,
    admin.PREPARE_FAILOVER: admin.VmParams,
    admin.ABORT_FAILOVER: admin.AbortParams,
}


class CannedAgent:
    """An agent in a thread of its own: tells ``status``, and answers other methods as it was told to.

    ``answers`` maps a method to its result, an exception to raise, or a function of the parameters.
    ``calls`` holds what was asked, but for the status.
    """

    def __init__(self, path: Path, status: AgentStatus) -> None:
        self.path = path
        self.status = status
        self.answers: dict[str, Any] = {admin.AGENT_EVENTS: {"events": []}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.asked = 0
        """How often the status was asked for."""
        self.extra: dict[str, Any] = {}
        """Fields that an agent of another version adds to its status."""
        self.on_status: Callable[[int], None] = lambda asked: None
        """Called before each answer with the status, so that work can go on."""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(WAIT)

    def set_vm(self, vm: VmStatus) -> None:
        """Tell this VM from now on."""
        self.status.vms = [vm]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(WAIT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        methods = Methods()
        for name, params in PARAMETERS.items():
            methods.add(name, params, self._method(name))
        network = RealNetwork()
        address = Address(unix_path=str(self.path))
        server = JsonRpcServer(network, address, methods, authorize=Access(own_uid=os.getuid()))
        await server.start()
        self._ready.set()
        await self._stopping.wait()
        clients = server.clients
        await server.close()
        for client in clients:
            # The loop ends now, and would leave open what lingers for the other side's sake.
            client.abort()
        await asyncio.sleep(0)

    def _method(self, name: str) -> Callable[[Any, Client], Any]:
        async def method(params: Params, client: Client) -> Any:
            if name == admin.STATUS:
                assert isinstance(params, admin.AnyVmParams)
                return self._tell(params.vm)
            plain = to_plain(params)
            self.calls.append((name, plain))
            answer = self.answers.get(name)
            if callable(answer):
                # It may block for a while, as long work does.
                answer = await asyncio.to_thread(answer, plain)
            if isinstance(answer, VmreplicaError):
                raise answer
            return answer

        return method

    def _tell(self, vm: str | None) -> dict[str, Any]:
        self.asked += 1
        self.on_status(self.asked)
        plain = to_plain(self.status) | self.extra
        if vm is not None:
            plain["vms"] = [each for each in plain["vms"] if vm in (each["uuid"], each["name"])]
            if not plain["vms"]:
                raise NotFoundError(f"There is no VM {vm}.")
        return plain


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Command:
    """Runs ``vmreplica`` with the sockets of the canned agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: list[CannedAgent] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "VMREPLICA_SOCKETS": f"{folder}/primary.sock:{folder}/replica.sock",
        }

    def agent(self, role: Any = "primary", vms: list[VmStatus] | None = None, **changes: Any) -> CannedAgent:
        """Start an agent with these VMs."""
        started = CannedAgent(self.folder / f"{role}.sock", sample_agent(role, vms, **changes))
        self.agents.append(started)
        return started

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "shared.cli.main", *arguments]

    def __call__(self, *arguments: str, **environment: str) -> Ran:
        """Run to the end without a terminal."""
        done = subprocess.run(
            self.line(*arguments),
            env=self.environment | environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start without a terminal."""
        return subprocess.Popen(
            self.line(*arguments),
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def terminal(self, *arguments: str, **environment: str) -> Terminal:
        """Start on a terminal of its own."""
        return Terminal(self.line(*arguments), self.folder, self.environment | {"TERM": "xterm"} | environment)


class Terminal:
    """A command on a terminal: what it showed, and what is typed."""

    def __init__(self, line: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            line, env=environment, cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.shown = ""
        self._closed = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                data = b""
            with self._news:
                self.shown += data.decode(errors="replace")
                if not data:
                    self._closed.set()
                self._news.notify_all()
            if not data:
                return

    def wait_for(self, text: str) -> None:
        """Wait until ``text`` was shown."""
        end = time.monotonic() + WAIT
        with self._news:
            while text not in self.shown:
                left = end - time.monotonic()
                assert left > 0, f"{text!r} was not shown: {self.shown!r}"
                assert not self._closed.is_set(), f"ended without showing {text!r}: {self.shown!r}"
                self._news.wait(left)

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Wait for the command's end; its exit code."""
        code = self.process.wait(WAIT)
        self._thread.join(WAIT)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._thread.join(WAIT)
        os.close(self._master)


@pytest.fixture
def vmreplica(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    try:
        yield command
    finally:
        for each in command.agents:
            each.stop()
