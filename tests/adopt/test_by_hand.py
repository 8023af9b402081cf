"""QEMU without libvirt, by the very lines of docs/adopting.md: started on the tap, and switched to it while it runs."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pair.hosts import MIB, ROOT, Hosts, compare

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("libvirt")]

PAGE = (ROOT / "docs" / "adopting.md").read_text()
PLACE = "/run/vmreplica/primary/UUID/nbd.sock"


@pytest.fixture(autouse=True)
def emulator() -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu-system-x86_64")


def lines(start: str, socket_path: Path) -> list[str]:
    """The lines of the page that begin so, for a tap at this socket."""
    found = [line for line in PAGE.splitlines() if line.startswith(start)]
    assert found
    return [line.replace(PLACE, str(socket_path)) for line in found]


class Qemu:
    """A machine without a program: its disk is used over its monitor."""

    def __init__(self, folder: Path, *options: str) -> None:
        ours, theirs = socket.socketpair()
        with (folder / "qemu.log").open("wb") as log, theirs:
            self.process = subprocess.Popen(
                [
                    "qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "32",
                    "-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control",
                    *options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._socket = ours
        self._monitor = ours.makefile("r")
        self._monitor.readline()
        self.order({"execute": "qmp_capabilities"})

    def order(self, order: dict[str, Any]) -> Any:
        self._socket.sendall(json.dumps(order).encode() + b"\n")
        while "return" not in (answer := json.loads(self._monitor.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def wait(self, event: str) -> None:
        while json.loads(self._monitor.readline()).get("event") != event:
            pass

    def io(self, command: str) -> None:
        """A request by the machine's only disk."""
        line = f'qemu-io -d {self.disk()["qdev"]} "{command}"'
        assert self.order({"execute": "human-monitor-command", "arguments": {"command-line": line}}) == ""

    def disk(self) -> Any:
        (disk,) = self.order({"execute": "query-block"})
        return disk

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._monitor.close()
        self._socket.close()


@contextmanager
def qemu(folder: Path, *options: str) -> Iterator[Qemu]:
    machine = Qemu(folder, *options)
    try:
        yield machine
    finally:
        machine.close()


def test_started_on_the_tap(hosts: Hosts) -> None:
    """By the printed lines, which are the page's; the tap is killed, and the next request waits for the next one."""
    hosts.replicate(4 * MIB)
    at = hosts.tap_folder / "nbd.sock"
    options = [word for line in lines("-blockdev", at) + lines("-device", at) for word in shlex.split(line)]
    with qemu(hosts.folder, *options) as machine:
        machine.io("write -P 7 64k 4k")
        tap = hosts.tap_pid()
        hosts.kill_tap()
        machine.io("write -P 8 128k 4k")
        machine.io("flush")
        assert hosts.tap_pid() != tap
        assert hosts.disks[0].read_bytes()[128 << 10 : 132 << 10] == b"\x08" * 4096
        hosts.assert_same()


def test_switched_to_the_tap_while_it_runs(hosts: Hosts) -> None:
    hosts.make_disks(4 * MIB)
    (former,) = hosts.disks
    image = hosts.folder / "behind.raw"
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    hosts.prepare()
    hosts.start_both()
    hosts.disks = [image]
    hosts.enable()
    at = hosts.tap_folder / "nbd.sock"
    options = ["-blockdev", f"driver=file,node-name=disk0,filename={former}", "-device", "virtio-blk-pci,drive=disk0"]
    with qemu(hosts.folder, *options) as machine:
        add, mirror, complete = map(json.loads, lines('{"execute"', at))
        machine.order(add)
        machine.order(mirror)
        machine.wait("BLOCK_JOB_READY")
        compare(former, image)
        machine.order(complete)
        machine.wait("BLOCK_JOB_COMPLETED")
        machine.order({"execute": "blockdev-del", "arguments": {"node-name": "disk0"}})
        assert machine.disk()["inserted"]["node-name"] == "replicated0"
        machine.io("write -P 9 0 4k")
        machine.io("flush")
        assert image.read_bytes()[:4096] == b"\x09" * 4096
        assert former.read_bytes()[:4096] != b"\x09" * 4096
    assert former.stat().st_size == image.stat().st_size


def test_the_page_has_the_lines_that_enabling_prints() -> None:
    from shared.cli.attach import libvirt_lines, qemu_lines

    uri = f"nbd+unix:///disk0?socket={PLACE}"
    assert "\n".join(qemu_lines(uri, 0)) in PAGE
    assert "\n".join(libvirt_lines(uri, 0)).replace('"', "'") in PAGE
