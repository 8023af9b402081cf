"""Domains that AppArmor confines: adopting looks for the rule first, and tells of it where QEMU could not connect."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import pytest

from shared.cli import adopting, apparmor
from shared.cli.adopting import Wanted, adopt_running, adopt_stopped
from shared.cli.agents import Agent
from shared.cli.apparmor import allowed, local_file
from shared.cli.console import Console, Palette
from shared.cli.preparing import Wanted as SetupWanted
from shared.cli.preparing import apparmor_steps
from shared.cli.virsh import Virsh
from shared.errors import ForbiddenError, InvalidStateError, VmreplicaError
from shared.status import DiskStatus, TapStatus
from tests.unit.cli.conftest import Command
from tests.unit.cli.samples import UUID, agent, healthy

SOCKET = f"/run/vmreplica/primary/{UUID}/nbd.sock"
RULE = "/run/vmreplica/primary/*/nbd.sock rw,"
# The last lines of libvirt 9.0's, as Debian 12 has it; libvirt's source writes the other form for AppArmor 3.
INCLUDE = "  # Site-specific additions and overrides. See local/README for details.\n  #include <local/{}>\n"
ABSTRACTION = "  /dev/kvm rw,\n  @{PROC}/*/status r,\n" + INCLUDE.format("abstractions/libvirt-qemu")
CAPABILITIES = "<capabilities><host>{}<secmodel><model>dac</model></secmodel></host></capabilities>"
APPARMOR = "<secmodel><model>apparmor</model><doi>0</doi></secmodel>"


class Libvirt(Virsh):
    """libvirt with one domain, whose start and copies AppArmor denies if so told."""

    confines = True
    denies = False
    state = "shut off"
    label = ""
    orders: list[str]
    xml: str

    def run(self, *arguments: str) -> str:
        verb = arguments[0]
        match verb:
            case "capabilities":
                return CAPABILITIES.format(APPARMOR if self.confines else "")
            case "dumpxml":
                return self.xml
            case "dominfo":
                return f"State: {self.state}\nPersistent: yes\n"
            case "domblkinfo":
                return "Capacity: 4194304\n"
            case "version":
                return "Running against daemon: 11.3.0\n"
            case "define":
                object.__setattr__(self, "xml", Path(arguments[1]).read_text())
            case "start" | "blockcopy" if self.denies:
                raise InvalidStateError(f"virsh {verb}: Failed to connect to '{SOCKET}': Permission denied.")
        if verb not in ("snapshot-list", "checkpoint-list"):
            self.orders.append(verb)
        return ""


class PrimaryAgent:
    """Has the domain's VM, on its disk."""

    def __init__(self, folder: Path, disk: Path) -> None:
        tap = TapStatus(running=True, uris=[f"nbd+unix:///disk0?socket={SOCKET}"])
        vm = healthy(
            folder=str(folder), disks=[DiskStatus(index=0, uuid=UUID, path=str(disk), size_bytes=1 << 22)], tap=tap
        )
        self.status = agent(vms=[vm], pid=1)
        self.raw = {"vms": [{"uuid": UUID}]}

    def refresh(self) -> PrimaryAgent:
        return self

    def call(self, *_: Any) -> None:
        """Enabling and removing are taken."""


def libvirt(disk: Path, **state: Any) -> Libvirt:
    made = Libvirt({})
    source = f"<disk type='file' device='disk'><source file='{disk}'/><target dev='vda'/></disk>"
    label = state.get("label", "")
    xml = f"<domain><name>web</name><uuid>{UUID}</uuid><devices>{source}</devices>{label}</domain>"
    for name, value in {"orders": [], "xml": xml, **state}.items():
        object.__setattr__(made, name, value)
    return made


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """libvirt's profiles, without a rule for taps."""
    folder = tmp_path / "apparmor.d"
    (folder / "abstractions").mkdir(parents=True)
    (folder / "abstractions/libvirt-qemu").write_text(ABSTRACTION)
    monkeypatch.setattr(apparmor, "PROFILES", str(folder))
    return folder


@pytest.fixture
def primary(tmp_path: Path) -> PrimaryAgent:
    disk = tmp_path / "web.raw"
    disk.write_bytes(bytes(4096))
    return PrimaryAgent(tmp_path, disk)


