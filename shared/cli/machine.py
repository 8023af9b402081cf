"""What this machine is like, as far as an agent depends on it: versions, clock, file systems, room and ports."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from shared.cli.findings import Finding, note, ok, problem, warning
from shared.config_sections import PrimaryConfig, ReplicaConfig, split_listen
from shared.rates import size_text

PYTHON_MIN = (3, 11)
KERNEL_MIN = (5, 10)
"""The oldest kernel with a long life that has all that is used: pidfd_open, openat2, close_range, RWF_NOWAIT."""
OPENSSL_MIN = (3, 0)
LITTLE_ROOM_BYTES = 1 << 30
NO_ROOM_BYTES = 64 << 20

GOOD_FILE_SYSTEMS = frozenset({"ext4", "xfs", "btrfs", "ext3", "zfs"})
LOST_AT_BOOT = frozenset({"tmpfs", "ramfs"})
REMOTE = re.compile(r"nfs\d?|cifs|smb3|9p|ceph|afs|glusterfs|fuse(\..*)?")

_FALLOC_PUNCH_HOLE_KEEP_SIZE = 0x03
_STA_UNSYNC = 0x0040


def machine_findings(root: str) -> Iterator[Finding]:
    """All that does not depend on a configuration; ``root`` is empty but for a machine that is being prepared."""
    yield python_finding()
    yield openssl_finding()
    yield kernel_finding()
    yield uvloop_finding()
    if not root:
        yield systemd_finding()
        yield clock_finding()


# --- versions


def python_finding() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] < PYTHON_MIN:
        return problem("Python", f"This is Python {version}.", f"Install Python {_dotted(PYTHON_MIN)} or newer.")
    return ok("Python", f"{version}, {sys.executable}.", version=version)


def openssl_finding() -> Finding:
    text = ssl.OPENSSL_VERSION
    if not ssl.HAS_TLSv1_3:
        return problem("OpenSSL", f"{text} has no TLS 1.3.", "Use a Python that is built with OpenSSL 3.")
    if ssl.OPENSSL_VERSION_INFO[:2] < OPENSSL_MIN:
        return warning("OpenSSL", f"{text} gets no security updates.", "Use a Python built with OpenSSL 3.")
    return ok("OpenSSL", f"{text}.", version=text)


def kernel_finding() -> Finding:
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return note("kernel", f"{release} is no version that is known.", version=release)
    if (int(found[1]), int(found[2])) < KERNEL_MIN:
        return warning(
            "kernel", f"Linux {release} is old.", f"Linux {_dotted(KERNEL_MIN)} is the oldest that is tried."
        )
    return ok("kernel", f"Linux {release}.", version=release)


def uvloop_finding() -> Finding:
    try:
        import uvloop
    except ImportError as error:
        return problem("uvloop", f"It can't be loaded: {error}.", "Install vmreplica again, with its dependencies.")
    loop = uvloop.new_event_loop()
    loop.close()
    return ok("uvloop", f"{metadata.version('uvloop')}, a loop of it runs.")


def systemd_finding() -> Finding:
    if not os.path.isdir("/run/systemd/system"):
        return warning(
            "systemd",
            "It does not run here (no /run/systemd/system).",
            "Start the agents by what does its work here; they run in the foreground and end at SIGTERM.",
        )
    first = _first_line(["systemctl", "--version"])
    return ok("systemd", f"It runs: {first or 'version unknown'}.")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _first_line(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0].strip()


# --- the clock


class _Timex(ctypes.Structure):
    """The beginning of struct timex (adjtimex(2)), with room behind for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def clock_finding() -> Finding:
    """Whether the kernel's clock is kept right by NTP: recovery points are named by time, certificates end by it."""
    remedy = "Run a time service: apt install chrony (or systemctl enable --now systemd-timesyncd)."
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        reason = os.strerror(ctypes.get_errno())
        return note("clock", f"The kernel does not tell whether it is kept right: {reason}.", remedy)
    evidence = {"max_error_seconds": timex.maxerror / 1e6, "estimated_error_seconds": timex.esterror / 1e6}
    if timex.status & _STA_UNSYNC:
        return warning("clock", "Nothing keeps it right.", remedy, **evidence)
    return ok("clock", f"It is kept right, to {timex.maxerror / 1000:.0f} ms at worst.", **evidence)


# --- volumes


def volume_findings(config: PrimaryConfig | ReplicaConfig, root: str) -> Iterator[Finding]:
    """Each folder that will hold logs or copies: its file system, what that can do, and its room."""
    folders = {"state_dir": config.state_dir}
    if isinstance(config, ReplicaConfig):
        folders |= {f"storage of {entry.name or entry.fingerprint[:8]}": entry.storage for entry in config.authorize}
    for what, path in folders.items():
        yield from folder_findings(f"{what} {path}", root + path)


