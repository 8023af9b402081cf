"""The procedures of docs/procedures.md on two hosts of real processes: the page's own commands, and what they leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.agent_pair import PairError, signal_process
from scripts.link_cutter import LinkCutter
from shared.events import EventId
from tests.pair.hosts import MIB, VM, Hosts, compare, patience
from tests.systemd.page import commands

SIZE = 4 * MIB


class Procedure:
    """One section of the page: its commands are run as they stand there, with the test's names for the page's."""

    def __init__(self, title: str, hosts: Hosts, names: dict[str, str] | None = None) -> None:
        self.commands = commands("procedures.md", title)
        self._hosts = hosts
        self._names = {"web": VM, **(names or {})}

    def run(self, verb: str, *more: str) -> str:
        """Run the section's first command of this verb that was not run yet; ``more`` is for two agents on one host."""
        return self._hosts.run(*self._next("vmreplica", verb)[1:], *more)

    def shell(self, program: str) -> None:
        """Run the section's first command of another program that was not run yet."""
        subprocess.run(self._next(program), check=True)

    def service(self, verb: str, action: Callable[[], None]) -> None:
        """In the place of the section's ``systemctl``: no systemd runs here (tests/systemd has those commands)."""
        self._next("systemctl", verb)
        action()

    def _next(self, *first: str) -> list[str]:
        """The words of the first command that begins with these and was not run yet, and now is."""
        command = next(each for each in self.commands if tuple(each.split()[: len(first)]) == first)
        self.commands.remove(command)
        return [self._put_in(word) for word in command.split()]

    def _put_in(self, word: str) -> str:
        key, equals, value = word.rpartition("=")
        return f"{key}{equals}{self._names.get(value, value)}"

    def finish(self) -> None:
        """Nothing of the section was left out."""
        assert self.commands == []


