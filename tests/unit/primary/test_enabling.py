"""What enabling a VM refuses, before anything is changed, and what its settings may be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primary_agent.admin import with_settings
from primary_agent.enabling import (
    check_log_room,
    check_sockets,
    disk_size,
    plan_vm,
    split_address,
    tap_config,
    with_settings_of,
)
from primary_agent.record import VmRecord
from shared.admin.verbs import DiskParams, EnableParams
from shared.block_devices import BlockDevicePolicy
from shared.defaults import DEFAULT_PORT
from shared.errors import NoSpaceError, NotFoundError, StorageError, UsageError, VmreplicaError
from shared.ports import Ports
from shared.ports.file_system import RealFileSystem
from shared.ports.real import RealPorts
from shared.schedule import ResyncMode

PORTS: Ports = RealPorts(None, threads=1).ports
UUID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "web.raw"
    path.write_bytes(bytes(4096))
    return str(path)


def params(*disks: str | DiskParams, **fields: Any) -> EnableParams:
    return EnableParams(**({"name": "web", "disks": list(disks), "replica": "b"} | fields))


def test_a_plan_names_everything_and_numbers_the_disks(disk: str, tmp_path: Path) -> None:
    second = tmp_path / "data.raw"
    second.write_bytes(bytes(512))
    wanted = params(disk, DiskParams(path=str(second), export="data"), uuid=UUID, interval_seconds=5.0)
    vm = plan_vm(wanted, [], PORTS)
    assert [(each.index, each.path, each.size, each.export) for each in vm.disks] == [
        (0, disk, 4096, "disk0"),
        (1, str(second), 512, "data"),
    ]
    assert len({each.uuid for each in vm.disks}) == 2
    assert (vm.replica, vm.interval_seconds) == (f"b:{DEFAULT_PORT}", 5.0)
    config = tap_config(vm, "/state/x", "/run/x")
    config.check()
    assert config.vm == UUID
    assert config.disks[1].geometry == vm.disks[1].geometry


def test_without_a_uuid_one_is_made(disk: str) -> None:
    assert plan_vm(params(disk), [], PORTS).vm != plan_vm(params(disk), [], PORTS).vm


def test_names_uuids_and_disks_are_unique(disk: str, tmp_path: Path) -> None:
    taken = plan_vm(params(disk, uuid=UUID), [], PORTS)
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(512))
    for wanted, words in (
        (params(str(other)), "named web"),
        (params(str(other), name="b", uuid=UUID), "UUID"),
        (params(str(other), name=UUID), "replicated already"),
        (params(disk, name="b"), "with the VM web"),
        (params(str(other), str(other), name="b"), "replicated already"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_vm(wanted, [taken], PORTS)


@pytest.mark.parametrize("name", ["a/b", "a\nb", "x" * 129])
def test_a_name_has_to_be_usable(disk: str, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        plan_vm(params(disk, name=name), [], PORTS)


def test_a_uuid_has_to_be_one(disk: str) -> None:
    with pytest.raises(UsageError, match="not a UUID"):
        plan_vm(params(disk, uuid="web"), [], PORTS)


def refusal(path: Path | str) -> VmreplicaError:
    with pytest.raises(VmreplicaError) as refused:
        disk_size(RealFileSystem(), str(path))
    assert str(path) in refused.value.text or repr(str(path)) in refused.value.text
    assert refused.value.remedy
    return refused.value


def test_a_disk_is_a_regular_file_of_whole_sectors_with_an_absolute_path(tmp_path: Path, disk: str) -> None:
    assert disk_size(RealFileSystem(), disk) == 4096
    assert isinstance(refusal("web.raw"), UsageError)
    assert isinstance(refusal(f"{tmp_path}/../web.raw"), UsageError)
    assert isinstance(refusal(tmp_path / "missing"), NotFoundError)
    assert isinstance(refusal(tmp_path), StorageError)
    link = tmp_path / "link"
    link.symlink_to(disk)
    assert isinstance(refusal(link), StorageError)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert isinstance(refusal(pipe), StorageError)
    for size in (0, 511, 513):
        odd = tmp_path / f"odd{size}"
        odd.write_bytes(bytes(size))
        assert f"{size} bytes" in refusal(odd).text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("b", ("b", DEFAULT_PORT)),
        ("b:7000", ("b", 7000)),
        ("[::1]:7000", ("::1", 7000)),
        ("[::1]", ("::1", DEFAULT_PORT)),
        ("::1", ("::1", DEFAULT_PORT)),
    ],
)
def test_addresses_of_replicas(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["", ":7000", "b:", "b:0", "b:65536", "b:x", "[]:1", "b:٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_address(text)


def test_a_volume_without_room_for_the_log_is_refused_with_the_missing_bytes(disk: str, tmp_path: Path) -> None:
    vm = plan_vm(params(disk, log_limit_bytes=1 << 60), [], PORTS)
    with pytest.raises(NoSpaceError, match="bytes too few") as refused:
        check_log_room(tap_config(vm, str(tmp_path), "/run/x"), PORTS, str(tmp_path))
    assert "--log-limit" in refused.value.remedy


def test_sockets_with_too_long_paths_are_refused(disk: str) -> None:
    vm = plan_vm(params(disk), [], PORTS)
    check_sockets(tap_config(vm, "/state", "/run/x"))
    with pytest.raises(UsageError, match="runtime_dir"):
        check_sockets(tap_config(vm, "/state", "/run/" + "x" * 100))


@pytest.fixture
def vm(disk: str) -> VmRecord:
    return plan_vm(params(disk), [], PORTS)


def test_settings_are_taken_over_one_by_one(vm: VmRecord) -> None:
    changed = with_settings(vm, {"interval_seconds": 5, "replica": "c:1", "resync_mode": "automatic"})
    assert (changed.interval_seconds, changed.replica, changed.resync_mode) == (5.0, "c:1", ResyncMode.AUTOMATIC)
    same = msgspec.structs.replace(
        changed,
        interval_seconds=vm.interval_seconds,
        replica_host=vm.replica_host,
        replica_port=vm.replica_port,
        resync_mode=None,
    )
    assert same == vm
    assert with_settings(changed, {"resync_mode": None}).resync_mode is None
    assert with_settings(vm, {"log_limit_bytes": 1 << 30}).log_limit_bytes == 1 << 30


def test_settings_reach_the_taps_configuration(vm: VmRecord) -> None:
    default = tap_config(vm, "/state/x", "/run/x")
    assert (default.hot_region_bytes, default.hot_regions) == (4 << 20, 4096)
    assert default.block_device_policy is BlockDevicePolicy.COMPARE
    given = {"hot_region_bytes": 1 << 20, "hot_regions": 8192, "block_device_policy": "trust"}
    config = with_settings_of(default, with_settings(vm, given))
    config.check()
    assert (config.hot_region_bytes, config.hot_regions) == (1 << 20, 8192)
    assert config.block_device_policy is BlockDevicePolicy.TRUST
    assert config == tap_config(with_settings(vm, given), "/state/x", "/run/x")
    with pytest.raises(UsageError, match="too few"):
        with_settings_of(default, with_settings(vm, {"hot_region_bytes": 1 << 20})).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"interval_seconds": 0.5},
        {"interval_seconds": "30"},
        {"log_limit_bytes": 100},
        {"resync_mode": "sometimes"},
        {"resync_window": "18:30"},
        {"resync_window_end": "6"},
        {"resync_past_window": True},
        {"colour": "blue"},
        {"hot_region_bytes": 1 << 27},
        {"hot_regions": 0},
        {"block_device_policy": "hope"},
        {"replica": "b:x"},
        {"replica": ""},
    ],
)
def test_settings_that_are_not_valid_are_refused(vm: VmRecord, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        with_settings(vm, settings)


@pytest.mark.parametrize("identity", ["../../etc", "a\0b", "x" * 4096, "\u0444" * 36])
def test_identity_that_is_no_uuid_is_refused(disk: str, identity: str) -> None:
    """A14: a VM's folder is named by it."""
    with pytest.raises(UsageError, match="UUID"):
        plan_vm(params(disk, uuid=identity), [], PORTS)
