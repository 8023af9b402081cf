"""In folders that another user can change nothing is reached through a link, whatever he puts where meanwhile (T8)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.cli.bundle import Bundle
from shared.errors import StorageError, UnreachableError
from shared.nbd.server import NbdServer
from shared.ports import Address, beneath
from shared.ports.beneath import by_descriptor, opened_entry, parent_of
from shared.ports.file_system import RealFileSystem
from shared.ports.launcher import DetachedLauncher
from shared.ports.network import RealNetwork

NOBODY, OTHER = 65534, 12345
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")


class Host:
    """A storage location of the replica agent's user with a VM's copy, and a folder of root's with the same names."""

    def __init__(self, folder: Path) -> None:
        self.store, self.roots = folder / "store", folder / "roots"
        self.copy, self.tap, self.disk = self.store / "vm", self.store / "vm/tap", self.store / "vm/disk-0.raw"
        for path, text in ((self.copy, "his"), (self.roots, "root's")):
            (path / "tap/log").mkdir(parents=True)
            for name in ("disk-0.raw", "tap/tap.json", "tap/log/1.hrl"):
                (path / name).write_text(text)
        for path in (self.store, self.copy, self.tap, self.disk):
            os.chown(path, NOBODY, NOBODY)

    def swap(self, path: Path) -> None:
        """He puts a link to what is root's in the place of the folder."""
        path.rename(self.store / "aside")
        path.symlink_to(self.roots / path.relative_to(self.copy))
        os.lchown(path, NOBODY, NOBODY)

    def content(self) -> dict[str, str]:
        """Of root's folder."""
        return {str(path): path.read_text() if path.is_file() else "" for path in self.roots.rglob("*")}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture(params=["agent", "tap"])
def files(request: pytest.FixtureRequest, host: Host) -> RealFileSystem:
    """Of root's agent, which knows that the VM lodges there, and of root's tap in that folder."""
    if request.param == "tap":
        return RealFileSystem(disks_of=NOBODY)
    found = RealFileSystem()
    found.lodge(str(host.copy))
    return found


def read(files: RealFileSystem, path: Path, *, disk: bool = False) -> bytes:
    file = files.open_disk(str(path)) if disk else files.open(str(path))
    try:
        return file.read(0, 100)
    finally:
        file.close()


