"""What a support bundle holds: facts for whoever helps, and nothing that opens a door or is a guest's.

Keys, certificates' private parts, disk contents and logs of writes are never read; configurations lose what looks like
a secret; and the whole is searched for private keys before it is written.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from shared.admin import verbs as admin
from shared.cli.agents import Agent
from shared.config_state import safe_url
from shared.errors import StorageError, VmreplicaError
from shared.log import BLOT, SECRET
from shared.ports.beneath import parent_of
from shared.ports.ownership import require_own_file

EVENTS_MAX = 2000
COMMAND_SECONDS = 60.0
TEXT_BYTES_MAX = 16 << 20
"""A longer output keeps its end."""
KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_ASSIGNMENT = re.compile(r"^(\s*)([A-Za-z_]+)(\s*=\s*)(.*)$")
_URL = re.compile(r"https?://[^\s\"']+")

COMMANDS = {
    "os/uname": ("uname", "-a"),
    "os/release": ("cat", "/etc/os-release"),
    "os/memory": ("free", "-b"),
    "os/volumes": ("df", "-BK", "-T"),
    "os/mounts": ("findmnt", "-r"),
    "os/clock": ("timedatectl",),
    "os/chrony": ("chronyc", "tracking"),
    "os/sockets": ("ss", "-xtlnp"),
    "os/units": ("systemctl", "status", "--no-pager", "-l", "vmreplica-*"),
    "os/kernel-messages": ("journalctl", "-k", "--since", "-1day", "--no-pager", "-p", "warning"),
    "logs/agents": ("journalctl", "-u", "vmreplica-*", "--since", "-1day", "--no-pager", "-o", "short-precise"),
    "logs/events": ("journalctl", "--since", "-7day", "--no-pager", "-o", "json", "-t", "vmreplica-primary", "-t",
                    "vmreplica-replica"),
}  # fmt: skip
"""Files of the bundle that are outputs of commands; one that is missing here is left out, and said to be."""


@dataclass(slots=True)
class Bundle:
    """The files of a bundle, by name."""

    files: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """What could not be had, and why."""

    def add_json(self, name: str, get: Callable[[], Any]) -> None:
        """Add what ``get`` returns; why not, where it fails."""
        try:
            value = get()
        except (VmreplicaError, OSError) as error:
            self.missing[name] = str(error)
            return
        self.files[name] = json.dumps(without_secrets(value), indent=1, default=str, ensure_ascii=False).encode()

    def add_command(self, name: str, words: tuple[str, ...]) -> None:
        if shutil.which(words[0]) is None:
            self.missing[name] = f"there is no {words[0]} here"
            return
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=COMMAND_SECONDS, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            self.missing[name] = str(error)
            return
        self.files[name] = done.stdout[-TEXT_BYTES_MAX:]

    def add_text(self, name: str, path: Path, change: Callable[[str], str] = str) -> None:
        """Add the end of a text file."""
        try:
            with path.open("rb") as file:
                data = _end_of(file)
        except OSError as error:
            self.missing[name] = str(error)
            return
        self._take(name, data, change)

    def add_output(self, name: str, path: Path) -> None:
        """Add the end of what a program wrote in a VM's folder, which may be another user's: none but his file."""
        try:
            with parent_of(str(path)) as place, place.opened() as file:
                require_own_file(str(path), os.fstat(file.fileno()), place.folder)
                data = _end_of(file)
        except (OSError, StorageError) as error:
            self.missing[name] = str(error)
            return
        self._take(name, data)

    def _take(self, name: str, data: bytes, change: Callable[[str], str] = str) -> None:
        self.files[name] = change(data.decode("utf-8", "replace")).encode()

    def write(self, path: Path) -> None:
        """Write all as a compressed archive that only its owner may read; an existing one is not replaced."""
        files = {name: cleaned(data) for name, data in self.files.items()}
        files["MISSING.json"] = json.dumps(self.missing, indent=1).encode()
        folder = path.name.removesuffix(".tar.gz")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, data in sorted(files.items()):
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))


def _end_of(file: BinaryIO) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - TEXT_BYTES_MAX))
    return file.read(TEXT_BYTES_MAX)


def cleaned(data: bytes) -> bytes:
    """``data`` without anything that is, or was cut out of, a private key."""
    return KEY.sub(b"(private key taken out)", data)


def without_secrets(value: Any, name: str = "") -> Any:
    """A plain value with secrets blotted out, by the names of its fields; of URLs only where they lead."""
    match value:
        case dict():
            return {key: without_secrets(each, str(key)) for key, each in value.items()}
        case list() | tuple():
            return [without_secrets(each, name) for each in value]
        case str() if value.startswith("/"):
            # The path of a key is no secret, and needed.
            return value
        case str() | bytes() if value and SECRET.fullmatch(name):
            return BLOT
        case str():
            return _URL.sub(lambda found: safe_url(found[0]), value)
    return value


def without_secret_settings(text: str) -> str:
    """A configuration's text without secrets: alarms are left out, since commands and addresses have tokens in them."""
    lines, hidden = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            hidden = line.lstrip().startswith("[[alarms]]")
            if hidden:
                lines.append("# [[alarms]] (left out)")
        found = _ASSIGNMENT.match(line)
        if found is not None and SECRET.fullmatch(found[2]) and not found[4].lstrip("\"'").startswith("/"):
            line = f'{found[1]}{found[2]}{found[3]}"{BLOT}"'
        if not hidden:
            lines.append(_URL.sub(lambda url: safe_url(url[0]), line))
    return "\n".join(lines) + "\n"


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """An agent's configuration by the names of its keys, which are no secrets themselves."""
    settings = {each["key"]: {name: each[name] for name in each if name != "key"} for each in config["keys"]}
    return {**{name: config[name] for name in config if name != "keys"}, "settings": settings}


