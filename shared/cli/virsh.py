"""libvirt, through its own command: the few things that adopting a domain and looking at its disks ask of `virsh`."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.cli.domain_xml import Domain, parse
from shared.errors import InvalidStateError, NotFoundError, StorageError, UnreachableError, VmreplicaError

CALL_SECONDS = 120.0
"""How long one call may take; copies go on by themselves and are asked for."""


class QemuError(InvalidStateError):
    """QEMU refused an order of its monitor."""


@dataclass(frozen=True, slots=True)
class Virsh:
    """`virsh` on one connection: ``uri``, or where that is empty the one that virsh takes by itself.

    No call takes longer than ``seconds``.
    """

    environment: Mapping[str, str]
    uri: str = ""
    read_only: bool = False
    seconds: float = CALL_SECONDS

    def run(self, *arguments: str) -> str:
        """What the command printed. Raises NotFoundError, UnreachableError or InvalidStateError with virsh's words."""
        connection = ("--connect", self.uri) if self.uri else ()
        access = ("--readonly",) if self.read_only else ()
        try:
            done = subprocess.run(
                ["virsh", *access, "--quiet", *connection, *arguments],
                env={**self.environment, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=self.seconds,
            )
        except FileNotFoundError:
            raise NotFoundError(
                "virsh is not installed on this host.",
                "On Debian: apt-get install libvirt-clients. Without libvirt see docs/adopting.md.",
            ) from None
        except subprocess.TimeoutExpired:
            raise UnreachableError(
                f"virsh {arguments[0]} did not end within {self.seconds:.0f} seconds.", "Is libvirtd well?"
            ) from None
        if done.returncode == 0:
            return done.stdout
        raise _error(arguments[0], done.stderr)

    # --- what is

    def domain(self, name: str, *, inactive: bool = False) -> tuple[str, Domain]:
        """The XML as it runs, or as it starts next."""
        more = ("--inactive",) if inactive else ()
        # With what is secret in it: it is defined again.
        text = self.run("dumpxml", name, "--security-info", *more)
        return text, parse(text)

    def facts(self, name: str) -> dict[str, str]:
        """What `virsh dominfo` tells, e.g. ``State``, ``Persistent``, ``Managed save``."""
        pairs = (line.partition(":") for line in self.run("dominfo", name).splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}

    def names(self, verb: str, name: str) -> list[str]:
        """What `virsh snapshot-list` or `checkpoint-list` lists."""
        return self.run(verb, name, "--name").split()

    def size(self, name: str, target: str) -> int:
        """The disk's size as the guest sees it, in bytes."""
        for line in self.run("domblkinfo", name, target).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Capacity":
                return int(value)
        raise InvalidStateError(f"libvirt does not tell the size of the disk {target} of {name}.")

    def qemu_user(self) -> tuple[int, int] | None:
        """Numbers of user and group that QEMU runs as; None where libvirt does not tell."""
        for model in self._capabilities().iterfind("host/secmodel"):
            label = model.findtext("baselabel[@type='kvm']") or model.findtext("baselabel") or ""
            user, _, group = label.replace("+", "").partition(":")
            if model.findtext("model") == "dac" and user.isdigit() and group.isdigit():
                return int(user), int(group)
        return None

    def security_models(self) -> list[str]:
        """How libvirt confines QEMU, e.g. ``apparmor``, ``dac``."""
        return [model.findtext("model") or "" for model in self._capabilities().iterfind("host/secmodel")]

    def _capabilities(self) -> ET.Element:
        # From libvirt itself.
        return ET.fromstring(self.run("capabilities"))  # noqa: S314

    def version(self) -> str:
        """The daemon's version, e.g. ``9.0.0``."""
        for line in self.run("version", "--daemon").splitlines():
            if line.startswith("Running against daemon:"):
                return line.partition(":")[2].strip()
        return "of an unknown version"

    # --- orders

    def define(self, text: str) -> None:
        """Define a domain from its XML."""
        with tempfile.NamedTemporaryFile("w", suffix=".xml", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            self.run("define", file.name)

    def copy(self, name: str, target: str, destination: str) -> None:
        """Begin to copy a disk of the running domain, with every write of the guest going to both from then on."""
        with tempfile.NamedTemporaryFile("w", suffix=".xml", encoding="utf-8") as file:
            file.write(destination)
            file.flush()
            self.run(
                "blockcopy", name, target, "--xml", file.name,
                "--reuse-external", "--transient-job", "--synchronous-writes",
            )  # fmt: skip

    def qmp(self, name: str, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """An order to the running QEMU's monitor. Raises QemuError with what it says against it."""
        order = {"execute": command, **({"arguments": arguments} if arguments is not None else {})}
        answer = json.loads(self.run("qemu-monitor-command", name, json.dumps(order)))
        if "error" in answer:
            raise QemuError(f"QEMU refuses {command}: {answer['error'].get('desc', answer['error'])}.")
        return answer["return"]


def reachable(path: str, user: int, group: int) -> bool:
    """Whether a process of this user and group may connect to the socket at ``path``. Raises StorageError."""
    if user == 0:
        return True
    groups = {group, *_groups_of(user, group)}
    parts = [path]
    while parts[-1] != "/":
        parts.append(os.path.dirname(parts[-1]))
    for at, part in enumerate(parts):
        try:
            status = os.stat(part)
        except OSError as error:
            raise StorageError(f"The tap's socket {path} can't be looked at: {error.strerror or error}.") from None
        # A socket has to be written, the folders above it to be passed.
        need = 0o2 if at == 0 else 0o1
        shift = 6 if status.st_uid == user else 3 if status.st_gid in groups else 0
        if not status.st_mode >> shift & need:
            return False
    return True


def _groups_of(user: int, group: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:
        return []


def _error(verb: str, said: str) -> VmreplicaError:
    words = " ".join(said.replace("error: ", "").split())
    text = f"virsh {verb}: {words or 'it failed without a word'}".rstrip(".") + "."
    if "failed to get domain" in words or "Domain not found" in words:
        return NotFoundError(text, "`virsh list --all` lists the domains.")
    if "failed to connect to the hypervisor" in words:
        return UnreachableError(text, "Run it as root on the host of the domain; is libvirtd up?")
    return InvalidStateError(text)
