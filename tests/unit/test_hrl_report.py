"""What ``vmreplica hrl check`` and ``hrl dump`` say of a file: the data, its verdict, and the text for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.hrl import RecordKind, SealReason
from shared.hrl_report import Record, Report, Verdict, check, dump, record_lines, report_lines
from shared.ports.file_system import RealFileSystem
from tests.vectors.cases import FOLDER
from tests.vectors.logs import LogBuilder, small_log, zero

FILES = RealFileSystem()


def dumped(path: Path) -> tuple[Report, list[Record]]:
    records: list[Record] = []
    return dump(FILES, str(path), records.append), records


def written(folder: Path, log: LogBuilder) -> Path:
    path = folder / "file.hrl"
    path.write_bytes(log.content)
    return path


@pytest.mark.parametrize(
    "name, verdict, end",
    [
        ("log-clean", Verdict.SOUND, "clean"),
        ("log-first-file", Verdict.SOUND, "end-of-file"),
        ("log-next-file", Verdict.SOUND, "clean"),
        ("spool", Verdict.SOUND, "clean"),
        ("differencing", Verdict.SOUND, "clean"),
        ("log-torn", Verdict.TORN, "torn"),
        ("log-recycled", Verdict.TORN, "torn"),
        ("log-other-epoch", Verdict.TORN, "torn"),
        ("log-damaged-middle", Verdict.DAMAGED, "damaged"),
        ("log-damaged-zeroes", Verdict.DAMAGED, "damaged"),
        ("log-bad-header", Verdict.UNREADABLE, None),
    ],
)
def test_verdict_and_end_of_each_vector(name: str, verdict: Verdict, end: str | None) -> None:
    report = check(FILES, str(FOLDER / f"{name}.hrl"))
    assert report["verdict"] == verdict
    assert report["end"]["kind"] == end
    assert json.loads(json.dumps(report)) == report
    (first, *_rest) = report_lines(report)
    word = {Verdict.TORN: "torn tail", Verdict.DAMAGED: "DAMAGED", Verdict.UNREADABLE: "not readable"}
    assert word.get(verdict, "sound") in first


def test_dump_hands_out_every_record_and_the_same_report() -> None:
    path = FOLDER / "log-clean.hrl"
    report, records = dumped(path)
    assert report == check(FILES, str(path))
    assert [each["record"] for each in records] == [
        "segment", "batch", "batch", "batch", "seal", "segment", "batch",
    ]  # fmt: skip
    assert records[2]["writes"] == [
        {"disk": 3, "kind": "data", "offset_bytes": 1024, "length_bytes": 512},
        {"disk": 0, "kind": "discard", "offset_bytes": 512, "length_bytes": 512},
        {"disk": 0, "kind": "data", "offset_bytes": 1024, "length_bytes": 512},
    ]
    assert records[4]["reason"] == "interval"
    assert json.loads(json.dumps(records)) == records


def test_sums_add_up() -> None:
    report = check(FILES, str(FOLDER / "log-clean.hrl"))
    assert report["records"] == {"segment": 2, "batch": 4, "seal": 1}
    assert report["entries"] == {"data": 5, "zero": 1, "discard": 1}
    assert report["entry_bytes"] == {"data": 5 * 512, "zero": 8192, "discard": 512}
    assert [(each["number"], each["entries"], each["sealed"]) for each in report["segments"]] == [
        (1, 6, "interval"),
        (2, 1, None),
    ]


def test_file_that_begins_inside_a_segment_says_so() -> None:
    report = check(FILES, str(FOLDER / "log-next-file.hrl"))
    (segment,) = report["segments"]
    assert (segment["number"], segment["whole"], segment["entries"], segment["sealed"]) == (2, False, 2, "interval")
    assert any("earlier file" in line for line in report_lines(report))


def test_settled_ranges_are_counted_and_shown() -> None:
    report, records = dumped(FOLDER / "differencing.hrl")
    assert (report["settled_bytes"], report["unsettled_bytes"]) == ((1 << 20) + (4 << 20) + (128 << 10), 128 << 10)
    assert any("differencing" in line for line in report_lines(report))
    shown = [line for record in records for line in record_lines(record)]
    assert sum("  settled" in line for line in shown) == 3
    assert sum("  unsettled" in line for line in shown) == 1


def test_damage_names_where_it_is_and_what_lies_behind() -> None:
    report = check(FILES, str(FOLDER / "log-damaged-middle.hrl"))
    (first, *_rest) = report_lines(report)
    assert f"offset {report['end']['offset_bytes']}" in first
    later = report["end"]["later"]
    assert later["offset_bytes_in_file"] > report["end"]["offset_bytes"]
    assert f"offset {later['offset_bytes_in_file']}" in first


def test_seal_that_counts_wrong_is_not_valid(tmp_path: Path) -> None:
    """P8: the chain is right, but the seal does not fit its segment."""
    log = LogBuilder().begin().batch(zero(0, 0, 512))
    log.first_entry -= 1
    log.seal()
    report = check(FILES, str(written(tmp_path, log)))
    assert (report["verdict"], report["end"]["reason"]) == ("torn", "seal")
    assert [segment["sealed"] for segment in report["segments"]] == [None], "the segment has no valid seal"
    assert report["end"]["offset_bytes"] == log.places[-1]


@pytest.mark.parametrize(
    "log, reason",
    [
        (small_log().batch(zero(0, 1 << 20, 512)), "entry-range"),
        (small_log().batch(zero(7, 0, 512)), "entry-disk"),
    ],
    ids=["range", "disk"],
)
def test_entries_are_judged_against_the_disks_of_their_segment(tmp_path: Path, log: LogBuilder, reason: str) -> None:
    report = check(FILES, str(written(tmp_path, log)))
    assert report["end"]["reason"] == reason


def test_every_kind_and_reason_has_a_line(tmp_path: Path) -> None:
    log = LogBuilder().begin()
    for reason in SealReason:
        log.batch(zero(0, 0, 512)).seal(reason).begin()
    log.end_file()
    _report, records = dumped(written(tmp_path, log))
    text = "\n".join(line for record in records for line in record_lines(record))
    for reason in SealReason:
        assert reason.name.lower() in text
    for kind in (RecordKind.SEGMENT, RecordKind.BATCH, RecordKind.SEAL, RecordKind.END_OF_FILE):
        assert kind.name.lower().replace("_", " ") in text


def test_times_are_utc_and_never_out_of_range(tmp_path: Path) -> None:
    log = LogBuilder()
    log.time_ns = 2**63
    log.begin()
    report, records = dumped(written(tmp_path, log))
    assert report["verdict"] == "sound"
    assert records[0]["time"] == "2262-04-11T23:47:16.855775Z"
    assert dumped(FOLDER / "log-clean.hrl")[1][0]["time"] == "2023-11-14T22:13:21.001000Z"


def test_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check(FILES, str(tmp_path / "nothing.hrl"))
