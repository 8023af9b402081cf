"""The replica agent as a program: configuration, signals, admin socket, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import Open, Opened, Role
from protocol.session import Identity, PrimarySession
from shared import pki
from shared.admin import verbs
from shared.admin.client import JsonRpcClient
from shared.channel import Channel, ChannelClosed
from shared.errors import UnreachableError, VmreplicaError
from shared.ports import Address
from shared.ports.clock import RealClock
from shared.ports.network import RealNetwork
from shared.ports.tls import TlsIdentity

WAIT_SECONDS = 30.0


@dataclass
class Program:
    """A replica agent's configuration and process."""

    folder: Path
    port: int
    process: asyncio.subprocess.Process | None = None

    def configure(self, *, authorized: str) -> None:
        replica = self.folder / "replica"
        (self.folder / "replica.toml").write_text(
            f"""
host = "beta"
state_dir = "{self.folder}/state"
runtime_dir = "{self.folder}/run"
admin_socket = "{self.folder}/admin.sock"
[tls]
ca = "{replica / pki.CA}"
certificate = "{replica / pki.CERTIFICATE}"
key = "{replica / pki.KEY}"
[listen]
host = "127.0.0.1"
port = {self.port}
[[authorize]]
name = "{authorized}"
vms = ["*"]
storage = "{self.folder}/store"
"""
        )

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "replica_agent.main", "--config", str(self.folder / "replica.toml")
        )
        await self.until_answering()

    async def until_answering(self) -> None:
        assert self.process is not None
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                assert self.process.returncode is None, "the agent ended"
                try:
                    (await self.client()).close()
                    return
                except UnreachableError:
                    await asyncio.sleep(0.05)

    async def client(self) -> JsonRpcClient:
        return await JsonRpcClient.connect(RealNetwork(), Address(unix_path=str(self.folder / "admin.sock")), 2.0)

    async def call(self, method: str, **params: Any) -> Any:
        client = await self.client()
        try:
            return await client.call(method, params, WAIT_SECONDS)
        finally:
            client.close()

    async def probe(self) -> Opened:
        """What a primary is answered. Raises ChannelClosed."""
        primary = self.folder / "primary"
        identity = TlsIdentity(str(primary / pki.CA), str(primary / pki.CERTIFICATE), str(primary / pki.KEY))
        link = await RealNetwork(identity).connect(
            Address(host="127.0.0.1", port=self.port, tls=True), timeout=WAIT_SECONDS
        )
        channel = Channel(link, PrimarySession(Identity("test", "alpha")), RealClock())
        try:
            await channel.greet()
            channel.send(Open(role=Role.PROBE, vm=bytes(16), name="probe", disks=[], epoch=bytes(16)))
            answer = await channel.receive()
            assert isinstance(answer, Opened)
            return answer
        finally:
            channel.abort()

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def program(folder: Path) -> AsyncIterator[Program]:
    pki.init_ca(folder / "ca")
    pki.issue(folder / "ca", ["replica.test", "127.0.0.1"], folder / "replica")
    pki.issue(folder / "ca", ["primary.test"], folder / "primary")
    listener = await RealNetwork().listen(Address(host="127.0.0.1"), lambda link: link.abort())
    port = listener.address.port
    await listener.close()
    made = Program(folder, port)
    made.configure(authorized="primary.test")
    try:
        await made.start()
        yield made
    finally:
        if made.process is not None and made.process.returncode is None:
            made.process.kill()
            await made.process.wait()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Program]:
    async with program(tmp_path) as made:
        yield made


async def test_status_tells_who_listens_where(agent: Program) -> None:
    status = await agent.call(verbs.STATUS)
    assert (status["role"], status["host"], status["vms"]) == ("replica", "beta", [])
    assert status["listening"] == [f"127.0.0.1:{agent.port}"]
    assert agent.process is not None
    assert status["pid"] == agent.process.pid


async def test_orders_to_unknown_vms_are_refused_with_a_remedy(agent: Program) -> None:
    for method, params in (
        (verbs.EXPORT, {}),
        (verbs.FAILOVER, {}),
        (verbs.SUSPEND, {}),
        (verbs.RESUME, {}),
        (verbs.REMOVE, {"yes": True}),
        (verbs.MEASURE, {}),
        (verbs.UNEXPORT, {}),
    ):
        with pytest.raises(VmreplicaError) as info:
            await agent.call(method, vm="nosuch", **params)
        assert info.value.code == "not_found", method
        assert "nosuch" in info.value.text
        assert info.value.remedy


async def test_removing_asks_and_resynchronizing_is_the_primarys(agent: Program) -> None:
    with pytest.raises(VmreplicaError, match="deletes its recovery point"):
        await agent.call(verbs.REMOVE, vm="web")
    with pytest.raises(VmreplicaError, match="at its primary"):
        await agent.call(verbs.RESUME, vm="web", resynchronize=True)


async def test_hangup_reloads_the_authorization(agent: Program) -> None:
    """I19: entries that are taken away hold no longer; a mistake in the file changes nothing."""
    await agent.probe()
    agent.configure(authorized="somebody.else")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(ChannelClosed) as info:
            while True:
                await agent.probe()
                await asyncio.sleep(0.05)
    assert info.value.code == "unauthorized"
    (agent.folder / "replica.toml").write_text("not = [valid")
    agent.process.send_signal(signal.SIGHUP)
    assert (await agent.call(verbs.STATUS))["role"] == "replica"


@pytest.mark.quick
async def test_terminate_ends_in_order(agent: Program) -> None:
    assert await agent.end(signal.SIGTERM) == 0
    assert not os.path.exists(agent.folder / "admin.sock")
    await agent.start()
    assert (await agent.call(verbs.STATUS))["role"] == "replica"


@pytest.mark.quick
async def test_missing_configuration_is_told(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "replica_agent.main",
        "--config",
        str(tmp_path / "nosuch.toml"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await process.communicate()
    assert process.returncode == 2
    assert "nosuch.toml" in output.decode()