def add_rule(profiles: Path, text: str) -> None:
    path = profiles / "local/abstractions/libvirt-qemu"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def adopt(primary: PrimaryAgent, virsh: Virsh, *, live: bool = False) -> adopting.Adopted:
    wanted = Wanted(enabling={"replica": "beta"}, start=not live)
    if live:
        console = Console(io.StringIO(), io.StringIO(), None, Palette(False), False, None)
        return adopt_running(cast(Agent, primary), virsh, "web", wanted, console)
    return adopt_stopped(cast(Agent, primary), virsh, "web", wanted)


@pytest.mark.parametrize("live", [False, True])
def test_domain_whose_profile_has_no_rule_is_refused_before_anything_is_changed(
    primary: PrimaryAgent, profiles: Path, tmp_path: Path, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "_give", lambda *_: None)
    disk = tmp_path / "web.raw"
    before = sorted(tmp_path.iterdir())
    virsh = libvirt(disk, state="running" if live else "shut off")
    with pytest.raises(ForbiddenError, match=f"AppArmor, and nothing there lets it connect to {SOCKET}") as refused:
        adopt(primary, virsh, live=live)
    assert f"`{RULE}` to {profiles}/local/abstractions/libvirt-qemu" in refused.value.remedy
    assert "vmreplica setup primary --apparmor" in refused.value.remedy
    again = f"apparmor_parser -r {profiles}/libvirt/libvirt-{UUID}"
    assert (again in refused.value.remedy) is live
    assert virsh.orders == []
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("live", [False, True])
def test_what_apparmor_may_have_denied_is_told_with_the_error(
    primary: PrimaryAgent, profiles: Path, tmp_path: Path, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule is there, and still QEMU can't connect: a profile that was loaded before it, say."""
    monkeypatch.setattr(adopting, "_give", lambda *_: None)
    add_rule(profiles, RULE)
    virsh = libvirt(tmp_path / "web.raw", state="running" if live else "shut off", denies=True)
    with pytest.raises(InvalidStateError, match="Permission denied") as failed:
        adopt(primary, virsh, live=live)
    assert "libvirt confines QEMU with AppArmor: `journalctl -k -g DENIED`" in failed.value.remedy


@pytest.mark.parametrize(
    "state",
    [
        {"confines": False},
        {"label": "<seclabel type='none' model='apparmor'/>"},
        {"label": "<seclabel type='none'/>"},
        {"label": "<seclabel type='static' model='apparmor'><label>own</label></seclabel>"},
    ],
)
def test_domain_that_libvirt_s_profiles_do_not_confine_needs_no_rule(
    primary: PrimaryAgent, profiles: Path, tmp_path: Path, state: dict[str, Any]
) -> None:
    assert allowed(SOCKET) is False
    virsh = libvirt(tmp_path / "web.raw", denies=True, **state)
    with pytest.raises(VmreplicaError, match="Permission denied") as failed:
        adopt(primary, virsh)
    assert ("AppArmor" in failed.value.remedy) is ("static" in state.get("label", ""))


def test_profiles_that_are_not_where_they_are_looked_for_refuse_nothing(
    primary: PrimaryAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apparmor, "PROFILES", str(tmp_path / "nowhere"))
    virsh = libvirt(tmp_path / "web.raw", denies=True)
    with pytest.raises(InvalidStateError, match="Permission denied") as failed:
        adopt(primary, virsh)
    assert "AppArmor" in failed.value.remedy


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (RULE, True),
        (f"  {RULE} # of the taps", True),
        ("/run/vmreplica/{primary,replica}/*/nbd.sock wr,", True),
        ('"/run/vmreplica/**" rwk,', True),
        ("@{run}/vmreplica/pr?mary/[0-9a-f]*/nbd.sock rw,", True),
        ("/dev/null rw, /run/vmreplica/primary/*/nbd.sock rw,", True),
        ("allow /run/** rw,", True),
        (f"# {RULE}", False),
        ("/run/vmreplica/primary/*/nbd.sock r,", False),
        ("owner /run/vmreplica/primary/*/nbd.sock rw,", False),
        ("/run/vmreplica/replica/*/nbd.sock rw,", False),
        ("/run/vmreplica/*/nbd.sock rw,", False),
        ("/run/vmreplica/primary/*/nbdXsock rw,", False),
        (f"{RULE}\ndeny /run/** w,", False),
        ("/run/{vmreplica/primary/*/nbd.sock rw,", False),
    ],
)
def test_rules_are_read_as_apparmor_reads_them(profiles: Path, line: str, expected: bool) -> None:
    add_rule(profiles, f"{line}\n")
    assert allowed(SOCKET) is expected


