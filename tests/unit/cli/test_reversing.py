"""The part of ``reverse`` that the command itself does: disks change their owner, or nothing is changed."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.cli.connection import Connection
from shared.cli.verbs.reversing import _before_reverse, _Here, _judged, _other_agent, _owned, _read
from shared.errors import ForbiddenError, InvalidStateError, StorageError, UnreachableError
from shared.failover_status import PlannedStatus
from shared.handover import HandedDisk, HandOver
from shared.status import VmStatus
from tests.unit.cli.samples import healthy, replica

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.raw" for number in range(2)]
    for path in paths:
        path.touch()
        os.chown(path, 1, 2)
    return paths


def handed(disks: list[Path]) -> HandOver:
    return HandOver(
        id="a" * 32,
        vm="b" * 32,
        name="web",
        to="replica",
        epoch="e" * 32,
        disks=[
            HandedDisk(index=number, uuid=f"{number:032x}", path=str(path), size=512, export=f"disk{number}")
            for number, path in enumerate(disks)
        ],
    )


@pytest.fixture
def target() -> Any:
    """All that is asked of the agent: which user it runs as."""
    return SimpleNamespace(connection=SimpleNamespace(user=NOBODY))


def owners(disks: list[Path]) -> set[tuple[int, int]]:
    return {(path.stat().st_uid, path.stat().st_gid) for path in disks if path.exists()}


def test_disks_are_given_and_given_back(disks: list[Path], target: Any) -> None:
    with _owned(handed(disks), target):
        assert owners(disks) == {(NOBODY, 2)}
    with pytest.raises(InvalidStateError), _owned(handed(disks), target):
        raise InvalidStateError("it does not take them")
    assert owners(disks) == {(NOBODY, 2)}, "they were his already"
    for path in disks:
        os.chown(path, 1, 2)
    with pytest.raises(InvalidStateError), _owned(handed(disks), target):
        raise InvalidStateError("it does not take them")
    assert owners(disks) == {(1, 2)}
    with pytest.raises(UnreachableError), _owned(handed(disks), target):
        raise UnreachableError("it may have taken them")
    assert owners(disks) == {(NOBODY, 2)}


def test_what_cannot_be_given_is_an_error_like_any_other(disks: list[Path], target: Any) -> None:
    """So that the hand-over is taken back, and all owners are what they were."""
    missing = disks[1]
    missing.unlink()
    with pytest.raises(StorageError, match=f"{missing} can't be given") as told, _owned(handed(disks), target):
        pytest.fail("nothing is carried")
    assert owners(disks) == {(1, 2)} and "not handed over" in told.value.remedy


@pytest.mark.parametrize("what", ["link", "link above", "roots"])
def test_no_file_but_the_disk_is_given_away(disks: list[Path], target: Any, tmp_path: Path, what: str) -> None:
    """Where the disk lies in the replica agent's own folder, whoever has its account can put another file there."""
    folder, roots = tmp_path / "copy", tmp_path / "roots.raw"
    roots.write_bytes(b"secret")
    if what == "link above":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
        os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
    else:
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
    disk = folder / "disk-0.raw"
    disk.symlink_to(roots) if what == "link" else os.link(roots, disk)
    with pytest.raises((ForbiddenError, StorageError)) as refused, _owned(handed([disks[0], disk]), target):
        pytest.fail("nothing is carried")
    assert "not handed over" in refused.value.remedy and str(disk) in refused.value.text
    assert (roots.stat().st_uid, owners(disks)) == (0, {(1, 2)})


