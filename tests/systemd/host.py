"""One host: a real systemd as PID 1, in namespaces of its own, on an overlay of this machine's root file system.

A host has its own processes, host name, network, mounts, cgroups, journal, ``/etc``, ``/var`` and ``/run``, and a boot
id of its own for every boot. What it writes lies in its folder, and outlives its restarts. It shares the kernel, the
clock and the page cache with this machine; docs/systemd-test.md says what that leaves unproven.

``network`` makes the wire between hosts; the processes that hold the namespaces end with the process that made them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

BOOT = Path(__file__).parent / "boot.sh"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_SECONDS = 60.0
STOP_SECONDS = 100.0
COMMAND_SECONDS = 100.0

TIED = ("setpriv", "--pdeathsig", "KILL")
"""Prefix of a command that ends with the process that started it."""

# The machine's own services, and what touches a kernel that isn't the host's alone.
MASKED = """
    systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service
    systemd-logind.service systemd-timesyncd.service systemd-modules-load.service systemd-sysctl.service
    systemd-binfmt.service systemd-random-seed.service systemd-repart.service systemd-firstboot.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-pstore.service
    systemd-ask-password-wall.path systemd-ask-password-console.path systemd-tmpfiles-clean.timer
    getty.target console-getty.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount
    systemd-remount-fs.service ldconfig.service
""".split()

LEAVE_NO_CGROUP = """
mount -t cgroup2 cgroup2 "$1/cgroup" && cd "$1/cgroup" || exit
tries=0
while [ -d "$2" ] && ! find "$2" -depth -type d -exec rmdir {} + 2>/dev/null && [ $tries -lt 200 ]; do
    tries=$((tries + 1))
    echo 1 >"$2/cgroup.kill"
    sleep 0.02
