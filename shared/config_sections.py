"""What an agent's configuration consists of: strict structs, one for each table of its TOML file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from shared.defaults import DEFAULT_PORT
from shared.errors import UsageError
from shared.schedule import PastWindow, ResyncMode, Window

MIB = 1 << 20

Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/")]
OptionalPath = Annotated[str, msgspec.Meta(pattern=r"^(/|\Z)")]
CREDENTIAL = "credential:"
"""Before the name of a file that systemd hands over (LoadCredential=) instead of its path."""
IdentityPath = Annotated[str, msgspec.Meta(pattern=r"^(/|credential:[A-Za-z0-9_.-]+\Z)")]
OptionalIdentityPath = Annotated[str, msgspec.Meta(pattern=r"^(/|credential:[A-Za-z0-9_.-]+\Z|\Z)")]
SocketPath = Annotated[str, msgspec.Meta(pattern=r"^/", max_length=107)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=256)]
Bytes = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Rate = Annotated[list[Bytes], msgspec.Meta(max_length=2)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a configuration: an unknown key is an error."""


def keys_of(kind: type[Section]) -> dict[str, Any]:
    """The keys of a section with their types; what only the class has is no key."""
    hints = get_type_hints(kind, include_extras=True)
    return {key: hints[key] for key in kind.__struct_fields__}


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a key holds, and whether a list of them; None for a plain value."""
    inner = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    is_section = isinstance(inner, type) and issubclass(inner, Section)
    return (inner if is_section else None), inner is not annotation


class TlsSection(Section, frozen=True):
    """All files are PEM. ``vmreplica pki issue`` makes all four in one folder for each host; [security.md](security.md)
    says what is checked. ``credential:NAME`` stands for the file that systemd hands over with
    ``LoadCredential=NAME:PATH`` ([install.md](install.md)).
    """

    ca: IdentityPath
    """The private CA that issued all hosts' certificates; a bundle of public CAs is refused."""
    certificate: IdentityPath
    """This host's certificate, followed by intermediate ones if there are any."""
    key: IdentityPath
    """Its private key without passphrase; refused if group or others may read it."""
    crl: OptionalIdentityPath = ""
    """The CA's revocation list. Once it is set, a missing or outdated list refuses everybody."""


class ListenSection(Section, frozen=True):
    """Where the replica agent listens."""

    host: str = "0.0.0.0"  # noqa: S104 - a replica is there to be reached; who may speak to it is up to TLS.
    """Address or host name to listen on."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = DEFAULT_PORT
    """TCP port."""


class StorageSection(Section, frozen=True):
    """What holds for all storage locations of a replica."""

    reserve_bytes: Bytes = 64 * MIB
    """Free space of each volume, in bytes, that received data never uses, since applying needs it."""
    resyncs_at_once: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    """So many compares run at the same time, of all primaries together; the others are told to wait, those that are
    bounded to what is in doubt are not.
    """


class PointsSection(Section, frozen=True):
    """Which recovery points are kept of a VM that has no rules of its own (``vmreplica set VM points-newest=...``, and
    likewise the others). With ``newest = 1`` and none of the others nothing but the newest point is kept, and applying
    writes no undo logs as long as no point is pinned or exported.
    """

    newest: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """The newest cuts, with the newest of all."""
    hourly: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 24
    """Points that stand for an hour each: its first cut."""
    daily: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Points that stand for a day (UTC) each: its first cut."""
    weekly: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Points that stand for a week each, which begins with Monday (UTC): its first cut."""
    age_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0
    """No point is so many seconds older than the newest one, but for pinned ones. 0: any may be."""
    limit_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0
    """Bytes that all undo logs of a VM may have; past them the oldest points go. 0: the size of its disks, at least
    64 MiB.
    """


class LimitsSection(Section, frozen=True):
    """What strangers and peers may take of this host; [security.md](security.md) says which limits are fixed.
    ``vmreplica status --json`` tells how near each of them is, and whom it kept out.
    """

    half_open: Annotated[int, msgspec.Meta(ge=8, le=10_000)] = 64
    """Connections that have not finished their TLS handshake: one more ends the oldest of the address that has most. As
    many more may have shown their certificate and not named a VM yet.
    """
    handshake_seconds: Seconds = 5.0
    """A TLS handshake may take so long, in seconds."""
    failures_per_minute: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 120
    """Connections of one address (of IPv6: of one /64) in a minute that come to nothing; ten that are let in count as
    one. Further ones are ended unheard. 0: no such limit. Peers behind one translated address share it with everybody
    else there.
    """
    sessions: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = 4096
    """Connections of all peers together."""
    extra_sessions: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 32
    """Connections of one peer beside three for each VM of it that is kept here: as many as it may open at once for VMs
    that are not here yet.
    """
    memory_bytes: Annotated[int, msgspec.Meta(ge=16 * MIB, lt=1 << 40)] = 256 * MIB
    """Bytes that all connections together may have received and that are not stored yet; above it less is read from
    each.
    """


class ResyncSection(Section, frozen=True):
    """How required resyncs start of VMs that have no settings of their own (``vmreplica set VM resync-mode=...
    resync-window=... resync-past-window=... resync-back-off=...``). Resyncs that are bounded to what is in doubt start
    at once in every mode.
    """

    mode: ResyncMode = ResyncMode.WINDOW
    """A required resync starts when an administrator orders it, at once, or within the daily window."""
    window: str = "18:30-06:00"
    """The daily window, in this host's local time; it lasts over midnight where its end comes first in the day."""
    past_window: PastWindow = PastWindow.PAUSE
    """At the window's end a resync that it started is paused until it opens again, or goes on."""
    back_off: bool = True
    """Reading a VM's disks slows down when its guest's latency rises ([resync-schedule.md](resync-schedule.md))."""
    at_once: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    """So many compares run at the same time, initial replications among them; the others wait in a queue."""

    def __post_init__(self) -> None:
        try:
            Window.parse(self.window)
        except UsageError as error:
            raise ValueError(f"{error.text} {error.remedy}") from None


