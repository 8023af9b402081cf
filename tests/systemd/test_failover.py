"""docs/failover.md from its first command to its last, as an administrator types it, on two hosts with both roles.

After each step status, doctor and the figures are asked once for the state that it leads to; at the end the record of
orders has all of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from primary_agent.handing_over import CLOCKS_SECONDS
from scripts.agent_pair import call
from tests.pair.hosts import compare
from tests.systemd.conftest import set_up
from tests.systemd.page import Typed, sections
from tests.systemd.pair import Pair, Status

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.xdist_group("systemd-failover")]

PAGE = "failover.md"
VM = "web"
IMAGE = "/srv/images/web.raw"
ROLES = ("primary", "replica")
PORTS = {"primary": 9441, "replica": 9442}
OTHER = {"alpha": "beta", "beta": "alpha"}
WAITING, PREPARED = "FailedOverWaitingCompletion", "PreparedForFailover"
THEIRS, MINE, LOST = 7, 8, 9
"""MiB of the disk that are written in a split brain by the promoted side and by the former primary, and by the latter
before a disaster when the link is down.
"""


def figures(role: str) -> str:
    return f'\n[metrics]\nlisten = "127.0.0.1:{PORTS[role]}"\n'


class Runbook:
    """Types the page's commands, section by section, and looks at the hosts after each."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.printed = ""
        self.exchanged = False
        """The hosts of the page and those here have changed places: the VM runs on the other one by now."""
        self.compared: Status = {}
        """The last compare that had been made before something that needs none."""

    def read(self, heading: str, typed: list[Typed]) -> None:
        name = re.sub(r"\W+", "_", heading.lower())
        getattr(self, f"before_{name}", lambda: None)()
        during: Callable[[Typed], None] = getattr(self, f"in_{name}", lambda _typed: None)
        for part in typed:
            host = OTHER[part.host] if self.exchanged else part.host
            self.printed = self.pair.type([Typed(host, part.lines)])
            during(part)
        getattr(self, f"after_{name}", lambda: None)()

    # --- section by section

    def after_before_it_is_needed(self) -> None:
        assert "authorization" in self.printed
        with ThreadPoolExecutor() as both:
            list(both.map(self._tell_figures, (("beta", "primary"), ("alpha", "replica"))))

    def _tell_figures(self, where: tuple[str, str]) -> None:
        name, role = where
        host = self.pair.hosts[name]
        config = host.path(f"/etc/vmreplica/{role}.toml")
        config.write_text(config.read_text() + figures(role))
        host.restart(f"vmreplica-{role}")

    def before_which_point(self) -> None:
        self.pair.wait("older points", "beta", lambda vm: vm["older_points"] >= 2, vm=VM)

    def in_test_failover(self, typed: Typed) -> None:
        if "--stop" in typed.lines:
            self.told("beta", "replica", "Replicating", "Normal", lambda vm: not vm["exports"])
        elif "--test" in typed.lines:
            self.told("beta", "replica", "Replicating", "Normal", lambda vm: vm["test_failover"])
            # Beside it, as the text says.
            exported = self.pair.beta.run("vmreplica", "export", VM, "--point", "before-upgrade", "--writable").stdout
            (identity,) = re.findall(rf"vmreplica unexport {VM} (\S+)", exported)
            self.pair.beta.run("vmreplica", "unexport", VM, identity)

    def after_test_failover(self) -> None:
        assert "last test" in self.pair.beta.run("vmreplica", "measure", VM).stdout
        self.same("alpha", "beta")

    def in_planned_failover(self, typed: Typed) -> None:
        if "--abort" in typed.lines:
            assert not self.control("alpha")["refused"]
            self.write("alpha", 2, 0x31)
            self.same("alpha", "beta")
        elif "--prepare" in typed.lines:
            self.told("alpha", "primary", PREPARED, "Warning", lambda vm: vm["planned"]["step"] == "confirmed")

    def after_planned_failover(self) -> None:
        assert "A planned failover: nothing is lost" in self.printed and WAITING in self.printed
        self.told("beta", "replica", WAITING, "Warning", lambda vm: vm["planned"]["step"] == "failed over")
        prepared, promoted = (self.pair.status(name, VM)["planned"] for name in ("alpha", "beta"))
        assert prepared["chain"] == promoted["chain"] and prepared["chain"]
        assert prepared["cut"]["segment"] == promoted["cut"]["segment"]
        self.write("beta", 3, 0x32, role="replica")
        self.read_back("beta", 2, 0x31, role="replica")

    def after_reversing_the_direction(self) -> None:
        self.told("beta", "primary", "Replicating", "Normal", lambda vm: vm["protected"])
        self.bounded("beta")
        self.same("beta", "alpha")
        kept = self.pair.status("beta", VM, role="replica")
        assert kept["handed_over"] and kept["health"] == "Normal"

    def after_going_back(self) -> None:
        self.told("alpha", "primary", "Replicating", "Normal", lambda vm: vm["protected"])
        self.bounded("alpha")
        assert self.same("alpha", "beta") == IMAGE

    def before_disaster(self) -> None:
        self.write("alpha", 4, 0x33)
        # Twice: the page goes back to the second newest point.
        self.same("alpha", "beta")
        self.same("alpha", "beta")
        self.pair.wait("older points", "beta", lambda vm: vm["older_points"] >= 2, vm=VM)
        self.pair.wire("down")
        self.write("alpha", LOST, 0x39)
        # Nobody fails over sooner than that; what is written right before counts as written after it.
        written = self.pair.alpha.path(IMAGE).stat().st_mtime
        while time.time() < written + CLOCKS_SECONDS + 1:
            time.sleep(0.1)
        self.pair.alpha.lose_power()
        self.pair.wire("up")

    def in_keep_it_or_go_back(self, typed: Typed) -> None:
        if "--undo" in typed.lines:
            assert self.pair.status("beta", VM)["state"] == WAITING
            self.read_back("beta", 4, 0x33, role="replica")

    def after_keep_it_or_go_back(self) -> None:
        self.told("beta", "replica", "FailedOver", "Warning", lambda vm: not vm["older_points"])
        self.write("beta", 5, 0x34, role="replica")

    def before_return_of_a_former_primary(self) -> None:
        self.pair.alpha.boot()
        self.told("alpha", "primary", "FailedOver", "Critical", lambda vm: vm["fenced"] and vm["tap"]["running"])
        until = self.pair.wait("the fence", "alpha", lambda _vm: self.control("alpha")["fenced"], vm=VM, role="primary")
        refused = self.pair.alpha.run("qemu-io", "-f", "raw", "-c", "write 0 64k", until["tap"]["uris"][0], check=False)
        assert refused.returncode and "Permission denied" in refused.stdout + refused.stderr

    def in_return_of_a_former_primary(self, typed: Typed) -> None:
        if typed.host == "beta":
            asked = self.pair.alpha.run("vmreplica", "reverse", VM, check=False)
            assert asked.returncode == 2 and "Only on this host are" in asked.stdout + asked.stderr, asked

    def after_return_of_a_former_primary(self) -> None:
        self.told("beta", "primary", "Replicating", "Normal", lambda vm: vm["protected"])
        self.bounded("beta")
        assert self.same("beta", "alpha") != IMAGE
        self.read_back("beta", 5, 0x34)
        self.lacks("beta", LOST, 0x39)
        self.kept("alpha", self.pair.alpha.run("vmreplica", "points", VM).stdout, LOST, 0x39)

        self.outlasts_restarts("beta")

    def outlasts_restarts(self, name: str) -> None:
        """The tap was a process of the replica agent's; the VM is the primary agent's now, whatever is restarted."""
        host, compared = self.pair.hosts[name], self.last_compare(name)
        tap = self.pair.status(name, VM, role="primary")["tap"]["pid"]
        for role in ROLES:
            host.restart(f"vmreplica-{role}")
        self.told(name, "primary", "Replicating", "Normal", lambda vm: vm["protected"])
        assert self.pair.status(name, VM, role="primary")["tap"]["pid"] == tap
        host.reboot()
        self.told(name, "primary", "Replicating", "Normal", lambda vm: vm["protected"])
        self.write(name, 5, 0x3A)
        self.same(name, OTHER[name])
        assert self.last_compare(name) == compared, "nothing was compared"

    def before_going_on_with_the_old_primary_after_an_undo(self) -> None:
        """The VM runs on beta by now, and keeps to what it wrote while somebody fails over on alpha."""
        self.exchanged = True
        self.compared = self.last_compare("beta")
        self.pair.call("alpha", "vm.failover", role="replica", vm=VM)
        self.told("beta", "primary", "FailedOver", "Critical", lambda vm: vm["fenced"])
        self.pair.wait("the fence", "beta", lambda _vm: self.control("beta")["fenced"], vm=VM, role="primary")
        # As long as the failover stands this changes nothing.
        self.pair.beta.run("vmreplica", "resume", VM)
        self.told("beta", "primary", "FailedOver", "Critical", lambda vm: vm["fenced"])

    def after_going_on_with_the_old_primary_after_an_undo(self) -> None:
        self.goes_on("beta", 0x35)
        # After a planned one it is the same.
        self.pair.beta.run("vmreplica", "failover", VM, "--prepare", "--yes")
        self.pair.call("alpha", "vm.failover", role="replica", vm=VM)
        self.told("beta", "primary", "FailedOver", "Critical", lambda vm: vm["planned"]["step"] == "failed over")
        assert self.control("beta")["refused"]
        self.pair.alpha.run("vmreplica", "failover", VM, "--undo", "--yes")
        self.pair.beta.run("vmreplica", "resume", VM)
        self.goes_on("beta", 0x36)
        assert not self.control("beta")["refused"]

    def goes_on(self, primary: str, pattern: int) -> None:
        """Replicated as before: writes are taken, and nothing was compared."""
        self.told(primary, "primary", "Replicating", "Normal", lambda vm: vm["protected"])
        self.pair.wait("no fence", primary, lambda _vm: self.takes_writes(primary), vm=VM, role="primary")
        self.write(primary, 6, pattern)
        self.same(primary, OTHER[primary])
        assert self.last_compare(primary) == self.compared, "nothing was compared"

    def takes_writes(self, name: str) -> bool:
        tap = self.control(name)
        return not tap["fenced"] and not tap["refused"]

    def before_split_brain(self) -> None:
        self.split("alpha", "beta", 0x41)

    def in_split_brain(self, typed: Typed) -> None:
        here = MINE if typed.host == "alpha" else THEIRS
        assert f"    {here << 20} + 65536\n" in self.printed, self.printed

    def after_keeping_what_beta_has(self) -> None:
        self.resolved("alpha", "beta", THEIRS, 0x41)
        self.exchanged = False

    def before_keeping_what_alpha_has(self) -> None:
        self.split("beta", "alpha", 0x51)

    def in_keeping_what_beta_has(self, typed: Typed) -> None:
        if "--keep" in typed.lines:
            self.told("alpha", "primary", "Replicating", "Normal", lambda vm: vm["protected"])

    def in_keeping_what_alpha_has(self, typed: Typed) -> None:
        if "--keep" in typed.lines and typed.host == "alpha":
            self.told("alpha", "primary", "Replicating", "Normal", lambda vm: vm["protected"])

    def after_keeping_what_alpha_has(self) -> None:
        self.resolved("alpha", "beta", MINE, 0x51)
        assert self.pair.status("alpha", VM, role="primary")["disks"][0]["path"] == IMAGE

    def split(self, promoted: str, primary: str, pattern: int) -> None:
        """The link goes down, somebody fails over at ``promoted``, and both guests write."""
        self.pair.wire("down")
        self.pair.call(promoted, "vm.failover", role="replica", vm=VM)
        self.write(promoted, THEIRS, pattern, role="replica")
        self.write(primary, MINE, pattern + 1)
        self.pair.wire("up")
        self.told(primary, "primary", "FailedOver", "Critical", lambda vm: "split brain" in vm["summary"])
        refused = self.pair.hosts[primary].run("vmreplica", "reverse", VM, "--yes", check=False)
        assert refused.returncode == 4 and "Split brain" in refused.stderr
        named = self.pair.call(primary, "events", role="primary", vm=VM, events=[60342])["events"]
        assert "written on both hosts" in named[-1]["text"]

    def resolved(self, primary: str, replica: str, kept: int, pattern: int) -> None:
        """Only what either side wrote was compared; one side's writes are there, and the other's in the oldest point of
        the copy.
        """
        self.bounded(primary)
        self.same(primary, replica)
        patterns = {THEIRS: pattern, MINE: pattern + 1}
        lost = THEIRS if kept == MINE else MINE
        self.read_back(primary, kept, patterns[kept])
        self.lacks(primary, lost, patterns[lost])
        self.kept(replica, self.printed, lost, patterns[lost])

    def lacks(self, name: str, mib: int, pattern: int) -> None:
        """The primary's disk has something else there."""
        read = ("qemu-io", "-r", "-f", "raw", "-c", f"read -P {pattern} {mib}M 64k", self.uri(name, "primary"))
        told = self.pair.hosts[name].run(*read, check=False)
        assert "Pattern verification failed" in told.stdout, told

    def kept(self, name: str, listed: str, mib: int, pattern: int) -> None:
        """The oldest of the listed points has it."""
        oldest = re.findall(r"[0-9a-f]{8}/\d+", listed)[-1]
        served = self.pair.call(name, "vm.export", role="replica", vm=VM, point=oldest)
        read = f"read -P {pattern} {mib}M 64k"
        self.pair.hosts[name].run("qemu-io", "-r", "-f", "raw", "-c", read, served["uris"][0])
        self.pair.call(name, "vm.unexport", role="replica", vm=VM, id=served["id"])

    def check_audit(self) -> None:
        """Each order of the page is on record, at the agent that it was given to, and nothing of it was changed."""
        both = {"failover", "prepare_failover", "hand_over", "adopt", "handed_over", "resolve", "differences"}
        expected = {
            "alpha": both | {"abort_failover"},
            "beta": both | {"test_failover", "failover_undo", "failover_commit"},
        }
        for name, verbs in expected.items():
            told = self.pair.hosts[name].shell(f"vmreplica audit {VM} --limit 1000 && vmreplica audit --verify").stdout
            assert not {verb for verb in verbs if f"  vm.{verb} " not in told}, told
            assert told.count("are as they were written") == len(ROLES)

    # --- questions

    def told(self, name: str, role: str, state: str, health: str, until: Callable[[Status], object]) -> None:
        """Wait for it; then status, doctor and the figures tell it, too."""
        # A busy machine misses cycles, which is a warning.
        healths = ("Normal", "Warning") if health == "Normal" else (health,)
        self.pair.wait(
            f"{state}, {health}", name,
            lambda vm: vm["state"] == state and vm["health"] in healths and until(vm), vm=VM, role=role,
        )  # fmt: skip
        host = self.pair.hosts[name]
        asked = (
            ("vmreplica", "status", VM, "--role", role),
            ("vmreplica", "doctor", "--role", role),
            ("curl", "--silent", f"http://127.0.0.1:{PORTS[role]}/metrics"),
        )
        with ThreadPoolExecutor() as at_once:
            status, doctor, metrics = (
                done.stdout for done in at_once.map(lambda words: host.run(*words, check=False), asked)
            )
        assert re.search(rf"^  state +{state}\n  health +({'|'.join(healths)})$", status, re.MULTILINE), status
        assert any(f"{VM}: {role}, {state}, {each}." in doctor for each in healths), doctor
        told = re.findall(r"^vmreplica_vm_state{(.*)} 1(?:\.0)?$", metrics, re.MULTILINE)
        assert any(f'vm="{VM}"' in labels and f'state="{state}"' in labels for labels in told), metrics[:4000]

    def bounded(self, name: str) -> None:
        """The last compare was of what is in doubt, never of the whole disk."""
        last = self.last_compare(name)
        assert last["kind"] == "bounded", last

    def last_compare(self, name: str) -> Status:
        return dict(self.pair.call(name, "vm.resync_show", role="primary", vm=VM)["last"])

    def uri(self, name: str, role: str) -> str:
        vm = self.pair.wait("the tap", name, lambda vm: vm["tap"] and vm["tap"]["uris"], vm=VM, role=role)
        return str(vm["tap"]["uris"][0])

    def write(self, name: str, mib: int, pattern: int, *, role: str = "primary") -> None:
        """Write and flush at the served disk, as its guest does."""
        self._guest(name, f"write -P {pattern} {mib}M 64k", role)

    def read_back(self, name: str, mib: int, pattern: int, *, role: str = "primary") -> None:
        self._guest(name, f"read -P {pattern} {mib}M 64k", role)

    def _guest(self, name: str, command: str, role: str) -> None:
        self.pair.hosts[name].run("qemu-io", "-f", "raw", "-c", command, "-c", "flush", self.uri(name, role))

    def control(self, name: str, method: str = "status", **params: object) -> Status:
        """One call of the control of the VM's tap, wherever its sockets are."""
        socket = self.uri(name, "primary").partition("socket=")[2].replace("nbd.sock", "control.sock")
        return dict(call(self.pair.hosts[name].path(socket), method, params))

    def same(self, primary: str, replica: str) -> str:
        """Both disks are the same byte for byte at a cut that is taken now; the path of the primary's."""
        cut = self.control(primary, "cut", reason="test")

        def applied(now: Status) -> bool:
            point = now["applied_cut"]
            return point is not None and point["epoch"] == cut["epoch"] and point["segment"] >= cut["segment"]

        copy = self.pair.wait(f"cut {cut['segment']}", replica, applied, vm=VM, role="replica")["disks"][0]["path"]
        disk = str(self.pair.status(primary, VM, role="primary")["disks"][0]["path"])
        compare(self.pair.hosts[primary].path(disk), self.pair.hosts[replica].path(copy))
        return disk


def test_every_command_of_the_runbook(pair: Pair) -> None:
    set_up(
        pair, head="heartbeat_seconds = 0.5\ndead_after_seconds = 2\n",
        ends={role: figures(role) for role in ROLES},
    )  # fmt: skip
    pair.alpha.shell(f"mkdir -p /srv/images && head -c 8M /dev/urandom >{IMAGE} && truncate -s 48M {IMAGE}")
    pair.call("alpha", "vm.enable", name=VM, disks=[IMAGE], replica="beta", interval_seconds=2)
    pair.wait("a session", "alpha", lambda vm: vm["link"]["connected"], vm=VM)
    pair.call("alpha", "vm.initial", vm=VM)
    pair.wait("the first copy", "alpha", lambda vm: vm["state"] == "Replicating", vm=VM)
    runbook = Runbook(pair)
    for heading, typed in sections(PAGE).items():
        try:
            runbook.read(heading, typed)
        except AssertionError as error:
            error.add_note(f"in the section {heading!r}; printed last:\n{runbook.printed}")
            raise
    runbook.check_audit()
