"""The agents' configuration: TOML files read into strict structs; every mistake is told with file, line and remedy."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from shared.errors import UsageError
from shared.schedule import PastWindow, ResyncMode, Window

DEFAULT_PORT = 8443
MIB = 1 << 20

Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/")]
OptionalPath = Annotated[str, msgspec.Meta(pattern=r"^(/|\Z)")]
SocketPath = Annotated[str, msgspec.Meta(pattern=r"^/", max_length=107)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=256)]
Bytes = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Rate = Annotated[list[Bytes], msgspec.Meta(max_length=2)]

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_AT = re.compile(r"(?P<complaint>.*?)(?: - at `(?P<place>.*)`)?", re.DOTALL)
_TABLE = re.compile(r"\s*\[\[?\s*(?P<name>[^\]]+?)\s*\]")


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
    crl: OptionalPath = ""
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
    resyncs_at_once: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    """So many compares run at the same time, of all primaries together; the others are told to wait."""


class PointsSection(Section, frozen=True):
    """Which recovery points a replica keeps of a VM that has no rules of its own (``vmreplica set``)."""

    newest: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """The newest cuts, with the newest of all."""
    hourly: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 24
    """Points that stand for an hour each: the first cut of it."""
    limit_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0
    """Bytes that all undo logs of a VM may have; past them the oldest points go. 0: the size of its disks."""


class ResyncSection(Section, frozen=True):
    """How required resyncs of a primary's VMs start that have no rules of their own (``vmreplica set``)."""

    mode: ResyncMode = ResyncMode.WINDOW
    """``manual``: an administrator starts them; ``automatic``: at once; ``window``: within the daily window."""
    window: str = "18:30-06:00"
    """The daily window, in this host's local time."""
    past_window: PastWindow = PastWindow.PAUSE
    """At the window's end a resync that it started waits for the next one (``pause``), or goes on (``finish``)."""
    back_off: bool = True
    """Reading a VM's disks slows down when its guest's latency rises."""
    at_once: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    """So many compares run at the same time, initial replications among them; the others wait in a queue."""

    def __post_init__(self) -> None:
        try:
            Window.parse(self.window)
        except UsageError as error:
            raise ValueError(f"{error.text} {error.remedy}") from None


class RatesSection(Section, frozen=True):
    """Caps of a primary on all its VMs together, in bytes per second: ``[]`` for none, ``[day]``, or ``[day, night]``,
    in either of which 0 stands for none.
    """

    resync_read_rate: Rate = []
    """Reading disks for resyncs."""
    resync_send_rate: Rate = []
    """Sending what resyncs found to differ."""
    initial_read_rate: Rate = []
    """Reading disks for initial replications."""
    initial_send_rate: Rate = []
    """Sending for initial replications."""
    replication_send_rate: Rate = []
    """Sending the log."""
    night: str = ""
    """The daily window of the night's rates, in this host's local time; empty: that of resyncs."""

    def __post_init__(self) -> None:
        try:
            if self.night:
                Window.parse(self.night)
        except UsageError as error:
            raise ValueError(f"{error.text} {error.remedy}") from None


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
    trust_group: str = ""
    """Entries of the same trust group may have the same storage; without it each has a storage of its own."""


class AgentSection(Section, frozen=True):
    """What both agents have. Times are in seconds."""

    tls: TlsSection
    host: str = ""
    """This host's name as shown to peers and administrators; empty: the system's host name."""
    admin_group: str = "vmreplica-admin"
    """Members of this group may command the agent, beside root; a group that does not exist admits nobody."""
    nbd_group: str = ""
    """Members of this group may connect to the NBD sockets of VMs: the one that QEMU runs as, if not as root."""
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
    admin_socket: SocketPath = "/run/vmreplica/primary.sock"
    """The socket of the command."""
    resync: ResyncSection = ResyncSection()
    rates: RatesSection = RatesSection()


class ReplicaConfig(AgentSection, frozen=True):
    """The replica agent's configuration, /etc/vmreplica/replica.toml."""

    state_dir: AbsolutePath = "/var/lib/vmreplica/replica-agent"
    """The agent's own folder."""
    runtime_dir: AbsolutePath = "/run/vmreplica/replica"
    """Sockets of exports and promoted VMs."""
    admin_socket: SocketPath = "/run/vmreplica/replica.sock"
    """The socket of the command."""
    listen: ListenSection = ListenSection()
    storage: StorageSection = StorageSection()
    points: PointsSection = PointsSection()
    authorize: list[AuthorizeSection] = []


