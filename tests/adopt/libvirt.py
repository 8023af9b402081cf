"""A libvirtd of one test: its folders, sockets and users are its own, in a mount namespace; so is its host's name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from scripts.agent_pair import PROGRAMS
from shared.cli.libvirt_hook import install_hook
from tests.guest.initramfs import ROOT, host_program

START_SECONDS = 30.0
FOLDERS = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
}
CACHE = ROOT / "build" / "libvirt-cache"
"""What libvirt learns of QEMU, which takes it seconds; it asks anew when QEMU is another."""
QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
cgroup_controllers = []
stdio_handler = "file"
namespaces = []
"""
ENTER = """
set -e
mount --make-rprivate /
hostname "$1"
folder=$2
for pair in $3; do
    mkdir -p "${pair#*:}"
    mount --bind "$folder/${pair%%:*}" "${pair#*:}"
done
mkdir -p /var/cache/libvirt
mount --bind "$4" /var/cache/libvirt
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/group" /etc/group
[ -z "$5" ] || mount -t tmpfs none "$5"
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$folder/libvirtd.pid"
"""
"""Debian's libvirt looks for the user libvirt-qemu even where its configuration names another."""


def missing() -> list[str]:
    """What a test with libvirt needs and is not there."""
    absent = [name for name in ("libvirtd", "virsh", "qemu-system-x86_64", "qemu-img") if host_program(name) is None]
    if (
        not absent
        and subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False).returncode
    ):
        absent.append("the right to make a mount namespace (root)")
    return absent


class Libvirt:
    """``start`` it first; ``stop`` ends its domains, too. What is in the folder ``hidden`` it does not see."""

    def __init__(self, folder: Path, host: str = "alpha", hidden: Path | None = None) -> None:
        self.folder = folder
        self.host = host
        self.hidden = hidden
        self.uri = f"qemu+unix:///system?socket={folder}/run/libvirt-sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
        (self.folder / "etc" / "libvirtd.conf").write_text(
            f'auth_unix_rw = "none"\nhost_uuid = "{uuid.uuid4()}"\nlog_filters = "3:*"\n'
        )
        for name, line in (("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false"), ("group", "libvirt-qemu:x:64055:")):
            text = Path("/etc", name).read_text()
            (self.folder / name).write_text(text if "\nlibvirt-qemu:" in text else f"{text}{line}\n")
        self._start()

    def _start(self) -> None:
        pairs = " ".join(f"{name}:{place}" for name, place in FOLDERS.items())
        with (self.folder / "libvirtd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--uts", "sh", "-c", ENTER, "enter", self.host, str(self.folder), pairs,
                 str(CACHE), str(self.hidden or "")],
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(self._virsh("uri"), capture_output=True, check=False).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def restart(self) -> None:
        """Domains run on meanwhile."""
        self._end()
        self._start()

    def install_hook(self) -> None:
        """What `vmreplica libvirt-hook --install` does on a host of its own; a restart has libvirtd see it."""
        program = ["/usr/bin/env", f"PYTHONPATH={ROOT}", str(PROGRAMS / "vmreplica")]
        install_hook(program, str(self.folder / "etc/hooks/qemu.d/vmreplica"))
        self.restart()

    def virsh(self, *arguments: str) -> str:
        done = subprocess.run(self._virsh(*arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"virsh {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """What virsh says of something that fails."""
        done = subprocess.run(self._virsh(*arguments), capture_output=True, text=True, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def define(self, xml: str) -> str:
        """Define a domain; its XML as libvirt has it then."""
        path = self.folder / "domain.xml"
        path.write_text(xml)
        name = xml.partition("<name>")[2].partition("</name>")[0]
        self.virsh("define", str(path))
        return self.virsh("dumpxml", "--inactive", name)

    def qmp(self, domain: str, command: str, **arguments: Any) -> Any:
        """An order to the domain's QEMU."""
        order = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self.virsh("qemu-monitor-command", domain, order))["return"]

    def state(self, domain: str) -> str:
        return self.virsh("domstate", domain).strip()

    def log(self) -> str:
        logs = [self.folder / "libvirtd.log", *(self.folder / "log").rglob("*.log")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-4000:]}" for path in logs if path.exists())

    def stop(self) -> None:
        with contextlib.suppress(AssertionError):
            for name in self.virsh("list", "--name").split():
                self.virsh("destroy", name)
        self._end()
        # What libvirtd could not end.
        for path in (self.folder / "run" / "qemu").glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)

    def _end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(START_SECONDS)
            self.process = None

    def _virsh(self, *arguments: str) -> list[str]:
        program = shutil.which("virsh")
        assert program is not None
        return [program, "--quiet", "--connect", self.uri, *arguments]


def disk_xml(path: Path | str, target: str = "vda", *, bus: str = "virtio", format: str = "raw", more: str = "") -> str:
    """A disk of a domain."""
    driver = f"<driver name='qemu' type='{format}' discard='unmap'/>"
    place = f"<source file='{path}'/><target dev='{target}' bus='{bus}'/>"
    return f"<disk type='file' device='disk'>{driver}{place}{more}</disk>"


def domain_xml(name: str, disks: str, *, boot: str = "", devices: str = "") -> str:
    """A small domain whose processor is emulated."""
    return (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type>{boot}</os>"
        "<features><acpi/></features><on_reboot>destroy</on_reboot>"
        f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}{devices}<memballoon model='none'/></devices>"
        "</domain>"
    )