class RatesSection(Section, frozen=True):
    """Caps of all VMs of this host together, in bytes per second: ``[]`` for none, ``[DAY]``, or ``[DAY, NIGHT]``, in
    either of which 0 stands for none. A VM has caps of its own beside (``vmreplica set VM
    resync-read-rate=50MiB/200MiB``), which can be changed while it runs.
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
    """The daily window of the night's rates, in this host's local time; empty: ``window`` of ``[resync]``."""

    def __post_init__(self) -> None:
        try:
            if self.night:
                Window.parse(self.night)
        except UsageError as error:
            raise ValueError(f"{error.text} {error.remedy}") from None


class ConsistencySection(Section, frozen=True):
    """Time limits of application-consistent cuts (``vmreplica set VM consistency=...``, [points.md](points.md))."""

    freeze_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 10.0
    """Freezing a guest may take so long, in seconds; then it is thawed, and the cut is a crash-consistent one."""
    frozen_seconds: Annotated[float, msgspec.Meta(ge=0.2, le=120)] = 20.0
    """From the beginning of the freeze on a guest is thawed after so many seconds, whatever happened."""

    def __post_init__(self) -> None:
        if self.frozen_seconds <= self.freeze_seconds:
            raise ValueError("frozen_seconds has to be more than freeze_seconds")


class MetricsSection(Section, frozen=True):
    """Metrics for Prometheus ([monitoring.md](monitoring.md)), over plain HTTP and for whoever reaches the address:
    names of VMs, sizes and times, and nothing that is on the disks. Keep it on the loopback address or in a network of
    its own. Where both agents run on one host each needs a port.
    """

    listen: Annotated[str, msgspec.Meta(max_length=300)] = ""
    """``ADDRESS:PORT`` on which ``GET /metrics`` is answered, e.g. ``127.0.0.1:9441`` or ``[::1]:9441``; empty:
    nowhere.
    """

    def __post_init__(self) -> None:
        try:
            split_listen(self.listen)
        except UsageError as error:
            raise ValueError(f"{error.text} {error.remedy}".removesuffix(".")) from None


def split_listen(text: str) -> tuple[str, int] | None:
    """``127.0.0.1:9441`` or ``[::1]:9441`` as address and port, None for the empty string. Raises UsageError."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not host or (":" in host and not text.startswith("[")) or not (port.isascii() and port.isdecimal()):
        raise UsageError(f"{text!r} is no address and port.", "Write 127.0.0.1:9441 or [::1]:9441.")
    if not 1 <= int(port[:6]) <= 65535:
        raise UsageError(f"{port} is no TCP port.", "Give one from 1 to 65535, e.g. 127.0.0.1:9441.")
    return host, int(port)


class DefinitionSection(Section, frozen=True):
    """How ``vmreplica definition VM`` changes a VM's definition for this host ([definition.md](definition.md)): entries
    are ``THERE=HERE``, the name of a network or bridge at the primary, and of the one that takes its place here.
    """

    networks: Annotated[list[Annotated[str, msgspec.Meta(max_length=160)]], msgspec.Meta(max_length=256)] = []
    """Networks and bridges of VMs that are failed over; one that is not named keeps its name."""
    test_networks: Annotated[list[Annotated[str, msgspec.Meta(max_length=160)]], msgspec.Meta(max_length=256)] = []
    """The same for tests; an interface whose network is not named has its link down."""

    def __post_init__(self) -> None:
        for entry in (*self.networks, *self.test_networks):
            there, equals, here = entry.partition("=")
            if not equals or not there or not here or not entry.isprintable():
                raise ValueError(f"{entry!r} is not THERE=HERE")


class AuthorizeSection(Section, frozen=True):
    """One entry for each primary. Without an entry that fits nobody may replicate anything (default deny), and a peer
    learns no difference between a VM that is unknown and one that is forbidden. The first entry that fits decides.

    At least one of ``fingerprint`` and ``name`` has to be given; where both are, both must fit. A fingerprint stays
    valid when a certificate is renewed with its key; a name stays valid when the key changes too.

    A quota counts what the files of the copies really take: disks without their holes, the log that was received and is
    not applied yet, and the undo logs of older recovery points. With a trust group it counts the copies of all its
    hosts that the entry's ``vms`` allow. The sizes of the disks together must fit into it: a VM that does not, or is
    grown past it, is refused with the missing bytes. Leave room beside them for the log in transit and for recovery
    points; half the size of the disks is a good beginning. Where the quota is used up while data comes, no more is
    taken, the oldest recovery points make room, the primary is told what is missing and tries again by itself; the
    newest point stays whole, and what was acknowledged is applied, even if its undo logs go past the quota for a while.
    """

    storage: AbsolutePath
    """Folder for the copies; it must not overlap another entry's, ``state_dir`` or ``runtime_dir``."""
    vms: Annotated[list[str], msgspec.Meta(min_length=1)]
    """UUIDs of the VMs, or ``["*"]`` for all that this peer brings."""
    fingerprint: str = ""
    """SHA-256 of the certificate's public key (its SubjectPublicKeyInfo) as 64 hex digits; ``vmreplica pki issue`` and
    ``pki show`` print it.
    """
    name: str = ""
    """A DNS name or IP address among the certificate's subject alternative names."""
    trust_group: str = ""
    """For primaries that move VMs among each other: a host goes on with the copies of the others of its trust group,
    wherever they lie, and they may share one storage.
    """
    quota_bytes: Bytes = 0
    """What the copies that this entry is for may take on the volume; 0 for no limit."""
    vms_max: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    """So many VMs it may replicate here; 0 for no limit."""


class AlarmSection(Section, frozen=True):
    """One entry for each way by which somebody is told of what happens; [operations.md](operations.md#alarms) has
    examples. Without an entry nobody is told. A change of a VM's health is one when it is seen twice, ten seconds
    apart. Either ``command`` or ``webhook`` has to be given.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """Its name, in messages and for ``vmreplica alarms test``."""
    health: list[Literal["Normal", "Warning", "Critical"]] = msgspec.field(
        default_factory=lambda: ["Normal", "Warning", "Critical"]
    )
    """Changes of a VM's health to these are told; ``[]``: none."""
    levels: list[Literal["info", "warning", "error"]] = []
    """All events of these levels are told as well."""
    events: list[Annotated[int, msgspec.Meta(gt=0)]] = []
    """Events of these numbers are told as well."""
    vms: list[str] = []
    """Only what concerns these VMs, by name or UUID; ``[]``: all, and the agent itself."""
    command: list[str] = []
    """Program (absolute path) and arguments, run as the agent's user and in its sandbox; it gets the alarm as JSON on
    standard input, and in ``VMREPLICA_`` variables.
    """
    webhook: Annotated[str, msgspec.Meta(pattern=r"^(https?://[^/\s]+|\Z)")] = ""
    """Address that the alarm is posted to as JSON; ``http`` only to this host itself."""
    webhook_ca: OptionalPath = ""
    """Authorities (PEM) that the webhook's certificate is checked by; empty: the system's."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=300)] = 15.0
    """How long one attempt may take, in seconds; a command is killed then."""
    hold_seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 30.0
    """An alarm waits so long, in seconds: what is over by then is not told, and what comes again meanwhile is told
    once.
    """
    per_hour: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    """So many are sent in an hour at most; further ones wait, and those of the same VM and event become one."""

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.webhook):
            raise ValueError("either command or webhook has to be given, and not both")
        if self.command and not self.command[0].startswith("/"):
            raise ValueError(f"the command {self.command[0]!r} is no absolute path")
        host = (urlsplit(self.webhook).hostname or "") if self.webhook else ""
        # A number that is no port raises ValueError here, and not when an alarm is to be sent.
        _ = urlsplit(self.webhook).port
        if self.webhook.startswith("http:") and host not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError(f"{host} is another host: an alarm goes there by https only")


class AgentSection(Section, frozen=True):
    """What both agents have, outside of any table: it comes first in the file."""

    tls: TlsSection
    host: str = ""
    """This host's name as shown to peers and administrators."""
    admin_group: str = "vmreplica-admin"
    """Members of this group may command the agent, beside root and the agent's own user ([security.md](security.md) has
    the roles); a group that does not exist admits nobody.
    """
    viewer_group: str = "vmreplica-viewer"
    """Members of this group may ask the agent for whatever changes nothing; a group that does not exist admits nobody.
    """
    audit_bytes: Annotated[int, msgspec.Meta(ge=8 * MIB, lt=1 << 40)] = 64 * MIB
    """What the records of orders ([audit-format.md](audit-format.md)) may take in ``state_dir``, in bytes; above it the
    oldest go.
    """
    nbd_group: str = ""
    """Members of this group may connect to the NBD sockets of the VMs, beside root: the group that QEMU runs as, e.g.
    ``kvm`` under libvirt. Empty: nobody else. The group must exist.
    """
    worker_threads: Threads = 8
    """Threads for reading, hashing, writing and syncing files; as many more with lower precedence read and hash for
    compares.
    """
    tap_command: list[str] = []
    """Command that starts a tap; ``%i`` in it stands for the tap's folder, escaped as ``systemd-escape --path`` does.
    Empty: what the agent's unit says (``VMREPLICA_TAP_COMMAND``), and without one the agent starts a detached process.
    """
    heartbeat_seconds: Seconds = 5.0
    """Interval of the heartbeats on a session, in seconds; peers are told, and may have another."""
    dead_after_seconds: Seconds = 15.0
    """A peer that is silent for so many seconds is dead; at least two heartbeats. A peer that told to beat more rarely
    is given three of its own, of these 120 s at most.
    """
    log_format: Literal["text", "json"] = "text"
    """Form of the log lines on standard error."""
    monitoring_seconds: Annotated[float, msgspec.Meta(ge=3600, le=7 * 86400)] = 12 * 3600.0
    """The monitoring interval, in seconds: what the statistics, and the health that follows from them, look back at
    ([monitoring.md](monitoring.md)).
    """
    metrics: MetricsSection = MetricsSection()
    alarms: list[AlarmSection] = []
    """Who is told of what happens, and how."""


class PrimaryConfig(AgentSection, frozen=True):
    """The primary agent's configuration, /etc/vmreplica/primary.toml."""

    role: ClassVar[str] = "primary"

    state_dir: AbsolutePath = "/var/lib/vmreplica/primary"
    """States and logs of the VMs."""
    runtime_dir: AbsolutePath = "/run/vmreplica/primary"
    """Sockets of the taps."""
    admin_socket: SocketPath = "/run/vmreplica/primary/admin.sock"
    """The socket of the ``vmreplica`` command."""
    replica_config: AbsolutePath = "/etc/vmreplica/replica.toml"
    """The configuration of this host's replica agent, which only root may be able to write: disks in the storage
    locations of its ``[[authorize]]`` entries, and sockets in its ``runtime_dir``, are what ``vmreplica reverse`` may
    bring from there ([security.md](security.md)).
    """
    resync: ResyncSection = ResyncSection()
    rates: RatesSection = RatesSection()
    consistency: ConsistencySection = ConsistencySection()


class ReplicaConfig(AgentSection, frozen=True):
    """The replica agent's configuration, /etc/vmreplica/replica.toml."""

    role: ClassVar[str] = "replica"

    state_dir: AbsolutePath = "/var/lib/vmreplica/replica-agent"
    """The agent's own folder."""
    runtime_dir: AbsolutePath = "/run/vmreplica/replica"
    """Sockets of exports and promoted VMs."""
    admin_socket: SocketPath = "/run/vmreplica/replica/admin.sock"
    """The socket of the ``vmreplica`` command."""
    listen: ListenSection = ListenSection()
    storage: StorageSection = StorageSection()
    points: PointsSection = PointsSection()
    limits: LimitsSection = LimitsSection()
    definition: DefinitionSection = DefinitionSection()
    authorize: list[AuthorizeSection] = []
