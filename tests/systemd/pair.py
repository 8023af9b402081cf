"""Two hosts with a systemd each, alpha and beta, and a wire between them: what is ordered, asked and waited for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scripts.agent_pair import PairError, call
from tests.pair.hosts import compare
from tests.systemd.host import Host, Network, clear
from tests.systemd.page import Typed

NAMES = ("alpha", "beta")
ROOT = Path(__file__).parents[2]
CHECKOUT = "/opt/vmreplica-tests"
"""Where the hosts see this checkout, read-only: for the client of the tests."""
PREFIX = "vmreplica-hosts-"
"""Of the folders of a pair; then come the number of the process that made it, and a random word."""
MEMORY = "/dev/shm"
ROLES = {"alpha": "primary", "beta": "replica"}
WAIT_SECONDS = 90.0
COPY = re.compile(r"scp (?:-\S+ )?(?P<source>\S+) (?P<host>[a-z]+):(?P<target>\S+)")
Status = dict[str, Any]


class Pair:
    """Both hosts, booted. ``close`` (or the end of a ``with``) takes everything away."""

    def __init__(self) -> None:
        sweep()
        prefix = f"{PREFIX}{os.getpid()}-"
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        # In memory: what a host has installed. VMs' disks, copies and states are on a disk.
        self.layers = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY))
        self.network = Network(NAMES)
        self.hosts: dict[str, Host] = {}
        try:
            for name in NAMES:
                host = self.hosts[name] = Host(
                    self.folder / name, self.layers / name, f"{self.folder.name}-{name}", name, self.network,
                    shared={CHECKOUT: ROOT},
                )  # fmt: skip
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
        for folder in (self.folder, self.layers):
            with contextlib.suppress(OSError):
                folder.rmdir()

    # --- what a page tells to type -----------------------------------------------------------------------------------

    def type(self, what: list[Typed]) -> str:
        """Type it, as it stands there; what it printed. Raises HostError when a command fails."""
        printed = ""
        for typed in what:
            host = self.hosts[typed.host]
            if copies := COPY.fullmatch(typed.lines.strip()):
                # There is no secure shell between these hosts; everything else is run by a shell.
                self.copy_over(host, copies["source"], self.hosts[copies["host"]], copies["target"])
            else:
                printed += host.shell(typed.lines).stdout
        return printed

    def copy_over(self, source: Host, path: str, target: Host, to: str) -> None:
        """As ``scp -r`` does between two hosts."""
        subprocess.run(["cp", "-r", "-p", str(source.path(path)), str(target.path(to))], check=True)

    # --- questions ---------------------------------------------------------------------------------------------------

    def call(self, name: str, method: str, /, *, role: str = "", **params: Any) -> Any:
        """One call of the administration of the host's agent, without starting a process for it. Raises PairError."""
        return call(self.hosts[name].path(f"/run/vmreplica/{role or ROLES[name]}/admin.sock"), method, params)

    def status(self, name: str, vm: str, *, role: str = "") -> Status:
        """What one side tells of the VM. Raises PairError."""
        (status,) = self.call(name, "status", role=role, vm=vm)["vms"]
        return dict(status)

    def wait(self, what: str, name: str, until: Callable[[Status], object], *, vm: str, role: str = "") -> Status:
        """Wait until what one side tells of the VM satisfies ``until``."""
        deadline = time.monotonic() + WAIT_SECONDS
        last: object = None
        while time.monotonic() < deadline:
            with contextlib.suppress(PairError):
                last = status = self.status(name, vm, role=role)
                if until(status):
                    return status
            time.sleep(0.1)
        raise PairError(f"{name}: waited {WAIT_SECONDS:.0f} s for {what}: {json.dumps(last, indent=1)}")

    def caught_up(self, vm: str) -> None:
        """Take a cut, and wait until the replica's disks are at it."""
        cut = self.tap(vm, "cut", reason="test")

        def applied(now: Status) -> bool:
            point = now["applied_cut"]
            return point is not None and point["epoch"] == cut["epoch"] and point["segment"] >= cut["segment"]

        self.wait(f"cut {cut['segment']}", "beta", applied, vm=vm)

    def tap(self, vm: str, method: str, **params: Any) -> Any:
        """One call of the control of a VM's tap at alpha. Raises PairError."""
        uuid = self.status("alpha", vm)["uuid"]
        return call(self.alpha.path(f"/run/vmreplica/primary/{uuid}/control.sock"), method, params)

    def assert_same(self, vm: str, disk: str) -> None:
        """With nothing in flight: alpha's disk and the copy at beta are the same byte for byte."""
        self.caught_up(vm)
        (copy,) = self.status("beta", vm)["disks"]
        compare(self.alpha.path(disk), self.beta.path(copy["path"]))

    def wire(self, state: str) -> None:
        """Pull the wire out at beta (``down``), or put it in again (``up``)."""
        self.network.ip("beta", "link", "set", "eth0", state)


def sweep() -> None:
    """Take away what the hosts of a process left that was killed."""
    for base in (Path(tempfile.gettempdir()), Path(MEMORY)):
        for folder in base.glob(f"{PREFIX}*-*"):
            if not Path("/proc", folder.name.removeprefix(PREFIX).partition("-")[0]).exists():
                for host in [path for path in folder.iterdir() if (path / "cgroup").is_dir()]:
                    clear(host, f"{folder.name}-{host.name}")
                # Another process may be at it, too.
                shutil.rmtree(folder, ignore_errors=True)
