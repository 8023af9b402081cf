"""A Linux guest in QEMU, whose disk is an NBD export: orders and answers over its serial line.

| order | answer | what the guest does |
|---|---|---|
| | ``ready`` | it has booted |
| ``format`` | ``formatted`` | makes an ext4 file system on the disk |
| ``mount`` | ``mounted`` | |
| ``go`` | ``going`` | writes until it is stopped; says each durable line of its journal (``init.sh``), the notes |
| ``stop`` | ``idle`` | nothing more is written |
| ``verify`` | ``verified FILES NOTES`` | reads back from the disk all that it has |
| ``off`` | ``off`` | unmounts, and powers the machine off |

What goes wrong is said in a line that begins with ``error``. The kernel's warnings and errors are in the file of the
console.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from tests.guest.initramfs import CACHE

WAIT_SECONDS = 120.0
RECONNECT_SECONDS = 120
KERNEL_OPTIONS = (
    # The console gets warnings and errors only; a panic ends QEMU.
    "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on "
    # What only takes time in an emulated processor, or complains of a busy host.
    "mitigations=off nokaslr no_timer_check tsc=reliable cryptomgr.notests"
)
COMPLAINT = re.compile(r"(?i)ext4|jbd2|I/O error|\bvd[a-z]\b|read-only|blocked for more than|panic")
"""What of the kernel's warnings and errors concerns the disk."""


class GuestError(AssertionError):
    """The guest told of an error, ended, or did not answer."""


class Guest:
    """One run of the machine. The emulator's own processor is used (no KVM), so it runs on any host."""

    def __init__(
        self, folder: Path, name: str, initramfs: Path, uri: str, *, reconnect_seconds: int = RECONNECT_SECONDS
    ) -> None:
        self.console = folder / f"{name}-console.log"
        self.said: list[str] = []
        self._changed = threading.Condition()
        export, socket = urlsplit(uri).path.strip("/"), parse_qs(urlsplit(uri).query)["socket"][0]
        disk = f"driver=nbd,node-name=disk0,server.type=unix,server.path={socket},export={export},discard=unmap"
        with (folder / f"{name}-qemu.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-nodefaults", "-no-user-config",
                    # Without a source of random numbers mke2fs would wait for seconds.
                    "-cpu", "qemu64,+rdrand", "-display", "none", "-no-reboot",
                    # The guest's clock counts whole seconds at first: e2fsck would find times in the future.
                    "-rtc", "base=2020-02-02T20:20:20",
                    "-kernel", str(CACHE / "vmlinuz"), "-initrd", str(initramfs),
                    "-append", KERNEL_OPTIONS,
                    "-serial", f"file:{self.console}", "-serial", "stdio",
                    "-blockdev", f"{disk},reconnect-delay={reconnect_seconds},open-timeout=10",
                    "-device", "virtio-blk-pci,drive=disk0",
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name=f"{name}'s line", daemon=True)
        self._reader.start()

    # --- orders

    def boot(self, *orders: str) -> Self:
        """Wait until the guest is up, and give it these orders: (order, answer) in one word each, ``mount:mounted``."""
        self._until("the guest to boot", lambda: "ready" in self.said)
        for pair in orders:
            order, _, answer = pair.partition(":")
            self.order(order, answer)
        return self

    def order(self, order: str, answer: str) -> str:
        """Give an order; returns the line that begins with the answer. Raises GuestError for any error."""
        assert self.process.stdin is not None
        before = len(self.said)
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        self._until(f"{answer!r} to {order!r}", lambda: self._answers(before, answer))
        return self._answers(before, answer)[0]

    def write_more(self, notes: int) -> None:
        """Wait until the guest has made so many more notes; its writer has to be going."""
        enough = len(self.notes) + notes
        self._until(f"{notes} more notes", lambda: len(self.notes) >= enough)

    def verify(self) -> int:
        """Have the guest read back everything, while it is idle; the number of notes in its journal."""
        _, files, notes = self.order("verify", "verified").split()
        assert int(files) > 0
        assert int(notes) >= len(self.notes)
        return int(notes)

    def power_off(self) -> None:
        """An orderly end, without any error from boot to here."""
        self.order("off", "off")
        assert self.process.wait(WAIT_SECONDS) == 0
        self._reader.join()
        assert self.errors() == []

    def kill(self) -> None:
        """The end of the machine from one instant to the next."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    # --- what it tells

    @property
    def notes(self) -> list[str]:
        """The lines of the guest's journal that this run said, each durable before it was said."""
        return [line for line in list(self.said) if line.startswith(("has ", "gone "))]

    def errors(self) -> list[str]:
        """What the guest's program said of errors, and its kernel's complaints about the disk."""
        console = self.console.read_text(errors="replace") if self.console.exists() else ""
        told = [line for line in list(self.said) if line.startswith("error")]
        return told + [line for line in console.splitlines() if COMPLAINT.search(line)]

    def _answers(self, before: int, answer: str) -> list[str]:
        return [line for line in self.said[before:] if line.split(" ")[0] == answer]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.said.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _until(self, what: str, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        with self._changed:
            while not reached():
                errors, ended = self.errors(), self.process.poll()
                if errors or ended is not None or time.monotonic() > deadline:
                    raise GuestError(f"waited for {what}; exit code {ended}; {errors}; it said {self.said[-5:]}")
                self._changed.wait(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