def test_who_the_agent_is_comes_from_the_kernel(tmp_path: Path) -> None:
    """Not from the socket's file, which whoever owns its folder can replace by one of root's once it is connected."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with Connection(str(path)) as connection:
            path.unlink()
            path.touch()
            os.chown(path, NOBODY, NOBODY)
            assert connection.user == os.geteuid()


VM = "0b" * 16


def told(folder: Path, **other: Any) -> dict[str, Any]:
    """What the replica agent says of the VM that it lets go, but for what is given."""
    disk = {"index": 0, "uuid": "00" * 16, "path": str(folder / "disk-0.raw"), "size": 512, "export": "disk0"}
    return {
        "id": "0a" * 16, "vm": VM, "name": "web", "to": "primary", "epoch": "0e" * 16, "disks": [disk],
        "ranges_path": str(folder / "handover.ranges"), "ranges_bytes": 6, **other,
    }  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """The VM at a replica agent that is another user's, whose file of ranges is there."""
    path = tmp_path / "handover.ranges"
    path.write_bytes(b"ranges")
    os.chown(path, NOBODY, NOBODY)
    agent = SimpleNamespace(connection=SimpleNamespace(user=NOBODY))
    return SimpleNamespace(agent=agent, vm=SimpleNamespace(uuid=VM, name="web", role="replica"))


def agent_of(role: str) -> Any:
    return SimpleNamespace(status=SimpleNamespace(role=role))


def test_root_reads_the_ranges_of_the_vm_that_was_asked_for(source: Any, tmp_path: Path) -> None:
    assert _read(_judged(told(tmp_path), source, agent_of("primary")), source) == b"ranges"


HOSTILE: dict[str, tuple[str, dict[str, Any]]] = {
    "another VM": ("vm", {"vm": "0c" * 16}),
    "another name": ("name", {"name": "db"}),
    "the other way": ("to", {"to": "replica"}),
    "ranges of root's": ("ranges_path", {"ranges_path": "/etc/shadow"}),
    "ranges that are no path": ("ranges_path", {"ranges_path": "handover.ranges"}),
    "more than can be": ("ranges_bytes", {"ranges_bytes": 1 << 40}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_agent_leads_root_nowhere(source: Any, tmp_path: Path, what: str) -> None:
    field, other = HOSTILE[what]
    with pytest.raises(ForbiddenError, match=f"its {field} is ") as refused:
        _judged(told(tmp_path, **other), source, agent_of("primary"))
    assert refused.value.code == "handover_refused" and "Nothing was handed over" in refused.value.remedy


def test_only_roots_agent_gives_disks_away(source: Any, tmp_path: Path) -> None:
    with pytest.raises(ForbiddenError, match="its to is 'replica', but only root's agent gives disks away"):
        _judged(told(tmp_path, to="replica"), source, agent_of("replica"))


@pytest.mark.parametrize("what", ["root's", "link", "folder", "longer"])
def test_what_is_no_file_of_the_agents_is_not_read(source: Any, tmp_path: Path, what: str) -> None:
    path = tmp_path / "handover.ranges"
    if what == "longer":
        path.write_bytes(bytes(7))
    elif what == "root's":
        os.chown(path, 0, 0)
    else:
        path.unlink()
        path.symlink_to("/etc/shadow") if what == "link" else path.mkdir()
    with pytest.raises(ForbiddenError, match="its ranges_path is "):
        _read(_judged(told(tmp_path), source, agent_of("primary")), source)


class Canned:
    """Agents of a host that have the VM in a state, and answer nothing."""

    def __init__(self, *vms: VmStatus) -> None:
        self.vms = vms

    def find(self, name: str) -> list[Any]:
        return [SimpleNamespace(vm=vm) for vm in self.vms]

    def of_role(self, role: str) -> Any:
        raise UnreachableError(f"no {role} agent")


def here(*vms: VmStatus) -> Any:
    agents: Any = Canned(*vms)
    return _Here(agents, "web")


def test_whoever_reverses_too_early_is_told_what_comes_first() -> None:
    assert "`vmreplica failover web --prepare` at the primary" in _before_reverse(here(healthy()))
    assert "failover web` at the replica" in _before_reverse(here(replica()))
    prepared = replica(planned=PlannedStatus(step="prepared", token_sent=True))
    assert _before_reverse(here(prepared)) == "Run `vmreplica failover web` here first: it is prepared."


def test_a_reversal_needs_both_agents_and_says_so() -> None:
    with pytest.raises(UnreachableError, match="goes to the replica agent of this host") as refused:
        _other_agent(here(healthy()), "replica")
    assert "systemctl start vmreplica-replica" in refused.value.remedy
