"""What an acknowledgement means: each cut counts once, and one that was not sent is refused."""

from __future__ import annotations

import pytest

from primary_agent.streaming import CutLedger, SentCut
from protocol.errors import ProtocolError
from protocol.position import Position

EPOCH = b"e" * 16


def at(segment: int, *, epoch: bytes = EPOCH, chain: int | None = None) -> Position:
    return Position(epoch, segment, segment * 10, bytes([segment if chain is None else chain]) * 16)


def ledger(*segments: int, known: Position | None = None) -> CutLedger:
    result = CutLedger(known)
    for segment in segments:
        result.sent(SentCut(at(segment), segment * 1000, 4096, (1, segment * 4096)))
    return result


def test_one_acknowledgement_covers_all_older_cuts_and_a_repetition_none() -> None:
    """I11."""
    cuts = ledger(4, 5, 6, 7)
    assert [cut.position.segment for cut in cuts.acknowledge(at(6))] == [4, 5, 6]
    assert cuts.acknowledge(at(6)) == []
    assert cuts.acknowledge(at(4)) == []
    assert [cut.position.segment for cut in cuts.acknowledge(at(7))] == [7]
    assert cuts.received == at(7)


@pytest.mark.parametrize(
    "position", [at(8), at(6, chain=99), at(6, epoch=b"x" * 16)], ids=["future", "other chain", "other epoch"]
)
def test_an_acknowledgement_of_what_was_not_sent_is_refused(position: Position) -> None:
    """A25: nothing is freed for a peer that lies about its cut."""
    cuts = ledger(5, 6)
    with pytest.raises(ProtocolError):
        cuts.acknowledge(position)
    assert set(cuts.unacknowledged) == {5, 6}


def test_what_the_replica_told_when_the_session_opened_may_be_told_again() -> None:
    cuts = ledger(5, known=at(4))
    assert cuts.acknowledge(at(4)) == []
    assert cuts.acknowledge(at(3)) == []
    with pytest.raises(ProtocolError):
        cuts.acknowledge(at(7))