def folder_findings(subject: str, path: str) -> Iterator[Finding]:
    """What the volume of ``path`` (or of the nearest folder above it that exists) is like."""
    place = _existing(path)
    kind, source = file_system(place)
    on = f"{kind} on {source}" if source else kind
    if kind in LOST_AT_BOOT:
        yield warning(subject, f"It lies in memory ({on}), and is lost at the next start.", "Put it on a disk.")
    elif REMOTE.fullmatch(kind):
        yield warning(
            subject, f"It is on a network or user-space file system ({on}).", "Use a local one: ext4, xfs or btrfs."
        )
    elif kind == "overlay":
        yield warning(subject, "It is on an overlay, as in a container.", "Use a volume of its own: ext4, xfs, btrfs.")
    elif kind in GOOD_FILE_SYSTEMS:
        yield ok(subject, f"{on}.", file_system=kind)
    else:
        yield note(subject, f"{on} is a file system that was not tried.", "ext4, xfs and btrfs were.")
    yield _room(subject, place)
    yield from _abilities(subject, place)


def _room(subject: str, place: str) -> Finding:
    usage = shutil.disk_usage(place)
    text = f"{size_text(usage.free)} of {size_text(usage.total)} are free."
    evidence = {"free_bytes": usage.free, "total_bytes": usage.total}
    if usage.free < NO_ROOM_BYTES:
        remedy = f"Make room: at least {size_text(LITTLE_ROOM_BYTES)}, better what changes in a day or two."
        return problem(subject, text, remedy, **evidence)
    if usage.free < LITTLE_ROOM_BYTES:
        return warning(subject, text, "That is little: logs grow up to half of the disks' size.", **evidence)
    return ok(subject, text, **evidence)


def _abilities(subject: str, place: str) -> Iterator[Finding]:
    """Allocating and punching holes, tried on a file without a name."""
    from shared.ports.kernel import fallocate

    try:
        descriptor = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            yield note(subject, "What its file system can do was not tried: not allowed.", "Run this as root.")
        else:
            yield note(subject, f"What its file system can do was not tried: {error.strerror}.")
        return
    missing = []
    try:
        for what, mode in (("fallocate", 0), ("punching holes", _FALLOC_PUNCH_HOLE_KEEP_SIZE)):
            try:
                fallocate(descriptor, mode, 0, 1 << 16)
            except OSError as error:
                missing.append(f"{what} ({error.strerror})")
        os.fsync(descriptor)
    except OSError as error:
        yield problem(subject, f"Syncing a file fails: {error.strerror}.", "See to the volume; nothing works on it.")
        return
    finally:
        os.close(descriptor)
    if missing:
        yield warning(
            subject,
            f"Its file system can't do {' and '.join(missing)}.",
            "Zeroes are written instead, and holes take space: prefer ext4, xfs or btrfs.",
        )


def file_system(path: str) -> tuple[str, str]:
    """Type and source of the mount that holds an existing path."""
    real = os.path.realpath(path)
    best, found = "", ("unknown", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        point = _unescaped(fields.split()[4])
        inside = point in ("/", real) or real.startswith(point + "/")
        # A later mount on the same point lies over the earlier one.
        if inside and len(point) >= len(best):
            kind, source, *_ = rest.split()
            best, found = point, (kind, _unescaped(source))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return path


# --- the ports


def port_findings(config: PrimaryConfig | ReplicaConfig) -> Iterator[Finding]:
    """Whether the agent can listen wherever its configuration says, or does already."""
    if isinstance(config, ReplicaConfig):
        yield _port_finding(config.listen.host, config.listen.port, "[listen]", "replica")
    if metrics := split_listen(config.metrics.listen):
        yield _port_finding(*metrics, "[metrics]", "replica" if isinstance(config, ReplicaConfig) else "primary")


def _port_finding(host: str, port: int, section: str, role: str) -> Finding:
    subject = f"port {port}" if section == "[listen]" else f"port {port} of {section}"
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return problem(subject, f"{host} is no address of a host: {error.strerror}.", f"Mend the host of {section}.")
    family, kind, protocol, _, address = addresses[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            # Where somebody listens already, only this fails.
            probe.listen(1)
        except OSError as error:
            return _taken(subject, error, port, section, role)
    return ok(subject, f"{host} port {port} is free.")


def _taken(subject: str, error: OSError, port: int, section: str, role: str) -> Finding:
    match error.errno:
        case errno.EADDRINUSE:
            pid, name = listener_of(port)
            if f"vmreplica-{role}" in name:
                return ok(subject, f"The {role} agent listens there already, process {pid}.", pid=pid)
            who = f"process {pid} ({name})" if pid else "another process"
            return problem(
                subject,
                f"It is taken by {who}.",
                f"Stop that, or set another port under {section}.",
                pid=pid,
                command=name,
            )
        case errno.EADDRNOTAVAIL:
            return problem(subject, f"No interface has the address of {section}.", f"Mend the address of {section}.")
        case errno.EACCES:
            return note(subject, "Whether it is free was not tried: ports below 1024 need root.", "Run this as root.")
    return problem(subject, f"Nobody can listen there: {error.strerror}.", f"Mend {section}.")


def listener_of(port: int) -> tuple[int, str]:
    """Process and command line of who listens on a TCP port; 0 where that can't be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table, encoding="ascii") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(process / "fd" / name) in inodes for name in os.listdir(process / "fd")):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return int(process.name), words
        except OSError:
            # It ended, or is not ours to look at.
            continue
    return 0, ""
