"""A configuration file looked at thoroughly: every mistake in it, and whether what it names is there and usable."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from shared.cli.findings import Finding, note, of_error, ok, problem, warning
from shared.config import find_mistakes, load_config
from shared.config_sections import CREDENTIAL, PrimaryConfig, ReplicaConfig
from shared.errors import VmreplicaError
from shared.expiry import CertificateStatus, certificates_of, endings
from shared.ports.ownership import require_own_settings
from shared.ports.users import group_id
from shared.states import Health

CONFIG_FOLDER = "/etc/vmreplica"
KINDS: dict[str, type[PrimaryConfig] | type[ReplicaConfig]] = {"primary": PrimaryConfig, "replica": ReplicaConfig}


def default_path(role: str) -> str:
    return f"{CONFIG_FOLDER}/{role}.toml"


def config_findings(path: str, role: str, root: str = "") -> tuple[list[Finding], PrimaryConfig | ReplicaConfig | None]:
    """All that is wrong with a file, and the configuration where it can be used."""
    kind = KINDS[role]
    mistakes = find_mistakes(path, kind)
    if mistakes:
        return [of_error("config", mistake) for mistake in mistakes], None
    config = load_config(path, kind)
    return [ok("config", f"{path} has no mistakes."), *named_findings(config, root)], config


def named_findings(config: PrimaryConfig | ReplicaConfig, root: str) -> Iterator[Finding]:
    """What the configuration names: certificate files, groups, folders, the host's own name."""
    yield from tls_findings(config, root)
    if not root:
        yield from _group_findings(config)
    folders = [("state_dir", config.state_dir)]
    if isinstance(config, ReplicaConfig):
        folders += [(f"authorize entry {at}", entry.storage) for at, entry in enumerate(config.authorize, 1)]
        if not config.authorize:
            yield warning(
                "authorize",
                "No primary may replicate to this host: there is no entry.",
                "Add an [[authorize]] entry for each primary, e.g. by vmreplica setup replica --authorize NAME=FOLDER.",
            )
    for subject, folder in folders:
        yield _folder_finding(subject, root + folder)
    if isinstance(config, PrimaryConfig) and os.path.lexists(root + config.replica_config):
        # Without a replica agent here there is none, and nothing is ever taken over from it.
        try:
            require_own_settings(root + config.replica_config)
        except VmreplicaError as error:
            yield of_error("replica_config", error)


def tls_findings(config: PrimaryConfig | ReplicaConfig, root: str) -> Iterator[Finding]:
    """Certificate, key and authority as the agent would load them, and how long they last."""
    from shared.ports.tls import TlsIdentity, load_contexts

    tls = config.tls
    credentials = [path for path in (tls.ca, tls.certificate, tls.key, tls.crl) if path.startswith(CREDENTIAL)]
    if credentials:
        text = f"{', '.join(credentials)}: handed over by systemd, and checked by the agent at its start."
        yield note("tls", text, "systemctl status tells what it found.")
        return
    paths = [root + path if path else "" for path in (tls.ca, tls.certificate, tls.key, tls.crl)]
    missing = [path for path in paths if path and not os.path.exists(path)]
    if missing:
        yield problem(
            "tls",
            f"There is no {', no '.join(missing)}.",
            "Make certificates with vmreplica pki issue, and copy this host's folder here "
            "(vmreplica setup ROLE --pki FOLDER).",
        )
        return
    try:
        contexts = load_contexts(TlsIdentity(*paths))
    except VmreplicaError as error:
        yield of_error("tls", error)
        return
    ending = [*ending_findings("tls", certificates_of(contexts.trust), time.time())]
    yield from ending
    if not ending:
        yield ok("tls", f"{contexts.own_name()}.", not_after_time=contexts.own.not_valid_after_utc.timestamp())


def ending_findings(subject: str, certificates: Iterable[CertificateStatus], now: float) -> Iterator[Finding]:
    """Those certificates, CAs and revocation lists that run out soon or have run out (shared.expiry)."""
    for each in endings(certificates, now):
        told = problem if each.level is Health.CRITICAL else warning
        yield told(subject, each.text, each.remedy, not_after_time=each.certificate.not_after_time)


def _group_findings(config: PrimaryConfig | ReplicaConfig) -> Iterator[Finding]:
    for key, name, required in (("admin_group", config.admin_group, False), ("nbd_group", config.nbd_group, True)):
        if not name:
            continue
        number = group_id(name)
        if number is not None:
            yield ok(key, f"The group {name} exists.", gid=number)
        elif required:
            yield problem(key, f"There is no group {name}.", "Name the group that QEMU runs as, or leave it empty.")
        else:
            text = f"There is no group {name}: only root may command the agent."
            yield note(key, text, "vmreplica setup makes it.")


def _folder_finding(subject: str, path: str) -> Finding:
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return note(subject, f"{path} is not there yet; the agent makes it.")
    except OSError as error:
        return problem(subject, f"{path} can't be looked at: {error.strerror}.", "Run this as root.")
    if not os.path.isdir(path):
        return problem(subject, f"{path} is no folder.", "Name a folder, or remove what is there.")
    if state.st_mode & 0o077:
        text = f"{path} has mode {state.st_mode & 0o7777:04o}: others than its owner reach into it."
        return warning(subject, text, f"chmod 0700 {path}", mode=state.st_mode & 0o7777)
    return ok(subject, f"{path}, mode {state.st_mode & 0o7777:04o}.")
