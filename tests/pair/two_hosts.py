"""Two hosts with both agents each, all four in one process over real TLS: the direction of replication can change."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from primary_agent.admin import AdminMethods as PrimaryMethods
from primary_agent.agent import PrimaryAgent
from primary_agent.vm import PrimaryVm
from replica_agent.admin import AdminMethods as ReplicaMethods
from replica_agent.agent import ReplicaAgent
from replica_agent.vm import ReplicaVm
from shared import pki
from shared.admin import verbs
from shared.admin.access import Access
from shared.admin.server import JsonRpcServer
from shared.admin.verbs import PART_BYTES, EnableParams
from shared.config_sections import (
    AuthorizeSection,
    ListenSection,
    PrimaryConfig,
    ReplicaConfig,
    ResyncSection,
    TlsSection,
)
from shared.handover import HandOver
from shared.ports import Address
from shared.ports.real import RealPorts
from shared.ports.tls import TlsIdentity
from shared.schedule import ResyncMode
from shared.states import ReplicationState
from tests.connected import Connected
from tests.pair.rig import WAIT_SECONDS, all_ended, past_the_fence

NAME = "web"
CLIENT: Any = Connected()


class Host:
    """One host: both agents, each with a certificate of its own name."""

    def __init__(self, name: str, folder: Path, sockets: Path, ports: RealPorts, tls: TlsSection) -> None:
        self.name = name
        self.folder = folder
        self.sockets = sockets
        self.ports = ports
        self.tls = tls
        self.port = 0
        self.primary: PrimaryAgent
        self.replica: ReplicaAgent
        self.retention: dict[str, Any] = {}

    async def start(self, other: str) -> None:
        (self.folder / "replica.toml").write_text(
            f'runtime_dir = "{self.sockets}/r"\n[tls]\nca = "/ca"\ncertificate = "/certificate"\nkey = "/key"\n'
            f'[[authorize]]\nname = "{other}"\nvms = ["*"]\nstorage = "{self.folder}/store"\n'
        )
        self.replica = ReplicaAgent(
            ReplicaConfig(
                tls=self.tls,
                host=self.name,
                state_dir=str(self.folder / "state-replica"),
                runtime_dir=str(self.sockets / "r"),
                listen=ListenSection(host="127.0.0.1", port=self.port),
                authorize=[AuthorizeSection(name=other, vms=["*"], storage=str(self.folder / "store"))],
                heartbeat_seconds=0.5,
                dead_after_seconds=5.0,
            ),
            self.ports.ports,
        )
        await self.replica.start()
        assert self.replica.sessions.listener is not None
        self.port = self.replica.sessions.listener.address.port
        self.primary = PrimaryAgent(
            PrimaryConfig(
                tls=self.tls,
                host=self.name,
                state_dir=str(self.folder / "state-primary"),
                runtime_dir=str(self.sockets / "p"),
                replica_config=str(self.folder / "replica.toml"),
                heartbeat_seconds=0.5,
                dead_after_seconds=5.0,
                resync=ResyncSection(mode=ResyncMode.MANUAL),
            ),
            self.ports.ports,
        )
        await self.primary.start()

    async def stop(self) -> None:
        await self.primary.stop()
        await self.replica.stop()

    @property
    def vm(self) -> PrimaryVm:
        (vm,) = self.primary.vms.values()
        return vm

    @property
    def copy(self) -> ReplicaVm:
        (vm,) = self.replica.vms.values()
        return vm

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run ``vmreplica`` before both agents of this host: its exit code, and all that it printed."""
        sockets, words = [], []
        for role, table in (("primary", PrimaryMethods(self.primary)), ("replica", ReplicaMethods(self.replica))):
            path = f"{self.sockets}/{role}.sock"
            server = JsonRpcServer(
                self.ports.network, Address(unix_path=path), table.table(), authorize=Access(os.getuid())
            )
            await server.start()
            sockets.append(server)
            words += ["--socket", path]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "shared.cli.main", *arguments, *words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = await process.communicate()
        finally:
            for server in sockets:
                await server.close()
        return process.returncode or 0, output.decode()

    async def call(self, role: str, method: str, **params: Any) -> Any:
        """As over the admin socket: plain values in and out."""
        agent = PrimaryMethods(self.primary).table() if role == "primary" else ReplicaMethods(self.replica).table()
        return msgspec.to_builtins(await self._table(role, agent)[method](params, CLIENT))

    def _table(self, role: str, fresh: Any) -> Any:
        tables = self.__dict__.setdefault("tables", {})
        agent = getattr(self, role)
        if tables.get(role, (None, None))[0] is not agent:
            tables[role] = (agent, fresh)
        return tables[role][1]

    async def carry(self, source: str, target: str, *, replica: str = "", **options: Any) -> HandOver:
        """What ``vmreplica reverse`` does."""
        raw = await self.call(source, verbs.HAND_OVER, vm=NAME, **options)
        await self.adopt(target, raw, replica=replica)
        await self.call(source, verbs.HANDED_OVER, vm=NAME)
        return msgspec.convert(raw, HandOver)

    async def adopt(self, target: str, raw: Any, *, replica: str = "") -> None:
        """The part of it that is about the agent that takes the VM."""
        handed = msgspec.convert(raw, HandOver)
        data = Path(handed.ranges_path).read_bytes()
        for at in range(0, max(1, len(data)), PART_BYTES):
            part = base64.b64encode(data[at : at + PART_BYTES]).decode()
            await self.call(target, verbs.ADOPT_PART, vm=handed.vm, offset=at, data=part)
        await self.call(target, verbs.ADOPT, vm=handed.vm, handover=raw, replica=replica)

    async def restart(self, other: str) -> None:
        """End both agents, and start them anew from what is durable."""
        await self.stop()
        await self.start(other)

    def paths(self) -> list[Path]:
        """Where the VM's disks are here."""
        if self.primary.vms:
            return [Path(disk.path) for disk in self.vm.record.disks]
        return [Path(self.copy.parts.disks.path(disk.index)) for disk in self.copy.ledger.vm.disks]

    async def write(self, *commands: str, disk: int = 0) -> None:
        """Let qemu-io do its commands on the disk that is served here, and flush."""
        config = self.vm.parts.tap.config if self.primary.vms else self.promoted
        uri = f"nbd+unix:///{config.disks[disk].export}?socket={config.nbd_socket}"
        words = [word for command in (*commands, "flush") for word in ("-c", command)]
        process = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "raw", *words, uri, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()

    @property
    def promoted(self) -> Any:
        tap = self.copy.promotion.tap
        assert tap is not None
        return tap.config


