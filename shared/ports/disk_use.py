"""Who on this host has which disk images open, which overlays lie over them, and which guests run: one look at /proc.

The port is ``DiskUse``. Other users' processes are seen by whoever may trace them: root with CAP_SYS_PTRACE.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

QCOW2_MAGIC = b"QFI\xfb"
BACKING_BYTES_MAX = 1023
"""The longest name of a backing file that the format allows."""
CHAIN_MAX = 200
"""Images over each other that are looked through, as many as libvirt takes."""
GUEST_PROGRAM = re.compile(r"qemu(-system|-kvm|$)|kvm$|qemu-kvm")
_ACCESS = 0o3
_READ_ONLY = 0o0


@dataclass(frozen=True, slots=True)
class DiskUser:
    """A process that has a disk open, or (``pid`` 0) a device of the kernel that lies over it."""

    path: str
    """The disk, as it was asked for."""
    pid: int
    program: str
    writing: bool


@dataclass(frozen=True, slots=True)
class Overlay:
    """An image over a disk that a guest writes into: an external snapshot, say."""

    pid: int
    program: str
    path: str
    """The image that is written,"""
    backing: str
    """and what it says lies below it."""
    below: str
    """The path that was asked for: a disk or a socket."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A process of QEMU that runs a guest."""

    pid: int
    name: str
    uuid: str


@dataclass(slots=True)
class Usage:
    """What one look found."""

    users: list[DiskUser] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    guests: list[Guest] = field(default_factory=list)
    unseen: int = 0
    """Processes whose open files could not be seen: they may be anything."""


class DiskUse(Protocol):
    """Who uses disks. Blocks: called in a worker."""

    def look(self, disks: Sequence[str], sockets: Sequence[str]) -> Usage:
        """All that concerns these images or devices, and the NBD sockets that they are served on."""


