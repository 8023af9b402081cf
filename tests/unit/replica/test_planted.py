"""Row A15: what others put into a store is refused by name, and the other VMs go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from replica_agent.layout import vm_folder
from shared.errors import StorageError
from shared.ports.store import STATE_FILE, SqliteStores
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import World
from tests.unit.replica.test_sessions import replicating

OTHER = bytes(range(50, 66))


def _link(path: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(mode=0o700)
    path.symlink_to(elsewhere)


def _fifo(path: Path, _elsewhere: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, _elsewhere: Path) -> None:
    # The path of a socket has to be short.
    here = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as planted:
            planted.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def _writable(path: Path, _elsewhere: Path) -> None:
    path.mkdir()
    (path / "something").touch()
    path.chmod(0o777)


def _foreign(path: Path, _elsewhere: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("changing the owner needs root")
    path.mkdir(mode=0o700)
    (path / "something").touch()
    os.chown(path, 65534, 65534)


PLANTED: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "link": (_link, "is a symbolic link, not a folder"),
    "fifo": (_fifo, "is a FIFO, not a folder"),
    "socket": (_socket, "is a socket, not a folder"),
    "writable by all": (_writable, "Others may write in"),
    "of another user": (_foreign, "belongs to nobody"),
}


@pytest.mark.parametrize("kind", PLANTED)
async def test_planted_vm_is_named_and_left_alone(world: World, tmp_path: Path, kind: str) -> None:
    async with replicating(world):
        pass
    plant, words = PLANTED[kind]
    path = Path(vm_folder(str(world.storage), OTHER))
    elsewhere = tmp_path / "elsewhere"
    plant(path, elsewhere)
    async with asyncio.timeout(60), world.agent() as agent:
        assert VM in agent.vms
        assert words in agent.damaged[OTHER].error.text
        assert str(path) in agent.damaged[OTHER].error.text
        assert agent.damaged[OTHER].error.remedy
    assert os.path.lexists(path)
    assert not elsewhere.exists() or list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["state.db", "spool", "disk-0.raw"])
async def test_part_of_a_vm_behind_a_link_is_refused(world: World, tmp_path: Path, name: str) -> None:
    async with replicating(world):
        pass
    folder = Path(vm_folder(str(world.storage), VM))
    real = tmp_path / "moved"
    shutil.move(folder / name, real)
    (folder / name).symlink_to(real)
    before = real.stat()
    async with asyncio.timeout(60), world.agent() as agent:
        vm = agent.vms.get(VM)
        error = vm.failure if vm is not None else agent.damaged[VM].error
        assert error is not None
        assert name in error.text
    after = real.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


async def test_storage_that_others_may_write_in_keeps_the_agent_from_starting(world: World) -> None:
    """A21: at the start, with the path."""
    world.storage.mkdir(mode=0o700)
    world.storage.chmod(0o770)
    with pytest.raises(StorageError, match=f"Others may write in {world.storage}"):
        async with world.agent():
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")
async def test_state_of_another_user_is_refused(world: World) -> None:
    async with replicating(world):
        pass
    folder = vm_folder(str(world.storage), VM)
    os.chown(f"{folder}/{STATE_FILE}", 65534, 65534)
    stores = SqliteStores(world.stores._clock)
    try:
        with pytest.raises(StorageError, match=f"{STATE_FILE} belongs to nobody"):
            await stores.open(folder)
    finally:
        await stores.close()
