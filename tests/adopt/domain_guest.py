"""The tests' Linux guest as a domain of libvirt, on a disk of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from tests.adopt.libvirt import Libvirt, domain_xml
from tests.guest.initramfs import CACHE
from tests.guest.machine import KERNEL_OPTIONS, Guest
from tests.pair.hosts import ROOT

# Seconds since 1970: the guest's clock counts whole seconds at first, and e2fsck would find times in the future.
CLOCK = 1580674820


class DomainGuest(Guest):
    """Defined with these disks and started, at once or by ``start``."""

    def __init__(self, libvirt: Libvirt, name: str, initramfs: Path, disks: str, *, start: bool = True) -> None:
        self.libvirt = libvirt
        self.name = name
        self.console = libvirt.folder / f"{name}-console.log"
        self.said = []
        self._changed = threading.Condition()
        line = self._line = libvirt.folder / f"{name}.sock"
        boot = (
            f"<kernel>{CACHE.resolve()}/vmlinuz</kernel><initrd>{initramfs}</initrd><cmdline>{KERNEL_OPTIONS}</cmdline>"
        )
        devices = (
            f"<serial type='file'><source path='{self.console}'/><target port='0'/></serial>"
            f"<serial type='unix'><source mode='bind' path='{line}'/><target port='1'/></serial>"
        )
        xml = domain_xml(name, disks, boot=boot, devices=devices).replace(
            "<features>",
            "<cpu mode='custom' match='exact' check='none'><model>qemu64</model>"
            f"<feature policy='require' name='rdrand'/></cpu><clock offset='absolute' start='{CLOCK}'/><features>",
        )
        libvirt.define(xml)
        if start:
            self.start()

    def start(self) -> None:
        """Start the domain."""
        self.libvirt.virsh("start", self.name)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serial_line.py")), str(self._line)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name=f"{self.name}'s line", daemon=True)
        self._reader.start()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
