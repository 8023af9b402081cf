"""An NBD export mounted on this host, as a guest has it: nbdfuse, a loop device on its file, and ext4 on that."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair.loop_device import TOOLS, LoopDevice, loop_device

WAIT_SECONDS = 20.0
MADE_QUICKLY = ("-E", "lazy_itable_init=0,lazy_journal_init=0")
"""Nothing is left to a thread of the kernel that would write beside the test."""


def needed() -> None:
    """Skip, with the reason, where an export can't be mounted."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount an export")
    for program, package in (("nbdfuse", "libnbd-bin"), ("losetup", "mount"), ("mkfs.ext4", "e2fsprogs")):
        if shutil.which(program, path=TOOLS) is None:
            pytest.skip(f"needs {program} (Debian: {package})")
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse")


@contextlib.contextmanager
def fuse_file(uri: str, folder: Path) -> Iterator[Path]:
    """The export as a file, whose fsync is a FLUSH of the export; unmounted at the end, also from a dead server."""
    folder.mkdir()
    path = folder / "disk"
    serving = subprocess.Popen(["nbdfuse", str(path), uri], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not path.exists():
            if serving.poll() is not None or time.monotonic() > deadline:
                serving.kill()
                said = serving.communicate()[0].decode(errors="replace").strip()
                pytest.skip(f"nbdfuse does not work here: {said}")
            time.sleep(0.01)
        yield path
    finally:
        # Whatever the file's server is: where it died the mount is still there.
        _run("umount", str(folder)) or _run("umount", "--lazy", str(folder))
        with contextlib.suppress(subprocess.TimeoutExpired):
            serving.wait(WAIT_SECONDS)
        serving.kill()
        serving.communicate()
        folder.rmdir()


@contextlib.contextmanager
def mounted_disk(uri: str, folder: Path, *, make: bool = False) -> Iterator[Path]:
    """The ext4 file system of an export, mounted at a folder; ``make``: made first.

    The kernel replays its journal. At the end it is unmounted, where the server still lives in order.
    """
    folder.mkdir()
    with fuse_file(uri, folder / "fuse") as file, loop_device(file.parent, 0, file.name) as device:
        if make:
            _must("mkfs.ext4", "-q", "-F", *MADE_QUICKLY, device.path)
        place = folder / "mnt"
        place.mkdir()
        _must("mount", "-t", "ext4", device.path, str(place))
        try:
            yield place
        finally:
            _run("umount", str(place)) or _run("umount", "--lazy", str(place))
            _gone(device)
            place.rmdir()
    folder.rmdir()


def _gone(device: LoopDevice) -> None:
    """Wait until the file system has let go of its device: a program that was killed may still be in it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while any(line.startswith(f"{device.path} ") for line in Path("/proc/mounts").read_text().splitlines()):
        assert time.monotonic() < deadline, f"{device.path} is still mounted"
        time.sleep(0.01)


def _run(*words: str) -> bool:
    environment = {**os.environ, "PATH": TOOLS}
    return subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0


def _must(*words: str) -> None:
    environment = {**os.environ, "PATH": TOOLS}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
