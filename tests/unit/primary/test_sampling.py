"""Which blocks are sampled, how sure what they tell is, and the forecast that rests on it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from primary_agent.estimating import interval
from primary_agent.forecast import Rates, expect
from primary_agent.record import DiskRecord
from primary_agent.sampling import Sampled, choose
from primary_agent.survey import Survey, survey
from protocol.messages import BLOCK_SIZE, ResyncKind
from shared.ports.file_system import RealFileSystem
from shared.ports.rng import SystemRandom

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("hits", "sampled", "low", "high"),
    [(0, 512, 0.0, 0.005834), (5, 100, 0.01991, 0.10225), (100, 100, 0.97049, 1.0), (50, 100, 0.41365, 0.58635)],
)
def test_the_interval_is_that_of_clopper_and_pearson(hits: int, sampled: int, low: float, high: float) -> None:
    found = interval(hits, sampled)
    assert found[0] == pytest.approx(low, abs=2e-4)
    assert found[1] == pytest.approx(high, abs=2e-4)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = random.Random(5), 0
    for _ in range(400):
        true = rng.random() ** 2
        hits = sum(rng.random() < true for _ in range(128))
        low, high = interval(hits, 128)
        held += low <= true <= high
    assert held >= 360


def disk_of(path: Path, index: int, size: int) -> DiskRecord:
    return DiskRecord(index=index, uuid=bytes([index]) * 16, path=str(path), size=size, export=f"disk{index}")


def surveyed(tmp_path: Path) -> tuple[Survey, list[DiskRecord]]:
    """Two disks: one with 1 MiB of data in the middle, one that is data and ends in half a block."""
    first, second = tmp_path / "a", tmp_path / "b"
    with first.open("wb") as file:
        file.seek(2 * MIB)
        file.write(os.urandom(MIB))
        file.truncate(8 * MIB)
    second.write_bytes(os.urandom(MIB + BLOCK_SIZE // 2))
    disks = [disk_of(first, 0, 8 * MIB), disk_of(second, 1, MIB + BLOCK_SIZE // 2)]
    return survey(RealFileSystem(), disks, {disk.index: [(0, disk.size)] for disk in disks}), disks


def test_all_blocks_are_taken_where_there_are_few(tmp_path: Path) -> None:
    found, disks = surveyed(tmp_path)
    places, everything = choose(SystemRandom(), found, disks, 512)
    assert everything
    data = [(0, 2 * MIB + block * BLOCK_SIZE, BLOCK_SIZE) for block in range(16)]
    data += [(1, block * BLOCK_SIZE, BLOCK_SIZE) for block in range(16)] + [(1, MIB, BLOCK_SIZE // 2)]
    assert [(each.disk, each.offset, each.length) for each in places] == data


def test_a_sample_is_of_different_blocks_of_what_is_no_hole_and_evenly_likely(tmp_path: Path) -> None:
    found, disks = surveyed(tmp_path)
    counts = dict[tuple[int, int], int]()
    for _ in range(600):
        places, everything = choose(SystemRandom(), found, disks, 11)
        assert not everything and len({(each.disk, each.offset) for each in places}) == 11
        for each in places:
            counts[each.disk, each.offset] = counts.get((each.disk, each.offset), 0) + 1
    assert len(counts) == 33
    assert min(counts.values()) > 120 and max(counts.values()) < 280


def sampled(blocks: int, different: int, *, whole: bool = False, pieces: int = 0, of_them: int = 0) -> Sampled:
    return Sampled(ResyncKind.RESYNC, 0.0, blocks, different, all=whole, pieces=pieces, different_pieces=of_them)


FOUND = Survey(scope_bytes=4 * GIB, read_bytes=GIB)
RATES = Rates(different=0.5, different_runs=3, compare=GIB, send=GIB / 10, wire_per_read=0.001)


def test_a_sample_counts_more_than_past_runs_and_gives_a_range() -> None:
    told = expect(ResyncKind.RESYNC, FOUND, RATES, None, sampled(512, 26))
    low, high = interval(26, 512)
    assert told.different_bytes == round(26 / 512 * GIB)
    assert (told.different_low_bytes, told.different_high_bytes) == (round(low * GIB), round(high * GIB))
    assert told.wire_low_bytes is not None and told.wire_high_bytes is not None
    assert told.wire_low_bytes < told.wire_bytes < told.wire_high_bytes
    assert told.seconds is not None and told.seconds_low is not None and told.seconds_high is not None
    assert told.seconds_low < told.seconds < told.seconds_high
    assert (told.sampled_blocks, told.sampled_different) == (512, 26)
    assert any("Of 512 random blocks" in line and "26 differ: 5.08 %" in line for line in told.basis)
    assert not any("median" in line for line in told.basis)


def test_what_is_sent_is_what_differs_inside_of_blocks() -> None:
    told = expect(ResyncKind.RESYNC, FOUND, RATES, None, sampled(512, 128, pieces=512, of_them=32))
    assert told.different_bytes == round(GIB / 4 / 16)


def test_where_all_blocks_were_compared_nothing_is_uncertain() -> None:
    told = expect(ResyncKind.RESYNC, FOUND, RATES, None, sampled(100, 0, whole=True))
    assert (told.different_bytes, told.different_low_bytes, told.different_high_bytes) == (0, 0, 0)
    nothing = expect(ResyncKind.RESYNC, Survey(scope_bytes=GIB), RATES, None, sampled(0, 0, whole=True))
    assert nothing.different_bytes == 0


def test_without_a_sample_it_says_so_and_takes_what_past_runs_tell() -> None:
    told = expect(ResyncKind.RESYNC, FOUND, RATES, None, None, "there is no link")
    assert told.different_bytes == GIB // 2 and told.different_low_bytes is None
    assert "The replica could not be asked for a sample: there is no link." in told.basis
