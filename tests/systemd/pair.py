"""Two hosts with a systemd each, alpha and beta, and a wire between them: what is ordered, asked and waited for."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.systemd.host import Host, Network
from tests.systemd.page import Typed

NAMES = ("alpha", "beta")
ROOT = Path(__file__).parents[2]
CHECKOUT = "/opt/vmreplica-tests"
"""Where the hosts see this checkout, read-only: for the client of the tests."""
ROLES = {"alpha": "primary", "beta": "replica"}
WAIT_SECONDS = 90.0
COPY = re.compile(r"scp (?:-\S+ )?(?P<source>\S+) (?P<host>[a-z]+):(?P<target>\S+)")
Status = dict[str, Any]


class PairError(AssertionError):
    """The pair did not come to what was waited for."""


class Pair:
    """Both hosts, booted. ``close`` (or the end of a ``with``) takes everything away."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vmreplica-hosts-"))
        self.network = Network(NAMES)
        self.hosts: dict[str, Host] = {}
        try:
            for name in NAMES:
                host = self.hosts[name] = Host(
                    self.folder / name, f"{self.folder.name}-{name}", name, self.network, shared={CHECKOUT: ROOT}
                )
                host.boot()
        except BaseException:
            self.close()
            raise

    @property
    def alpha(self) -> Host:
        return self.hosts["alpha"]

    @property
    def beta(self) -> Host:
        return self.hosts["beta"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for host in self.hosts.values():
                error.add_note(self.evidence(host))
        self.close()

    def evidence(self, host: Host) -> str:
        """The end of what the host's journal and the command tell."""
        with contextlib.suppress(Exception):
            told = host.run("vmreplica", "status", check=False)
            return f"--- {host.name}\n{told.stdout}{told.stderr}\n{host.journal('-n', '80', '-u', 'vmreplica*')}"
        return f"--- {host.name} does not answer"

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()
        self.network.close()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    # --- what a page tells to type -----------------------------------------------------------------------------------

    def type(self, what: list[Typed]) -> str:
        """Type it, as it stands there; what it printed. Raises HostError when a command fails."""
        printed = ""
        for typed in what:
            host = self.hosts[typed.host]
            if copies := [COPY.fullmatch(line) for line in typed.lines.splitlines() if line.startswith("scp ")]:
                # There is no secure shell between these hosts; everything else is run by a shell.
                assert all(copies) and len(copies) == len(typed.lines.splitlines())
                for copy in copies:
                    assert copy is not None
                    self._copy(host, copy["source"], self.hosts[copy["host"]], copy["target"])
            else:
                printed += host.shell(typed.lines).stdout
        return printed

    def _copy(self, source: Host, path: str, target: Host, to: str) -> None:
        """As ``scp -r`` does between two hosts."""
        subprocess.run(["cp", "-r", "-p", str(source.path(path)), str(target.path(to))], check=True)

    # --- questions ---------------------------------------------------------------------------------------------------

    def call(self, name: str, method: str, *, role: str = "", **params: Any) -> Any:
        """One call of the administration of the host's agent, without starting a process for it. Raises PairError."""
        path = self.hosts[name].path(f"/run/vmreplica/{role or ROLES[name]}.sock")
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(WAIT_SECONDS)
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

    def status(self, name: str, vm: str = "web", *, role: str = "") -> Status:
        for status in self.call(name, "status", role=role)["vms"]:
            if status["name"] == vm:
                return dict(status)
        raise PairError(f"{name} does not know the VM {vm}")

    def wait(self, what: str, name: str, until: Callable[[Status], object], *, role: str = "") -> Status:
        """Wait until what one side tells of the VM satisfies ``until``."""
        deadline = time.monotonic() + WAIT_SECONDS
        last: object = None
        while time.monotonic() < deadline:
            with contextlib.suppress(PairError, FileNotFoundError):
                last = status = self.status(name, role=role)
                if until(status):
                    return status
            time.sleep(0.05)
        raise PairError(f"{name}: waited {WAIT_SECONDS:.0f} s for {what}: {json.dumps(last, indent=1)}")

    def wait_state(self, name: str, *states: str) -> Status:
        return self.wait(f"the state {' or '.join(states)}", name, lambda vm: vm["state"] in states)

    def connected(self) -> Status:
        """Wait for a session, which the agents make by themselves."""
        return self.wait("a session", "alpha", lambda vm: vm["link"]["connected"])

    def caught_up(self) -> None:
        """Take a cut, and wait until the replica's disks are at it."""
        cut = self.tap("cut", reason="test")

        def applied(vm: Status) -> bool:
            point = vm["applied_cut"]
            return point is not None and point["epoch"] == cut["epoch"] and point["segment"] >= cut["segment"]

        self.wait(f"cut {cut['segment']}", "beta", applied)

    def tap(self, method: str, **params: Any) -> Any:
        """One call of the control of alpha's only tap."""
        (folder,) = self.alpha.path("/run/vmreplica/primary").glob("*/control.sock")
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(folder))
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("rb") as answers:
                return json.loads(answers.readline())["result"]

    # --- a guest -----------------------------------------------------------------------------------------------------

    def write(self, host: Host, uri: str, commands: str) -> None:
        """Have qemu-io do this at a disk that is served there."""
        host.run("qemu-io", "-f", "raw", *(word for c in commands.split(";") for word in ("-c", c.strip())), uri)

    def assert_same(self, disk: str, copy: Path) -> None:
        """With nothing in flight: alpha's disk and the copy are the same byte for byte."""
        self.caught_up()
        compare(self.alpha.path(disk), copy)

    def copy(self, index: int = 0) -> Path:
        """A disk of the copy at beta, as a path of this machine."""
        (path,) = self.beta.path("/srv/vmreplica").glob(f"**/disk-{index}.raw")
        return path


def compare(ours: Path, theirs: Path) -> None:
    """Both files are the same byte for byte."""
    done = subprocess.run(["cmp", str(ours), str(theirs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def quoted(*arguments: str) -> str:
    """As a shell takes it for these arguments."""
    return shlex.join(arguments)
