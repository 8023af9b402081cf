"""Recovery on the crash states of recorded lives; and that a sync that is left out is noticed by them (row P2, R1, R2).

The long runs are ``python -m tests.faults.tap_states`` and ``python -m tests.faults.replica_states``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults import replica_states, tap_states
from tests.faults.crash_states import Recording
from tests.places import step
from tests.simulation.disk import SimulatedFile
from tests.simulation.mutants_kit import Patch, unsynced
from tests.simulation.mutants_maps import cooled_unsynced, hot_nosync, map_forgets_log
from tests.unit.replica.rig import Certificates

# --- the states themselves -------------------------------------------------------------------------------------------


def pages(recording: Recording, number: int, **contents: bytes) -> None:
    """Pages named p0, p1, ... of a file of eight pages were written at once."""
    recording.wrote(number, {int(name[1:]): content.ljust(4096, b".") for name, content in contents.items()}, 32768, 7)


def test_states_are_all_that_power_loss_may_leave() -> None:
    """Of two pending pages, one written twice, and one pending name: each combination once, synced ones in all."""
    recording = Recording(lambda: None)
    recording.named({"/a": 1})
    pages(recording, 1, p0=b"synced", p1=b"old")
    recording.synced(1)
    recording.synced_folder("/")
    recording.end_window("first")
    pages(recording, 1, p1=b"newer")
    pages(recording, 1, p1=b"newest", p2=b"other")
    recording.named({"/a": None, "/b": 1})
    recording.end_window("second")
    states = list(recording.windows[1].states(random.Random(1), limit=4, samples=0))
    found = {(*state.names, *(state.files[1][0].get(page, b"").strip(b".") for page in range(3))) for state in states}
    renamed = {("/b", b"synced", old, other) for old in (b"old", b"newest") for other in (b"", b"other")}
    assert found == {*renamed, ("/b", b"synced", b"newer", b""), ("/a", b"synced", b"old", b""),
                     ("/a", b"synced", b"newest", b"other")}  # fmt: skip
    sampled = list(recording.windows[1].states(random.Random(1), limit=0, samples=200))
    assert len(sampled) > len(states)
    assert any(b"newest" in page and b"old" not in page for state in sampled for page in state.files[1][0].values())


# --- the tap ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_every_state_of_a_tap_is_recovered_from(seed: int) -> None:
    """I3, I4, R28: log, log files, both maps and the state file, between any two syncs."""
    tally = tap_states.check_seed(seed, limit=5, samples=10, stride=step(20, all_places=8))
    assert tally.states > 60
    assert tally.bounded > tally.states // 2, "it proves little where everything is compared"


def disks_unsynced() -> Sequence[Patch]:
    return [(SimulatedFile, "sync", unsynced("/vm/disk-"))]


def log_unsynced() -> Sequence[Patch]:
    return [(SimulatedFile, "sync", unsynced("/log/"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    [hot_nosync, disks_unsynced, log_unsynced, cooled_unsynced, map_forgets_log],
    ids=lambda plant: plant.__name__,
)
def test_planted_bug_of_a_tap_is_noticed(plant: object) -> None:
    assert callable(plant)
    noticed = []
    for seed in range(4):
        try:
            tally = tap_states.check_seed(seed, limit=5, samples=10, stride=5, patches=plant())
        except AssertionError as error:
            noticed.append(str(error))
            break
        if any(outcome.startswith("lost") for outcome in tally.outcomes):
            noticed.append("tracking is lost")
            break
    assert noticed


# --- the replica -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_every_state_of_a_replica_is_recovered_from(memory_path: Path, certificates: Certificates) -> None:
    """I1, I5, I6, I7, R12: spool, differencing file, disks, apply, commit and merge, between any two syncs."""
    assert (
        await replica_states.check_seed(memory_path, certificates, 7, limit=4, samples=6, stride=step(15, all_places=6))
        > 40
    )


@pytest.mark.slow
@pytest.mark.parametrize("lie", ["/spool/", "disk-", "spool"])
async def test_planted_bug_of_a_replica_is_noticed(memory_path: Path, certificates: Certificates, lie: str) -> None:
    with pytest.raises(AssertionError):
        await replica_states.check_seed(memory_path, certificates, 7, limit=4, samples=6, stride=2, lies_about=lie)
