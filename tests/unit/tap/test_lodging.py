"""A root's tap in a folder of another user's serves that user's own disks, and makes nothing elsewhere (T8)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from primary_agent.tap.lodging import judge
from shared.errors import ForbiddenError, StorageError
from shared.ports.file_system import RealFileSystem
from shared.ports.ownership import host_of
from shared.tap_config import TapConfig, TapDisk, TapLayer, encode_config

UUID = "00010203-0405-0607-0809-0a0b0c0d0e0f"
FOLDER, SOCKETS = f"/srv/store/{UUID}/tap", f"/run/replica/{UUID}"
NOBODY = 65534


def config(**other: Any) -> TapConfig:
    told: dict[str, Any] = {
        "vm": UUID, "name": "web", "log_folder": f"{FOLDER}/log", "nbd_socket": f"{SOCKETS}/nbd.sock",
        "control_socket": f"{SOCKETS}/control.sock",
        "disks": [TapDisk(index=0, uuid="61" * 16, path="/srv/x.raw", size=4096, export="disk0")],
    }  # fmt: skip
    return TapConfig(**(told | other))


def test_what_the_agents_write_is_followed() -> None:
    judge(config(), FOLDER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log_folder", "/var/lib/libvirt/images"),
        ("log_folder", f"{FOLDER}/log/.."),
        ("nbd_socket", "/run/primary/other/nbd.sock"),
        ("control_socket", f"/run/replica/other/../{UUID}/control.sock"),
        ("control_socket", "/run/replica/other/control.sock"),
        ("control_socket", f"/run/replica/{UUID}/other.sock"),
        ("nbd_tcp", "127.0.0.1:1"),
        ("vm", "10010203-0405-0607-0809-0a0b0c0d0e0f"),
        ("layers", [TapLayer(path="/etc/shadow", length=1, chain="0" * 32)]),
    ],
)
def test_what_leads_elsewhere_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ForbiddenError, match="The tap's configuration in .* is refused") as refused:
        judge(config(**{field: value}), FOLDER)
    # Of another VM's the first thing that does not fit are its sockets.
    assert f"its {'control_socket' if field == 'vm' else field} is" in refused.value.text


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")
@pytest.mark.parametrize("write", [False, True])
def test_only_that_users_files_are_opened_as_disks(tmp_path: Path, write: bool) -> None:
    """Neither a file of somebody else's, by whatever name, nor a device: they are not his."""
    own, other, link = tmp_path / "own.raw", tmp_path / "other.raw", tmp_path / "link.raw"
    for path in (own, other):
        path.touch()
    os.chown(own, NOBODY, NOBODY)
    files = RealFileSystem(disks_of=NOBODY)
    files.open_disk(str(own), write=write).close()
    os.link(other, link)
    for path in (other, link):
        with pytest.raises(StorageError, match="only a file of that user is its disk") as refused:
            files.open_disk(str(path), write=write)
        assert refused.value.code == "foreign_owner"
    with pytest.raises(StorageError, match="a character device, not a regular file"):
        files.open_disk("/dev/null", write=write)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")
def test_roots_tap_in_that_users_folder_refuses_a_disk_of_roots(tmp_path: Path) -> None:
    """The program itself: what the folder's user writes into the configuration gets him nothing."""
    folder = tmp_path / UUID / "tap"
    folder.mkdir(parents=True)
    disk = tmp_path / "roots.raw"
    disk.write_bytes(bytes(4096))
    served = [TapDisk(index=0, uuid="61" * 16, path=str(disk), size=4096, export="disk0")]
    sockets = tmp_path / "run" / UUID
    sockets.mkdir(parents=True)
    (folder / "tap.json").write_bytes(
        encode_config(
            config(
                log_folder=f"{folder}/log", disks=served, nbd_socket=f"{sockets}/nbd.sock",
                control_socket=f"{sockets}/control.sock",
            )
        )
    )  # fmt: skip
    for path in (folder.parent, folder, folder / "tap.json"):
        os.chown(path, NOBODY, NOBODY)
    ran = subprocess.run(
        [sys.executable, "-m", "primary_agent.tap.main", str(folder)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3], timeout=60,
    )  # fmt: skip
    assert ran.returncode == StorageError.exit_code and "only a file of that user is its disk" in ran.stderr
    assert not list(sockets.iterdir()) and disk.read_bytes() == bytes(4096)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")
@pytest.mark.parametrize("what", ["tap", "vm"])
def test_that_user_cannot_have_his_folder_taken_for_roots(tmp_path: Path, what: str) -> None:
    """He puts a link to a folder of root's in its place while the tap starts, and his own back before it reads."""
    store, roots = tmp_path / "store", tmp_path / "roots" / UUID / "tap"
    folder = store / UUID / "tap"
    for path in (folder, roots):
        path.mkdir(parents=True)
    for path in (store, folder.parent, folder):
        os.chown(path, NOBODY, NOBODY)
    assert host_of(str(folder)) == NOBODY
    place, other = (folder, roots) if what == "tap" else (folder.parent, roots.parent)
    place.rename(tmp_path / "aside")
    place.symlink_to(other)
    assert folder.stat().st_uid == 0
    assert host_of(str(folder)) == NOBODY
    assert host_of(str(roots)) is None and host_of(str(tmp_path / "missing" / "x" / "tap")) is None
