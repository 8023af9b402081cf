"""A replica agent in this process on real files and TLS over loopback, and a small primary to be told what to do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from protocol.bulk import Bulk, Manifest, decode_manifest, encode_blocks, encode_blocks_entry
from protocol.frames import MAX_MANIFEST_BLOCKS
from protocol.hrl import Geometry
from protocol.messages import (
    BLOCK_SIZE,
    Applied,
    Body,
    Commit,
    Committed,
    DetailRequest,
    HolesRequest,
    ManifestRequest,
    MessageType,
    Open,
    Opened,
    RangeDone,
    RangeSettled,
    Received,
    ResyncBegin,
    ResyncKind,
    ResyncReady,
    Role,
    WireDisk,
    WirePosition,
)
from protocol.position import NO_EPOCH, Position
from protocol.session import Identity, PrimarySession
from replica_agent.agent import ReplicaAgent
from replica_agent.parts import Surroundings
from replica_agent.vm import ReplicaVm
from shared import pki
from shared.channel import Channel
from shared.config_sections import AuthorizeSection, ListenSection, ReplicaConfig, TlsSection
from shared.disks.hashing import HASH_NAME, RangeHasher
from shared.errors import StoreDamagedError
from shared.ports import Address, Clock, Ports, Store
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.network import RealNetwork
from shared.ports.rng import SystemRandom
from shared.ports.store import SqliteStores
from shared.ports.tls import TlsIdentity
from shared.ports.workers import ThreadWorkers
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import VM, Tap

B = TypeVar("B", bound=Body)

DISKS = (Geometry(0, 256 << 10, b"a" * 16), Geometry(3, 96 << 10, b"b" * 16))
WAIT_SECONDS = 30.0
"""How long a test waits for what must come; only a failing test waits so long."""


class CountingStores(SqliteStores):
    """The real stores; each commit counts as two durable operations of ``files``: before it, and once it is done."""

    def __init__(self, clock: Clock, files: RealFileSystem) -> None:
        super().__init__(clock)
        self.files = files if isinstance(files, FailingFiles) else None

    async def open(self, folder: str, *, create: bool = False) -> Any:
        return CountingStore(await super().open(folder, create=create), self.files)


class CountingStore:
    """One of them (shared.ports.Store)."""

    def __init__(self, inner: Store, files: FailingFiles | None) -> None:
        self.get = inner.get
        self.names = inner.names
        self.events = inner.events
        self.close = inner.close
        self._inner = inner
        self._files = files

    async def commit(self, changes: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> None:
        if self._files is not None:
            self._files.step("commit", "store")
        await self._inner.commit(changes, events)
        if self._files is not None:
            self._files.step("committed", "store")


class NoTaps:
    """No test here promotes as far as to a tap process, unless it brings another launcher."""

    async def start(self, folder: str) -> None:
        raise StoreDamagedError(f"no tap is started in this test: {folder}")


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of three hosts of one CA, and the fingerprints of their keys."""

    folder: Path
    fingerprints: dict[str, str]

    def identity(self, host: str) -> TlsIdentity:
        folder = self.folder / host
        return TlsIdentity(str(folder / pki.CA), str(folder / pki.CERTIFICATE), str(folder / pki.KEY))


def make_certificates(folder: Path) -> Certificates:
    pki.init_ca(folder / "ca")
    fingerprints = {}
    for host in ("replica", "primary", "other"):
        issued = pki.issue(folder / "ca", [f"{host}.test", "127.0.0.1"], folder / host)
        fingerprints[host] = issued.fingerprint
    return Certificates(folder, fingerprints)


