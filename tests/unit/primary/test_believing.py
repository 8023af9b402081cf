"""What a root agent believes of a hand-over: a replica agent that was taken over leads it nowhere."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from primary_agent.believing import Places, drop, judge, judge_order, keep, kept_path, read_kept, read_places
from primary_agent.record import DiskRecord, VmRecord
from shared.cli.configured import config_findings
from shared.cli.findings import Level
from shared.errors import ForbiddenError, StorageError, StoreDamagedError, UsageError
from shared.handover import HandOver
from shared.ports.file_system import RealFileSystem

VM = bytes(range(16))
UUID = str(uuid.UUID(bytes=VM))
SIZE = 4096
root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder of a promoted copy, with its disk."""
    folder = tmp_path / "store" / UUID
    (folder / "tap").mkdir(parents=True)
    (folder / "disk-0.raw").write_bytes(bytes(SIZE))
    (tmp_path / "guest.raw").write_bytes(bytes(SIZE))
    return folder


def places(copy: Path) -> Places:
    return Places("/etc/vmreplica/replica.toml", ("/nowhere", str(copy.parent)), "/run/vmreplica/replica")


def told(copy: Path, **other: Any) -> dict[str, Any]:
    """A hand-over as an honest replica agent tells it, but for what is given."""
    disk = {"index": 0, "uuid": "61" * 16, "path": str(copy / "disk-0.raw"), "size": SIZE, "export": "disk0"}
    disk |= other.pop("disk", {})
    return {
        "id": "01" * 16, "vm": VM.hex(), "name": "web", "to": "primary", "disks": [disk], "epoch": "02" * 16,
        "tap_folder": str(copy / "tap"), "runtime_folder": f"/run/vmreplica/replica/{UUID}", "peer": "alpha", **other,
    }  # fmt: skip


def record(path: str) -> VmRecord:
    disk = DiskRecord(index=0, uuid=b"a" * 16, path=path, size=SIZE, export="disk0")
    return VmRecord(
        vm=VM, name="web", disks=[disk], replica_host="beta", replica_port=8443, interval_seconds=30.0,
        log_limit_bytes=0, created_time=1.0, consistency="program:/usr/local/bin/freeze", definition="libvirt:web",
        definition_files=["/var/lib/libvirt/qemu/nvram/web.fd"],
    )  # fmt: skip


@pytest.fixture
def kept(copy: Path, tmp_path: Path) -> Any:
    """What this agent put on record when it let the VM go."""
    files, state = RealFileSystem(), str(tmp_path / "state")
    keep(files, state, record(str(tmp_path / "guest.raw")))
    return read_kept(files, state, VM)


def test_what_follows_from_roots_own_files_is_believed(copy: Path, kept: Any, tmp_path: Path) -> None:
    judge(HandOver.read(told(copy)), places(copy), None)
    judge(HandOver.read(told(copy)), places(copy), kept)
    # The VM's disk is where it was before it became a copy: that is on record here.
    judge(HandOver.read(told(copy, disk={"path": str(tmp_path / "guest.raw")})), places(copy), kept)
    assert kept.settings["consistency"] == "program:/usr/local/bin/freeze"
    assert kept.settings["definition_files"] == ["/var/lib/libvirt/qemu/nvram/web.fd"]


def test_the_order_is_about_the_vm_that_is_told(copy: Path) -> None:
    handed = HandOver.read(told(copy))
    judge_order(handed, UUID)
    judge_order(handed, VM.hex())
    with pytest.raises(ForbiddenError, match="its vm is .* the order is about web"):
        judge_order(handed, "web")


HOSTILE: dict[str, dict[str, Any]] = {
    "disks[0].path": {"disk": {"path": "/etc/shadow"}},
    "disks[0].path ": {"disk": {"path": f"/nowhere/{UUID}/disk-0.raw"}},
    "disks[0].path  ": {"disk": {"index": 0, "path": "/var/lib/libvirt/images/other.raw"}},
    "disks[0].size": {"disk": {"size": 2 * SIZE}},
    "tap_folder": {"tap_folder": f"/etc/{UUID}/tap"},
    "tap_folder ": {"tap_folder": "/var/lib/vmreplica/primary/vms/" + UUID + "/tap"},
    "tap_folder  ": {"tap_folder": ""},
    "runtime_folder": {"runtime_folder": f"/run/libvirt/{UUID}"},
    "runtime_folder ": {"runtime_folder": "/run/vmreplica/primary/" + UUID},
    "name": {"name": "other"},
    "peer": {"peer": "alpha\x1b[2J"},
    "reason": {"reason": "\x1b]0;"},
}


