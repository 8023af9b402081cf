"""A VM's folder at the primary is deleted at once: what an interrupted deletion leaves is nobody's."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from primary_agent.enabling import prepare_tap
from primary_agent.record import TapPlace
from primary_agent.vm_folders import forget, is_barely_begun, is_remains, is_vm_folder
from shared.errors import StorageError
from shared.ports.file_system import RealFileSystem
from shared.tap_config import TapConfig, TapDisk


class Killed(Exception):
    """The agent was."""


class Dying(RealFileSystem):
    """The agent is killed when it begins to delete what is in a folder."""

    def remove_tree(self, path: str) -> None:
        if os.path.exists(path):
            raise Killed
        super().remove_tree(path)


def test_half_of_a_vm_is_never_there(tmp_path: Path) -> None:
    name = str(uuid.UUID(int=7))
    (tmp_path / name / "tap" / "log").mkdir(parents=True)
    (tmp_path / name / "state.db").write_bytes(b"state")
    with pytest.raises(Killed):
        forget(Dying(), str(tmp_path / name), str(tmp_path / "run"), None)
    (left,) = os.listdir(tmp_path)
    assert is_remains(left) and not is_vm_folder(left)
    assert (tmp_path / left / "state.db").exists()
    # The order given again, with the VM taken over once more meanwhile.
    (tmp_path / name).mkdir()
    forget(RealFileSystem(), str(tmp_path / name), str(tmp_path / "run"), None)
    assert os.listdir(tmp_path) == []


def test_only_what_was_barely_begun_counts_for_nothing(tmp_path: Path) -> None:
    files = RealFileSystem()
    assert is_barely_begun(files, str(tmp_path))
    (tmp_path / "state.db").touch()
    (tmp_path / "reverse.map").touch()
    assert is_barely_begun(files, str(tmp_path))
    (tmp_path / "tap").mkdir()
    assert not is_barely_begun(files, str(tmp_path))


def test_sockets_of_another_vm_are_not_deleted(tmp_path: Path) -> None:
    """The folder is the replica agent's user's, who may put a link to another VM's in its place (T8)."""
    name, other, place = str(uuid.UUID(int=7)), tmp_path / "primary" / "other", tmp_path / "replica" / "this"
    other.mkdir(parents=True)
    (other / "nbd.sock").touch()
    place.parent.mkdir()
    place.symlink_to(other)
    files, folders = RealFileSystem(), (str(tmp_path / name), str(tmp_path / "run"))
    found = TapPlace(folder="/x", runtime_folder=str(place))
    with pytest.raises(StorageError, match="a symbolic link, not a folder"):
        forget(files, *folders, found)
    assert (other / "nbd.sock").exists()
    place.unlink()
    place.mkdir()
    (place / "nbd.sock").touch()
    forget(files, *folders, found)
    assert not place.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")
def test_where_a_tap_lodges_no_link_is_followed_any_more(tmp_path: Path) -> None:
    """From the loading of the VM on, whoever opens its disks (T8)."""
    name, nobody = str(uuid.UUID(int=7)), 65534
    copy, sockets, roots = tmp_path / "store" / name, tmp_path / "run" / name, tmp_path / "roots"
    roots.mkdir()
    for path in (copy, sockets):
        path.mkdir(parents=True)
        for each in (path.parent, path):
            os.chown(each, nobody, nobody)
    (roots / "disk-0.raw").write_bytes(bytes(4096))
    files, place = RealFileSystem(), TapPlace(folder=f"{copy}/tap", runtime_folder=str(sockets))
    config = TapConfig(
        vm=name, name="web", log_folder=f"{copy}/tap/log", nbd_socket=f"{sockets}/nbd.sock",
        control_socket=f"{sockets}/control.sock",
        disks=[TapDisk(index=0, uuid="61" * 16, path=f"{copy}/disk-0.raw", size=4096, export="disk0")],
    )  # fmt: skip
    prepare_tap(files, config, place)
    for folder in (copy, sockets):
        folder.rename(folder.parent / "aside")
        folder.symlink_to(roots)
    with pytest.raises(StorageError, match="is a symbolic link"):
        files.open_disk(f"{copy}/disk-0.raw")
    with pytest.raises(StorageError, match="is a symbolic link"):
        files.list(f"{sockets}/x")
