"""A primary and a replica agent in one process over real TLS, with real stores, files and tap processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from primary_agent.agent import PrimaryAgent
from primary_agent.tap_link import TapLink
from primary_agent.vm import PrimaryVm
from protocol.position import Position
from replica_agent.agent import ReplicaAgent
from replica_agent.vm import ReplicaVm
from shared import pki
from shared.admin.verbs import EnableParams
from shared.config_sections import (
    AuthorizeSection,
    ListenSection,
    PrimaryConfig,
    ReplicaConfig,
    ResyncSection,
    TlsSection,
)
from shared.events import EventId
from shared.ports.real import RealPorts
from shared.ports.tls import TlsIdentity
from shared.schedule import ResyncMode
from shared.states import ReplicationState

MIB = 1 << 20
WAIT_SECONDS = 60.0


class Pair:
    """Two hosts, ``alpha`` with the VMs and ``beta`` with their copies, below one folder."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self.sockets = sockets
        """For sockets, whose paths have to be short."""
        self.primary: PrimaryAgent
        self.replica: ReplicaAgent
        self.port = 0
        self.replica_options: dict[str, Any] = {}
        """Sections of the replica's configuration that a test sets before it starts the replica again."""
        self.heartbeat, self.dead_after, self.replica_dead_after = 0.5, 5.0, 5.0
        """Seconds; the last is what the replica goes by. Of agents that are started afterwards."""
        self.replica_heartbeat: float | None = None
        """Of the replica, where it is another one."""
        self.route = 0
        """The port that VMs are enabled with, where it is not the replica's own."""
        self.primary_options: dict[str, Any] = {"resync": ResyncSection(mode=ResyncMode.MANUAL)}
        """The same of the primary's; what starts a resync must not depend on the time of the day."""
        self._ports: dict[str, RealPorts] = {}

    async def start(self) -> None:
        ca = self.folder / "ca"
        pki.init_ca(ca)
        for host, names in (("alpha", ["alpha"]), ("beta", ["beta", "localhost"])):
            pki.issue(ca, names, self.folder / host)
            tls = self._tls(host)
            self._ports[host] = RealPorts(TlsIdentity(tls.ca, tls.certificate, tls.key), threads=4)
        await self.start_replica()
        await self.start_primary()

    def _tls(self, host: str) -> TlsSection:
        ca, certificate, key = (str(self.folder / host / name) for name in (pki.CA, pki.CERTIFICATE, pki.KEY))
        return TlsSection(ca=ca, certificate=certificate, key=key)

    async def start_replica(self, *, authorized: str = "alpha") -> None:
        """``authorized`` is the name of the one host that may replicate there."""
        config = ReplicaConfig(
            tls=self._tls("beta"),
            host="beta",
            state_dir=str(self.folder / "state-b"),
            runtime_dir=str(self.sockets / "b"),
            listen=ListenSection(host="127.0.0.1", port=self.port),
            authorize=[AuthorizeSection(name=authorized, vms=["*"], storage=str(self.folder / "store"))],
            heartbeat_seconds=self.replica_heartbeat or self.heartbeat,
            dead_after_seconds=self.replica_dead_after,
            **self.replica_options,
        )
        self.replica = ReplicaAgent(config, self._ports["beta"].ports)
        await self.replica.start()
        assert self.replica.sessions.listener is not None
        self.port = self.replica.sessions.listener.address.port

    async def start_primary(self) -> None:
        config = PrimaryConfig(
            tls=self._tls("alpha"),
            host="alpha",
            state_dir=str(self.folder / "state"),
            runtime_dir=str(self.sockets / "a"),
            heartbeat_seconds=self.heartbeat,
            dead_after_seconds=self.dead_after,
            **self.primary_options,
        )
        self.primary = PrimaryAgent(config, self._ports["alpha"].ports)
        self.primary.certificate_end = self._ports["alpha"].network.certificate_end
        await self.primary.start()

    async def stop(self) -> None:
        """End everything, taps included; returns when no process is left."""
        statuses = [*(await self.primary.status()).vms, *self.replica.status().vms]
        taps = [vm.tap.pid for vm in statuses if vm.tap is not None and vm.tap.pid is not None]
        await self.primary.stop()
        await self.replica.stop()
        for pid in taps:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        # Also those that were stopped before: a loop that ends first would leave them unreaped.
        await all_ended()
        for ports in self._ports.values():
            await ports.close()

    # --- one VM ----------------------------------------------------------------------------------------------------

    @property
    def vm(self) -> PrimaryVm:
        """The VM at the primary."""
        (vm,) = self.primary.vms.values()
        return vm

    @property
    def copy(self) -> ReplicaVm:
        """The VM at the replica."""
        (vm,) = self.replica.vms.values()
        return vm

    def disk(self, index: int) -> Path:
        return self.folder / f"disk{index}.raw"

    async def enable(self, *sizes: int, **options: Any) -> None:
        """Enable ``web`` with disks of these sizes: a third of each is random data, the rest holes."""
        paths = []
        for index, size in enumerate(sizes):
            path = self.disk(index)
            with path.open("wb") as file:
                file.truncate(size)
                for offset in range(0, size, 3 * MIB):
                    file.seek(offset)
                    file.write(os.urandom(min(MIB, size - offset)))
            paths.append(str(path))
        await self.primary.enable(
            EnableParams(
                name="web",
                disks=list(paths),
                replica=f"localhost:{self.route or self.port}",
                interval_seconds=1.0,
                **options,
            )
        )

    async def replicate(self, *sizes: int, **options: Any) -> None:
        """Enable ``web`` and complete its initial replication."""
        await self.enable(*sizes, **options)
        await self.healthy()
        await self.vm.initial()
        await self.state(ReplicationState.REPLICATING)

    async def until(self, what: str, reached: Callable[[], object]) -> None:
        """Wait until ``reached()``; fails with the VM's status after a minute."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what}: {await self.vm.status()}")
            await asyncio.sleep(0.02)

    async def healthy(self) -> None:
        await self.until("a healthy link", self.vm.parts.link.healthy)

    async def state(self, state: ReplicationState) -> None:
        await self.until(state.title, lambda: self.vm.parts.replication.state is state)

    async def write(self, disk: int, *commands: str) -> None:
        """Let qemu-io do its commands, and flush."""
        words = [word for command in (*commands, "flush") for word in ("-c", command)]
        uri = self.uris[disk]
        process = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "raw", "-d", "unmap", *words, uri, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()

    @property
    def uris(self) -> list[str]:
        config = self.vm.parts.tap.config
        return [f"nbd+unix:///{disk.export}?socket={config.nbd_socket}" for disk in config.disks]

    async def cut(self) -> Position:
        """Take a cut and wait until the replica's disks are at it, or at a later one of its epoch."""
        connection = await self.vm.parts.tap.connected()
        cut = (await connection.client.cut("test")).position()

        def applied() -> bool:
            point = self.copy.point()
            return point is not None and point.epoch == cut.epoch and point.segment >= cut.segment

        await self.until(f"cut {cut}", applied)
        return cut

    async def assert_same(self) -> None:
        """After a cut, with nothing written since: the replica's disks are byte for byte the primary's (I1)."""
        await self.cut()
        for index, _ in enumerate(self.vm.record.disks):
            ours, theirs = self.disk(index), self.copy.parts.layout.disk(index)
            result = subprocess.run(["cmp", str(ours), theirs], capture_output=True, check=False)
            assert result.returncode == 0, result.stdout.decode() + result.stderr.decode()

    async def events(self, number: EventId) -> list[dict[str, Any]]:
        """The VM's events of that number at the primary, oldest first."""
        return [event for event in await self.vm.events(limit=10_000, after=0) if event["event"] == number]

    def cut_link(self) -> None:
        """Break the connection to the replica, without a word to either side."""
        dialled = self.vm.parts.link.dialled
        assert dialled is not None
        dialled.channel.abort("the test cut the link")

    async def kill_tap(self) -> None:
        """SIGKILL the tap, and wait until the agent has another one."""
        before = self.vm.parts.tap.require()
        os.kill(before.status.pid, signal.SIGKILL)
        await self.until("another tap", lambda: self.vm.parts.tap.connection not in (None, before))


async def pace(pair: Pair, **rates: list[int]) -> None:
    """Set rates of the VM, in bytes a second."""
    await pair.vm.set(msgspec.structs.replace(pair.vm.record, **rates), dict(rates))


async def past_the_fence(link: TapLink, write: Callable[[], Awaitable[object]]) -> None:
    """Write as a guest does that was connected when its VM was failed over elsewhere: it is not cut off (I14)."""
    while True:
        await link.require().client.set(fenced="")
        try:
            await write()
            return
        except AssertionError as error:
            # The agent fences the tap anew, now and then.
            if "Permission denied" not in str(error):
                raise


async def all_ended() -> None:
    """Wait until no process that this one started is left; those that stay are killed, and the test fails."""
    deadline = time.monotonic() + WAIT_SECONDS
    while left := _children():
        if time.monotonic() > deadline:
            # A test that failed half way may leave an agent that starts its tap again and again.
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"these processes did not end: {left}")
        await asyncio.sleep(0.02)


def _children() -> set[int]:
    """The processes that this one started and that have not been reaped."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
