"""Tests of sets of ranges against plain sets of bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from replica_agent.ranges import RangeSet


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=20), st.integers(0, 60), st.integers(1, 20))
def test_range_set_is_a_set_of_bytes(added: list[tuple[int, int]], offset: int, length: int) -> None:
    ranges, model = RangeSet(), set[int]()
    for start, size in added:
        ranges.add(start, size)
        model |= set(range(start, start + size))
    assert {byte for start, end in ranges for byte in range(start, end)} == model
    assert ranges.bytes == len(model)
    assert ranges.covers(offset, length) == (set(range(offset, offset + length)) <= model)
    found = list(ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    assert len(ranges) == len(found)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 20)), max_size=20),
    st.integers(0, 60),
    st.integers(1, 20),
)
def test_what_is_removed_is_gone(changes: list[tuple[bool, int, int]], offset: int, length: int) -> None:
    ranges, model = RangeSet(), set[int]()
    for add, start, size in changes:
        if add:
            ranges.add(start, size)
            model |= set(range(start, start + size))
        else:
            ranges.remove(start, size)
            model -= set(range(start, start + size))
    assert {byte for start, end in ranges for byte in range(start, end)} == model
    assert ranges.covers(offset, length) == (set(range(offset, offset + length)) <= model)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))