@pytest.mark.parametrize("field", HOSTILE)
def test_a_hostile_field_is_refused_by_name(copy: Path, kept: Any, field: str) -> None:
    with pytest.raises(ForbiddenError) as refused:
        judge(HandOver.read(told(copy, **HOSTILE[field])), places(copy), kept)
    assert f"its {field.strip()} is " in refused.value.text
    assert refused.value.code == "handover_refused" and "nothing was changed" in refused.value.remedy


@pytest.mark.parametrize("field", ["settings", "definition", "definition_files", "consistency", "tap_command"])
def test_settings_are_not_part_of_a_hand_over(copy: Path, field: str) -> None:
    """Programs that root runs, and files that it reads and sends: only the primary agent's own record names them."""
    with pytest.raises(UsageError, match=f"unknown field `{field}`"):
        HandOver.read(told(copy, **{field: {"consistency": "program:/tmp/mine"}}))


@pytest.mark.parametrize("double", ["index", "uuid", "path", "export"])
def test_no_two_disks_are_one(copy: Path, double: str) -> None:
    second = {"index": 1, "uuid": "62" * 16, "path": str(copy / "disk-1.raw"), "size": SIZE, "export": "disk1"}
    plain = told(copy)
    plain["disks"].append(second | {double: plain["disks"][0][double]})
    with pytest.raises(ForbiddenError, match=rf"disks\[\]\.{double}"):
        judge(HandOver.read(plain), places(copy), None)


@pytest.mark.parametrize("what", ["disk-0.raw", "tap", "copy"])
def test_a_link_leads_nowhere(copy: Path, tmp_path: Path, what: str) -> None:
    path = copy if what == "copy" else copy / what
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(StorageError, match="a symbolic link"):
        judge(HandOver.read(told(copy)), places(copy), None)


@root
@pytest.mark.parametrize("what", ["disk-0.raw", "tap"])
def test_what_is_not_the_copys_users_is_refused(copy: Path, what: str) -> None:
    """Another name for a file of root's, say: who made it does not own it."""
    os.chown(copy, 65534, 65534)
    for name in {"disk-0.raw", "tap"} - {what}:
        os.chown(copy / name, 65534, 65534)
    with pytest.raises(StorageError, match=f"{what} belongs to root") as refused:
        judge(HandOver.read(told(copy)), places(copy), None)
    assert refused.value.code == "foreign_owner"


def test_nothing_is_allowed_without_an_entry(copy: Path) -> None:
    with pytest.raises(ForbiddenError, match=r"no \[\[authorize\]\] entry"):
        judge(HandOver.read(told(copy)), Places("f", (), "/r"), None)


TOML = """runtime_dir = "/r"
[tls]
ca = "/a"
certificate = "/c"
key = "/k"
[[authorize]]
name = "alpha"
vms = ["*"]
storage = "/s"
"""


def test_the_replica_agents_configuration_has_to_be_roots(tmp_path: Path) -> None:
    path = tmp_path / "replica.toml"
    path.write_text(TOML)
    assert read_places(str(path)) == Places(str(path), ("/s",), "/r")
    path.chmod(0o664)
    with pytest.raises(StorageError, match="Others may write"):
        read_places(str(path))
    primary = tmp_path / "primary.toml"
    primary.write_text(f'replica_config = "{path}"\n[tls]\nca = "/a"\ncertificate = "/c"\nkey = "/k"\n')
    found = [finding for finding in config_findings(str(primary), "primary")[0] if finding.subject == "replica_config"]
    assert [finding.level for finding in found] == [Level.PROBLEM] and f"chmod go-w {path}" in found[0].remedy
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(StorageError, match="Others may write in"):
        read_places(str(path))
    tmp_path.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with pytest.raises(StorageError, match="belongs to"):
            read_places(str(path))
    path.unlink()
    with pytest.raises(StorageError, match=r"replica.toml can't be read: No such file"):
        read_places(str(path))


def test_a_record_that_is_damaged_or_gone_is_told(tmp_path: Path) -> None:
    files, state = RealFileSystem(), str(tmp_path)
    assert read_kept(files, state, VM) is None
    keep(files, state, record("/g.raw"))
    path = Path(kept_path(state, VM))
    plain = path.read_bytes()
    other, later = plain.replace(VM.hex().encode(), b"7" * 32), plain.replace(b'"version":1', b'"version":2')
    for wrong in (plain[:-1], other, later):
        path.write_bytes(wrong)
        with pytest.raises(StoreDamagedError, match="can't be used") as damaged:
            read_kept(files, state, VM)
        assert f"mv {path}" in damaged.value.remedy
    drop(files, state, VM)
    drop(files, state, VM)
    assert read_kept(files, state, VM) is None