C = TypeVar("C", PrimaryConfig, ReplicaConfig)


def load_config(path: str, kind: type[C]) -> C:
    """Read and check a configuration file. Raises UsageError naming file, line, key and remedy."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        plain = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"The configuration {path} can't be read: {error.strerror}.", "See docs/config.md.") from error
    except (ValueError, RecursionError) as error:
        # Beside its own error the library lets those through that numbers of thousands of digits, or values nested
        # as deep, bring about.
        raise UsageError(f"{path} is not valid TOML: {error}.", "Mend that place.") from error
    source = _Source(path, text)
    _refuse_unknown(source, plain, kind, ())
    try:
        config = msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _wrong_value(source, str(error)) from error
    _check_paths(source, config, ())
    _check_common(source, config)
    if not config.host:
        config = msgspec.structs.replace(config, host=os.uname().nodename)
    if isinstance(config, ReplicaConfig):
        _check_authorization(source, config)
        entries = [_normalized(entry) for entry in config.authorize]
        return msgspec.structs.replace(config, authorize=entries)
    return config


Place = tuple[str | int, ...]
"""Where in a configuration: keys, and the numbers of entries from 0."""


class _Source:
    """A file's text, to say on which line a key stands."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self._lines = text.splitlines()

    def at(self, place: Place) -> str:
        """File, line as far as it can be told, and key."""
        line = self._line(place)
        return f"{self.path}:{line}: {_shown(place)}" if line else f"{self.path}: {_shown(place)}"

    def _line(self, place: Place) -> int | None:
        *parents, last = (part for part in place if isinstance(part, str))
        entry = next((part for part in place if isinstance(part, int)), 0)
        table, seen = "", -1
        assignment = re.compile(rf"""\s*["']?{re.escape(last)}["']?\s*=""")
        for number, line in enumerate(self._lines, 1):
            if (header := _TABLE.match(line)) is not None:
                table = header["name"]
                seen += table == (parents[0] if parents else last)
                if not parents and table == last and seen == entry:
                    return number
            elif table == ".".join(parents) and (not table or seen == entry):
                if assignment.match(line):
                    return number
        return None


def _shown(place: Place) -> str:
    text = ""
    for part in place:
        text += f" entry {part + 1}" if isinstance(part, int) else f".{part}" if text else part
    return text


def _refuse_unknown(source: _Source, plain: dict[str, Any], kind: type[Any], place: Place) -> None:
    """Raises UsageError for the first key that the section does not have, with the nearest one that it has."""
    sections = get_type_hints(kind)
    for key, value in plain.items():
        here = (*place, key)
        if key not in sections:
            near = difflib.get_close_matches(key, sorted(sections), n=1)
            elsewhere = [".".join(known) for known in _all_keys() if known[-1] == key]
            remedy = f"Did you mean {near[0]}?" if near else "docs/config.md has all keys."
            if elsewhere:
                # The very same name in another section is a better guess than a similar one here.
                remedy = f"Did you mean {elsewhere[0]}?"
            raise UsageError(f"{source.at(here)} is no known key.", remedy)
        section = sections[key]
        if isinstance(section, type) and issubclass(section, Section) and isinstance(value, dict):
            _refuse_unknown(source, value, section, here)
        elif get_origin(section) is list and isinstance(value, list):
            (element,) = get_args(section)
            if isinstance(element, type) and issubclass(element, Section):
                for number, each in enumerate(value):
                    if isinstance(each, dict):
                        _refuse_unknown(source, each, element, (*here, number))


def _all_keys() -> Iterator[tuple[str, ...]]:
    for kind in (PrimaryConfig, ReplicaConfig):
        for key, section in get_type_hints(kind).items():
            inner = section if isinstance(section, type) else (get_args(section) or (None,))[0]
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from ((key, each) for each in get_type_hints(inner))
            else:
                yield (key,)