@dataclass(slots=True)
class World:
    """The replica's host: folder, stores, certificates. Agents come and go on it."""

    folder: Path
    certificates: Certificates
    files: RealFileSystem = field(default_factory=RealFileSystem)
    authorize: list[AuthorizeSection] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    points: list[tuple[Position, dict[int, bytes]]] = field(default_factory=list)
    """Every point that was exposed, with the content that the disks had at that moment."""
    sockets: Path = Path("/nowhere")
    """The runtime folder, whose path must be short enough for sockets."""
    boot: str = "boot"
    taps: Any = field(default_factory=NoTaps)
    stores: CountingStores = field(init=False)

    def __post_init__(self) -> None:
        if not self.authorize:
            self.authorize = [self.entry("primary")]

    def entry(self, host: str, vms: Sequence[str] = ("*",)) -> AuthorizeSection:
        """An entry for the certificate of one of the test's hosts."""
        return AuthorizeSection(
            storage=str(self.storage), vms=list(vms), fingerprint=self.certificates.fingerprints[host]
        )

    @property
    def storage(self) -> Path:
        return self.folder / "store"

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[ReplicaAgent]:
        """An agent from its start to its orderly stop."""
        agent, workers = self.build()
        try:
            await agent.start()
            yield agent
        finally:
            await agent.stop()
            await workers.close()
            await self.stores.close()

    def build(self) -> tuple[ReplicaAgent, ThreadWorkers]:
        """An agent that was not started yet, and its workers."""
        workers = ThreadWorkers(4)
        clock = BootClock(self.boot)
        self.stores = CountingStores(clock, self.files)
        network = RealNetwork(self.certificates.identity("replica"))
        ports = Ports(
            clock=clock,
            random=SystemRandom(),
            workers=workers,
            background=workers,
            files=self.files,
            network=network,
            stores=self.stores,
            taps=self.taps,
        )
        config = self.config()
        options = {"reserve": 0, **self.options}
        surroundings = Surroundings(ports, config.host, config.runtime_dir, **options)
        agent = ReplicaAgent(config, ports, surroundings=surroundings)
        agent.exposed.append(self._exposed)
        return agent, workers

    def config(self) -> ReplicaConfig:
        """The agent's configuration: this world's entries, and any free port of loopback."""
        return ReplicaConfig(
            tls=TlsSection(ca="/unused", certificate="/unused", key="/unused"),
            host="replica.test",
            runtime_dir=str(self.sockets),
            listen=ListenSection(host="127.0.0.1", port=0),
            authorize=self.authorize,
        )

    def _exposed(self, vm: ReplicaVm, position: Position) -> None:
        assert vm.point() == position
        content = {disk.index: vm.read_point(disk.index, 0, disk.size) for disk in vm.ledger.vm.geometry}
        self.points.append((position, content))

    def stores_of_its_own(self) -> SqliteStores:
        """Stores for a look into a state that no agent has open."""
        return SqliteStores(RealClock())

    def folder_of(self, vm: bytes = VM) -> Path:
        import uuid

        return self.storage / str(uuid.UUID(bytes=vm))


class BootClock(RealClock):
    """The real clock, in a boot that a test may change."""

    def __init__(self, boot: str) -> None:
        self._boot = boot

    def boot_id(self) -> str:
        return self._boot


class Primary:
    """One connection to the replica."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.applied: list[Position] = []
        self.acked: Position | None = None

    async def expect(self, kind: type[B]) -> B:
        """The next message, which must be of that kind; APPLIED is put aside."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                message = await self.channel.receive()
                if isinstance(message, Applied) and kind is not Applied:
                    self.applied.append(message.position.position())
                    continue
                assert isinstance(message, kind), message
                return message

    async def manifest(self) -> Manifest:
        async with asyncio.timeout(WAIT_SECONDS):
            message = await self.channel.receive()
        assert isinstance(message, Bulk)
        assert message.type is MessageType.MANIFEST
        return decode_manifest(message.content())

    def log(self, content: bytes) -> None:
        self.channel.send_bulk(MessageType.LOG, [content])

    def seal(self, content: bytes) -> None:
        self.channel.send_bulk(MessageType.SEAL, [content])

    async def received(self, position: Position) -> None:
        """The acknowledgement of exactly this cut."""
        self.acked = (await self.expect(Received)).position.position()
        assert self.acked == position

    async def until_applied(self, position: Position) -> None:
        while position not in self.applied:
            self.applied.append((await self.expect(Applied)).position.position())

    async def send_segment(self, tap: Tap, rng: random.Random) -> None:
        """A random segment, and its acknowledgement."""
        log, seal = tap.random_segment(rng)
        self.log(log)
        self.seal(seal)
        await self.received(tap.position)


