"""Settings that change under a live session: what a reload brings into force, what waits, and a file with a mistake."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.agent_pair import PROGRAMS
from tests.pair.hosts import MIB, VM, Hosts, patience


class FakeJournal:
    """A socket where systemd's journal would listen."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.entries: list[dict[str, str]] = []

    def read(self) -> list[dict[str, str]]:
        """All entries until now; none of these has a field of several lines."""
        with contextlib.suppress(BlockingIOError):
            while True:
                lines = self.socket.recv(1 << 20).decode().splitlines()
                self.entries.append(dict(line.split("=", 1) for line in lines))
        return self.entries

    def wait(self, number: int, role: str) -> list[dict[str, str]]:
        """The entries of an event's number, as soon as there is one."""
        for _ in patience(f"entry {number}", {}):
            found = [entry for entry in self.read() if entry["VMREPLICA_EVENT"] == str(number)]
            found = [entry for entry in found if entry["VMREPLICA_ROLE"] == role]
            if found:
                return found
        raise AssertionError


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJournal]:
    """Before ``hosts``: its agents inherit where the journal is."""
    path = tmp_path / "journal"
    made = FakeJournal(path)
    monkeypatch.setenv("VMREPLICA_JOURNAL_SOCKET", str(path))
    yield made
    made.socket.close()


def config(hosts: Hosts, role: str) -> dict[str, Any]:
    told = hosts.call(role, "config")
    return {**told, "keys": {key["key"]: key for key in told["keys"]}}


def edit(hosts: Hosts, role: str, top: str = "", end: str = "") -> None:
    path = hosts.folder / f"{role}.toml"
    path.write_text(top + path.read_text() + end)


def reload(hosts: Hosts, role: str, event: int) -> dict[str, Any]:
    """Have an agent read its file again, and wait until it told what came of it."""
    count = len([each for each in own_events(hosts, role) if each["event"] == event])
    hosts.agents[role].send_signal(signal.SIGHUP)
    for _ in patience(f"event {event}", {}):
        found = [each for each in own_events(hosts, role) if each["event"] == event]
        if len(found) > count:
            return found[-1]
    raise AssertionError


def follow(hosts: Hosts) -> subprocess.Popen[bytes]:
    """``events --follow`` in the background, once it listens."""
    with (hosts.folder / "follow.log").open("wb") as log, (hosts.folder / "follow.err").open("wb") as complaints:
        process = subprocess.Popen(
            [str(PROGRAMS / "vmreplica"), "events", "--follow", "--json"],
            env=hosts.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=complaints,
        )  # fmt: skip
    for _ in patience("what happened so far", {}):
        if (hosts.folder / "follow.log").read_text().count("\n"):
            return process
    raise AssertionError


def own_events(hosts: Hosts, role: str) -> list[dict[str, Any]]:
    return list(hosts.call(role, "agent.events", limit=1000)["events"])


@pytest.mark.slow
def test_reload_keeps_the_session(journal: FakeJournal, hosts: Hosts) -> None:
    hosts.replicate(8 * MIB)
    before = hosts.status("primary")["link"]
    assert before["connected"]

    follower = follow(hosts)
    paged = hosts.folder / "paged"
    edit(hosts, "primary", "worker_threads = 3\nlog_format = 'json'\n", "past_window = 'finish'\n[rates]\n"
         "replication_send_rate = [1000000]\n[[alarms]]\nname = 'pager'\nevents = [60006]\nhold_seconds = 0\n"
         f"command = ['/bin/sh', '-c', 'printenv VMREPLICA_VM VMREPLICA_NAME >{paged}']\n")  # fmt: skip
    told = reload(hosts, "primary", 60203)
    assert set(told["data"]["in_force"]) >= {
        "log_format",
        "resync.past_window",
        "rates.replication_send_rate",
        "alarms",
    }
    assert told["data"]["at_next_start"] == ["worker_threads"]
    shown = config(hosts, "primary")["keys"]
    assert shown["resync.past_window"]["value"] == "finish"
    assert shown["worker_threads"]["value"] == 8
    assert (shown["worker_threads"]["changed"], shown["worker_threads"]["file_value"]) == (True, 3)
    assert hosts.status("primary")["settings"]["resync_past_window"] == "finish"
    hosts.call("primary", "vm.set", vm=VM, settings={"resync_priority": 1})
    for _ in patience("the alarm", {}):
        (pager,) = hosts.call("primary", "alarms")["alarms"]
        if pager["sent"]:
            break
    assert (pager["name"], pager["last_error"], paged.read_text()) == ("pager", "", f"{VM}\nsettings\n")

    edit(hosts, "replica", end="[points]\nnewest = 2\nhourly = 1\n")
    reload(hosts, "replica", 60203)
    assert hosts.status("replica")["settings"]["points_newest"] == 2
    hosts.assert_same()
    last = [line for line in (hosts.folder / "primary.log").read_text().splitlines() if line.startswith("{")]
    assert json.loads(last[-1])["level"], "lines are JSON since the reload"

    edit(hosts, "primary", "wroker_threads = 3\n")
    refused = reload(hosts, "primary", 60204)
    assert "Did you mean worker_threads" in refused["text"]
    shown_again = config(hosts, "primary")
    assert "wroker_threads" in shown_again["refused"]
    assert len(shown_again["file_mistakes"]) == 1
    assert shown_again["keys"]["resync.past_window"]["value"] == "finish", "what was in force still is"

    after = hosts.status("primary")["link"]
    assert after["connected"]
    assert after["since_time"] == before["since_time"], "it is the same session"

    (entry,) = journal.wait(60204, "primary")
    assert entry["SYSLOG_IDENTIFIER"] == "vmreplica-primary"
    assert entry["PRIORITY"] == "3"
    initial = journal.wait(60001, "primary")
    assert {entry["VMREPLICA_VM"] for entry in initial} == {VM}
    assert ("Replicating", initial[0]["MESSAGE_ID"]) == (initial[-1]["VMREPLICA_AFTER"], initial[-1]["MESSAGE_ID"])

    command = hosts.command("config", "show", "--role", "primary")
    assert command.returncode == 0, command.stderr
    assert "worker_threads" in command.stdout

    # Events go on being counted where they stood when the agent starts again.
    known = own_events(hosts, "primary")
    hosts.kill("primary")
    (hosts.folder / "primary.toml").write_text(
        (hosts.folder / "primary.toml").read_text().replace("wroker_threads = 3\n", "")
    )
    hosts.start("primary")
    again = own_events(hosts, "primary")
    assert [each["id"] for each in again[: len(known)]] == [each["id"] for each in known]
    assert config(hosts, "primary")["keys"]["worker_threads"]["value"] == 3

    # Whoever follows saw all of it, also what came after the restart, and each once.
    for _ in patience("the event of the start", {}):
        seen = [json.loads(line) for line in (hosts.folder / "follow.log").read_text().splitlines()]
        if [each["event"] for each in seen if each["role"] == "primary"].count(60201) == 2:
            break
    follower.send_signal(signal.SIGINT)
    assert follower.wait() == 0
    numbers = [each["event"] for each in seen if each["role"] == "primary"]
    assert numbers.index(60203) < numbers.index(60204) < numbers.index(60201, 1)
    keys = [(each["role"], each["uuid"], each["time"], each["text"]) for each in seen]
    assert len(keys) == len(set(keys))

    found = hosts.command("events", "--id", "reloaded", "--level", "info", "--since", "1h", "--json")
    assert {each["role"] for each in json.loads(found.stdout)["events"]} == {"primary", "replica"}