class TwoHosts:
    """``alpha``, where the VM ``web`` begins, and ``beta``."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        ca = folder / "ca"
        pki.init_ca(ca)
        self.hosts: list[Host] = []
        for name in ("alpha", "beta"):
            pki.issue(ca, [name, "localhost"], folder / name)
            files = (str(folder / name / part) for part in (pki.CA, pki.CERTIFICATE, pki.KEY))
            tls = TlsSection(**dict(zip(("ca", "certificate", "key"), files, strict=True)))
            ports = RealPorts(TlsIdentity(tls.ca, tls.certificate, tls.key), threads=3)
            self.hosts.append(Host(name, folder / name, sockets / name[0], ports, tls))
        self.alpha, self.beta = self.hosts

    async def start(self) -> None:
        await self.alpha.start("beta")
        await self.beta.start("alpha")

    async def stop(self) -> None:
        statuses = [vm for host in self.hosts for vm in (await host.primary.status()).vms]
        statuses += [vm for host in self.hosts for vm in host.replica.status().vms]
        taps = [vm.tap.pid for vm in statuses if vm.tap is not None and vm.tap.pid is not None]
        for host in self.hosts:
            await host.stop()
        for pid in taps:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        await all_ended()
        for host in self.hosts:
            await host.ports.close()

    # --- steps -----------------------------------------------------------------------------------------------------

    async def replicate(self, *sizes: int) -> None:
        """Enable the VM on alpha and copy it to beta."""
        paths = []
        for index, size in enumerate(sizes):
            path = self.alpha.folder / f"disk{index}.raw"
            path.write_bytes(os.urandom(size // 2) + bytes(size - size // 2))
            paths.append(str(path))
        await self.alpha.primary.enable(
            EnableParams(name=NAME, disks=list(paths), replica=f"localhost:{self.beta.port}", interval_seconds=1.0)
        )
        await self.until("a healthy link", self.alpha.vm.parts.link.healthy)
        await self.alpha.vm.initial()
        await self.replicating(self.alpha)

    async def replicating(self, host: Host) -> None:
        state = ReplicationState.REPLICATING
        await self.until("Replicating", lambda: host.vm.parts.replication.state is state)

    async def same(self, source: Host) -> None:
        """After a cut of ``source``, with nothing written since: both sides are byte for byte the same (I1)."""
        target = self.other(source)
        cut = (await (await source.vm.parts.tap.connected()).client.cut("test")).position()

        def applied() -> bool:
            point = target.copy.point()
            return point is not None and point.epoch == cut.epoch and point.segment >= cut.segment

        await self.until(f"cut {cut}", applied)
        for ours, theirs in zip(source.paths(), target.paths(), strict=True):
            assert ours.read_bytes() == theirs.read_bytes(), f"{ours} and {theirs} differ"

    async def unfenced(self, host: Host) -> None:
        """Wait until the tap at ``host`` takes writes again: it is told a moment after the session has begun."""
        while (await host.vm.parts.tap.refresh()).fenced:  # noqa: ASYNC110 - the loop has no event for it
            await asyncio.sleep(0.02)

    def other(self, host: Host) -> Host:
        return self.beta if host is self.alpha else self.alpha

    async def fenced(self, host: Host) -> None:
        """Wait until the primary at ``host`` is told that the VM was failed over."""
        state = ReplicationState.FAILED_OVER

        def told() -> bool:
            host.vm.parts.link.poke.notify()
            return host.vm.parts.replication.state is state

        await self.until("the fence", told)

    async def write_past_the_fence(self, host: Host, *commands: str) -> None:
        """As a guest does that was running there when the VM was failed over: it is not cut off (I14)."""
        link = host.vm.parts.tap
        await past_the_fence(link, lambda: host.write(*commands))
        await link.require().client.set(fenced="as before")

    @contextlib.asynccontextmanager
    async def client(self, host: Host) -> AsyncIterator[None]:
        """Somebody is connected to the first disk."""
        config = host.vm.parts.tap.config if host.primary.vms else host.promoted
        uri = f"nbd+unix:///{config.disks[0].export}?socket={config.nbd_socket}"
        process = await asyncio.create_subprocess_exec(
            "qemu-io", "-r", "-f", "raw", uri, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"read 0 512\n")
        await process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            await process.wait()

    async def oldest_point(self, host: Host) -> bytes:
        """The content of the first disk at the oldest recovery point that is kept at ``host``."""
        vm = host.copy
        await self.until("an older point", vm.parts.history.positions)
        position = vm.parts.history.positions()[0]
        export = await vm.exports.start(vm.describe, position)
        target = host.folder / "point.raw"
        process = await asyncio.create_subprocess_exec(
            "qemu-img", "convert", "-f", "raw", "-O", "raw", export.uris[0], str(target)
        )
        assert await process.wait() == 0
        await vm.exports.stop(export.id)
        return target.read_bytes()

    async def fail_over(self, target: Host) -> None:
        """Promote the copy at ``target``, and wait until the former primary is told."""
        source = self.other(target)
        await target.copy.failover()
        await self.tracking(target)
        await self.fenced(source)

    async def tracking(self, target: Host) -> None:
        """Wait until the tap of the promoted VM at ``target`` tracks."""
        tap = target.copy.promotion.tap
        assert tap is not None
        await self.until("tracking", lambda: tap.status is not None and tap.status.tracking.value == "on")

    async def reverse(self, primary: Host, **options: Any) -> None:
        """Both orders: ``primary`` is it from now on."""
        replica = self.other(primary)
        await primary.carry("replica", "primary", replica=f"localhost:{replica.port}")
        await replica.carry("primary", "replica", **options)
        primary.vm.parts.link.poke.notify()
        await self.replicating(primary)

    async def until(self, what: str, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                told = [(await host.primary.status()).vms for host in self.hosts]
                raise AssertionError(f"waited for {what}: {told} {[host.replica.status().vms for host in self.hosts]}")
            await asyncio.sleep(0.02)