@dataclass(slots=True)
class Dialler:
    """Connects as a host of the test's CA."""

    certificates: Certificates
    address: Address
    host: str = "primary"
    heartbeat: float = 5.0
    capabilities: tuple[str, ...] = ("planned", "zstd")

    async def greet(self) -> Channel:
        network = RealNetwork(self.certificates.identity(self.host))
        link = await network.connect(self.address, timeout=5)
        session = PrimarySession(Identity("test", f"{self.host}.test", self.heartbeat, self.capabilities))
        channel = Channel(link, session, RealClock())
        await channel.greet()
        return channel

    async def open(self, **changes: Any) -> tuple[Primary, Opened]:
        """An opened connection, and what the replica said of itself."""
        channel = await self.greet()
        channel.send(open_body(**changes))
        primary = Primary(channel)
        return primary, await primary.expect(Opened)


def open_body(**changes: Any) -> Open:
    body: dict[str, Any] = {
        "role": Role.CONTROL,
        "vm": VM,
        "name": "web",
        "disks": [WireDisk.of(disk) for disk in DISKS],
        "epoch": NO_EPOCH,
        "interval_seconds": 1.0,
    }
    return Open(**{**body, **changes})


@dataclass(slots=True)
class Resync:
    """A resync as a primary drives it, step by step."""

    dialler: Dialler
    control: Primary
    tap: Tap
    identity: bytes
    kind: ResyncKind = ResyncKind.INITIAL
    parent: bytes = NO_EPOCH
    round: int = 1
    bulk: Primary | None = None
    hasher: RangeHasher = field(default_factory=lambda: RangeHasher(random.randbytes(32), BLOCK_SIZE))
    key_id: bytes = field(default_factory=lambda: random.randbytes(16))
    sent: list[tuple[int, int]] = field(default_factory=list)
    """Disk and offset of every block that was sent."""

    def begin_body(self, **changes: Any) -> ResyncBegin:
        body: dict[str, Any] = {
            "id": self.identity,
            "kind": self.kind,
            "round": self.round,
            "epoch": self.tap.epoch,
            "parent": self.parent,
            "parent_segment": 0,
            "hash": HASH_NAME,
            "key_id": self.key_id,
            "key": self.hasher.key,
            "block_size": BLOCK_SIZE,
        }
        return ResyncBegin(**{**body, **changes})

    async def begin(self) -> ResyncReady:
        self.control.channel.send(self.begin_body())
        ready = await self.control.expect(ResyncReady)
        self.bulk, _ = await self.dialler.open(role=Role.BULK, control_token=self.control.channel.session.token)
        return ready

    def ranges(self) -> list[tuple[Geometry, int, int]]:
        step = MAX_MANIFEST_BLOCKS * BLOCK_SIZE
        return [(disk, at, min(step, disk.size - at)) for disk in self.tap.geometry for at in range(0, disk.size, step)]

    def request(self, disk: int, offset: int, length: int, **changes: Any) -> ManifestRequest:
        body: dict[str, Any] = {
            "id": self.identity,
            "round": self.round,
            "key_id": self.key_id,
            "disk": disk,
            "offset": offset,
            "length": length,
            "digests": b"",
        }
        return ManifestRequest(**{**body, **changes})

    def detail(self, disk: int, offset: int, length: int, blocks: bytes, **changes: Any) -> DetailRequest:
        body = {"id": self.identity, "round": self.round, "key_id": self.key_id, "disk": disk, "offset": offset}
        return DetailRequest(**{**body, "length": length, "blocks": blocks, **changes})

    def holes(self, disk: int, offset: int, length: int, **changes: Any) -> HolesRequest:
        body = {"id": self.identity, "round": self.round, "key_id": self.key_id, "disk": disk, "offset": offset}
        return HolesRequest(**{**body, "length": length, **changes})

    def done(self, disk: int, offset: int, length: int, **changes: Any) -> RangeDone:
        body: dict[str, Any] = {
            "id": self.identity,
            "round": self.round,
            "disk": disk,
            "offset": offset,
            "length": length,
        }
        return RangeDone(**{**body, **changes})

    async def compare_range(self, disk: Geometry, offset: int, length: int) -> None:
        """Compare one range with the tap's content as it is now, send what differs, and wait until it is settled."""
        assert self.bulk is not None
        self.bulk.channel.send(self.request(disk.index, offset, length))
        manifest = await self.bulk.manifest()
        whole = self.tap.content[disk.index]
        tags = iter(manifest.tags)
        for number, hole in enumerate(manifest.holes.tolist()):
            start = offset + number * BLOCK_SIZE
            block = bytes(whole[start : min(start + BLOCK_SIZE, offset + length)])
            theirs = self.hasher.tag(bytes(len(block))) if hole else next(tags).tobytes()
            if theirs != self.hasher.tag(block):
                self.send_block(disk.index, start, block)
        self.bulk.channel.send(self.done(disk.index, offset, length))
        settled = await self.bulk.expect(RangeSettled)
        assert [(run.disk, run.offset, run.length) for run in settled.ranges] == [(disk.index, offset, length)]

    def send_block(self, disk: int, offset: int, block: bytes) -> None:
        assert self.bulk is not None
        zero = not any(block)
        entry = encode_blocks_entry(disk, offset, len(block), zero=zero)
        pieces = encode_blocks(self.identity, self.round, [entry], [] if zero else [block])
        self.bulk.channel.send_bulk(MessageType.BLOCKS, pieces)
        self.sent.append((disk, offset))

    async def compare(self) -> None:
        for disk, offset, length in self.ranges():
            await self.compare_range(disk, offset, length)

    async def send_tracked(self, rng: random.Random, segments: int = 2) -> None:
        for _ in range(segments):
            await self.control.send_segment(self.tap, rng)

    async def commit(self) -> None:
        self.control.channel.send(Commit(id=self.identity, round=self.round, end=WirePosition.of(self.tap.position)))
        committed = await self.control.expect(Committed)
        assert committed.end.position() == self.tap.position

    async def whole(self, rng: random.Random) -> None:
        """Everything, until the merge is exposed."""
        await self.begin()
        await self.compare()
        await self.send_tracked(rng)
        await self.commit()
        await self.control.until_applied(self.tap.position)


