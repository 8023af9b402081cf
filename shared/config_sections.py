"""What an agent's configuration consists of: strict structs, one for each table of its TOML file."""

from __future__ import annotations

from typing import Annotated, Literal

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


class LimitsSection(Section, frozen=True):
    """What strangers and peers may take of a replica, together and each."""

    half_open: Annotated[int, msgspec.Meta(ge=8, le=10_000)] = 64
    """Connections that have not finished their TLS handshake; one more ends the oldest of the busiest address. As many
    more may have shown their certificate and not named a VM yet."""
    handshake_seconds: Seconds = 5.0
    """A TLS handshake may take so long."""
    failures_per_minute: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 120
    """Connections of one address in a minute that come to nothing; ten that are let in count as one. Further ones are
    ended unheard. 0: no such limit."""
    sessions: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = 4096
    """Connections of all peers together."""
    extra_sessions: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """Connections of one peer beside three for each VM of it that is kept here."""
    memory_bytes: Annotated[int, msgspec.Meta(ge=16 * MIB, lt=1 << 40)] = 256 * MIB
    """What all connections together may have received that is not stored yet; above it less is read."""


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
    viewer_group: str = "vmreplica-viewer"
    """Members of this group may ask the agent for whatever changes nothing; one that does not exist admits nobody."""
    audit_bytes: Annotated[int, msgspec.Meta(ge=8 * MIB, lt=1 << 40)] = 64 * MIB
    """What the records of orders may take in ``state_dir``; above it the oldest go."""
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
    limits: LimitsSection = LimitsSection()
    authorize: list[AuthorizeSection] = []
