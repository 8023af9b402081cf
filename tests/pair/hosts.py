"""Two hosts of real processes, for the proof on real parts: agents, tap and link of their own, clients of the tap."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.agent_pair import PROGRAMS, ROLES, AgentPair, PairError, call, signal_process

MIB = 1 << 20
VM = "demo"
DEBIAN_PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).parents[2]
WRITER = "tests.pair.nbd_writer"
WAIT_SECONDS = 120.0
LOG_TAIL = 6000
Status = dict[str, Any]


class Hosts(AgentPair):
    """``alpha`` with the VM and ``beta`` with its copy; every wait ends with the last status after two minutes."""

    writers: list[Writer]

    def __init__(self, folder: Path, *, storage: Path | None = None, state: Path | None = None) -> None:
        super().__init__(folder, storage=storage, state=state)
        self.disks: list[Path] = []
        self.writers = []

    def certify(self, run: Callable[..., object]) -> None:
        """Made once for all tests of this process: two programs less for each of them."""
        made = _certificates()
        for name in ("ca", "pki"):
            shutil.copytree(made / name, self.folder / name)

    # --- orders and questions ----------------------------------------------------------------------------------------

    def call(self, role: str, method: str, **params: Any) -> Any:
        """One call of an agent's administration, without starting a process for it. Raises PairError."""
        return call(self.sockets[role], method, params)

    def tap(self, method: str, **params: Any) -> Any:
        """One call of the tap's control. Raises PairError."""
        return call(self.tap_folder / "control.sock", method, params)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``vmreplica`` whatever its exit code."""
        return subprocess.run(
            [str(PROGRAMS / "vmreplica"), *arguments], env=self.environment, capture_output=True, text=True, check=False
        )

    def status(self, role: str, vm: str = VM) -> Status:
        for status in self.call(role, "status")["vms"]:
            if status["name"] == vm:
                return dict(status)
        raise PairError(f"the {role} does not know the VM {vm}")

    def wait(self, what: str, role: str, until: Callable[[Status], object], vm: str = VM) -> Status:
        """Wait until the status of one side satisfies ``until``."""
        last: dict[str, object] = {}
        for _ in patience(what, last):
            try:
                status = self.status(role, vm)
            except PairError as error:
                last["error"] = str(error)
                continue
            last["status"] = status
            if until(status):
                return status
        raise AssertionError

    def wait_state(self, state: str, role: str = "primary") -> Status:
        return self.wait(state, role, lambda vm: vm["state"] == state)

    def connect(self) -> Status:
        """Wait for a session, telling the primary to try at once: its own waits grow up to half a minute."""

        def connected(vm: Status) -> bool:
            if not vm["link"]["connected"]:
                with contextlib.suppress(PairError):
                    self.call("primary", "vm.resume", vm=VM)
            return bool(vm["link"]["connected"])

        return self.wait("a session", "primary", connected)

    def events(self, role: str = "primary") -> list[Status]:
        return list(self.call(role, "events", vm=VM, limit=1000)["events"])

    @property
    def tap_folder(self) -> Path:
        """Where the sockets of the only VM's tap are."""
        (folder,) = (self.folder / "run-primary").iterdir()
        return folder

    @property
    def log_folder(self) -> Path:
        (folder,) = self.state.glob("vms/*/tap/log")
        return folder

    def copy(self, index: int) -> Path:
        """A disk of the replica."""
        (path,) = self.storage.glob(f"*/disk-{index}.raw")
        return path

    @property
    def uris(self) -> list[str]:
        return list(self.wait("the tap", "primary", lambda vm: (vm["tap"] or {}).get("uris"))["tap"]["uris"])

    # --- the way to a replicated VM ----------------------------------------------------------------------------------

    def make_disks(self, *sizes: int) -> None:
        """Raw images whose first third is random data."""
        for index, size in enumerate(sizes):
            path = self.folder / f"disk{index}.raw"
            with path.open("wb") as disk:
                disk.write(os.urandom(size // 3))
                disk.truncate(size)
            self.disks.append(path)

    def start_both(self) -> None:
        self.start("replica")
        self.start("primary")

    def enable(self, *, interval: float = 1.0, log_limit: int = 256 * MIB) -> None:
        address = self.address
        self.call(
            "primary", "vm.enable", name=VM, disks=[str(disk) for disk in self.disks], replica=address,
            interval_seconds=interval, log_limit_bytes=log_limit,
        )  # fmt: skip

    def replicate(self, *sizes: int, interval: float = 1.0, log_limit: int = 256 * MIB) -> None:
        """Start everything and complete the initial replication of disks of these sizes."""
        self.make_disks(*sizes)
        self.prepare()
        self.start_both()
        self.enable(interval=interval, log_limit=log_limit)
        self.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
        self.call("primary", "vm.initial", vm=VM)
        self.wait_state("Replicating")

    # --- comparing ---------------------------------------------------------------------------------------------------

    def caught_up(self) -> Status:
        """Take a cut, and wait until the replica's disks are at it. Survives taps and agents that come and go."""
        cut: Status | None = None
        told: dict[str, object] = {}
        for _ in patience("a cut", told):
            try:
                cut = self.tap("cut", reason="test")
                break
            except PairError as error:
                told["error"] = str(error)
        assert cut is not None
        epoch, segment = cut["epoch"], cut["segment"]

        def applied(vm: Status) -> bool:
            point = vm["applied_cut"]
            return point is not None and point["epoch"] == epoch and point["segment"] >= segment

        return self.wait(f"cut {segment}", "replica", applied)

    def assert_same(self, shadows: list[Path] | None = None) -> None:
        """With nothing in flight: the primary's disks, the replica's, and the shadows are the same byte for byte."""
        self.caught_up()
        for index, disk in enumerate(self.disks):
            compare(disk, self.copy(index))
            if shadows is not None:
                compare(shadows[index], disk)

    def start_writer(self, seed: int, **options: Any) -> Writer:
        """A client of all disks."""
        writer = Writer(self, seed, options)
        self.writers.append(writer)
        return writer

    # --- the end -----------------------------------------------------------------------------------------------------

    def start(self, role: str) -> None:
        self.agents.pop(role, None)
        super().start(role)

    def kill_tap(self) -> None:
        signal_process(self.tap_pid(), signal.SIGKILL)

    def logs(self) -> str:
        """What the agents and the tap wrote, for a test that failed."""
        paths = [self.folder / f"{role}.log" for role in ROLES]
        paths += [path for path in self.folder.rglob("*.log") if path not in paths]
        texts = {path: path.read_text(errors="replace") for path in paths if path.exists()}
        return "\n".join(f"--- {path}\n{text[-LOG_TAIL:]}" for path, text in texts.items())

    def stop(self) -> None:
        for writer in self.writers:
            writer.kill()
        super().stop()


class Writer:
    """tests/pair/nbd_writer.py in a process: random writes to all disks, and shadows of them."""

    def __init__(self, hosts: Hosts, seed: int, options: dict[str, Any]) -> None:
        self.shadows = [hosts.folder / f"shadow{index}-{seed}.raw" for index, _ in enumerate(hosts.disks)]
        for disk, shadow in zip(hosts.disks, self.shadows, strict=True):
            subprocess.run(["cp", "--sparse=always", str(disk), str(shadow)], check=True)
        self.journal = hosts.folder / f"journal-{seed}.jsonl"
        self.log = hosts.folder / f"writer-{seed}.log"
        plan = {
            "uris": hosts.uris,
            "shadows": [str(shadow) for shadow in self.shadows],
            "journal": str(self.journal),
            "seed": seed,
            **options,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [DEBIAN_PYTHON, "-m", WRITER, json.dumps(plan)], cwd=ROOT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def order(self, word: str, answer: str) -> None:
        """Give the writer an order and wait for its answer: ``go`` -> ``going``, ``stop`` -> ``idle``."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        told = self.process.stdout.readline().strip()
        assert told == answer, f"the client answered {told!r}: {self.log.read_text()}"

    def go(self) -> None:
        """Begin to write."""
        self.order("go", "going")

    def settle(self) -> None:
        """Stop writing; all that was sent is answered and flushed when this returns."""
        self.order("stop", "idle")

    def finish(self) -> list[Status]:
        """Settle and end; the journal."""
        self.settle()
        self.order("end", "bye")
        assert self.process.wait() == 0
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@functools.cache
def _certificates() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vmr-pki-"))
    atexit.register(shutil.rmtree, folder)
    pair = AgentPair(folder)
    pair.certify(pair.run)
    return folder


def patience(what: str, last: dict[str, object]) -> Iterator[None]:
    """Yields until the deadline, with a short pause between; then PairError with what ``last`` holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
    raise PairError(f"waited {WAIT_SECONDS:.0f} s for {what}: {json.dumps(last, indent=1)}")


def compare(ours: Path, theirs: Path) -> None:
    """Both files are the same byte for byte."""
    result = subprocess.run(["cmp", str(ours), str(theirs)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
