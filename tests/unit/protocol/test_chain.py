"""The cursor: only the very next record of the same log may follow, in every order that can be tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chain import Cursor, body_of, follow_records
from protocol.errors import LogError
from protocol.hrl import FILE_HEADER_BYTES, RecordKind, decode_file_header, decode_record_header
from protocol.position import Position
from tests.vectors.logs import EPOCH, OTHER_EPOCH, LogBuilder, data, small_log, zero

LOG = small_log()


def follow(cursor: Cursor, record: bytes) -> None:
    cursor.follow(decode_record_header(record), record, at=4096)


def refused(cursor: Cursor, record: bytes) -> str:
    before = cursor.copy()
    with pytest.raises(LogError) as error:
        follow(cursor, record)
    assert cursor == before, "a refused record moves nothing"
    assert error.value.offset == 4096
    return error.value.reason


def test_every_position_of_a_log_is_reached() -> None:
    cursor = Cursor.of_file(decode_file_header(LOG.content))
    for index in range(len(LOG.places)):
        assert cursor.position == LOG.positions[index]
        follow(cursor, LOG.record(index))
    assert cursor.position == LOG.position


@pytest.mark.parametrize("inside", [None, False, True])
@pytest.mark.parametrize("start", range(len(LOG.places)))
def test_only_the_next_record_follows(start: int, inside: bool | None) -> None:
    """R11, I11: repeated, skipped and reordered records are refused at every place of the log."""
    kind = decode_record_header(LOG.record(start)).kind
    lawful = inside is None or inside == (kind is not RecordKind.SEGMENT)
    for index in range(len(LOG.places)):
        cursor = Cursor.at(LOG.positions[start], inside=inside)
        if index == start and lawful:
            follow(cursor, LOG.record(index))
            assert cursor.position == LOG.positions[index + 1]
            assert cursor.inside is (kind is not RecordKind.SEAL)
        else:
            assert refused(cursor, LOG.record(index)) in ("segment", "entry", "order", "chain")


def test_record_of_another_epoch_is_refused() -> None:
    other = LogBuilder(epoch=OTHER_EPOCH).begin()
    assert refused(Cursor.at(LOG.positions[0]), other.record(0)) == "epoch"


def test_record_with_another_history_is_refused() -> None:
    """R34: same epoch, segment and entry, but what came before was something else."""
    fork = LogBuilder().begin().batch(data(0, 0, bytes(512)), zero(0, 512, 512)).batch(zero(3, 0, 512))
    cursor = Cursor.at(LOG.positions[2])
    assert fork.positions[2].entry == cursor.entry
    assert refused(cursor, fork.record(2)) == "chain"


def test_changed_body_is_refused() -> None:
    record = bytearray(LOG.record(1))
    record[-1] ^= 1
    assert refused(Cursor.at(LOG.positions[1]), bytes(record)) == "chain"


@pytest.mark.parametrize(
    "first, second",
    [
        (LogBuilder.begin, LogBuilder.begin),
        (LogBuilder.seal, LogBuilder.seal),
        (LogBuilder.seal, lambda log: log.batch(zero(0, 0, 512))),
    ],
    ids=["segment-in-segment", "seal-after-seal", "data-after-seal"],
)
def test_order_of_kinds_is_kept_even_with_a_right_chain(first: object, second: object) -> None:
    log = LogBuilder().begin()
    assert callable(first)
    assert callable(second)
    first(log)
    second(log)
    cursor = Cursor.at(log.positions[1], inside=True)
    if first is LogBuilder.seal:
        follow(cursor, log.record(1))
        assert refused(cursor, log.record(2)) == "order"
    else:
        assert refused(cursor, log.record(1)) == "order"


def test_segment_zero_takes_batches_and_settled_ranges_but_no_seal() -> None:
    differing = LogBuilder().batch(zero(0, 0, 512)).settle(0, 0, 512).unsettle(0, 0, 512).seal()
    cursor = Cursor.at(differing.positions[0])
    follow(cursor, differing.record(0))
    follow(cursor, differing.record(1))
    follow(cursor, differing.record(2))
    assert refused(cursor, differing.record(3)) == "order"


def test_settled_range_has_no_place_in_a_segment() -> None:
    log = LogBuilder().begin().settle(0, 0, 512)
    assert refused(Cursor.at(log.positions[1]), log.record(1)) == "order"
    log = LogBuilder().begin().unsettle(0, 0, 512)
    assert refused(Cursor.at(log.positions[1]), log.record(1)) == "order"


@pytest.mark.parametrize("index", range(len(LOG.places) + 1))
def test_end_of_file_may_stand_anywhere_and_moves_nothing(index: int) -> None:
    log = LogBuilder(after=LOG.positions[index]).end_file()
    cursor = Cursor.at(LOG.positions[index])
    follow(cursor, log.record(0))
    assert cursor.position == LOG.positions[index]
    other = LogBuilder(after=Position(EPOCH, cursor.segment, cursor.entry, bytes(16))).end_file()
    assert refused(cursor, other.record(0)) == "chain"


@given(st.integers(0, len(LOG.content) - FILE_HEADER_BYTES))
def test_records_are_followed_up_to_where_the_bytes_end(length: int) -> None:
    view = memoryview(bytes(LOG.content))[FILE_HEADER_BYTES : FILE_HEADER_BYTES + length]
    cursor = Cursor.at(LOG.positions[0])
    got = []
    ends = [place - FILE_HEADER_BYTES for place in [*LOG.places[1:], len(LOG.content)]]
    whole = [end for end in ends if end <= length]
    records = follow_records(cursor, view, at=FILE_HEADER_BYTES)
    if length in (0, *ends):
        got = list(records)
    else:
        with pytest.raises(LogError, match="left") as error:
            for each in records:
                got.append(each)
        assert error.value.reason == "short"
    assert [offset + header.length for offset, header, _record in got] == whole
    assert cursor.position == LOG.positions[len(whole)]
    for offset, header, record in got:
        assert record == view[offset : offset + header.length]
        assert len(body_of(record)) == header.body_length
