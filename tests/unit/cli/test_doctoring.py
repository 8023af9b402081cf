"""What the doctor says where something is wrong: each thing broken by itself, and its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from shared.cli import doctoring
from shared.cli.agents import Agent
from shared.cli.doctoring import vm_findings
from shared.cli.findings import Finding, Level
from shared.health import assess
from shared.status import DiskStatus, VmStatus
from tests.unit.cli.samples import healthy

SIZE = 1 << 20


class Unasked:
    """An agent that is asked nothing more than what its status told."""

    def call(self, method: str, params: object = None, timeout: object = None) -> Any:
        raise AssertionError(f"{method} was asked")


def vm(tmp_path: Path, **changes: Any) -> VmStatus:
    """One whose disk is a file of its size, and whose replica is not looked for."""
    path = tmp_path / "web.raw"
    path.write_bytes(bytes(SIZE))
    disk = DiskStatus(index=0, uuid="0" * 32, size_bytes=SIZE, path=str(path), export="disk0")
    return healthy(**{"disks": [disk], "settings": {}, "folder": str(tmp_path), **changes})


def found(status: VmStatus, level: Level, agent: object = None) -> list[Finding]:
    agent = cast(Agent, agent or Unasked())
    return [each for each in vm_findings(agent, status, {}) if each.level is level]


def about(findings: list[Finding], subject: str) -> Finding:
    (finding,) = [each for each in findings if each.subject == subject]
    return finding


def test_name_that_nobody_resolves(tmp_path: Path) -> None:
    """RFC 6761: nothing has a name below .invalid. Nothing more is tried then, and each VM there is told so."""
    there = {"replica": "no-such-host.invalid:7443"}
    tested: dict[str, list[Finding]] = {}
    agent = cast(Agent, Unasked())
    first = [each for each in vm_findings(agent, vm(tmp_path, settings=there), tested) if each.level is Level.PROBLEM]
    finding = about(first, "way to no-such-host.invalid:7443")
    assert finding.text.startswith("no-such-host.invalid can't be resolved: ")
    assert "/etc/hosts" in finding.remedy
    second = [*vm_findings(agent, vm(tmp_path, settings=there, name="db"), tested)]
    assert any(each.subject == "db" and "can't be reached, as told above" in each.text for each in second)


@pytest.mark.parametrize("difference, level, words", [
    (2.5, Level.WARNING, "2.500 s ahead"), (-2.5, Level.WARNING, "2.500 s behind"), (1.9, Level.OK, "1.900 s ahead"),
])  # fmt: skip
def test_clock_that_is_off(difference: float, level: Level, words: str, tmp_path: Path) -> None:
    status = vm(tmp_path, settings={"replica": "beta:7443"})
    status.link = msgspec.structs.replace(status.link, clock_difference_seconds=difference)
    tested = {"beta:7443": [Finding("way to beta:7443", Level.OK, "as before")]}
    findings = [*vm_findings(cast(Agent, Unasked()), status, tested)]
    (clock,) = [each for each in findings if "clock_difference_seconds" in each.evidence]
    assert (clock.level, clock.text) == (level, f"The clock of beta:7443 is {words}.")
    assert ("time service" in clock.remedy) == (level is Level.WARNING)


def test_volume_without_room_for_the_log(tmp_path: Path) -> None:
    status = vm(tmp_path)
    assert status.tap is not None
    assert [each for each in found(status, Level.WARNING) if each.subject == "web: room"] == []
    status.tap = msgspec.structs.replace(status.tap, log_limit_bytes=1 << 60, log_used_bytes=1 << 20)
    room = about(found(status, Level.WARNING), "web: room")
    assert "the log may still need up to its limit" in room.text
    assert room.evidence["needed_bytes"] == (1 << 60) - (1 << 20) > room.evidence["free_bytes"]
    assert "log-limit" in room.remedy


def test_volume_without_room_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctoring, "LOG_ROOM_BYTES", 1 << 60)
    room = about(found(vm(tmp_path, role="replica", tap=None), Level.WARNING), "web: room")
    assert "is little for a copy" in room.text


# --- disks


@contextmanager
def holding(path: str) -> Iterator[int]:
    """A process that has the disk open for writing, as its tap does."""
    code = f"import sys; f = open({path!r}, 'r+b'); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        yield process.pid
    finally:
        process.communicate()


def test_disk_in_whose_place_another_file_is(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to see all processes")
    status = vm(tmp_path)
    (disk,) = status.disks
    with holding(disk.path) as pid:
        assert status.tap is not None
        status.tap = msgspec.structs.replace(status.tap, pid=pid)
        assert found(status, Level.PROBLEM) == []
        other = tmp_path / "other.raw"
        other.write_bytes(bytes(SIZE))
        other.replace(disk.path)
        problem = about(found(status, Level.PROBLEM), "web: attachment")
    assert f"does not have {disk.path} open: another file has taken its place" in problem.text
    assert "before the tap is stopped" in problem.remedy


def test_disk_that_is_gone_or_no_disk(tmp_path: Path) -> None:
    status = vm(tmp_path)
    path = Path(status.disks[0].path)
    path.unlink()
    assert about(found(status, Level.PROBLEM), "web: disk 0").text == f"{path}: No such file or directory."
    path.mkdir()
    assert "neither a file nor a block device" in about(found(status, Level.PROBLEM), "web: disk 0").text


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE])
def test_file_of_another_size_has_the_way_out_that_the_status_has(size: int, tmp_path: Path) -> None:
    status = vm(tmp_path)
    os.truncate(status.disks[0].path, size)
    problem = about(found(status, Level.PROBLEM), "web: disk 0")
    status.disks[0].found_size_bytes = size
    assert (problem.text, problem.remedy) in [(text, remedy) for _, text, remedy in assess(status, 0.0).reasons]
    if size > SIZE:
        assert "shut the VM down and run `vmreplica resize web`" in problem.remedy


def test_block_device_of_another_size_is_resized_as_one(tmp_path: Path) -> None:
    status = vm(tmp_path)
    # A device that is there on every host, in the place of one that a VM has.
    device = next((path for path in map(str, Path("/dev").iterdir()) if Path(path).is_block_device()), "")
    if not device:
        pytest.skip("needs a block device's node to look at")
    (disk,) = status.disks
    disk.path, disk.block_device, disk.found_size_bytes = device, True, 2 * SIZE
    problem = about(found(status, Level.PROBLEM), "web: disk 0")
    assert "run `vmreplica disk resize web 0`" in problem.remedy and "truncate" not in problem.remedy
    disk.found_size_bytes = None
    assert [each for each in found(status, Level.PROBLEM) if each.subject == "web: disk 0"] == []
