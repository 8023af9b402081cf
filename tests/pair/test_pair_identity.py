"""Parts of a pair that are brought back to an earlier state, one by one: found before anything is sent (I10)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shared.planning import ResyncCause
from shared.states import ReplicationState
from tests.pair.rig import Pair

MIB = 1 << 20


async def stop_primary(pair: Pair) -> None:
    """Stop the agent, and its tap in order."""
    tap = pair.vm.parts.tap
    await pair.primary.stop()
    await tap.stop_tap()


async def written(pair: Pair, pattern: int) -> None:
    await pair.write(0, f"write -P {pattern} 0 1M")
    await pair.assert_same()


async def compared(pair: Pair) -> None:
    """A whole compare brings the replica to what the disks hold now."""
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


def evidence(pair: Pair) -> tuple[str, str]:
    # What the session finds of it may be a second one.
    cause = pair.vm.parts.replication.record.causes[0]
    assert cause.code == ResyncCause.TRACKING_LOST
    return str(cause.evidence["reason"]), cause.text


@pytest.mark.parametrize("how", ["copied over", "exchanged"])
async def test_a_disk_rolled_back_with_its_times(pair: Pair, how: str) -> None:
    """P18: an older content under the mtime that the tap left; the ctime tells, or the inode."""
    await pair.replicate(4 * MIB)
    await written(pair, 1)
    disk, kept = pair.disk(0), pair.folder / "kept.raw"
    shutil.copyfile(disk, kept)
    await written(pair, 2)
    await stop_primary(pair)
    times = disk.stat()
    if how == "copied over":
        disk.write_bytes(kept.read_bytes())
    else:
        kept.rename(disk)
    os.utime(disk, ns=(times.st_atime_ns, times.st_mtime_ns))
    await pair.start_primary()
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    reason, text = evidence(pair)
    assert reason == "disk_changed" and str(disk) in text
    assert ("its ctime was" if how == "copied over" else "its inode was") in text
    assert Path(pair.copy.parts.layout.disk(0)).read_bytes()[:MIB] == b"\x02" * MIB
    await compared(pair)


async def test_the_taps_state_rolled_back(pair: Pair) -> None:
    """Of an earlier stop in order: the log and the disks went on since."""
    await pair.replicate(4 * MIB)
    await written(pair, 1)
    await stop_primary(pair)
    (state,) = (pair.folder / "state" / "vms").glob("*/tap/tap.state")
    older = state.read_bytes()
    await pair.start_primary()
    await pair.vm.parts.tap.connected()
    await written(pair, 2)
    await stop_primary(pair)
    state.write_bytes(older)
    await pair.start_primary()
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    reason, _ = evidence(pair)
    assert reason in ("disk_changed", "log_damaged")
    await compared(pair)


def databases(pair: Pair) -> list[Path]:
    """The agent's own state of the VM, without its tap's."""
    (folder,) = (pair.folder / "state" / "vms").iterdir()
    return [path for path in folder.iterdir() if path.is_file()]


async def test_the_agents_state_rolled_back_within_an_epoch(pair: Pair) -> None:
    """What it had acknowledged is older, and that is all: log and replica know where they are."""
    await pair.replicate(4 * MIB)
    await written(pair, 1)
    await stop_primary(pair)
    older = {path: path.read_bytes() for path in databases(pair)}
    await pair.start_primary()
    await pair.vm.parts.tap.connected()
    await written(pair, 2)
    await stop_primary(pair)
    for path in databases(pair):
        path.unlink()
    for path, content in older.items():
        path.write_bytes(content)
    await pair.start_primary()
    await pair.healthy()
    await written(pair, 3)
    assert pair.vm.parts.replication.state is ReplicationState.REPLICATING


async def test_the_agents_state_rolled_back_before_a_resync(pair: Pair) -> None:
    """Its baseline is older than the replica's, which may have been promoted: nothing is sent, and it says so."""
    await pair.replicate(4 * MIB)
    await written(pair, 1)
    await stop_primary(pair)
    older = {path: path.read_bytes() for path in databases(pair)}
    await pair.start_primary()
    await compared(pair)
    await written(pair, 2)
    held = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    await stop_primary(pair)
    for path in databases(pair):
        path.unlink()
    for path, content in older.items():
        path.write_bytes(content)
    await pair.start_primary()
    await pair.until("a state that waits", lambda: pair.vm.parts.replication.state is not ReplicationState.REPLICATING)
    await pair.write(0, "write -P 3 0 1M")
    assert Path(pair.copy.parts.layout.disk(0)).read_bytes() == held
    status = await pair.vm.status()
    assert status.health == "Critical" and not status.protected
    assert status.remedy