class Replica:
    """What the replica's host is: its configuration may be changed while its agent is stopped."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.file = hosts.folder / "replica.toml"

    def stop(self) -> None:
        agent = self.hosts.agents.pop("replica")
        agent.terminate()
        assert agent.wait(15) == 0

    def change(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def start(self) -> None:
        self.hosts.start("replica")

    def storage(self, folder: Path) -> None:
        """Keep copies in another folder."""
        self.change(f'storage = "{self.hosts.storage}"', f'storage = "{folder}"')
        self.hosts.storage = folder


@pytest.fixture
def replicated(hosts: Hosts) -> Hosts:
    hosts.make_disks(SIZE)
    # Addresses are changed here, so nothing lies between the two agents.
    hosts.prepare(cuttable=False)
    hosts.start_both()
    hosts.enable()
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    hosts.call("primary", "vm.initial", vm=VM)
    hosts.wait_state("Replicating")
    write(hosts, 1)
    hosts.caught_up()
    return hosts


def write(hosts: Hosts, pattern: int, uri: str = "") -> None:
    """The guest writes 64 KiB and flushes; ``uri`` is where its disk is, where no agent can be asked."""
    words = [
        "qemu-io",
        "-f",
        "raw",
        "-c",
        f"write -P {pattern} {pattern * 64}k 64k",
        "-c",
        "flush",
        uri or hosts.uris[0],
    ]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def resyncs(hosts: Hosts) -> list[dict[str, object]]:
    """What each resync since the beginning compared and sent."""
    return [event["data"] for event in hosts.events() if event["event"] == EventId.RESYNC_COMPARED]


def required(hosts: Hosts, *causes: str) -> None:
    """A resync is required for one of these causes."""
    hosts.connect()
    status = hosts.wait("the cause", "primary", lambda vm: vm["causes"] and vm["link"]["healthy"])
    assert status["causes"][0]["code"] in causes
    assert status["state"] == "WaitingForStartResynchronize" and not status["protected"]


def protected(hosts: Hosts) -> None:
    """Both sides are the same, and status says so."""
    hosts.wait_state("Replicating")
    write(hosts, 9)
    hosts.assert_same()
    status = hosts.wait("protection", "primary", lambda vm: vm["protected"])
    assert status["summary"].startswith("Protected")


def listing(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
def test_replica_host_is_replaced_by_an_empty_one_at_another_address(replicated: Hosts) -> None:
    hosts, replica = replicated, Replica(replicated)
    old_store, new_store = hosts.storage, hosts.folder / "gamma-store"
    replica.stop()
    # Another host: certificate, address, port and store are its own.
    hosts.run("pki", "issue", "--ca", f"{hosts.folder}/ca", "--out", f"{hosts.folder}/pki", "127.0.0.1")
    port = LinkCutter.free_port()
    replica.change(f"{hosts.folder}/pki/localhost/", f"{hosts.folder}/pki/127.0.0.1/")
    replica.change(f"port = {hosts.port}", f"port = {port}")
    replica.storage(new_store)
    new_store.mkdir(mode=0o700)
    replica.start()
    write(hosts, 2)
    steps = Procedure("Replacing the replica's host by an empty one", hosts, {"gamma": f"127.0.0.1:{port}"})
    assert "error" not in steps.run("test-connection").lower()
    steps.run("set")
    required(hosts, "replica_empty")
    # The old host's copy is the only one, and nobody has touched it.
    assert (next(old_store.glob("*/disk-0.raw"))).stat().st_size == SIZE
    steps.run("resume")
    protected(hosts)
    assert hosts.status("primary")["link"]["peer"] == f"127.0.0.1:{port}"
    # What is left for the old host: its copy goes there with the same command.
    replica.stop()
    replica.change(f"port = {port}", f"port = {hosts.port}")
    replica.storage(old_store)
    replica.start()
    steps.run("remove", "--role", "replica")
    steps.finish()
    assert listing(old_store) == []


@pytest.mark.slow
def test_replica_host_gets_another_name_and_then_gives_its_store_to_another_host(replicated: Hosts) -> None:
    """A name is nothing but a name; a store that was taken along is compared, and only what differs is sent."""
    hosts, replica = replicated, Replica(replicated)
    # A certificate that has both names, while both are in use; the agent reads it again.
    hosts.run("pki", "issue", "--ca", f"{hosts.folder}/ca", "--out", f"{hosts.folder}/new", "localhost,127.0.0.1")
    shutil.rmtree(hosts.folder / "pki" / "localhost")
    (hosts.folder / "new" / "localhost").rename(hosts.folder / "pki" / "localhost")
    hosts.agents["replica"].send_signal(signal.SIGHUP)
    address = f"127.0.0.1:{hosts.port}"
    renamed = Procedure("Renaming a host or changing its address", hosts, {"gamma": address})
    renamed.run("set")
    renamed.finish()
    hosts.wait("a session", "primary", lambda vm: vm["link"]["connected"] and vm["link"]["peer"] == address)
    protected(hosts)
    assert all(event["event"] != EventId.RESYNC_REQUIRED for event in hosts.events())
    old, new = hosts.storage, hosts.folder / "gamma-store"
    names = {"/var/lib/vmreplica/replica/": f"{old}/", "gamma:/var/lib/vmreplica/replica/": f"{new}/"}
    steps = Procedure("Taking the old store along", hosts, names)
    steps.service("stop", replica.stop)
    steps.shell("rsync")
    steps.finish()
    write(hosts, 3)
    replica.storage(new)
    replica.start()
    required(hosts, "replica_request")
    assert hosts.status("replica")["health"] == "Critical"
    for verb in ("failover", "export"):
        with pytest.raises(PairError, match="not trusted"):
            hosts.call("replica", f"vm.{verb}", vm=VM)
    older = {point["point"] for point in hosts.call("replica", "vm.points", vm=VM)["points"]}
    assert len(older) > 1
    Procedure("Replacing the replica's host by an empty one", hosts).run("resume")
    protected(hosts)
    _initial, compared = resyncs(hosts)
    # What was written after the copy was made, and nothing else.
    assert (compared["bytes_compared"], compared["bytes_sent"]) == (SIZE, 64 << 10)
    assert not older & {point["point"] for point in hosts.call("replica", "vm.points", vm=VM)["points"]}
    # The old host has what it had.
    assert (next(old.glob("*/disk-0.raw"))).stat().st_size == SIZE


@pytest.mark.slow
def test_store_is_moved_on_its_volume_and_to_another(replicated: Hosts) -> None:
    """A rename proves itself; a copy is compared, and nothing of it is sent that is the same."""
    hosts, replica = replicated, Replica(replicated)
    moved, copied = hosts.folder / "moved", hosts.folder / "copied"
    names = {"/var/lib/vmreplica/replica": str(hosts.storage), "/var/lib/vmreplica/copies": str(moved)}
    steps = Procedure("Moving the store", hosts, names)
    steps.service("stop", replica.stop)
    steps.shell("mv")
    replica.storage(moved)
    write(hosts, 2)
    replica.start()
    hosts.connect()
    protected(hosts)
    before = len(resyncs(hosts))
    replica.stop()
    subprocess.run(["cp", "--archive", "--sparse=always", str(moved), str(copied)], check=True)
    replica.storage(copied)
    replica.start()
    required(hosts, "replica_request")
    assert hosts.status("replica")["health"] == "Critical"
    steps.run("resume")
    steps.finish()
    protected(hosts)
    compared = resyncs(hosts)
    assert len(compared) == before + 1
    assert (compared[-1]["bytes_compared"], compared[-1]["bytes_sent"]) == (SIZE, 0)


@pytest.mark.slow
def test_restored_replica_is_never_taken_for_the_present_one(replicated: Hosts) -> None:
    hosts, replica = replicated, Replica(replicated)
    replica.stop()
    backup = hosts.folder / "backup"
    shutil.copytree(hosts.storage, backup)
    replica.start()
    hosts.connect()
    for pattern in (3, 4):
        write(hosts, pattern)
        hosts.caught_up()
    replica.stop()
    # In place, as backup software that writes into existing files does it: the inodes stay.
    subprocess.run(["cp", "--recursive", f"{backup}/.", str(hosts.storage)], check=True)
    for left in hosts.storage.glob("*/state.db-wal"):
        if not (backup / left.relative_to(hosts.storage)).exists():
            left.unlink()
    replica.start()
    required(hosts, "replica_request", "replica_reverted")
    steps = Procedure("Restoring a replica from a backup", hosts)
    steps.run("resume")
    steps.finish()
    protected(hosts)


@pytest.mark.slow
def test_primary_host_gets_another_name_and_another_state_folder(replicated: Hosts) -> None:
    """Both without a compare; and an entry for the old name alone admits the new one no more."""
    hosts, replica = replicated, Replica(replicated)
    hosts.run("pki", "issue", "--ca", f"{hosts.folder}/ca", "--out", f"{hosts.folder}/pki", "alpha-new")
    entry = f'[[authorize]]\nname = "alpha"\nvms = ["*"]\nstorage = "{hosts.storage}"\n'
    group = 'trust_group = "alpha"\n'
    both = f"{entry}{group}{entry.replace('alpha', 'alpha-new')}{group}"
    replica.change(entry, both)
    hosts.agents["replica"].send_signal(signal.SIGHUP)
    primary = hosts.folder / "primary.toml"
    certificates = hosts.folder / "pki" / "alpha"
    shutil.rmtree(certificates)
    (hosts.folder / "pki" / "alpha-new").rename(certificates)
    # The state folder moves at the same time: agent, then taps, then the folder.
    taps, (uri,) = hosts.taps(), hosts.uris
    agent = hosts.agents.pop("primary")
    agent.terminate()
    assert agent.wait(15) == 0
    write(hosts, 2, uri)
    for pid in taps:
        signal_process(pid, signal.SIGTERM)
    ended(taps)
    moved = hosts.folder / "moved-state"
    hosts.state.rename(moved)
    primary.write_text(primary.read_text().replace(f'"{hosts.state}"', f'"{moved}"'))
    hosts.state = moved
    hosts.start("primary")
    hosts.wait("a session", "primary", lambda vm: vm["link"]["connected"])
    # The old entry may go now.
    replica.change(both, entry.replace("alpha", "alpha-new") + group)
    hosts.agents["replica"].send_signal(signal.SIGHUP)
    protected(hosts)
    assert all(event["event"] != EventId.RESYNC_REQUIRED for event in hosts.events())


@pytest.mark.slow
def test_primary_host_that_lost_everything_starts_anew_beside_the_old_copy(replicated: Hosts) -> None:
    hosts = replicated
    old = hosts.status("primary")["uuid"]
    taps = hosts.taps()
    hosts.kill("primary")
    for pid in taps:
        signal_process(pid, signal.SIGKILL)
    ended(taps)
    shutil.rmtree(hosts.state)
    shutil.rmtree(hosts.folder / "run-primary")
    hosts.start("primary")
    names = {"/var/lib/libvirt/images/web.raw": str(hosts.disks[0]), "beta": hosts.address, "OLD-UUID": old}
    steps = Procedure("Losing the primary host's state", hosts, names)
    # Its old identity is no way round: a good copy is not overwritten by a history that can't prove it.
    hosts.run("enable", VM, "--disk", str(hosts.disks[0]), "--replica", hosts.address, "--uuid", old)
    refused = hosts.wait("the refusal", "primary", lambda vm: vm["problem"])
    assert refused["problem"]["code"] == "geometry"
    assert hosts.status("replica")["baseline"]
    hosts.run("remove", VM, "--role", "primary", "--yes")
    steps.run("enable")
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    steps.run("initial")
    hosts.wait("the copy", "primary", lambda vm: vm["protected"])
    copies = {vm["uuid"]: vm for vm in hosts.call("replica", "status")["vms"]}
    assert len(copies) == 2 and all(vm["baseline"] for vm in copies.values())
    steps.run("remove")
    steps.finish()
    (left,) = hosts.call("replica", "status")["vms"]
    assert left["uuid"] != old
    assert [path.name for path in hosts.storage.iterdir()] == [left["uuid"]]
    protected(hosts)


@pytest.mark.slow
def test_remove_leaves_what_the_page_says(replicated: Hosts) -> None:
    hosts = replicated
    disk = hosts.disks[0]
    taps = hosts.taps()
    content, names = disk.read_bytes(), os.listxattr(disk)
    steps = Procedure("What remove leaves behind", hosts)
    steps.run("remove")
    ended(taps)
    assert (disk.read_bytes(), os.listxattr(disk)) == (content, names)
    # What the agent told of itself and the record of orders are not the VM's.
    assert [name for name in listing(hosts.state) if not name.startswith(("agent", "audit"))] == ["vms"]
    assert listing(hosts.folder / "run-primary") == []
    # The copy is another host's business: it is there, and could be failed over to.
    copy = hosts.wait("the end of the session", "replica", lambda vm: not vm["link"]["connected"])
    assert copy["baseline"] and copy["newest_cut"] is not None
    compare(disk, hosts.copy(0))
    steps.run("remove")
    steps.finish()
    assert listing(hosts.storage) == []
    assert listing(hosts.folder / "run-replica") == []
    with pytest.raises(PairError, match="no agent|No agent"):
        hosts.run("status", VM)
    assert [path for path in hosts.folder.iterdir() if path.suffix in (".tmp", ".unfinished")] == []


@pytest.mark.slow
def test_remove_after_a_failover_keeps_the_disks(replicated: Hosts) -> None:
    hosts = replicated
    hosts.run("failover", VM, "--yes")
    promoted = hosts.wait("the disks", "replica", lambda vm: vm["uris"])
    hosts.run("failover", VM, "--commit", "--yes")
    hosts.wait("settled disks", "replica", lambda vm: not vm["failover"]["layered"])
    hosts.run("remove", VM, "--role", "replica", "--yes")
    (kept,) = (hosts.storage / "removed").iterdir()
    assert kept.name.startswith(promoted["uuid"])
    assert listing(hosts.storage) == ["removed", f"removed/{kept.name}", f"removed/{kept.name}/disk-0.raw"]
    compare(hosts.disks[0], kept / "disk-0.raw")


def ended(pids: list[int]) -> None:
    """Wait until these processes are gone."""
    for _ in patience("the end of the taps", {"pids": pids}):
        if not any(is_alive(pid) for pid in pids):
            return


def is_alive(pid: int) -> bool:
    """Whether it runs: a zombie that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
