"""Real block devices for tests: loop devices on files of their own, attached by root."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LOOP_CONTROL = Path("/dev/loop-control")
LOOP_CONTROL_NUMBER = os.makedev(10, 237)
LOOP_MAJOR = 7
LOOPS = 32
"""Nodes that are made where the host's /dev has none."""
TOOLS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class LoopDevice:
    """A loop device on ``file``; ``path`` is its node."""

    def __init__(self, file: Path, size: int) -> None:
        self.file = file
        if not file.exists():
            file.touch()
            os.truncate(file, size)
        self.path = ""
        self.attach()

    def attach(self) -> None:
        """Attach the file, at the same node as before where there was one."""
        words = ["--find", "--show"] if not self.path else [self.path]
        found = _losetup(*words, str(self.file))
        if found.returncode != 0:
            raise OSError(found.stderr.strip())
        self.path = self.path or found.stdout.strip()

    def detach(self) -> None:
        _losetup("--detach", self.path)

    def resize(self, size: int) -> None:
        """Change the file's size, and make the device notice."""
        os.truncate(self.file, size)
        assert _losetup("--set-capacity", self.path).returncode == 0

    def read_bytes(self) -> bytes:
        return Path(self.path).read_bytes()


@contextlib.contextmanager
def loop_device(folder: Path, size: int, name: str = "backing") -> Iterator[LoopDevice]:
    """A loop device of ``size`` bytes; skips by name where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to attach a loop device")
    if shutil.which("losetup", path=TOOLS) is None:
        pytest.skip("needs losetup (Debian: mount)")
    _make_nodes()
    try:
        device = LoopDevice(folder / name, size)
    except OSError as error:
        pytest.skip(f"no loop device can be attached here: {error}")
    try:
        yield device
    finally:
        device.detach()


def _make_nodes() -> None:
    """What a container's /dev may lack."""
    nodes = [(LOOP_CONTROL, stat.S_IFCHR, LOOP_CONTROL_NUMBER)]
    nodes += [(Path(f"/dev/loop{n}"), stat.S_IFBLK, os.makedev(LOOP_MAJOR, n)) for n in range(LOOPS)]
    if LOOP_CONTROL.exists() and any(path.exists() for path, _, _ in nodes[1:]):
        return
    for path, kind, number in nodes:
        with contextlib.suppress(OSError):
            os.mknod(path, kind | 0o600, number)


def _losetup(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["losetup", *words], env={**os.environ, "PATH": TOOLS}, capture_output=True, text=True, check=False
    )


@contextlib.contextmanager
def mounted(device: LoopDevice, folder: Path) -> Iterator[Path]:
    """A file system on the device, mounted; skips where that can't be done."""
    for words in (["mkfs.ext2", "-q", "-F", device.path], ["mount", device.path, str(folder)]):
        done = subprocess.run(words, env={**os.environ, "PATH": TOOLS}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"{words[0]} does not work here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], env={**os.environ, "PATH": TOOLS}, check=True)
