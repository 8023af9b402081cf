"""The demonstration: two agents, a tap and real NBD clients replicate a disk, lose the link, resync and fail over.

Everything runs as real processes in one temporary folder on this machine, over loopback. Nothing is simulated; each
claim at the end was checked by an independent program (nbdcopy, cmp, sha256).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.link_cutter import LinkCutter

PROGRAMS = Path(sys.executable).parent
MIB = 1 << 20
TIMEOUT = 90.0


class DemoError(Exception):
    """A step did not do what it should have done."""


class Pair:
    """Two agents on one machine, in one folder, with a cuttable link between them."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self.sockets = {role: folder / f"{role}.sock" for role in ("primary", "replica")}
        self.environment = {**os.environ, "VMREPLICA_SOCKETS": ":".join(map(str, self.sockets.values()))}
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.link: LinkCutter | None = None

    def run(self, *arguments: str) -> str:
        """Run ``vmreplica`` and return what it printed."""
        result = subprocess.run(
            [str(PROGRAMS / "vmreplica"), *arguments], env=self.environment, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise DemoError(f"vmreplica {' '.join(arguments)} failed:\n{result.stdout}{result.stderr}")
        return result.stdout

    def show(self, *arguments: str) -> None:
        """Run ``vmreplica`` before the viewer's eyes, with its own live progress."""
        self.console.print(f"[bold cyan]$ vmreplica {' '.join(arguments)}[/]")
        sys.stdout.flush()
        done = subprocess.run([str(PROGRAMS / "vmreplica"), *arguments], env=self.environment, check=False)
        if done.returncode != 0:
            raise DemoError(f"vmreplica {' '.join(arguments)} ended with exit code {done.returncode}")

    def status(self, role: str) -> dict[str, Any]:
        """The status of the VM as one side tells it."""
        for agent in json.loads(self.run("status", "demo", "--json"))["agents"]:
            for vm in agent["vms"]:
                if vm["role"] == role:
                    return dict(vm)
        raise DemoError(f"the {role} does not know the VM")

    def wait(self, what: str, role: str, until: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until the status satisfies ``until``; fails with the last status after a while."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            status = self.status(role)
            if until(status):
                return status
            if time.monotonic() > deadline:
                raise DemoError(f"waited {TIMEOUT:.0f} s for {what}: {json.dumps(status, indent=1)}")
            time.sleep(0.1)

    def start(self, role: str) -> None:
        log = (self.folder / f"{role}.log").open("ab")
        program = str(PROGRAMS / f"vmreplica-{role}")
        self.agents[role] = subprocess.Popen(
            [program, "--config", str(self.folder / f"{role}.toml")], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while not self.sockets[role].exists():
            if self.agents[role].poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the {role} agent did not start:\n{(self.folder / f'{role}.log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        taps = self._tap_pids()
        for agent in self.agents.values():
            agent.terminate()
        for agent in self.agents.values():
            try:
                agent.wait(10)
            except subprocess.TimeoutExpired:
                agent.kill()
        for pid in taps:
            _kill(pid, signal.SIGTERM)
        if self.link is not None:
            self.link.close()

    def _tap_pids(self) -> list[int]:
        pids = []
        for role in self.agents:
            try:
                pid = (self.status(role).get("tap") or {}).get("pid")
            except DemoError:
                continue
            if pid:
                pids.append(pid)
        return pids


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def prepare(pair: Pair, port: int) -> None:
    """Certificates for two hosts in two commands, and a configuration for each agent."""
    folder = pair.folder
    pair.show("pki", "init", str(folder / "ca"))
    pair.show("pki", "issue", "--ca", str(folder / "ca"), "--out", str(folder / "pki"), "alpha", "localhost")
    pair.link = LinkCutter(("127.0.0.1", port))
    for role, host in (("primary", "alpha"), ("replica", "localhost")):
        text = (
            f'host = "{"alpha" if role == "primary" else "beta"}"\n'
            f'state_dir = "{folder}/{role}"\nruntime_dir = "{folder}/run-{role}"\n'
            f'admin_socket = "{pair.sockets[role]}"\n'
        )
        text += f'[listen]\nhost = "127.0.0.1"\nport = {port}\n' if role == "replica" else ""
        text += (
            f'[tls]\nca = "{folder}/pki/{host}/ca.pem"\n'
            f'certificate = "{folder}/pki/{host}/certificate.pem"\nkey = "{folder}/pki/{host}/key.pem"\n'
        )
        if role == "replica":
            text += f'[[authorize]]\nname = "alpha"\nvms = ["*"]\nstorage = "{folder}/store"\n'
            (folder / "store").mkdir(mode=0o700)
        (folder / f"{role}.toml").write_text(text)


def make_disk(path: Path, size: int) -> None:
    """A disk like a real one: a quarter random data, a quarter text that repeats, the rest never written."""
    with path.open("wb") as disk:
        disk.truncate(size)
        for _ in range(size // 4 // MIB):
            disk.write(os.urandom(MIB))
        line = b"".join(b"%08d the quick brown fox jumps over the lazy dog\n" % number for number in range(20000))
        text = line[:MIB]
        for _ in range(size // 4 // MIB):
            disk.write(text)


def fio(uri: str, name: str, *options: str) -> None:
    """Write to the disk as a real NBD client does."""
    subprocess.run(
        ["fio", f"--name={name}", "--ioengine=nbd", f"--uri={uri}", "--minimal", "--randrepeat=0", *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def fetch(uri: str, target: Path) -> str:
    """Copy an NBD export to a file with nbdcopy; returns its SHA-256."""
    target.unlink(missing_ok=True)
    subprocess.run(["nbdcopy", uri, str(target)], check=True)
    return sha256(target)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


class Demonstration:
    """The steps, in order; each leaves what it proved in ``proofs``."""

    def __init__(self, pair: Pair, disk: Path, size: int) -> None:
        self.pair = pair
        self.disk = disk
        self.size = size
        self.proofs: list[tuple[str, str]] = []
        self.started = time.monotonic()

    def step(self, text: str) -> None:
        self.pair.console.print(f"\n[bold]{time.monotonic() - self.started:5.1f} s  {text}[/]")

    def prove(self, what: str, result: str) -> None:
        self.proofs.append((what, result))
        self.pair.console.print(f"   [green]{what}:[/] {result}")

    def same(self, what: str, first: str, second: str) -> None:
        if first != second:
            raise DemoError(f"{what}: {first} and {second} differ")
        self.prove(what, f"identical, sha256 {first[:16]}…")

    def run(self) -> None:
        self.first_copy()
        self.replicate()
        self.lose_tracking()
        self.resynchronize()
        self.fail_over()

    def first_copy(self) -> None:
        self.step(f"Put a disk of {human(self.size)} behind the tap and make the first copy")
        link = self.pair.link
        assert link is not None
        make_disk(self.disk, self.size)
        self.pair.show("test-connection", f"localhost:{link.port}")
        self.pair.show(
            "enable", "demo", "--disk", str(self.disk), "--replica", f"localhost:{link.port}",
            "--interval", "1s", "--log-limit", "64MiB",
        )  # fmt: skip
        self.uri = self.pair.status("primary")["tap"]["uris"][0]
        self.pair.show("initial", "demo")
        self.pair.wait("Replicating", "primary", lambda vm: vm["state"] == "Replicating")

    def caught_up(self) -> dict[str, Any]:
        """Wait until a cut that was taken after all writes is applied at the replica."""
        before = self.pair.status("primary")
        segment = before["newest_cut"]["segment"] if before["newest_cut"] else 0
        epoch = before["epoch"]

        def applied(vm: dict[str, Any]) -> bool:
            cut = vm["applied_cut"]
            return cut is not None and cut["epoch"] == epoch and cut["segment"] > segment + 1

        return self.pair.wait("the newest cut", "replica", applied)

    def compare_export(self, what: str) -> None:
        """Read the newest cut at the replica over NBD, and compare it with the primary's disk."""
        export = json.loads(self.pair.run("export", "demo", "--json"))
        copy = self.pair.folder / "export.raw"
        uris = export.get("uris") or [export["uri"]]
        self.same(what, sha256(self.disk), fetch(uris[0], copy))
        copy.unlink()
        self.pair.run("unexport", "demo", export["id"])

    def replicate(self) -> None:
        self.step("Write through NBD while every write is streamed; cuts every second")
        fio(self.uri, "live", "--rw=randwrite", "--bs=4k-64k", "--iodepth=16", f"--size={self.size}", "--io_size=96m",
            "--rate=32m", "--end_fsync=1")  # fmt: skip
        self.caught_up()
        vm = self.pair.status("primary")
        self.prove("written by the client and replicated", human(vm["tap"]["bytes_written"]))
        self.compare_export("replica's newest cut against the primary's disk")
        self.pair.show("status")

    def lose_tracking(self) -> None:
        self.step("Cut the link, and write more than the log may hold (64 MiB): tracking is lost on purpose")
        assert self.pair.link is not None
        self.pair.link.cut()
        fio(self.uri, "offline", "--rw=randwrite", "--bs=64k", "--iodepth=8", f"--offset={self.size // 4}",
            f"--size={self.size // 8}", "--io_size=100m", "--norandommap", "--end_fsync=1")  # fmt: skip
        self.pair.wait("tracking lost", "primary", lambda vm: (vm["tap"] or {}).get("tracking") == "lost")
        self.pair.show("status")
        self.step("Restore the link")
        self.pair.link.restore()
        self.pair.wait("the link", "primary", lambda vm: vm["link"]["healthy"])

    def resynchronize(self) -> None:
        self.step("Resynchronize while the client goes on writing: manifests are compared, only differing blocks sent")
        before = self.pair.status("primary")["link"]["bytes_sent"]
        writer = subprocess.Popen(
            ["fio", "--name=during", "--ioengine=nbd", f"--uri={self.uri}", "--minimal", "--rw=randwrite", "--bs=4k",
             "--iodepth=4", "--rate=4m", "--time_based", "--runtime=3", f"--size={self.size}"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.pair.show("resume", "demo", "--resynchronize", "--yes")
        vm = self.pair.wait("Replicating", "primary", lambda vm: vm["state"] == "Replicating")
        writer.wait()
        self.caught_up()
        finished = [
            event for event in json.loads(self.pair.run("events", "demo", "--json"))["events"]
            if event.get("event") == 29244 or event.get("code") == 29244
        ]  # fmt: skip
        if not finished:
            raise DemoError("no event 29244 tells what the resync did")
        details = finished[-1].get("data", finished[-1])
        self.prove("blocks compared by the resync", f"{details['blocks_compared']} of 64 KiB")
        self.prove("blocks that differed and were sent", f"{details['blocks_sent']} ({human(details['bytes_sent'])})")
        self.prove("bytes on the wire since the link is back", human(vm["link"]["bytes_sent"] - before if
                   vm["link"]["bytes_sent"] > before else vm["link"]["bytes_sent"]))
        self.compare_export("replica after the resync against the primary's disk")

    def fail_over(self) -> None:
        self.step("Disaster: the primary's agent and tap are killed; promote the replica")
        self.caught_up()
        pid = self.pair.status("primary")["tap"]["pid"]
        agent = self.pair.agents.pop("primary")
        agent.kill()
        agent.wait()
        _kill(pid, signal.SIGKILL)
        self.pair.sockets["primary"].unlink(missing_ok=True)
        self.pair.show("failover", "demo", "--yes")
        vm = self.pair.wait("promotion", "replica", lambda vm: vm["state"].startswith("FailedOver") and vm["uris"])
        copy = self.pair.folder / "promoted.raw"
        self.same("promoted disk against the primary's disk at that cut", sha256(self.disk), fetch(vm["uris"][0], copy))
        copy.unlink()
        self.step("The old primary returns: it is told, and cannot write")
        self.pair.start("primary")
        vm = self.pair.wait("fencing", "primary", lambda vm: vm["fenced"])
        self.prove("old primary", vm["summary"])
        self.pair.show("status")


def report(demonstration: Demonstration, console: Console) -> None:
    table = Table(title="What was proved", show_header=False)
    for what, result in demonstration.proofs:
        table.add_row(what, result)
    console.print(table)
    seconds = time.monotonic() - demonstration.started
    console.print(f"[bold green]All of it held. {seconds:.0f} s without set-up.[/]")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--size", default="512", help="size of the disk in MiB (default 512)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder, removed at the end)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with its logs")
    parser.add_argument("--port", type=int, default=0, help="TCP port of the replica on loopback (default: a free one)")
    options = parser.parse_args()
    if not re.fullmatch(r"[0-9]+", options.size) or int(options.size) < 128:
        parser.error(f"--size {options.size}: give a whole number of MiB, at least 128")
    console = Console(highlight=False)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="vmreplica-demo-"))
    folder.mkdir(mode=0o700, exist_ok=True)
    pair = Pair(folder, console)
    demonstration = Demonstration(pair, folder / "disk.raw", int(options.size) * MIB)
    try:
        demonstration.step("Certificates for two hosts, then both agents")
        prepare(pair, options.port or LinkCutter.free_port())
        pair.start("replica")
        pair.start("primary")
        demonstration.run()
        report(demonstration, console)
    except DemoError as error:
        console.print(f"[bold red]The demonstration failed:[/] {error}", markup=True)
        console.print(f"Logs are kept in {folder}.")
        options.keep = True
        return 1
    finally:
        pair.stop()
        if not options.keep and options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
