"""The agents' configuration: TOML files read into strict structs; every mistake is told with file, key and remedy."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import socket
import tomllib
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from shared.errors import UsageError

DEFAULT_PORT = 8443
MIB = 1 << 20

Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/")]
Threads = Annotated[int, msgspec.Meta(ge=1, le=256)]
Bytes = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a configuration: an unknown key is an error."""


class TlsSection(Section, frozen=True):
    """The host's certificate, PEM files."""

    ca: AbsolutePath
    """The private CA that issued all hosts' certificates."""
    certificate: AbsolutePath
    """This host's certificate, with its chain."""
    key: AbsolutePath
    """Its private key; refused if group or others may read it."""
    crl: str = ""
    """The CA's revocation list; empty for none. Once set, a missing or outdated list refuses everybody."""


class ListenSection(Section, frozen=True):
    """Where the replica agent listens."""

    host: str = "0.0.0.0"  # noqa: S104 - a replica is there to be reached; who may speak to it is up to TLS.
    """Address to bind."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = DEFAULT_PORT
    """TCP port."""


class StorageSection(Section, frozen=True):
    """What holds for all storage locations of a replica."""

    reserve_bytes: Bytes = 64 * MIB
    """Free space of each volume, in bytes, that received data never uses: applying needs it."""


class AuthorizeSection(Section, frozen=True):
    """One entry: which certificate may replicate which VMs to where. Without an entry nobody may."""

    storage: AbsolutePath
    """Folder for the copies."""
    vms: Annotated[list[str], msgspec.Meta(min_length=1)]
    """UUIDs of the VMs, or ``["*"]`` for all."""
    fingerprint: str = ""
    """SHA-256 of the certificate's public key (SubjectPublicKeyInfo), hex; with ``name`` too, both must fit."""
    name: str = ""
    """A DNS name or address in the certificate's subjectAltName."""


class AgentSection(Section, frozen=True):
    """What both agents have. Times are in seconds."""

    tls: TlsSection
    host: str = ""
    """This host's name as shown to peers and administrators; empty: the system's host name."""
    admin_group: str = "vmreplica-admin"
    """Members of this group may command the agent, beside root; a group that does not exist admits nobody."""
    worker_threads: Threads = 8
    """Threads for reading, hashing, writing and syncing files."""
    tap_command: list[str] = []
    """Command that starts a tap, ``%i`` for its escaped folder; empty: a detached process of its own."""
    heartbeat_seconds: Seconds = 5.0
    """Interval of heartbeats on a session."""
    dead_after_seconds: Seconds = 15.0
    """A peer that is silent for so long is dead."""
    log_format: Literal["text", "json"] = "text"
    """Form of the log lines on standard error."""


class PrimaryConfig(AgentSection, frozen=True):
    """The primary agent's configuration, /etc/vmreplica/primary.toml."""

    state_dir: AbsolutePath = "/var/lib/vmreplica/primary"
    """State, and the logs of the VMs."""
    runtime_dir: AbsolutePath = "/run/vmreplica/primary"
    """Sockets of the taps."""
    admin_socket: AbsolutePath = "/run/vmreplica/primary.sock"
    """The socket of the command."""


class ReplicaConfig(AgentSection, frozen=True):
    """The replica agent's configuration, /etc/vmreplica/replica.toml."""

    state_dir: AbsolutePath = "/var/lib/vmreplica/replica-agent"
    """The agent's own folder."""
    runtime_dir: AbsolutePath = "/run/vmreplica/replica"
    """Sockets of exports and promoted VMs."""
    admin_socket: AbsolutePath = "/run/vmreplica/replica.sock"
    """The socket of the command."""
    listen: ListenSection = ListenSection()
    storage: StorageSection = StorageSection()
    authorize: list[AuthorizeSection] = []


C = TypeVar("C", PrimaryConfig, ReplicaConfig)


def load_config(path: str, kind: type[C]) -> C:
    """Read and check a configuration file. Raises UsageError naming file, key and remedy."""
    try:
        plain = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The configuration {path} can't be read: {error.strerror}.", "See docs/config.md.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", "Mend that place.") from error
    try:
        config = msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}.", _suggest(str(error), kind)) from error
    if not config.host:
        config = msgspec.structs.replace(config, host=socket.gethostname())
    if config.heartbeat_seconds * 2 > config.dead_after_seconds:
        raise UsageError(
            f"{path}: dead_after_seconds = {config.dead_after_seconds} is less than two heartbeats of "
            f"{config.heartbeat_seconds} s.",
            "Give at least three heartbeats.",
        )
    if isinstance(config, ReplicaConfig):
        _check_authorization(path, config)
    return config


def _suggest(error: str, kind: type[Any]) -> str:
    """The remedy for a validation error: the nearest key for an unknown one."""
    unknown = re.search(r"unknown field `([^`]+)`", error)
    if unknown is None:
        return "docs/config.md has each key with its type and unit."
    known = {field.encode_name for section in _sections(kind) for field in msgspec.structs.fields(section)}
    near = difflib.get_close_matches(unknown.group(1), sorted(known), n=1)
    return f"Did you mean {near[0]}?" if near else "docs/config.md has all keys."


def _sections(kind: type[Any]) -> list[type[Any]]:
    sections: list[type[Any]] = [kind, TlsSection]
    if kind is ReplicaConfig:
        sections += [ListenSection, StorageSection, AuthorizeSection]
    return sections


def _check_authorization(path: str, config: ReplicaConfig) -> None:
    """Raises UsageError for an entry that names nobody, a wrong fingerprint or UUID, or overlapping folders."""
    for number, entry in enumerate(config.authorize, 1):
        where = f"{path}: [[authorize]] entry {number}"
        if not entry.fingerprint and not entry.name:
            raise UsageError(f"{where} names nobody.", "Give fingerprint, name, or both.")
        if entry.fingerprint and not _FINGERPRINT.fullmatch(entry.fingerprint):
            raise UsageError(
                f"{where}: fingerprint {entry.fingerprint!r} is not 64 lower-case hex digits.",
                "vmreplica pki show prints it.",
            )
        if entry.vms != ["*"]:
            for text in entry.vms:
                _check_uuid(where, text)
        if os.path.normpath(entry.storage) != entry.storage:
            raise UsageError(f"{where}: storage {entry.storage!r} is not a plain path.", "Leave out '..' and '//'.")
    _check_overlaps(path, sorted({entry.storage for entry in config.authorize}))


def _check_uuid(where: str, text: str) -> None:
    try:
        uuid.UUID(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r} is no UUID of a VM.", 'Give UUIDs, or ["*"] alone for all.') from None


def _check_overlaps(path: str, storages: list[str]) -> None:
    for first, second in itertools.pairwise(storages):
        if second.startswith(first.rstrip("/") + "/"):
            raise UsageError(f"{path}: the storage {second} lies within {first}.", "Keep storage locations apart.")
