"""A replica whose volume fills up: a small tmpfs, with the real agents on both sides."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from replica_agent.vm_status import status_of
from shared.config_sections import StorageSection
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair


@pytest.fixture
async def small(pair: Pair) -> AsyncIterator[Pair]:
    """The pair with the replica's storage on a tmpfs of 24 MiB, of which 2 MiB are the reserve."""
    store = pair.folder / "store"
    store.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(store)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        await pair.replica.stop()
        pair.replica_options = {"storage": StorageSection(reserve_bytes=2 * MIB)}
        await pair.start_replica()
        yield pair
        await pair.replica.stop()
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def fill(pair: Pair, leave: int) -> Path:
    """Fill the volume up to so many bytes."""
    ballast = pair.folder / "store" / "ballast"
    with ballast.open("ab") as file:
        while pair.replica.ports.files.free_space(str(ballast.parent)) > leave:
            file.write(bytes(256 << 10))
            file.flush()
    return ballast


async def test_full_volume_holds_replication_up_and_it_goes_on_by_itself(small: Pair) -> None:
    """I12, I14, R39: nothing is lost, the missing bytes are named, nobody has to act but to make room."""
    await small.replicate(8 * MIB)
    await small.assert_same()
    ballast = fill(small, 2 * MIB + (512 << 10))
    for number in range(6):
        await small.write(0, f"write -P {number + 1} {number}M 1M")

    def in_trouble() -> bool:
        status = status_of(small.copy)
        return status.problem is not None and status.problem.code == "no_space"

    await small.until("the lack of space", in_trouble)
    status = status_of(small.copy)
    assert status.health == "Critical"
    assert status.problem is not None
    assert "bytes" in status.problem.text
    point = small.copy.point()
    assert point is not None
    ballast.unlink()
    small.vm.parts.link.poke.notify()
    await small.assert_same()
    assert status_of(small.copy).problem is None
    assert small.vm.parts.replication.record.causes == []


async def test_full_volume_pauses_a_resync_and_it_goes_on(small: Pair) -> None:
    """R39: the old point stays; the resync continues where it stopped."""
    await small.replicate(8 * MIB)
    await small.assert_same()
    before = small.copy.point()
    await small.vm.parts.tap.require().client.stop_tracking("the test")
    await small.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await small.write(0, "write -P 0x77 0 6M")
    ballast = fill(small, 4 * MIB)
    await small.healthy()
    await small.vm.resume(resynchronize=True)
    await small.until("the lack of space", lambda: status_of(small.copy).problem is not None)
    problem = status_of(small.copy).problem
    assert problem is not None
    assert problem.code == "no_space"
    assert "bytes" in problem.text
    await small.until("the reason at the primary", lambda: small.vm.parts.link.last_error_code == "no_space")
    told = await small.vm.status()
    assert told.state == "Resynchronizing"
    assert any("bytes" in reason for reason in told.reasons), told.reasons
    assert small.copy.point() == before
    ballast.unlink()
    small.vm.parts.link.poke.notify()
    await small.state(ReplicationState.REPLICATING)
    await small.assert_same()