def check_points(world: World, *taps: Tap) -> None:
    """I1: every exposed point was byte for byte what the tap's disks were at that cut."""
    truth = {tap.ends[number]: content for tap in taps for number, content in tap.cuts.items()}
    assert world.points
    for position, content in world.points:
        assert content == truth[position], f"the point {position} is not what the disks were at that cut"


async def check_history(vm: ReplicaVm, *taps: Tap) -> int:
    """I1, I6: every point that is advertised reads, byte for byte, as the tap's disks were at that cut; how many."""
    truth = {tap.ends[number]: content for tap in taps for number, content in tap.cuts.items()}
    history, applied = vm.parts.history, vm.ledger.replication.applied
    assert applied is not None
    positions = [*history.positions(), *([applied.position] if vm.parts.applier.whole else [])]
    for position in positions:
        reading = await history.read(position)
        assert reading is not None
        found = {disk.index: reading.reader.read(disk.index, 0, disk.size) for disk in DISKS}
        assert found == truth[position], f"the point {position} is not what the disks were at that cut"
        await history.end(reading)
    return len(positions)


def random_content(tap: Tap, rng: random.Random) -> None:
    """Fill the disks with something before tracking begins: some data, some zero blocks."""
    for disk in tap.geometry:
        for offset in range(0, disk.size, 32 << 10):
            if rng.random() < 0.6:
                length = min(32 << 10, disk.size - offset)
                tap.content[disk.index][offset : offset + length] = rng.randbytes(length)


def disk_bytes(world: World, index: int) -> bytes:
    return (world.folder_of() / f"disk-{index}.raw").read_bytes()
