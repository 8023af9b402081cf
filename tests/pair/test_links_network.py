"""The replica's agent in a network namespace: a link that is slower than the guest writes, and one that goes down."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.agent_pair import PROGRAMS
from tests.pair.hosts import MIB, Hosts, patience
from tests.pair.network import Network, available
from tests.pair.watching import Held

LOG_LIMIT = 64 * MIB


class NetworkHosts(Hosts):
    """Hosts whose replica is in a namespace."""

    network: Network

    @property
    def address(self) -> str:
        return f"{self.network.address}:{self.port}"

    def prepare_there(self) -> None:
        """As ``prepare``: certificates for the address in the namespace, and short deadlines."""
        there = self.network.address
        ca, out = str(self.folder / "ca"), str(self.folder / "pki")
        self.run("pki", "init", ca)
        self.run("pki", "issue", "--ca", ca, "--out", out, "alpha", there)
        self.storage.mkdir(mode=0o700, exist_ok=True)
        self._configure("primary", "alpha", "alpha", "")
        listen = f'[listen]\nhost = "{there}"\nport = {self.port}\n'
        entry = f'[[authorize]]\nname = "alpha"\nvms = ["*"]\nstorage = "{self.storage}"\n'
        self._configure("replica", "beta", there, listen + entry)
        for role in ("primary", "replica"):
            path = self.folder / f"{role}.toml"
            path.write_text("heartbeat_seconds = 0.5\ndead_after_seconds = 3\n" + path.read_text())

    def start(self, role: str) -> None:
        if role == "primary":
            super().start(role)
            return
        with (self.folder / f"{role}.log").open("ab") as log:
            program = [str(PROGRAMS / f"vmreplica-{role}"), "--config", str(self.folder / f"{role}.toml")]
            self.agents[role] = subprocess.Popen(
                [*self.network.inside, *program], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        told: dict[str, object] = {}
        for _ in patience("the replica", told):
            if self._answers(role):
                break

    def replicate_there(self, *sizes: int, log_limit: int = LOG_LIMIT) -> None:
        self.make_disks(*sizes)
        self.prepare_there()
        self.start_both()
        self.enable(log_limit=log_limit)
        self.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
        self.call("primary", "vm.initial", vm="demo")
        self.wait_state("Replicating")


@pytest.fixture
def there(hosts: Hosts) -> Iterator[NetworkHosts]:
    if not available():
        pytest.skip("needs root, iproute2, network namespaces and tbf in the kernel")
    there = NetworkHosts(hosts.folder)
    there.network = Network()
    try:
        yield there
    finally:
        there.stop()
        there.network.close()
        print(there.logs())


def agent_pid(hosts: Hosts, role: str) -> int:
    """``ip netns exec`` becomes the agent."""
    return hosts.agents[role].pid


def test_link_that_is_slower_than_the_guest_writes(there: NetworkHosts) -> None:
    """N6: the log runs to its limit, the dirty map takes over, a bounded resync heals it; the guest sees no error."""
    there.replicate_there(24 * MIB)
    there.call("primary", "vm.set", vm="demo", settings={"resync_mode": "automatic"})
    before, held = there.status("primary"), {role: Held.by(agent_pid(there, role)) for role in ("primary", "replica")}
    there.network.limit("10mbit")
    writer = there.start_writer(6, longest=1 << 20)
    writer.go()
    full = there.wait("the limit of the log", "primary", lambda vm: (vm["tap"] or {})["tracking"] == "map")
    assert full["tap"]["lost_reason"] == "log_full"
    written = full["tap"]["writes"]
    there.wait("more writes", "primary", lambda vm: vm["tap"]["writes"] > written + 200)
    # It ends with status 0 and a journal of answers only if each was a success.
    journal = writer.finish()
    assert len(journal) > 200
    for role, was in held.items():
        now = Held.by(agent_pid(there, role))
        assert now.memory - was.memory < 96 * MIB, f"{role} grew from {was} to {now}"
        assert now.descriptors - was.descriptors < 16
    there.network.unlimit()
    after = there.wait("the resync", "primary", lambda vm: vm["epoch"] != before["epoch"] and not vm["causes"])
    assert after["state"] == "Replicating"
    there.assert_same(writer.shadows)


def test_cable_that_is_pulled(there: NetworkHosts) -> None:
    """N2, with a network that really is down: no reset and no answer, the guest goes on, and it heals by itself."""
    # The log has to hold what is written while the link is down, on the fastest machine too: its limit is N6's matter.
    there.replicate_there(16 * MIB, log_limit=4096 * MIB)
    writer = there.start_writer(2, pause=0.01)
    writer.go()
    there.network.down()
    down = there.wait("the end of the session", "primary", lambda vm: not vm["link"]["connected"])
    written = down["tap"]["writes"]
    there.wait("writes", "primary", lambda vm: vm["tap"]["writes"] > written + 100)
    assert down["link"]["since_time"] is not None and down["link"]["last_error"]
    told = [event["text"] for event in there.events() if "will be retried" in event["text"]]
    assert any("was silent" in text for text in told), told
    page = there.command("status", "demo", "--socket", str(there.sockets["primary"])).stdout
    assert "down" in page, page
    there.network.up()
    there.wait("a session", "primary", lambda vm: vm["link"]["connected"])
    writer.settle()
    there.wait_state("Replicating")
    there.assert_same(writer.shadows)
    assert there.status("primary")["epoch"] == down["epoch"]


def test_network_is_what_this_machine_has() -> None:
    """What the others are skipped for is not a mistake of ours where it is there."""
    if not Path("/proc/self/ns/net").exists() or not available():
        pytest.skip("needs root, iproute2, network namespaces and tbf in the kernel")
    network = Network("self")
    try:
        network.limit("1mbit")
        network.down()
        network.up()
        network.unlimit()
    finally:
        network.close()