done
"""


class HostError(AssertionError):
    """A host did not do what it was told to."""


def absent() -> str:
    """What this machine lacks for such hosts; empty when nothing."""
    if os.geteuid() != 0:
        return "root"
    for program in ("unshare", "nsenter", "setpriv", "ip", "pivot_root"):
        if shutil.which(program, path=PATH) is None:
            return f"the program {program}"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd"
    for kind in ("overlay", "cgroup2"):
        if kind not in Path("/proc/filesystems").read_text().split():
            return f"the file system {kind} in the kernel"
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "true"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return f"namespaces ({tried.stderr.strip()})" if tried.returncode else ""


def clear(folder: Path, group: str) -> None:
    """Take away the folder and the cgroups of a host that does not run."""
    subprocess.run(["unshare", "--mount", "sh", "-c", LEAVE_NO_CGROUP, "sh", str(folder), group], check=True)
    shutil.rmtree(folder)


class Network:
    """A wire between two or more network namespaces, each held by a process."""

    def __init__(self, names: Sequence[str]) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self.holders = {name: subprocess.Popen([*TIED, "unshare", "--net", "sleep", "infinity"]) for name in names}
        first, second = names
        for name in names:
            self._until_unshared(name)
        peer = str(self.holders[second].pid)
        self.ip(first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer)
        for name in names:
            self.ip(name, "link", "set", "lo", "up")
            self.ip(name, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            self.ip(name, "link", "set", "eth0", "up")

    def _until_unshared(self, name: str) -> None:
        ours = Path("/proc/self/ns/net").readlink()
        theirs = Path(f"/proc/{self.holders[name].pid}/ns/net")
        while theirs.readlink() == ours:
            time.sleep(0.005)

    def enter(self, name: str) -> list[str]:
        """The prefix of a command that runs in the network of the host."""
        return ["nsenter", f"--net=/proc/{self.holders[name].pid}/ns/net"]

    def ip(self, name: str, *arguments: str) -> None:
        """Run ``ip`` in the network of the host."""
        subprocess.run([*self.enter(name), "ip", *arguments], check=True)

    def close(self) -> None:
        """End the namespaces, and the wire with them."""
        for holder in self.holders.values():
            holder.kill()
            holder.wait()


class Conversation:
    """A command at a host that takes orders, a line each, and answers each with a line."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    def ask(self, order: str, answer: str) -> None:
        """Give an order, and wait for its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{order}\n")
            self.process.stdin.flush()
        told = self.process.stdout.readline().strip()
        assert told == answer, f"{order!r} was answered {told!r}: {self.log.read_text()}"


class Host:
    """One host; ``boot`` starts it, ``close`` ends it and takes away all that it left."""

    def __init__(
        self,
        folder: Path,
        layers: Path,
        group: str,
        name: str,
        network: Network,
        *,
        shared: Mapping[str, Path] | None = None,
    ) -> None:
        """``folder``: has its ``/srv`` and ``/var/lib/vmreplica``; ``layers``: everything else that differs from this
        machine. ``group``: a name for its cgroup that no other has. ``shared``: path there to folder here, read-only.
        """
        self.folder = folder
        self.layers = layers
        self.group = group
        self.name = name
        self.network = network
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """Of the host's PID 1, as this machine sees it."""
        self.boots = 0
        for part in ("root", "disk", "cgroup", "shared"):
            (folder / part).mkdir(parents=True)
        for part in ("upper", "work"):
            (layers / part).mkdir(parents=True)
        (folder / "layers").symlink_to(layers)
        for number, (there, here) in enumerate((shared or {}).items()):
            (folder / "shared" / f"{number}").symlink_to(here)
            (folder / "shared" / f"{number}.there").write_text(there)
        self._furnish()

    def _furnish(self) -> None:
        """What differs from this machine: none of its services, users' files and logs; names of its own."""
        upper = self.layers / "upper"
        for hidden in ("etc/systemd/system", "var/log", "root", "var/tmp", "var/lib/systemd", "work", "srv", "opt"):
            (upper / hidden).mkdir(parents=True)
            os.setxattr(upper / hidden, "trusted.overlay.opaque", b"y")
        # What keeps packages from starting services where no systemd runs; and what makes each installation of a
        # package index all manual pages of this machine, which takes three times as long as the rest of it.
        for absent_file in ("usr/sbin/policy-rc.d", "var/lib/man-db/auto-update"):
            (upper / absent_file).parent.mkdir(parents=True)
            os.mknod(upper / absent_file, stat.S_IFCHR, os.makedev(0, 0))
        (upper / "root").chmod(0o700)
        (upper / "var/tmp").chmod(0o1777)
        (upper / "var/log/journal").mkdir()
        for unit in MASKED:
            (upper / "etc/systemd/system" / unit).symlink_to("/dev/null")
        for name in ("srv", "var/lib/vmreplica"):
            (self.folder / "disk" / name).mkdir(parents=True)
        etc = upper / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        lines = [f"{address} {name}" for name, address in self.network.addresses.items()]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        (etc / "resolv.conf").write_text("")
        (etc / "fstab").write_text("")
        (etc / "systemd/journald.conf.d").mkdir()
        # Everything at once in the journal, and never refused: a test reads it right after.
        (etc / "systemd/journald.conf.d/test.conf").write_text("[Journal]\nRateLimitIntervalSec=0\nSyncIntervalSec=0\n")

    # --- running and not running

    def boot(self) -> None:
        """Start it, and wait until systemd has started all that it wants."""
        assert self.process is None
        self.boots += 1
        self.pid = 0
        (self.folder / "boot-id").write_text(f"{uuid.uuid4()}\n")
        with (self.folder / f"boot-{self.boots}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *TIED, *self.network.enter(self.name), "unshare", "--mount",
                    str(BOOT), str(self.folder), self.group, self.name,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise HostError(f"{self.name} did not boot: {(self.folder / f'boot-{self.boots}.log').read_text()}")
            with contextlib.suppress(OSError, ValueError):
                pid = self.process.pid
                (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self.pid = int(child)
                    if self._answers():
                        return
            time.sleep(0.02)

    def _answers(self) -> bool:
        tried = self.run("systemctl", "is-system-running", "--wait", check=False)
        return tried.stdout.strip() in ("running", "degraded")

    def reboot(self) -> None:
        """As an administrator restarts a host: everything is stopped in order, then it boots again."""
        self.run("systemctl", "reboot", check=False)
        self._until_off()
        self.boot()

    def lose_power(self) -> None:
        """From one instant to the next nothing runs there any more. The page cache is this machine's and stays."""
        os.kill(self.pid, signal.SIGKILL)
        self._until_off()

    def power_cut(self) -> None:
        """Lose power, and boot again."""
        self.lose_power()
        self.boot()

    def _until_off(self) -> None:
        assert self.process is not None
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise HostError(f"{self.name} did not stop: {self.run('systemctl', 'list-jobs').stdout}") from None
        self.process = None

    def close(self) -> None:
        """End all its processes, and take away its cgroups and files."""
        if self.process is not None:
            # Its PID 1 first: then this has ended when its parent has.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid or self.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS / 10)
            self.process.kill()
            self.process.wait()
            self.process = None
        clear(self.folder, self.group)
        shutil.rmtree(self.layers)

    # --- what is done there

    def command(self, *arguments: str) -> list[str]:
        """The command as it is started on this machine to run there, as root at a login shell would."""
        inside = ["env", "-i", "--chdir=/root", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", *arguments]
        return [*TIED, "nsenter", "-t", str(self.pid), "--all", "--wd", *inside]

    def run(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command there; raises HostError with its output when it fails."""
        try:
            done = subprocess.run(
                self.command(*arguments), check=False, capture_output=True, text=True, input=stdin,
                timeout=COMMAND_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            told = f"{late.stdout!r}\n{late.stderr!r}"
            raise HostError(f"{self.name}: {shlex.join(arguments)}: no end after {late.timeout} s\n{told}") from None
        if check and done.returncode:
            raise HostError(f"{self.name}: {shlex.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def shell(self, lines: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run lines of a shell there, stopping at the first that fails."""
        return self.run("bash", "-e", "-o", "pipefail", "-c", lines, check=check)

    @contextlib.contextmanager
    def open(self, *arguments: str) -> Iterator[Conversation]:
        """A command there that goes on beside the test, and is ended with the block at the latest."""
        log = self.folder / f"open-{len(list(self.folder.glob('open-*')))}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                self.command(*arguments), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        with process:
            try:
                yield Conversation(process, log)
            finally:
                process.kill()

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Run systemctl there; what it printed."""
        return self.run("systemctl", *arguments, check=check).stdout

    def restart(self, unit: str) -> None:
        """Restart a service; it is ready when this returns. Raises HostError with what it said."""
        done = self.run("systemctl", "restart", unit, check=False)
        if done.returncode:
            raise HostError(f"{self.name}: {unit}: {done.stderr}\n{self.journal('-u', unit, '-n', '20')}")

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit).strip()

    def journal(self, *arguments: str) -> str:
        """Lines of the host's journal, of all its boots, without dates; ``arguments`` as journalctl takes them."""
        return self.run("journalctl", "--no-pager", "--output=cat", *arguments).stdout

    def path(self, path: str) -> Path:
        """The path on this machine of a file there, while it runs."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def put(self, here: Path, there: str) -> None:
        """Copy a file of this machine to the host."""
        shutil.copyfile(here, self.path(there))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file there."""
        there = self.path(path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text)
        there.chmod(mode)