USES: dict[str, Callable[[RealFileSystem, Host], Any]] = {
    "disk": lambda files, host: files.open_disk(str(host.disk)),
    "disk to write": lambda files, host: files.open_disk(str(host.disk), write=True),
    "file": lambda files, host: files.open(str(host.tap / "tap.json")),
    "new file": lambda files, host: files.open(str(host.tap / "new"), write=True, create=True),
    "list": lambda files, host: files.list(str(host.tap / "log")),
    "new folder": lambda files, host: files.make_folder(str(host.tap / "new"), inherited=True),
    "rename from": lambda files, host: files.rename(str(host.tap / "tap.json"), str(host.store / "x")),
    "rename to": lambda files, host: files.rename(str(host.store / "x"), str(host.tap / "x")),
    "remove": lambda files, host: files.remove(str(host.tap / "tap.json")),
    "remove tree": lambda files, host: files.remove_tree(str(host.tap / "log")),
    "sync": lambda files, host: files.sync_folder(str(host.tap / "log")),
    "allocated": lambda files, host: files.allocated(str(host.tap / "tap.json")),
    "exists": lambda files, host: files.exists(str(host.tap / "tap.json")),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_folder_that_became_a_link_leads_nowhere(files: RealFileSystem, host: Host, use: Callable[..., Any]) -> None:
    if use in (USES["rename from"], USES["rename to"]):
        # So that nothing but the link keeps it from being done.
        files.lodge(str(host.store))
        (host.store / "x").touch()
    before = host.content()
    host.swap(host.copy)
    with pytest.raises(StorageError, match=r"/vm is a symbolic link, and somebody else may change that folder"):
        use(files, host)
    assert host.content() == before


@pytest.mark.parametrize("moment", ["before", "while"])
@pytest.mark.parametrize("disk", [False, True])
def test_folder_that_is_replaced_while_it_is_used(
    files: RealFileSystem, host: Host, monkeypatch: pytest.MonkeyPatch, moment: str, disk: bool
) -> None:
    """Whenever he does it, it is his own file that is opened, or none."""
    path = host.disk if disk else host.tap / "tap.json"
    step = beneath._Walk.go

    def go(walk: Any, above: str) -> None:
        if moment == "before":
            host.swap(host.copy)
        step(walk, above)
        if moment == "while":
            host.swap(host.copy)

    monkeypatch.setattr(beneath._Walk, "go", go)
    if moment == "while":
        assert read(files, path, disk=disk) == b"his"
    else:
        with pytest.raises(StorageError, match="is a symbolic link"):
            read(files, path, disk=disk)


def test_only_his_files_are_his_disks(files: RealFileSystem, host: Host) -> None:
    """By another name, moved there, or a device: what root serves or reads of that folder is his."""
    assert read(files, host.disk, disk=True) == b"his"
    host.disk.unlink()
    os.link(host.roots / "disk-0.raw", host.disk)
    with pytest.raises(StorageError, match="belongs to root, and the folder of its tap to nobody"):
        read(files, host.disk, disk=True)
    host.disk.unlink()
    os.mknod(host.disk, 0o600 | 0o060000, os.makedev(7, 0))
    with pytest.raises(StorageError, match="a block device, not a regular file"):
        read(files, host.disk, disk=True)
    host.disk.unlink()
    host.disk.symlink_to(host.roots / "disk-0.raw")
    with pytest.raises(StorageError, match="a symbolic link, not a regular file"):
        read(files, host.disk, disk=True)


def test_everything_works_there_as_elsewhere(files: RealFileSystem, host: Host) -> None:
    tap = str(host.tap)
    assert read(files, host.tap / "tap.json") == b"his" and files.exists(f"{tap}/tap.json")
    assert files.list(f"{tap}/log") == ["1.hrl"] and files.list(f"{tap}/none") == []
    files.make_folder(f"{tap}/a/b/c", inherited=True)
    files.make_folder(f"{tap}/a/b/c", inherited=True)
    file = files.open(f"{tap}/a/b/new", write=True, create=True, exclusive=True)
    file.write(0, b"x" * 5000)
    file.close()
    assert files.allocated(f"{tap}/a/b/new") >= 5000 and files.allocated(f"{tap}/a/b/none") == 0
    files.rename(f"{tap}/a/b/new", f"{tap}/a/old")
    files.sync_folder(f"{tap}/a")
    assert files.list(f"{tap}/a") == ["b", "old"]
    files.remove(f"{tap}/a/old")
    files.remove(f"{tap}/a/old")
    files.remove_tree(f"{tap}/a")
    files.remove_tree(f"{tap}/a")
    assert not files.exists(f"{tap}/a")
    with pytest.raises(FileNotFoundError) as missing:
        files.open(f"{tap}/none/x")
    assert missing.value.filename == f"{tap}/none/x"


def test_links_of_an_administrators_are_followed_as_before(host: Host, tmp_path: Path) -> None:
    """Before the first folder of his, and wherever no VM lodges: there also those of other users."""
    (tmp_path / "srv").symlink_to("roots/../store")
    (tmp_path / "absolute").symlink_to(tmp_path / "srv")
    files = RealFileSystem()
    files.lodge(f"{tmp_path}/absolute/vm")
    assert read(files, tmp_path / "absolute/vm/disk-0.raw", disk=True) == b"his"
    (host.store / "images").symlink_to(host.roots)
    os.lchown(host.store / "images", NOBODY, NOBODY)
    assert read(files, host.store / "images/disk-0.raw", disk=True) == b"root's"


@pytest.mark.parametrize(("owner", "mode", "followed"), [(0, 0o755, True), (0, 0o1777, True), (0, 0o775, False),
                                                         (OTHER, 0o755, False)])  # fmt: skip
def test_which_folders_are_somebody_elses(tmp_path: Path, owner: int, mode: int, followed: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    if followed:
        with parent_of(f"{folder}/link/file") as place:
            assert not place.is_others and place.host is None
    else:
        with pytest.raises(StorageError, match="link is a symbolic link"), parent_of(f"{folder}/link/file"):
            pass
    # Of one user only: whoever else owns a folder may have links there.
    with parent_of(f"{folder}/link/file", of=NOBODY) as place:
        assert not place.is_others


def test_link_of_another_user_in_a_folder_for_all_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "link").symlink_to(tmp_path)
    os.lchown(folder / "link", OTHER, OTHER)
    with pytest.raises(StorageError, match="link is a symbolic link"), parent_of(f"{folder}/link/file"):
        pass


def test_way_out_of_his_folder_is_none(host: Host) -> None:
    for path in (f"{host.copy}/../file", f"{host.copy}/.."):
        with pytest.raises(StorageError, match=r"\.\. leads out of a folder"), parent_of(path):
            pass


def test_links_without_an_end_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"), parent_of(f"{tmp_path}/a/x"):
        pass


def test_no_descriptor_stays_open(host: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (host.disk, host.copy / "none/x", host.disk / "x", Path("/"), Path("/x")):
        for _ in range(3):
            try:
                with parent_of(str(path)) as place, opened_entry(place) as entry:
                    assert os.path.lexists(by_descriptor(entry))
            except OSError:
                pass
    assert len(os.listdir("/proc/self/fd")) == before


# --- sockets -------------------------------------------------------------------------------------------------------


async def test_sockets_are_made_and_removed_in_that_folder_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """He swaps the folder right behind the making: what root gives rights to, and removes, is not another VM's."""
    other = host.roots / "nbd.sock"
    held = socket.socket(socket.AF_UNIX)
    with held:
        held.bind(str(other))
        other.chmod(0o600)
        bind = socket.socket.bind

        class Swapping(socket.socket):
            def bind(self, address: Any) -> None:
                bind(self, address)
                host.swap(host.copy)

        path = str(host.copy / "nbd.sock")
        monkeypatch.setattr(socket, "socket", Swapping)
        server = NbdServer({})  # type: ignore[arg-type]
        before = host.roots.stat().st_mode
        with pytest.raises(StorageError, match="is a symbolic link"):
            await server.start_unix(path, group="nogroup")
        assert host.roots.stat().st_mode == before and other.stat().st_mode & 0o777 == 0o600
        assert other.stat().st_gid == 0
        await server.close()


async def test_nobody_is_led_to_another_socket(host: Host) -> None:
    """By a link in the place of the socket, or of its folder."""
    network, path = RealNetwork(), host.copy / "control.sock"
    there: asyncio.Queue[Any] = asyncio.Queue()
    listener = await network.listen(Address(unix_path=str(host.roots / "control.sock")), there.put_nowait)
    path.symlink_to(host.roots / "control.sock")
    with pytest.raises(UnreachableError):
        await network.connect(Address(unix_path=str(path)), timeout=5)
    path.unlink()
    own = await network.listen(Address(unix_path=str(path)), there.put_nowait)
    link = await network.connect(Address(unix_path=str(path)), timeout=5)
    for end in (link, await there.get()):
        end.abort()
    host.swap(host.copy)
    with pytest.raises(UnreachableError, match="is a symbolic link"):
        await network.connect(Address(unix_path=str(path)), timeout=5)
    await own.close()
    await listener.close()
    assert there.empty() and not (host.roots / "control.sock").exists() and (host.store / "aside/control.sock").exists()


def test_output_of_a_tap_is_written_nowhere_else(host: Host) -> None:
    (host.roots / "tap/tap.out").write_text("root's")
    host.swap(host.copy)
    with pytest.raises(StorageError, match="is a symbolic link"):
        asyncio.run(DetachedLauncher(program=["/bin/true"]).start(str(host.tap)))
    assert (host.roots / "tap/tap.out").read_text() == "root's"


def test_bundle_has_no_file_that_is_not_of_that_folder(host: Host) -> None:
    """The whole of root's files would go to whom the bundle is sent."""
    path, bundle = host.tap / "tap.out", Bundle()
    path.write_text("said")
    bundle.add_output("a", path)
    path.unlink()
    path.symlink_to(host.roots / "disk-0.raw")
    bundle.add_output("b", path)
    host.swap(host.copy)
    (host.roots / "tap/tap.out").write_text("root's")
    bundle.add_output("c", path)
    assert bundle.files == {"a": b"said"} and sorted(bundle.missing) == ["b", "c"]
