"""A first copy that comes another way than over the link: from a seed, and by courier; real agents, taps and files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from primary_agent.export_waiting import export_text
from replica_agent.import_methods import Imports
from shared.admin.verbs import ImportParams, ImportSeedParams, SeedParams
from shared.courier import MANIFEST_NAME, read_manifest
from shared.errors import InvalidStateError, StorageError
from shared.events import EventId
from shared.import_status import ImportStatus
from shared.states import ReplicationState
from tests.pair.hosts import Hosts
from tests.pair.rig import MIB, Pair


async def imported(pair: Pair, **params: Any) -> ImportStatus:
    """Import, and wait for the end."""
    imports = Imports(pair.replica)
    if "folder" in params:
        status = await imports.start_export(ImportParams(**params))
    else:
        status = await imports.start_seed(ImportSeedParams(vm="web", **params))
    await pair.until("the import", lambda: not status.running)
    return status


def sent_bytes(pair: Pair) -> int:
    run = pair.vm.parts.replication.runs.newest(1)[0]
    return sum(disk.sent_bytes for disk in run.disks)


@pytest.mark.slow
async def test_a_seed_is_compared_and_only_what_differs_is_sent(pair: Pair, tmp_path: Path) -> None:
    await pair.enable(8 * MIB, 4 * MIB)
    await pair.healthy()
    with pytest.raises(InvalidStateError, match="has no seed"):
        await pair.vm.initial(use_seed=True)
    seeds = [tmp_path / "first.raw", tmp_path / "second.raw"]
    for index, seed in enumerate(seeds):
        shutil.copy(pair.disk(index), seed)
    with seeds[0].open("r+b") as file:
        # Another content, data where the disk has a hole, and a hole where it has data.
        file.write(os.urandom(128 << 10))
        file.seek(2 * MIB)
        file.write(b"old" * 1000)
    with seeds[1].open("r+b") as file:
        file.truncate(3 * MIB)
    with pytest.raises(StorageError, match=r"second.raw has 3145728 bytes, and disk 1 of web has 4194304"):
        await imported(pair, seeds=[SeedParams(path=str(seed)) for seed in seeds])
    seeds[1].unlink()
    shutil.copy(pair.disk(1), seeds[1])

    status = await imported(pair, seeds=[SeedParams(path=str(seeds[0]))])
    assert (status.outcome, status.kind, status.done_bytes) == ("imported", "seed", 8 * MIB), status
    moved = await imported(pair, seeds=[SeedParams(path=str(seeds[1]), disk=1)], move=True)
    assert (moved.outcome, seeds[0].exists(), seeds[1].exists()) == ("imported", True, False), moved
    assert not list(Path(pair.copy.parts.layout.folder).glob("import-*"))
    with pytest.raises(InvalidStateError, match="no recovery point"):
        await pair.copy.failover()
    await pair.until("the replica's word", lambda: pair.vm.parts.link.dialled and pair.vm.parts.link.healthy())
    await pair.vm.initial(use_seed=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert 0 < sent_bytes(pair) <= 256 << 10
    assert not pair.copy.ledger.replication.seeded
    with pytest.raises(InvalidStateError, match="only before its initial replication"):
        await imported(pair, seeds=[SeedParams(path=str(seeds[0]))])


@pytest.mark.slow
async def test_a_first_copy_by_courier_needs_only_what_was_written_since(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "medium"
    await pair.enable(8 * MIB, 4 * MIB)
    await pair.healthy()
    await pair.vm.initial(export=str(folder))
    record = pair.vm.parts.replication
    await pair.until("the export", lambda: record.record.resync)
    assert "vmreplica import" in export_text(record.record)
    with pytest.raises(InvalidStateError, match="waits for its import"):
        await pair.vm.initial()
    await pair.write(0, "write -P 0x11 1M 256k", "write -z 3M 64k")
    await pair.write(1, "write -P 0x22 4k 4k")

    # What is damaged on the way is named, and nothing of it stays.
    first = folder / "disk-0.raw"
    sound = first.read_bytes()
    with first.open("r+b") as file:
        file.seek(3 * MIB + 4711)
        file.write(b"\x00" if sound[3 * MIB + 4711] else b"\x01")
    status = await imported(pair, folder=str(folder))
    assert status.outcome == "failed"
    assert f"{first} is damaged: bytes 0 to {8 * MIB - 1} of disk 0" in status.text
    assert pair.copy.ledger.replication.state is ReplicationState.READY_FOR_INITIAL_REPLICATION
    assert not list(Path(pair.copy.parts.layout.folder).glob("import-*"))
    assert not any(Path(pair.copy.parts.layout.disk(0)).read_bytes())
    first.write_bytes(sound)

    # Both agents may go and come; the guest writes on.
    await pair.primary.stop()
    await pair.start_primary()
    await pair.healthy()
    status = await imported(pair, folder=str(folder))
    assert (status.outcome, status.kind) == ("imported", "export"), status
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert sent_bytes(pair) == 0
    assert pair.copy.point() is not None
    assert [event["cause"] for event in await pair.events(EventId.EXPORTED)] == ["export"]


@pytest.mark.thorough
@pytest.mark.slow
async def test_a_courier_who_takes_longer_than_the_log_lasts(pair: Pair, tmp_path: Path) -> None:
    """The dirty map takes over: what it names is compared again, and nothing else."""
    folder = tmp_path / "medium"
    await pair.enable(32 * MIB, log_limit_bytes=16 * MIB)
    await pair.healthy()
    await pair.vm.initial(export=str(folder))
    await pair.until("the export", lambda: pair.vm.parts.replication.record.resync)
    for turn in range(3):
        await pair.write(0, f"write -P {turn + 1} 10M 8M")
    await pair.until("the map", lambda: pair.vm.parts.tap.require().tracking.value == "map")
    status = await imported(pair, folder=str(folder))
    assert status.outcome == "imported", status
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert 0 < sent_bytes(pair) <= 9 * MIB
    run = pair.vm.parts.replication.runs.newest(1)[0]
    assert run.rounds == 2


async def test_an_export_of_another_vm_or_of_another_time_is_refused(pair: Pair, tmp_path: Path) -> None:
    await pair.enable(2 * MIB)
    await pair.healthy()
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        await pair.vm.initial(export=str(folder))
        await pair.until("the export", lambda: pair.vm.parts.replication.record.resync)
        if folder is folders[0]:
            await pair.vm.stop_resync()
    manifest, identity = read_manifest(pair.replica.ports.files, str(folders[1]))
    assert pair.vm.parts.replication.record.resync is not None
    assert identity == pair.vm.parts.replication.record.resync.id
    assert [disk.size_bytes for disk in manifest.disks] == [2 * MIB]
    with pytest.raises(StorageError, match="is not empty"):
        await pair.vm.parts.replication.cancel("the test begins anew")
        await pair.vm.initial(export=str(folders[0]))

    # The manifest itself can't be changed without being found out.
    path = folders[1] / MANIFEST_NAME
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b'"web"', b'"wob"'))
    with pytest.raises(StorageError, match="its checksum is wrong"):
        await imported(pair, folder=str(folders[1]))
    path.write_bytes(sound)
    body = json.loads(sound.split(b"\n")[1])
    assert body["vm"] == pair.vm.record.vm.hex()


@pytest.mark.thorough
@pytest.mark.slow
def test_the_commands_of_the_page(hosts: Hosts, tmp_path: Path) -> None:
    """docs/procedures.md, on real processes."""
    hosts.make_disks(4 * MIB)
    hosts.prepare()
    hosts.start_both()
    hosts.enable()
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    medium = tmp_path / "medium" / "web"
    medium.parent.mkdir()
    done = hosts.command("initial", "demo", "--export", str(medium))
    assert (done.returncode, "is complete in" in done.stdout) == (0, True), done
    status = hosts.status("primary")
    assert (status["export_folder"], status["export_complete"]) == (str(medium), True)
    assert "bring the folder to its host" in status["waiting"]
    refused = hosts.command("initial", "demo")
    assert (refused.returncode, "waits for its import" in refused.stderr) == (4, True), refused
    ended = hosts.command("stop", "demo")
    assert ended.returncode == 0, ended
    seeded = hosts.command("import", "demo", "--seed", str(medium / "disk-0.raw"))
    assert (seeded.returncode, "initial demo --use-seed" in seeded.stdout) == (0, True), seeded
    done = hosts.command("initial", "demo", "--export", str(tmp_path / "another"))
    assert done.returncode == 0, done
    brought = hosts.command("import", str(tmp_path / "another"))
    assert (brought.returncode, "goes on by itself" in brought.stdout) == (0, True), brought
    hosts.wait_state("Replicating")
    hosts.caught_up()
    hosts.assert_same()