def add_agent(bundle: Bundle, agent: Agent) -> None:
    """Everything that an agent tells of itself and its VMs."""
    role = agent.status.role
    bundle.add_json(f"{role}/status.json", lambda: agent.raw)
    bundle.add_json(f"{role}/config.json", lambda: settings_of(agent.call(admin.CONFIG)))
    bundle.add_json(f"{role}/alarms.json", lambda: agent.call(admin.ALARMS))
    bundle.add_json(f"{role}/events.json", lambda: agent.call(admin.AGENT_EVENTS, {"limit": EVENTS_MAX}))
    bundle.add_json(f"{role}/audit.json", lambda: agent.call(admin.AUDIT, {"limit": EVENTS_MAX}))
    for vm in agent.status.vms:
        folder, asked = f"{role}/vms/{vm.uuid}", {"vm": vm.uuid}
        bundle.add_json(f"{folder}/events.json", lambda asked=asked: agent.call(  # type: ignore[misc]
            admin.EVENTS, {**asked, "limit": EVENTS_MAX}))  # fmt: skip
        methods = (
            {"resyncs": admin.RESYNC_HISTORY, "resync": admin.RESYNC_SHOW}
            if role == "primary"
            else {"points": admin.POINTS}
        )
        for name, method in methods.items():
            bundle.add_json(
                f"{folder}/{name}.json",
                lambda method=method, asked=asked: agent.call(method, asked),  # type: ignore[misc]
            )
        if vm.folder:
            for path in sorted(Path(vm.folder).glob("**/tap.out")):
                bundle.add_output(f"{folder}/tap.out", path)
            bundle.add_json(f"{folder}/files.json", lambda folder=vm.folder: _listing(folder))  # type: ignore[misc]


def add_host(bundle: Bundle) -> None:
    """What the system tells."""
    for name, words in COMMANDS.items():
        bundle.add_command(name, words)


def _listing(folder: str) -> list[dict[str, Any]]:
    """Names, sizes and modes of a VM's files: not their content."""
    found = []
    for path in sorted(Path(folder).rglob("*")):
        state = path.lstat()
        found.append({
            "path": str(path.relative_to(folder)), "bytes": state.st_size, "allocated_bytes": state.st_blocks * 512,
            "mode": f"{state.st_mode:o}", "uid": state.st_uid, "modified_time": state.st_mtime,
        })  # fmt: skip
    return found
