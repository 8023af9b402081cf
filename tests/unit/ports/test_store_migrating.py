"""Older stores: recorded ones are read, planted steps bring one forward, and a kill at any moment leaves one whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from primary_agent import description as primary_description
from primary_agent.replication import Replication
from primary_agent.tap.state import StateFile
from replica_agent import description as replica_description
from replica_agent.ledger import Ledger
from shared.description import decode as decode_description
from shared.errors import NoSpaceError, StoreDamagedError
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.store import STATE_FILE, SqliteStores
from shared.ports.store_file import StoreFile
from shared.ports.store_migrating import Step, backup_of, open_store
from shared.ports.store_rows import VERSION, decode, encode
from shared.states import ReplicationState
from shared.tap_config import load_config

RECORDED = Path(__file__).parents[2] / "vectors" / "state-1"
ROOT = Path(__file__).parents[3]
OLD, MIDDLE, NEW = VERSION, VERSION + 1, VERSION + 2
RECORDS: dict[str, Any] = {"vm": {"name": "web", "size": 3}, "gone": 1, "kept": [1, 2]}


def rename(records: dict[str, Any]) -> dict[str, Any]:
    """A planted step: a record gets another name, and one goes."""
    return {"machine" if name == "vm" else name: value for name, value in records.items() if name != "gone"}


def in_bytes(records: dict[str, Any]) -> dict[str, Any]:
    """Another: a field gets another unit."""
    machine = records["machine"]
    return records | {"machine": {"name": machine["name"], "size_bytes": machine["size"] << 20}}


STEPS: dict[int, Step] = {OLD: rename, MIDDLE: in_bytes}
FORWARD = {"machine": {"name": "web", "size_bytes": 3 << 20}, "kept": [1, 2]}


def older(folder: Path) -> str:
    """A store of the version before the planted ones, with an event."""
    file = StoreFile(str(folder / STATE_FILE), OLD)
    file.create()
    file.commit({name: encode(value) for name, value in RECORDS.items()}, [encode({"event": 1})], 1.0)
    file.close()
    return file.path


def content(file: StoreFile) -> dict[str, Any]:
    return {name: decode(body) for name, body in file.bodies.items()}


def read(path: str, version: int) -> dict[str, Any]:
    """The records of a store of exactly that version, whose rows are all verified."""
    file = StoreFile(path, version)
    file.open()
    try:
        return content(file)
    finally:
        file.close()


def test_steps_bring_a_store_forward_and_keep_it_as_it_was(tmp_path: Path) -> None:
    path = older(tmp_path)
    file = open_store(path, STEPS, NEW)
    assert content(file) == FORWARD
    file.commit({"kept": encode([3])}, [encode({"event": 2})], 2.0)
    assert [decode(body)["event"] for _, body in file.events(10, 0)] == [1, 2]
    file.close()
    assert read(path, NEW) == FORWARD | {"kept": [3]}
    assert read(backup_of(path, OLD), OLD) == RECORDS
    # The copy is made once: a store that is up to date is not copied again.
    before = os.stat(backup_of(path, OLD))
    open_store(path, STEPS, NEW).close()
    assert os.stat(backup_of(path, OLD)).st_mtime_ns == before.st_mtime_ns


def test_going_back_is_putting_the_copy_in_place(tmp_path: Path) -> None:
    path = older(tmp_path)
    open_store(path, STEPS, NEW).close()
    with pytest.raises(StoreDamagedError, match=f"version {NEW}") as refused:
        open_store(path, {}, OLD)
    assert refused.value.code == "store_newer"
    os.replace(backup_of(path, OLD), path)
    assert read(path, OLD) == RECORDS


def test_no_way_from_a_version_is_told_and_changes_nothing(tmp_path: Path) -> None:
    path = older(tmp_path)
    with pytest.raises(StoreDamagedError, match=f"version {OLD}") as refused:
        open_store(path, {MIDDLE: in_bytes}, NEW)
    assert refused.value.code == "store_older"
    assert read(path, OLD) == RECORDS and os.listdir(tmp_path) == [STATE_FILE]


def test_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = older(tmp_path)
    with pytest.raises(StoreDamagedError, match="KeyError") as refused:
        open_store(path, {OLD: lambda records: {"vm": records["missing"]}}, MIDDLE)
    assert refused.value.code == "store_older" and "Go back" in refused.value.remedy
    assert read(path, OLD) == RECORDS and os.listdir(tmp_path) == [STATE_FILE]


def test_damaged_older_store_is_not_brought_forward(tmp_path: Path) -> None:
    path = older(tmp_path)
    data = bytearray(Path(path).read_bytes())
    place = data.index(b"web")
    data[place] ^= 1
    Path(path).write_bytes(data)
    with pytest.raises(StoreDamagedError, match="damaged"):
        open_store(path, STEPS, NEW)
    assert os.listdir(tmp_path) == [STATE_FILE]


def killed_at(path: str, number: int) -> bool:
    """Bring the store forward in a process that is killed at its so many-th call; False where it came to its end."""
    child = os.fork()
    if child == 0:
        left = number

        def countdown(frame: FrameType, event: str, argument: object) -> None:
            nonlocal left
            left -= event == "call" and "/store_" in frame.f_code.co_filename
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(countdown)
        open_store(path, STEPS, NEW)
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_kill_at_any_call_leaves_the_older_or_the_newer_store_whole(tmp_path: Path) -> None:
    """And the next start goes on from either."""
    moments = {"older": 0, "newer": 0}
    for number in range(0, 500, 4):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = older(folder)
        if not killed_at(path, number):
            break
        try:
            assert read(path, OLD) == RECORDS
            moments["older"] += 1
        except StoreDamagedError:
            assert read(path, NEW) == FORWARD
            moments["newer"] += 1
        file = open_store(path, STEPS, NEW)
        assert content(file) == FORWARD
        file.close()
        assert read(backup_of(path, OLD), OLD) == RECORDS
    else:
        pytest.fail("it never came to its end")
    assert all(moments.values()), moments


def test_no_room_for_the_copy_changes_nothing(tmp_path: Path) -> None:
    path = older(tmp_path)
    script = (
        "import resource, sys; from shared.ports.store_migrating import open_store; from shared.errors import *;"
        "from tests.unit.ports.test_store_migrating import NEW, STEPS; import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: open_store(sys.argv[1], STEPS, NEW)\n"
        "except StorageError as error: print(type(error).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() in (NoSpaceError.__name__, "StorageError")
    assert read(path, OLD) == RECORDS
    assert not os.path.exists(backup_of(path, OLD))


# --- what an older program wrote ------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """What both agents and a tap left of a VM, recorded with the code of 2026-11-27 08:27 UTC (version 1)."""
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    return tmp_path


async def test_recorded_state_of_a_primary_is_read(recorded: Path) -> None:
    (recorded / "primary.state.db").rename(recorded / STATE_FILE)
    stores = SqliteStores(RealClock())
    try:
        replication = Replication(await stores.open(str(recorded)), RealClock())
        assert (replication.vm.name, replication.state) == ("demo", ReplicationState.REPLICATING)
        assert [disk.size for disk in replication.vm.disks] == [2 << 20]
        assert replication.vm.interval_seconds == 1.0
        assert (await replication.store.events(limit=100))[0]["id"] == 1
        # And written as of now: what was added since has its defaults.
        await replication.update(peer_host="gamma")
        assert replication.record.peer_host == "gamma"
    finally:
        await stores.close()


async def test_recorded_state_of_a_replica_is_read(recorded: Path) -> None:
    (recorded / "replica.state.db").rename(recorded / STATE_FILE)
    stores = SqliteStores(RealClock())
    try:
        ledger = Ledger(await stores.open(str(recorded)), RealClock())
        assert (ledger.vm.name, ledger.replication.state) == ("demo", ReplicationState.REPLICATING)
        assert ledger.replication.applied is not None and len(ledger.points.logs) == 3
        async with ledger.transaction() as draft:
            draft.vm.name = "web"
        assert ledger.vm.name == "web"
    finally:
        await stores.close()


def test_recorded_descriptions_are_read() -> None:
    primary = decode_description(
        "primary", (RECORDED / "primary.vm.description").read_bytes(), primary_description.Description
    )
    replica = decode_description(
        "replica", (RECORDED / "replica.vm.description").read_bytes(), replica_description.Description
    )
    assert primary.vm.vm == replica.vm.vm
    assert primary.replication.epoch == replica.epoch


def test_recorded_state_and_configuration_of_a_tap_are_read(recorded: Path) -> None:
    config = load_config(RealFileSystem(), str(recorded))
    assert config.name == "demo" and [disk.size for disk in config.disks] == [2 << 20]
    file, loaded = StateFile.open(RealFileSystem(), str(recorded / "tap.state"))
    try:
        assert loaded.state is not None and loaded.state.epoch is not None
    finally:
        file.close()
