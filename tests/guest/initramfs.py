"""Builds the guest's initramfs: busybox, mke2fs, the kernel's modules for a virtio disk, and the guest's program."""

from __future__ import annotations

import itertools
import lzma
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "guest"
"""What scripts/setup unpacked: ``vmlinuz``, ``busybox`` and ``modules/``."""
PROGRAM = Path(__file__).with_name("init.sh")
WANTED = ("virtio_pci", "virtio_blk", "ext4")
"""Modules that the guest needs; one that is not in the cache is built into the kernel."""
FOLDERS = "bin dev disk e2fsprogs modules proc sys tmp"


def host_program(name: str) -> str | None:
    """The path of a program of this machine; an ordinary user's PATH has no sbin."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def missing() -> list[str]:
    """What a test with a guest needs and is not there."""
    programs = ["qemu-system-x86_64", "qemu-nbd", "nbdcopy", "mke2fs", "e2fsck", "debugfs"]
    absent = [name for name in programs if host_program(name) is None]
    return absent if (CACHE / "vmlinuz").exists() else [*absent, "build/guest (made by scripts/setup)"]


def initramfs() -> bytes:
    """A cpio archive, not compressed: unpacking would take the guest longer than reading."""
    archive = Archive()
    for folder in FOLDERS.split():
        archive.add(folder, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add_file("init", PROGRAM.read_bytes())
    archive.add_file("bin/busybox", (CACHE / "busybox").read_bytes())
    modules = list(needed_modules())
    for name, content in modules:
        archive.add_file(f"modules/{name}", content)
    archive.add_file("modules/order", "".join(f"{name}\n" for name, _ in modules).encode())
    mke2fs = host_program("mke2fs")
    assert mke2fs is not None
    archive.add_file("e2fsprogs/mke2fs", Path(mke2fs).read_bytes())
    for library in libraries(mke2fs):
        archive.add_file(library.lstrip("/"), Path(library).read_bytes())
    return archive.finish()


def needed_modules() -> Iterator[tuple[str, bytes]]:
    """Names and contents of modules, each after those that it depends on."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in (CACHE / "modules").iterdir()}
    done: set[str] = set()

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in files:
            return
        done.add(name)
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        assert depends is not None, f"{files[name]} does not say what it depends on"
        for other in filter(None, depends[1].decode().split(",")):
            yield from load(other)
        yield f"{name}.ko", content

    for name in WANTED:
        yield from load(name)


def libraries(program: str) -> list[str]:
    """The paths of the shared libraries of a program, its loader among them."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return re.findall(r"(/\S+) \(0x", told)


class Archive:
    """A cpio archive in the "newc" format, as the kernel reads it."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._inodes = itertools.count(1)
        self._folders: set[str] = set()

    def add(self, name: str, mode: int, content: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the file system, device, length of the name, checksum
        fields = (next(self._inodes), mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._append(b"070701" + b"".join(b"%08x" % field for field in fields) + encoded)
        self._append(content)
        if stat.S_ISDIR(mode):
            self._folders.add(name)

    def add_file(self, name: str, content: bytes) -> None:
        """An executable file, and the folders above it."""
        for folder in reversed(Path(name).parents):
            if str(folder) not in self._folders | {"."}:
                self.add(str(folder), stat.S_IFDIR | 0o755)
        self.add(name, stat.S_IFREG | 0o755, content)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return bytes(self._content)

    def _append(self, part: bytes) -> None:
        self._content += part + bytes(-len(part) % 4)
