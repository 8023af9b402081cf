"""Positions and lineages: what is known, what is forgotten, and how a position is written for people."""

from __future__ import annotations

from protocol.position import MAX_LINEAGE, NO_EPOCH, Ancestor, Lineage, Position, extend, knows


def step(number: int) -> Ancestor:
    parent = NO_EPOCH if number == 0 else bytes([number]) * 16
    return Ancestor(bytes([number + 1]) * 16, parent, number)


def test_lineage_knows_its_epochs_and_no_others() -> None:
    lineage = extend(extend((), step(0)), step(1))
    assert knows(lineage, bytes([1]) * 16)
    assert knows(lineage, bytes([2]) * 16)
    assert not knows(lineage, bytes([3]) * 16)
    assert not knows(lineage, NO_EPOCH)


def test_lineage_keeps_the_newest_steps() -> None:
    lineage: Lineage = ()
    for number in range(MAX_LINEAGE + 10):
        lineage = extend(lineage, step(number))
    assert len(lineage) == MAX_LINEAGE
    assert lineage[-1] == step(MAX_LINEAGE + 9)
    assert lineage[0] == step(10)


def test_position_reads_as_epoch_segment_entry() -> None:
    assert str(Position(bytes(range(16)), 3, 4, bytes(16))) == "00010203/3/4"