@pytest.mark.parametrize(
    "include",
    ["#include <local/extra>", "include if exists <local/extra>", 'include "local/extra"', "  include <local/extra>"],
)
def test_every_form_of_including_is_followed_to_files_and_folders(profiles: Path, include: str) -> None:
    (profiles / "abstractions/libvirt-qemu").write_text(f"{include}\n")
    assert local_file() == profiles / "local/extra"
    (profiles / "local").mkdir()
    (profiles / "local/extra").write_text(f"{include}\n{RULE}\n")
    assert allowed(SOCKET) is True
    (profiles / "local/extra").unlink()
    (profiles / "local/extra").mkdir()
    (profiles / "local/extra/taps").write_text(RULE)
    assert allowed(SOCKET) is True


def test_rule_of_the_domain_s_own_profile_counts_while_it_runs(
    primary: PrimaryAgent, profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "_give", lambda *_: None)
    own = profiles / f"libvirt/libvirt-{UUID}"
    own.parent.mkdir()
    own.write_text(
        f"profile x {{\n  #include <abstractions/libvirt-qemu>\n  #include <libvirt/libvirt-{UUID}.files>\n}}"
    )
    virsh = libvirt(tmp_path / "web.raw", state="running", denies=True)
    with pytest.raises(ForbiddenError):
        adopt(primary, virsh, live=True)
    own.with_name(f"{own.name}.files").write_text(f'  "{SOCKET}" rw,\n')
    with pytest.raises(InvalidStateError, match="Permission denied"):
        adopt(primary, virsh, live=True)


def test_setup_adds_the_rule_where_it_is_asked_for_and_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = root / "etc/apparmor.d"
    folder.joinpath("abstractions").mkdir(parents=True)
    folder.joinpath("abstractions/libvirt-qemu").write_text(ABSTRACTION)
    local = folder / "local/abstractions/libvirt-qemu"
    local.parent.mkdir(parents=True)
    local.write_text("# mine\n/srv/** r,")
    asked = SetupWanted("primary", root=str(root))
    (step,) = apparmor_steps(asked, "/run/vmreplica/primary")
    assert (step.finding.level, step.do) == ("warning", None)
    assert RULE in step.finding.remedy and "--apparmor" in step.finding.remedy
    wanted = SetupWanted("primary", root=str(root), apparmor=True)
    (step,) = apparmor_steps(wanted, "/run/vmreplica/primary")
    assert step.done().level == "changed"
    first, second, comment, rule = local.read_text().splitlines()
    assert (first, second, comment[0], rule) == ("# mine", "/srv/** r,", "#", RULE)
    for again in (asked, wanted):
        (step,) = apparmor_steps(again, "/run/vmreplica/primary")
        assert (step.finding.level, step.do) == ("ok", None)
    # The replica's taps, of promoted VMs, are elsewhere.
    (step,) = apparmor_steps(wanted, "/run/vmreplica/replica")
    assert step.done().level == "changed"
    assert len(local.read_text().splitlines()) == 6


def test_setup_by_the_command(vmreplica: Command, tmp_path: Path) -> None:
    """Without libvirt's profiles there is nothing to add to; with them the option adds the rule."""
    words = ("setup", "primary", "--root", str(tmp_path / "root"), "--json", "--apparmor", "--check")
    path = tmp_path / "root/etc/vmreplica/primary.toml"
    path.parent.mkdir(parents=True)
    tls = "\n".join(f'{name} = "/etc/vmreplica/pki/{name}.pem"' for name in ("ca", "certificate", "key"))
    path.write_text(f"[tls]\n{tls}\n")

    def told() -> dict[str, str]:
        findings = json.loads(vmreplica(*words).out)["findings"]
        (found,) = [each for each in findings if each["subject"] == "AppArmor"]
        return cast(dict[str, str], found)

    assert (told()["level"], "libvirt-daemon-system" in told()["remedy"]) == ("problem", True)
    abstraction = tmp_path / "root/etc/apparmor.d/abstractions/libvirt-qemu"
    abstraction.parent.mkdir(parents=True)
    abstraction.write_text(ABSTRACTION)
    assert (told()["level"], RULE in told()["text"]) == ("to do", True)
