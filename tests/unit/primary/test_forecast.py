"""The forecast of a resync: what past runs teach, what a survey finds, and what follows from both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from primary_agent.forecast import Rates, expect, learn
from primary_agent.record import DiskRecord
from primary_agent.survey import SAMPLE_CHUNK, Survey, hash_sample, survey
from protocol.messages import BLOCK_SIZE, ResyncKind
from shared.disks.hashing import RangeHasher
from shared.ports.file_system import RealFileSystem
from shared.resync_runs import CANCELLED, COMMITTED, Run, RunDisk

MIB = 1 << 20
GIB = 1 << 30


def run(
    kind: str, *, compared: int, sent: int, seconds: float, wire: int, holes: int = 0, result: str = COMMITTED
) -> Run:
    disk = RunDisk(
        index=0, compared_bytes=compared, hole_bytes=holes, different_bytes=sent, sent_bytes=sent, settled_bytes=sent
    )
    return Run(
        number=1, id="", epoch="", kind=kind, started_time=0, disks=[disk], compare_seconds=seconds,
        active_seconds=seconds + 0.5, wire_bytes=wire,
        result=result,
    )  # fmt: skip


COPY = run("initial", compared=2 * GIB, holes=GIB, sent=GIB, seconds=10.0, wire=GIB)
QUIET = run("resync", compared=2 * GIB, holes=GIB, sent=0, seconds=2.0, wire=MIB)


def test_runs_teach_how_fast_the_pair_is() -> None:
    rates = learn([QUIET, COPY], ResyncKind.RESYNC)
    assert (rates.different, rates.different_runs) == (0.0, 1)
    assert rates.compare == GIB / 2
    assert rates.send == GIB / 10
    assert rates.beside == 0.5
    assert rates.wire_per_read == MIB / GIB
    assert 0.99 < rates.wire_per_sent <= 1.0


def test_compression_of_the_copy_is_expected_again() -> None:
    half = run("initial", compared=GIB, sent=GIB, seconds=5.0, wire=GIB // 2)
    assert learn([half], ResyncKind.RESYNC).wire_per_sent == pytest.approx(0.5, abs=0.001)


def test_only_runs_of_its_kind_tell_how_much_differs() -> None:
    runs = [
        run("bounded", compared=100 * MIB, sent=90 * MIB, seconds=1, wire=90 * MIB),
        *(run("resync", compared=GIB, sent=part * GIB // 100, seconds=9, wire=GIB) for part in (1, 2, 50)),
        COPY,
    ]
    assert learn(runs, ResyncKind.RESYNC).different == pytest.approx(0.02)
    assert learn(runs, ResyncKind.BOUNDED).different == 0.9
    assert learn([COPY], ResyncKind.RESYNC).different is None


@pytest.mark.parametrize(
    "useless",
    [
        run("resync", compared=GIB, sent=0, seconds=1.0, wire=MIB, result=CANCELLED),
        run("resync", compared=GIB, sent=0, seconds=0.0, wire=MIB),
        run("resync", compared=MIB, sent=0, seconds=1.0, wire=1000),
    ],
)
def test_runs_that_say_nothing_about_speed(useless: Run) -> None:
    rates = learn([useless], ResyncKind.RESYNC)
    assert (rates.compare, rates.send) == (None, None)


def found(read: int = GIB, scope: int = 4 * GIB) -> Survey:
    return Survey(scope_bytes=scope, read_bytes=read)


def test_time_is_that_of_equal_and_of_different_blocks() -> None:
    rates = Rates(different=0.25, different_runs=3, compare=GIB / 2, send=GIB / 8, beside=0.5, wire_per_sent=0.5)
    forecast = expect(ResyncKind.RESYNC, found(), rates, None)
    assert forecast.seconds == pytest.approx(0.75 * 2 + 0.25 * 8 + 0.5)
    assert (forecast.scope_bytes, forecast.read_bytes, forecast.different_bytes) == (4 * GIB, GIB, GIB // 4)
    tags = GIB * 16 // BLOCK_SIZE
    assert forecast.wire_bytes == tags + GIB // 8
    assert (forecast.least_wire_bytes, forecast.most_wire_bytes) == (tags, tags + GIB)
    assert any("25.00 % differed in the median of the last 3 such runs" in line for line in forecast.basis)


def test_without_runs_it_says_what_it_assumes() -> None:
    whole = expect(ResyncKind.RESYNC, found(), Rates(), None)
    assert (whole.different_bytes, whole.seconds) == (0, None)
    assert any("this is the least" in line for line in whole.basis)
    assert "No rate of this pair is known." in whole.basis
    bounded = expect(ResyncKind.BOUNDED, found(), Rates(), float(GIB))
    assert (bounded.different_bytes, bounded.seconds) == (GIB, 1.0)
    assert any("taken to differ" in line for line in bounded.basis)
    assert any("as fast as it reads, at best" in line for line in bounded.basis)
    assert expect(ResyncKind.INITIAL, found(), Rates(different=0.1), None).different_bytes == GIB


def test_survey_finds_holes_and_a_sample_reads_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        for offset in (0, 32 * MIB):
            file.seek(offset)
            file.write(os.urandom(4 * MIB))
    disk = DiskRecord(index=0, uuid=b"d" * 16, path=str(path), size=64 * MIB, export="disk0")
    files = RealFileSystem()
    seen = survey(files, [disk], {0: [(0, 16 * MIB), (30 * MIB, 4 * MIB)]})
    assert (seen.scope_bytes, seen.read_bytes) == (20 * MIB, 6 * MIB)
    assert hash_sample(files, seen, RangeHasher(b"k" * 32, BLOCK_SIZE)) == 6 * MIB
    pieces = list(seen.pieces(3 * SAMPLE_CHUNK))
    assert 1 <= len(pieces) <= 3
    assert {offset < 16 * MIB for _, (offset, _) in pieces} == {True, False}


def test_a_survey_of_very_many_extents_keeps_few_of_them() -> None:
    seen = Survey()
    for number in range(100_000):
        seen.add("disk", (number * 8192, 4096))
    assert seen.read_bytes == 100_000 * 4096
    assert len(seen.extents) <= 4097
    offsets = [offset for _, (offset, _) in seen.pieces()]
    assert offsets == sorted(offsets)
    assert offsets[-1] > 90_000 * 8192
