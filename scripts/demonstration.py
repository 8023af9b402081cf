"""The demonstration: two agents, a tap and real NBD clients replicate a disk, lose the link, resync and fail over.

Everything runs as real processes in one temporary folder on this machine, over loopback. Nothing is simulated; each
claim at the end was checked by an independent program (nbdcopy, cmp, sha256).
"""

from __future__ import annotations

import argparse
import functools
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
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from scripts.agent_pair import PROGRAMS, AgentPair, PairError, fio, signal_process
from shared.cli.progress import progress_lines
from shared.status import VmStatus

MIB = 1 << 20


class DemoPair(AgentPair):
    """A pair whose commands can be run before the viewer's eyes, with their own live progress."""

    def __init__(self, folder: Path, console: Console) -> None:
        super().__init__(folder)
        self.console = console

    def show(self, *arguments: str) -> None:
        self.console.print(f"[bold cyan]$ vmreplica {' '.join(arguments)}[/]", soft_wrap=True)
        sys.stdout.flush()
        done = subprocess.run([str(PROGRAMS / "vmreplica"), *arguments], env=self.environment, check=False)
        if done.returncode != 0:
            raise PairError(f"vmreplica {' '.join(arguments)} ended with exit code {done.returncode}")


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

    def __init__(self, pair: DemoPair, disk: Path, size: int) -> None:
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
            raise PairError(f"{what}: {first} and {second} differ")
        self.prove(what, f"identical, sha256 {first[:16]}…")

    def run(self) -> None:
        self.first_copy()
        self.replicate()
        self.fill_log()
        self.change_behind_its_back()
        self.resynchronize()
        self.fail_over()

    def first_copy(self) -> None:
        self.step(f"Put a disk of {human(self.size)} behind the tap and make the first copy")
        make_disk(self.disk, self.size)
        self.pair.show("test-connection", self.pair.address)
        self.pair.show(
            "enable", "demo", "--disk", str(self.disk), "--replica", self.pair.address,
            "--interval", "1s", "--log-limit", "64MiB",
        )  # fmt: skip
        self.uri = self.pair.status("primary")["tap"]["uris"][0]
        self.pair.show("initial", "demo")
        self.pair.wait("Replicating", "primary", lambda vm: vm["state"] == "Replicating")

    def caught_up(self) -> dict[str, Any]:
        """Wait until a cut that was sealed after all writes is applied at the replica; both have one clock here."""
        written, epoch = time.time(), self.pair.status("primary")["epoch"]

        def applied(vm: dict[str, Any]) -> bool:
            cut = vm["applied_cut"]
            return bool(cut is not None and cut["epoch"] == epoch and (cut["time"] or 0.0) > written)

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

    def fill_log(self) -> None:
        self.step("Cut the link, and write more than the log may hold (64 MiB): the dirty map takes over")
        assert self.pair.link is not None
        self.pair.link.cut()
        fio(self.uri, "offline", "--rw=randwrite", "--bs=64k", "--iodepth=8", f"--offset={self.size // 4}",
            f"--size={self.size // 8}", "--io_size=100m", "--norandommap", "--end_fsync=1")  # fmt: skip
        self.pair.wait("the dirty map", "primary", lambda vm: (vm["tap"] or {}).get("tracking") == "map")
        self.pair.show("status")
        self.step("Restore the link: what is in doubt is compared by itself, and nothing else")
        compared = self.compared()
        self.pair.link.restore()
        self.pair.wait("the link", "primary", lambda vm: vm["link"]["connected"])
        self.pair.wait("Replicating", "primary", lambda vm: vm["state"] == "Replicating" and not vm["causes"])
        details = self.compared()[len(compared) :][-1]
        self.prove(
            "compared after the log was full",
            f"{human(details['bytes_compared'])} of {human(self.size)}, {human(details['bytes_sent'])} differed",
        )
        self.caught_up()
        self.compare_export("replica after the bounded resync against the primary's disk")

    def compared(self) -> list[dict[str, Any]]:
        """What the events 29244 tell of each compare until now."""
        events = json.loads(self.pair.run("events", "demo", "--json"))["events"]
        return [event["data"] for event in events if event["event"] == 29244]

    def change_behind_its_back(self) -> None:
        self.step("Lose tracking on purpose: stop agent and tap, and change the disk behind their backs")
        tap = self.pair.tap_pid()
        self.pair.kill("primary")
        signal_process(tap, signal.SIGTERM)
        while Path(f"/proc/{tap}").exists():
            time.sleep(0.02)
        with self.disk.open("r+b") as disk:
            for number in range(64):
                disk.seek(number * self.size // 64)
                disk.write(os.urandom(4096))
        self.pair.start("primary")
        self.pair.wait("tracking lost", "primary", lambda vm: (vm["tap"] or {}).get("tracking") == "lost")
        self.pair.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
        self.pair.show("status")

    def resynchronize(self) -> None:
        self.step("Before anything starts: why a resync is required, and what it would cost by a sample of both sides")
        self.pair.show("resync", "show", "demo")
        self.pair.show("resync", "plan", "demo")
        # Slow enough to be watched: half of the disk is read.
        self.pair.show("set", "demo", f"resync-read-rate={self.size // 8 // MIB}MiB")
        self.step("Resynchronize while the client goes on writing: manifests are compared, only differing blocks sent")
        compared = len(self.compared())
        written = self.pair.status("primary")["tap"]["bytes_written"]
        writer = subprocess.Popen(
            ["fio", "--name=during", "--ioengine=nbd", f"--uri={self.uri}", "--minimal", "--rw=randwrite", "--bs=4k",
             "--iodepth=4", "--rate=512k", "--time_based", "--runtime=3", f"--size={self.size // 2}"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.pair.show("resume", "demo", "--resynchronize", "--yes", "--no-wait")
        if sys.stdout.isatty():
            self.pair.show("resync", "watch", "demo")
        else:
            self.show_strip()
        self.pair.wait("Replicating", "primary", lambda vm: vm["state"] == "Replicating")
        writer.wait()
        self.pair.run("set", "demo", "resync-read-rate=none")
        written = self.pair.status("primary")["tap"]["bytes_written"] - written
        self.caught_up()
        details = self.compared()[compared:][-1]
        self.prove("blocks compared by the resync", f"{details['blocks_compared']} of 64 KiB")
        self.prove("blocks that differed and were sent", f"{details['blocks_sent']} ({human(details['bytes_sent'])})")
        run = json.loads(self.pair.run("resync", "history", "demo", "--json"))["runs"][0]
        read = sum(disk["compared_bytes"] - disk["hole_bytes"] for disk in run["disks"])
        wire, forecast = run["wire_bytes"], run["forecast"]
        self.prove("bytes on the wire for it", f"{human(wire)}, where a full copy takes {human(read)}")
        sent = sum(disk["sent_bytes"] for disk in run["disks"])
        self.prove("saved against that", f"{100 - 100 * wire / read:.2f} %")
        self.prove("the plan's sample had said", f"{forecast['sampled_different']} of {forecast['sampled_blocks']} "
                   f"random blocks differ, so {human(forecast['different_low_bytes'])} to "
                   f"{human(forecast['different_high_bytes'])} with 90 % certainty; it was {human(sent)} with "
                   f"what the client wrote meanwhile ({human(written)})")  # fmt: skip
        self.prove("the plan had said", f"{human(forecast['read_bytes'])} to read, {human(forecast['wire_bytes'])} on "
                   f"the wire; it was {human(read)} and {human(wire)}")  # fmt: skip
        self.pair.show("resync", "history", "demo")
        self.compare_export("replica after the resync against the primary's disk")

    def show_strip(self) -> None:
        """What a terminal shows live, three times: where the compare is on the disk."""
        for part in (0.2, 0.5, 0.8):
            vm = self.pair.wait("the compare", "primary", functools.partial(_has_compared, part * self.size))
            if vm["state"] != "Resynchronizing":
                return
            for line in progress_lines(msgspec.convert(vm, VmStatus), 100):
                self.pair.console.print(line, markup=False, soft_wrap=True)

    def fail_over(self) -> None:
        self.step("Disaster: the primary's agent and tap are killed; promote the replica")
        self.caught_up()
        tap = self.pair.tap_pid()
        self.pair.kill("primary")
        signal_process(tap, signal.SIGKILL)
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


def _has_compared(wanted: float, vm: dict[str, Any]) -> bool:
    """Whether the compare has so many bytes behind it, or is over."""
    if vm["state"] != "Resynchronizing" or vm["progress"] is None:
        return bool(vm["state"] == "Replicating")
    return bool(sum(disk["compared_bytes"] for disk in vm["progress"]["disks"]) >= wanted)


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
    options = parser.parse_args()
    if not re.fullmatch(r"[0-9]+", options.size) or int(options.size) < 128:
        parser.error(f"--size {options.size}: give a whole number of MiB, at least 128")
    console = Console(highlight=False)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="vmreplica-demo-"))
    folder.mkdir(mode=0o700, exist_ok=True)
    pair = DemoPair(folder, console)
    demonstration = Demonstration(pair, folder / "disk.raw", int(options.size) * MIB)
    try:
        demonstration.step("Certificates for two hosts, then both agents")
        pair.prepare(run=pair.show)
        pair.start("replica")
        pair.start("primary")
        demonstration.run()
        report(demonstration, console)
    except PairError as error:
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
