"""The steps that make a host ready for an agent: each is looked at first, and done only where something is missing.

``root`` is put before every path that is written, for an image that is being built; it is empty on the host itself.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.cli.apparmor import ABSTRACTION, PROFILES, allowed, enabled, local_file, rule_for
from shared.cli.configured import CONFIG_FOLDER, KINDS, default_path
from shared.cli.domain_xml import TAP_SOCKET
from shared.cli.findings import Finding, Level, note, of_error, ok, problem, warning
from shared.cli.unit_files import reach_steps, unit_steps, unit_user
from shared.config import load_config
from shared.config_sections import PrimaryConfig, ReplicaConfig
from shared.errors import StorageError, UsageError, VmreplicaError

ACCOUNTS = {
    "vmreplica-admin": ("group", "g vmreplica-admin -"),
    "vmreplica-viewer": ("group", "g vmreplica-viewer -"),
    "vmreplica": ("passwd", 'u vmreplica - "vmreplica replica agent" /var/lib/vmreplica/replica-agent'),
}
"""Who may command the agents, who may only look, and whom the replica's unit runs as: the file of each, and its line
of sysusers.d(5)."""
PKI_FOLDER = f"{CONFIG_FOLDER}/pki"
PKI_FILES = {"ca.pem": 0o644, "certificate.pem": 0o644, "key.pem": 0o600, "crl.pem": 0o644}
"""What ``pki issue`` puts into a host's folder, and the modes here; the last one may be missing."""
RUNTIME_FOLDER = "/run/vmreplica"
VM_OF_ANY = "00000000-0000-4000-8000-000000000000"
"""Stands for the UUID of some VM, in the path of its tap's socket."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the administrator asked for. An empty value is not put into the file: its default holds."""

    role: str
    root: str = ""
    config: str = ""
    """Path of the configuration; empty: the usual one of the role."""
    host: str = ""
    pki: str = ""
    """Folder with this host's certificate files, to be copied; empty: they are in place, or come later."""
    nbd_group: str = ""
    listen_host: str = ""
    listen_port: int | None = None
    authorize: tuple[tuple[str, str], ...] = ()
    """Name in a primary's certificate, and the folder for its copies."""
    units: bool = True
    apparmor: bool = False
    """Let QEMU connect to the taps, where libvirt's profiles for AppArmor don't."""

    @property
    def path(self) -> str:
        return self.root + (self.config or default_path(self.role))


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was found, and how to do it, where that is to be done."""

    finding: Finding
    do: Callable[[], None] | None = field(default=None)

    def done(self) -> Finding:
        """Do the step; what came of it."""
        if self.do is None:
            return self.finding
        found = self.finding
        try:
            self.do()
        except VmreplicaError as error:
            return of_error(found.subject, error)
        except (OSError, subprocess.SubprocessError) as error:
            return problem(
                found.subject, f"{found.text} That failed: {error}.", "Run it as root, and see to the cause."
            )
        return Finding(found.subject, Level.CHANGED, found.text, found.remedy, found.evidence)


def settled(finding: Finding) -> Step:
    return Step(finding)


def to_do(subject: str, text: str, do: Callable[[], None]) -> Step:
    return Step(Finding(subject, Level.TO_DO, text), do)


def first_steps(wanted: Wanted) -> Iterator[Step]:
    """What comes before the configuration can be read: groups, its folder, certificates, the file itself."""
    yield folder_step(wanted.root + CONFIG_FOLDER, 0o755, "configuration")
    user = unit_user(wanted.role, wanted.root) if wanted.units else "root"
    for name, (kind, _) in ACCOUNTS.items():
        if kind == "group" or name == user:
            yield account_step(name, wanted.root)
    yield from pki_steps(wanted)
    yield config_step(wanted)
    if wanted.units:
        for finding, do in unit_steps(wanted.role, wanted.root):
            yield Step(finding, do)


def later_steps(wanted: Wanted, config: PrimaryConfig | ReplicaConfig) -> Iterator[Step]:
    """The folders that the configuration names, whom they and the key belong to, and that the unit may write them."""
    user = unit_user(wanted.role, wanted.root) if wanted.units else "root"
    owner = account_number(user, wanted.root, "passwd") if user != "root" else None
    yield folder_step(wanted.root + RUNTIME_FOLDER, 0o755, "sockets")
    folders = [config.state_dir]
    if isinstance(config, ReplicaConfig):
        folders += dict.fromkeys(entry.storage for entry in config.authorize)
    for folder in folders:
        yield folder_step(wanted.root + folder, 0o700, "state_dir" if folder == config.state_dir else "storage", owner)
    yield from _key_owner_steps(wanted.root + config.tls.key, user, owner)
    if wanted.units:
        if isinstance(config, ReplicaConfig):
            yield from (Step(*step) for step in reach_steps("replica", wanted.root, folders))
        yield from (Step(*step) for step in reach_steps("primary", wanted.root, _primary_folders(wanted, config)))
    yield from apparmor_steps(wanted, config.runtime_dir)


def _primary_folders(wanted: Wanted, config: PrimaryConfig | ReplicaConfig) -> list[str]:
    """What a primary agent of this host writes to, whichever role is set up; empty where there is none."""
    other = "primary" if wanted.role == "replica" else "replica"
    found: list[PrimaryConfig | ReplicaConfig] = [config]
    if os.path.lexists(path := wanted.root + default_path(other)):
        # What is wrong with it is told where that role is set up.
        with contextlib.suppress(VmreplicaError):
            found.append(load_config(path, KINDS[other]))
    folders = [each.state_dir for each in found if isinstance(each, PrimaryConfig)]
    if folders:
        storages = [entry.storage for each in found if isinstance(each, ReplicaConfig) for entry in each.authorize]
        folders += dict.fromkeys(storages)
    return folders


def _key_owner_steps(key: str, user: str, owner: int | None) -> Iterator[Step]:
    """A unit that does not run as root must be able to read its key, and nobody else."""
    if owner is not None and os.path.isfile(key) and os.stat(key).st_uid != owner:
        yield to_do(key, f"It is given to {user}, as whom the agent runs.", lambda: os.chown(key, owner, -1))


def apparmor_steps(wanted: Wanted, runtime_folder: str) -> Iterator[Step]:
    """libvirt's profiles let QEMU connect to the agent's taps. The rule is for every domain: it has to be asked for."""
    known = allowed(f"{runtime_folder}/{VM_OF_ANY}/{TAP_SOCKET}", root=wanted.root)
    if known is None:
        if wanted.apparmor:
            missing = f"{wanted.root}{PROFILES}/{ABSTRACTION}"
            remedy = "Install libvirt first (Debian: libvirt-daemon-system); without AppArmor leave --apparmor out."
            yield settled(
                problem("AppArmor", f"There is no {missing}: nothing says what libvirt's QEMU may do.", remedy)
            )
        return
    path, rule = local_file(wanted.root), rule_for(runtime_folder)
    if known:
        yield settled(ok("AppArmor", f"libvirt's profiles let QEMU connect to the taps in {runtime_folder}."))
    elif wanted.apparmor:
        text = f"`{rule}` is added to {path}: QEMU of every domain may connect, from its next start on."
        yield to_do("AppArmor", text, lambda: _add_line(path, rule))
    elif wanted.root or enabled():
        text = f"libvirt's profiles do not let QEMU connect to the taps in {runtime_folder}."
        remedy = (
            f"Run this with --apparmor, or add `{rule}` to {path}; docs/adopting.md tells what that allows. "
            "Where libvirt does not confine QEMU with AppArmor, nothing is needed."
        )
        yield settled(warning("AppArmor", text, remedy))


def _add_line(path: Path, line: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    mode = path.stat().st_mode & 0o777 if text else 0o644
    before = text if not text or text.endswith("\n") else f"{text}\n"
    added = f"# vmreplica: QEMU may connect to the taps of replicated VMs.\n{line}\n"
    write_file(str(path.resolve()), f"{before}{added}".encode(), mode)


# --- groups and users


def account_step(name: str, root: str) -> Step:
    """The group or user exists, or is made by systemd-sysusers, or by groupadd and useradd where that is missing."""
    kind, _ = ACCOUNTS[name]
    subject = f"{'group' if kind == 'group' else 'user'} {name}"
    if account_number(name, root) is not None:
        return settled(ok(subject, "It exists."))
    text = "It is made, without members: usermod -aG adds them." if kind == "group" else "It is made, without a login."
    return to_do(subject, text, lambda: _make_account(name, root))


def account_number(name: str, root: str, kind: str = "") -> int | None:
    """Its number below ``root``, or of this host; None where there is none."""
    kind = kind or (ACCOUNTS[name][0] if name in ACCOUNTS else "passwd")
    if root:
        path = Path(f"{root}/etc/{kind}")
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return next((int(line.split(":")[2]) for line in lines if line.startswith(f"{name}:")), None)
    try:
        return grp.getgrnam(name).gr_gid if kind == "group" else pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _make_account(name: str, root: str) -> None:
    kind, line = ACCOUNTS[name]
    if shutil.which("systemd-sysusers") is not None:
        where = [f"--root={os.path.abspath(root)}"] if root else []
        words = ["systemd-sysusers", *where, "--inline", line]
    else:
        where = ["--root", os.path.abspath(root)] if root else []
        more = [] if kind == "group" else ["--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin"]
        words = ["groupadd" if kind == "group" else "useradd", "--system", *where, *more, name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or account_number(name, root) is None:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise StorageError(f"{' '.join(words)} failed: {said}", f"Make {name} by hand, and run this again.")


# --- folders and files


def folder_step(path: str, mode: int, what: str, owner: int | None = None) -> Step:
    """The folder exists with the mode and belongs to ``owner``; None: to root, or to whoever runs this."""
    subject = f"folder {path}"
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return to_do(subject, f"It is made for {what}, mode {mode:04o}.", lambda: _make_folder(path, mode, owner))
    if not os.path.isdir(path) or os.path.islink(path):
        return settled(problem(subject, "Something else than a folder is there.", f"Move {path} away."))
    if state.st_uid not in (0, os.geteuid(), owner):
        remedy = f"chown {owner or 0} {path}"
        return settled(problem(subject, f"It belongs to user {state.st_uid}, who could put anything there.", remedy))
    if owner is not None and state.st_uid != owner:
        if os.listdir(path):
            text = f"It belongs to user {state.st_uid}, and the agent runs as user {owner}."
            return settled(problem(subject, text, f"With the agent stopped: chown -R {owner} {path}"))
        return to_do(
            subject, f"It is given to user {owner}, as whom the agent runs.", lambda: os.chown(path, owner, -1)
        )
    if state.st_mode & 0o7777 & ~mode:
        text = f"Its mode {state.st_mode & 0o7777:04o} is cut to {mode & state.st_mode:04o}."
        return to_do(subject, text, lambda: os.chmod(path, state.st_mode & mode))
    return settled(ok(subject, f"It is there for {what}, mode {state.st_mode & 0o7777:04o}."))


def _make_folder(path: str, mode: int, owner: int | None) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    os.mkdir(path, 0o700)
    if owner is not None:
        os.chown(path, owner, -1)
    os.chmod(path, mode)


def write_file(path: str, data: bytes, mode: int, owner: int | None = None) -> None:
    """Put a whole file in place, durably: it is there as it was, or as it is to be. None: it is ours."""
    unfinished = f"{path}.unfinished"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None:
            os.fchown(descriptor, owner, -1)
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.rename(unfinished, path)


def pki_steps(wanted: Wanted) -> Iterator[Step]:
    """Copies of the certificate files, where a folder of them is named; their folder and modes in any case."""
    folder = wanted.root + PKI_FOLDER
    yield folder_step(folder, 0o755, "certificates")
    if wanted.pki:
        for name, mode in PKI_FILES.items():
            yield from _copy_step(Path(wanted.pki, name), Path(folder, name), mode)
    elif not Path(folder, "key.pem").exists():
        yield settled(
            note(
                "certificates",
                f"There are none in {folder} yet.",
                "Run vmreplica pki init and pki issue in a safe place, and this again with --pki FOLDER.",
            )
        )
    key = Path(folder, "key.pem")
    if not wanted.pki and key.exists() and key.stat().st_mode & 0o077:
        yield to_do(str(key), "Its mode is made 0600: nobody else may read a key.", lambda: key.chmod(0o600))


def _copy_step(source: Path, target: Path, mode: int) -> Iterator[Step]:
    subject = str(target)
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        if source.name != "crl.pem":
            yield settled(
                problem(subject, f"There is no {source}.", "Name the folder that pki issue made for this host.")
            )
        return
    except OSError as error:
        yield settled(problem(subject, f"{source} can't be read: {error.strerror}.", "Run this as root."))
        return
    if target.exists() and target.read_bytes() == data and target.stat().st_mode & 0o777 == mode:
        yield settled(ok(subject, f"It is the same as {source}."))
        return
    word = "replaced by" if target.exists() else "copied from"
    text = f"It is {word} {source}, mode {mode:04o}."
    owner = target.stat().st_uid if target.exists() else None
    yield to_do(subject, text, lambda: write_file(str(target), data, mode, owner))


# --- the configuration


def config_step(wanted: Wanted) -> Step:
    """A new file as asked for; one that exists is never written over, but what it has otherwise is told."""
    path = wanted.path
    if not os.path.lexists(path):
        text = f"It is written for a {wanted.role}; docs/config.md has every key."
        return to_do(path, text, lambda: _write_config(wanted))
    try:
        config = load_config(path, KINDS[wanted.role])
    except VmreplicaError as error:
        return settled(of_error(path, error))
    other = _differences(wanted, config)
    if other:
        return settled(
            note(
                path, f"It exists and stays as it is. It has not: {'; '.join(other)}.", "Edit it, and reload the agent."
            )
        )
    return settled(ok(path, "It exists, and has what was asked for."))


def _differences(wanted: Wanted, config: PrimaryConfig | ReplicaConfig) -> list[str]:
    other = []
    if wanted.host and config.host != wanted.host:
        other.append(f"host = {json.dumps(wanted.host)}")
    if wanted.nbd_group and config.nbd_group != wanted.nbd_group:
        other.append(f"nbd_group = {json.dumps(wanted.nbd_group)}")
    if isinstance(config, ReplicaConfig):
        if wanted.listen_host and config.listen.host != wanted.listen_host:
            other.append(f"listen.host = {json.dumps(wanted.listen_host)}")
        if wanted.listen_port and config.listen.port != wanted.listen_port:
            other.append(f"listen.port = {wanted.listen_port}")
        known = {(entry.name, entry.storage) for entry in config.authorize}
        other += [f"the entry of {name} for {path}" for name, path in wanted.authorize if (name, path) not in known]
    return other


def _write_config(wanted: Wanted) -> None:
    text = config_text(wanted)
    write_file(wanted.path, text.encode(), 0o644)
    try:
        load_config(wanted.path, KINDS[wanted.role])
    except UsageError:
        # What was asked for does not go together: the host is left without the file, as it was.
        os.unlink(wanted.path)
        raise


def config_text(wanted: Wanted) -> str:
    """The configuration as TOML: what was asked for, and nothing that is a default anyway."""
    lines = [f"# The {wanted.role} agent of vmreplica; docs/config.md has every key, its unit and default."]
    lines += [f"{key} = {json.dumps(value)}" for key, value in _top(wanted)]
    files = {"ca": "ca.pem", "certificate": "certificate.pem", "key": "key.pem"}
    if Path(wanted.pki or wanted.root + PKI_FOLDER, "crl.pem").exists():
        files["crl"] = "crl.pem"
    lines += ["", "[tls]", *(f'{key} = "{PKI_FOLDER}/{name}"' for key, name in files.items())]
    if wanted.role == "replica":
        listen = [("host", wanted.listen_host), ("port", wanted.listen_port)]
        if any(value for _, value in listen):
            lines += ["", "[listen]", *(f"{key} = {json.dumps(value)}" for key, value in listen if value)]
        for name, storage in wanted.authorize:
            lines += ["", "[[authorize]]", f"name = {json.dumps(name)}", 'vms = ["*"]']
            lines += [f"storage = {json.dumps(storage)}"]
    return "\n".join(lines) + "\n"


def _top(wanted: Wanted) -> Sequence[tuple[str, str]]:
    given = (("host", wanted.host), ("nbd_group", wanted.nbd_group))
    return [(key, value) for key, value in given if value]