def _wrong_value(source: _Source, complaint: str) -> UsageError:
    """msgspec's complaint with the line of the key."""
    found = _AT.fullmatch(complaint)
    assert found is not None
    place: list[str | int] = []
    for name, number in re.findall(r"\.([A-Za-z_]+)|\[(\d+)\]", found["place"] or ""):
        place.append(name or int(number))
    missing = re.search(r"missing required field `([^`]+)`", found["complaint"])
    if missing is not None:
        return UsageError(f"{source.at((*place, missing[1]))} is missing.", "docs/config.md says what it is.")
    # A number behind a plain list is that of one of its values, which has no line of its own.
    key = tuple(place)
    remedy = "docs/config.md has each key with its type, unit and range."
    return UsageError(f"{source.at(key)}: {found['complaint']}.", remedy)


def _check_paths(source: _Source, section: Section, place: Place) -> None:
    """Raises UsageError for a path that would mean another one once it is resolved."""
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        here = (*place, field.name)
        if isinstance(value, Section):
            _check_paths(source, value, here)
        elif field.name == "authorize":
            for number, entry in enumerate(value):
                _check_paths(source, entry, (*here, number))
        elif field.type in (AbsolutePath, OptionalPath, SocketPath) and value:
            if os.path.normpath(value) != value or "\0" in value:
                raise UsageError(
                    f"{source.at(here)}: {value!r} is not a plain path.", "Leave out '..', '//', a last '/' and zeroes."
                )


def _check_common(source: _Source, config: AgentSection) -> None:
    if config.heartbeat_seconds * 2 > config.dead_after_seconds:
        raise UsageError(
            f"{source.at(('dead_after_seconds',))} = {config.dead_after_seconds:g} is less than two heartbeats of "
            f"{config.heartbeat_seconds:g} s.",
            "Give at least three heartbeats.",
        )
    if config.tap_command and not any("%i" in word for word in config.tap_command):
        raise UsageError(
            f"{source.at(('tap_command',))} does not say which tap: it has no %i.",
            'For systemd: ["systemctl", "start", "vmreplica-tap@%i"]',
        )


def _check_authorization(source: _Source, config: ReplicaConfig) -> None:
    """Raises UsageError for an entry that names nobody, a wrong fingerprint or UUID, or paths that meet."""
    for number, entry in enumerate(config.authorize):
        place = ("authorize", number)
        if not entry.fingerprint and not entry.name:
            raise UsageError(f"{source.at(place)} names nobody.", "Give fingerprint, name, or both.")
        if entry.fingerprint and not _FINGERPRINT.fullmatch(_plain_hex(entry.fingerprint)):
            raise UsageError(
                f"{source.at((*place, 'fingerprint'))}: {entry.fingerprint!r} has not 64 hex digits.",
                "vmreplica pki show prints it.",
            )
        for text in entry.vms if entry.vms != ["*"] else []:
            _check_uuid(source.at((*place, "vms")), text)
        for key in ("state_dir", "runtime_dir"):
            folder = getattr(config, key)
            if _meet(entry.storage, folder):
                raise UsageError(
                    f"{source.at((*place, 'storage'))}: {entry.storage} and {key} = {folder} overlap.",
                    "Keep the copies in a folder of their own.",
                )
        for other in config.authorize[:number]:
            _check_storages(source.at((*place, "storage")), entry, other)


def _check_storages(where: str, entry: AuthorizeSection, other: AuthorizeSection) -> None:
    if entry.storage == other.storage:
        if not entry.trust_group or entry.trust_group != other.trust_group:
            raise UsageError(
                f"{where}: {entry.storage} is another entry's storage too: one peer could reach the other's VMs.",
                "Give each a storage of its own, or both the same trust_group.",
            )
    elif _meet(entry.storage, other.storage):
        raise UsageError(f"{where}: {entry.storage} and {other.storage} overlap.", "Keep storage locations apart.")


def _meet(one: str, other: str) -> bool:
    """Whether one path is, or lies within, the other."""
    return os.path.commonpath([one, other]) in (one, other)


def _check_uuid(where: str, text: str) -> None:
    try:
        uuid.UUID(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r} is no UUID of a VM.", 'Give UUIDs, or ["*"] alone for all.') from None


def _plain_hex(fingerprint: str) -> str:
    return fingerprint.lower().removeprefix("sha256:").replace(":", "")


def _normalized(entry: AuthorizeSection) -> AuthorizeSection:
    """The entry as it is compared later: plain hex, lower-case name, UUIDs in their usual form."""
    vms = entry.vms if entry.vms == ["*"] else [str(uuid.UUID(text)) for text in entry.vms]
    return msgspec.structs.replace(entry, fingerprint=_plain_hex(entry.fingerprint), name=entry.name.lower(), vms=vms)
