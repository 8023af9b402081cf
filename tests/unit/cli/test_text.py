"""Text for terminals."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from shared.cli.text import (
    columns,
    joined,
    printable,
    printable_values,
    shortened,
    time_text,
    wrapped,
)


def test_what_a_terminal_would_obey_is_made_harmless() -> None:
    assert printable("a\x1b[2Jb\x9b1mc\nd\te\x7f\u202e") == "a\ufffd[2Jb\ufffd1mc d e\ufffd\ufffd"


@given(st.text())
def test_printable_text_stays_on_its_line(text: str) -> None:
    harmless = printable(text)
    assert len(harmless) == len(text)
    assert len(harmless.splitlines()) <= 1
    assert not any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 for each in harmless)


def test_every_text_of_a_value_is_made_printable() -> None:
    value = {"a\x1b": ["\x1b", 1, None, {"b": "\n"}]}
    assert printable_values(value) == {"a\ufffd": ["\ufffd", 1, None, {"b": " "}]}


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each))
)
def test_a_value_as_a_whole_is_as_harmless_as_each_of_its_texts(value: object) -> None:
    def each(part: object) -> object:
        match part:
            case str():
                return printable(part)
            case dict():
                return {printable(key): each(item) for key, item in part.items()}
            case list():
                return [each(item) for item in part]
        return part

    assert printable_values(value) == each(value)


def test_text_that_json_can_not_carry_is_made_printable() -> None:
    assert printable_values(["\udc80\x1b"]) == ["\udc80\ufffd"]


def test_long_text_is_broken_and_indented() -> None:
    assert wrapped("one two three four", 12, 4, "x: ") == ["x: one two", "    three", "    four"]


def test_text_without_a_width_is_not_broken() -> None:
    assert wrapped("one  two three four", None, 4, "x: ") == ["x: one  two three four"]


def test_word_longer_than_the_width_stays_whole() -> None:
    assert wrapped("nbd+unix:///disk0?socket=/run/x", 10, 2, "") == ["nbd+unix:///disk0?socket=/run/x"]


def test_empty_text_leaves_its_label() -> None:
    assert wrapped("", 20, 2, "label ") == ["label"]


def test_shortened() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
    assert shortened("abc", 1) == "…"


def test_columns() -> None:
    rows = columns([["a", "1", "x"], ["bcd", "22", ""]], right=[1])
    assert [joined(row) for row in rows] == ["a     1  x", "bcd  22"]
    assert columns([]) == []


def test_time() -> None:
    assert time_text(0.0, UTC) == "1970-01-01 00:00:00"
    assert time_text(0.0, timezone(timedelta(hours=2))) == "1970-01-01 02:00:00"
    assert time_text(None, UTC) == "-"
    assert time_text(1e300, UTC) == "-"