class ProcDiskUse:
    """See :class:`DiskUse`; ``proc`` and ``sys`` are where the kernel tells it."""

    def __init__(self, proc: str = "/proc", sys: str = "/sys") -> None:
        self._proc = Path(proc)
        self._sys = Path(sys)

    def look(self, disks: Sequence[str], sockets: Sequence[str]) -> Usage:
        """See :class:`DiskUse`."""
        usage = Usage()
        identities: dict[tuple[int, int], str] = {}
        for path in disks:
            with contextlib.suppress(OSError):
                identities[_identity(os.stat(path))] = path
        below = [*disks, *sockets]
        for process in self._processes():
            self._look_at(process, identities, below, usage)
        usage.users += self._loops(identities)
        return usage

    def _processes(self) -> Iterator[Path]:
        for name in os.listdir(self._proc):
            if name.isdigit() and int(name) != os.getpid():
                yield self._proc / name

    def _look_at(
        self, process: Path, identities: dict[tuple[int, int], str], below: Sequence[str], usage: Usage
    ) -> None:
        try:
            program = _read(process / "comm").strip()
            guest = GUEST_PROGRAM.match(program) is not None
            if guest:
                usage.guests.append(_guest(int(process.name), _read(process / "cmdline").split("\0")))
            names = os.listdir(process / "fd")
        except (FileNotFoundError, ProcessLookupError):
            return
        except PermissionError:
            usage.unseen += 1
            return
        found: dict[str, bool] = {}
        for name in names:
            with contextlib.suppress(OSError):
                entry = process / "fd" / name
                if not os.readlink(entry).startswith("/"):
                    continue
                state = os.stat(entry)
                path = identities.get(_identity(state))
                if path is None and not (guest and stat.S_ISREG(state.st_mode)):
                    continue
                writing = self._writes(process, name)
                if path is not None:
                    found[path] = found.get(path, False) or writing
                elif writing and (overlay := _overlay(int(process.name), program, entry, below)) is not None:
                    usage.overlays.append(overlay)
        usage.users += [DiskUser(path, int(process.name), program, writing) for path, writing in found.items()]

    def _writes(self, process: Path, name: str) -> bool:
        for line in _read(process / "fdinfo" / name).splitlines():
            if line.startswith("flags:"):
                return int(line.split()[1], 8) & _ACCESS != _READ_ONLY
        return False

    def _loops(self, identities: dict[tuple[int, int], str]) -> Iterator[DiskUser]:
        """Loop devices: the kernel itself has their file open, and no process."""
        for told in self._sys.glob("block/loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                path = identities.get(_identity(os.stat(_read(told).strip())))
                if path is not None:
                    device = told.parts[-3]
                    yield DiskUser(path, 0, f"/dev/{device}", _read(told.parents[1] / "ro").strip() == "0")


def _identity(state: os.stat_result) -> tuple[int, int]:
    """What is the same for every path and descriptor of one file, or of one block device."""
    return (-1, state.st_rdev) if stat.S_ISBLK(state.st_mode) else (state.st_dev, state.st_ino)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _guest(pid: int, words: Sequence[str]) -> Guest:
    """Name and UUID as QEMU's command line has them."""
    name = uuid = ""
    for option, value in itertools.pairwise(words):
        if option.lstrip("-") == "name":
            parts = value.split(",")
            named = [part.removeprefix("guest=") for part in parts if part.startswith("guest=")]
            name = (named or parts)[0]
        elif option.lstrip("-") == "uuid":
            uuid = value.lower()
    return Guest(pid, name, uuid)


def _overlay(pid: int, program: str, entry: Path, below: Sequence[str]) -> Overlay | None:
    """The image behind a descriptor, where it lies over one of the paths, itself or by others below it."""
    top = place = os.readlink(entry)
    backing = backing_of(str(entry))
    for _ in range(CHAIN_MAX):
        named = paths_named(backing, place)
        for path in below:
            if any(_is_same(path, name) for name in named):
                return Overlay(pid, program, top, backing, path)
        following = next((name for name in named if os.path.isfile(name) or Path(name).is_block_device()), "")
        if not following:
            return None
        place = following
        backing = backing_of(place)
    return None


def _is_same(path: str, other: str) -> bool:
    """Whether both are one place: a device has several names, and so has what lies behind a symbolic link."""
    return os.path.normpath(path) == os.path.normpath(other) or os.path.realpath(path) == os.path.realpath(other)


def paths_named(backing: str, above: str) -> list[str]:
    """The files, devices and unix sockets in the name of a backing file, in one of the forms that QEMU writes.

    ``above`` is the image that has it, beside which a relative name is looked for.
    """
    try:
        names = _names_of(backing)
    except (ValueError, RecursionError):
        return []
    return [os.path.join(os.path.dirname(above), name) for name in names if name]


def _names_of(backing: str) -> list[str]:
    """Raises ValueError for what is none of these forms."""
    scheme, _, rest = backing.partition(":")
    if scheme == "json":
        return list(_names_in(json.loads(rest)))
    if scheme == "nbd":
        kind, _, place = rest.partition(":")
        return [place.partition(":exportname=")[0]] if kind == "unix" else []
    if scheme in ("file", "host_device"):
        return [rest.removeprefix("//") if rest.startswith("///") else rest]
    if "://" in backing:
        return parse_qs(urlsplit(backing).query).get("socket", [])
    return [backing]


def _names_in(value: object) -> Iterator[str]:
    """Of a block device's options, nested or with dots in their names, those that name a file or a socket."""
    pairs = value.items() if isinstance(value, dict) else ()
    for key, inner in pairs:
        if isinstance(inner, str) and str(key).rpartition(".")[2] in ("filename", "path"):
            yield inner
        yield from _names_in(inner)


def backing_of(path: str) -> str:
    """What a qcow2 image says lies below it; empty for anything else."""
    with open(path, "rb") as file:
        header = file.read(20)
        if len(header) < 20 or header[:4] != QCOW2_MAGIC:
            return ""
        offset, size = struct.unpack(">QI", header[8:20])
        if not offset or not 0 < size <= BACKING_BYTES_MAX:
            return ""
        file.seek(offset)
        return file.read(size).decode("utf-8", "replace")
