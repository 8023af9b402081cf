"""N10: a small session as it was recorded, delivered split at every place, in two parts and byte by byte."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.bulk import Bulk
from protocol.messages import MessageType, Role
from protocol.session import PrimarySession, ReplicaSession, Session
from tests.unit.protocol.test_session import ME, YOU, open_body
from tests.vectors.messages import BULK_EXAMPLES, EXAMPLES, TOKEN

Told = list[tuple[str, object]]


def recorded() -> tuple[list[bytes], list[bytes]]:
    """What the primary and what the replica sends, message by message."""
    primary, replica = PrimarySession(ME), ReplicaSession(YOU, TOKEN)
    sides: tuple[list[bytes], list[bytes]] = ([], [])

    def say(sender: Session, receiver: Session, buffers: object) -> None:
        data = b"".join(bytes(buffer) for buffer in buffers)  # type: ignore[attr-defined]
        sides[sender is replica].append(data)
        for frame in receiver.reader.feed(data):
            receiver.receive(frame)

    say(primary, replica, primary.send(primary.hello()))
    say(replica, primary, replica.send(replica.welcome()))
    say(primary, replica, primary.send(open_body(Role.CONTROL)))
    say(replica, primary, replica.send(EXAMPLES[MessageType.OPENED]))
    for kind in (MessageType.LOG, MessageType.SEAL):
        say(primary, replica, primary.send_bulk(kind, [BULK_EXAMPLES[kind]]))
    say(replica, primary, replica.send(EXAMPLES[MessageType.RECEIVED]))
    say(primary, replica, primary.send(EXAMPLES[MessageType.HEARTBEAT]))
    say(replica, primary, replica.send(EXAMPLES[MessageType.APPLIED]))
    say(primary, replica, primary.send(EXAMPLES[MessageType.CLOSE]))
    return sides


FROM_PRIMARY, FROM_REPLICA = recorded()


def deliver(pieces: Iterator[bytes]) -> Told:
    """What the replica makes of them. WELCOME and OPENED are said as soon as they can be."""
    session = ReplicaSession(YOU, TOKEN)
    told: Told = []
    for piece in pieces:
        for frame in session.reader.feed(piece):
            message = session.receive(frame)
            content = bytes(message.payload) if isinstance(message, Bulk) else message
            told.append((type(message).__name__, content))
            match len(told):
                case 1:
                    session.send(session.welcome())
                case 2:
                    session.send(EXAMPLES[MessageType.OPENED])
    assert session.reader.failure is None
    assert session.reader.begun == 0
    return told


def parts(first: bytes, rest: bytes, at: int) -> Iterator[bytes]:
    """A peer sends nothing behind its HELLO before it has read WELCOME; the rest is split in two."""
    yield from (first[:at], first[at:]) if at < len(first) else (first,)
    at = max(0, at - len(first))
    yield from (piece for piece in (rest[:at], rest[at:]) if piece)


HELLO, REST = FROM_PRIMARY[0], b"".join(FROM_PRIMARY[1:])
WHOLE = deliver(iter((HELLO, REST)))


def test_recorded_session_is_the_one_that_was_spoken() -> None:
    assert len(WHOLE) == len(FROM_PRIMARY) == 6
    assert [content for name, content in WHOLE if name == "Bulk"] == [
        BULK_EXAMPLES[MessageType.LOG], BULK_EXAMPLES[MessageType.SEAL],
    ]  # fmt: skip


def test_every_split_into_two_gives_the_same() -> None:
    for at in range(1, len(HELLO) + len(REST)):
        assert deliver(parts(HELLO, REST, at)) == WHOLE, at


@pytest.mark.parametrize("size", [1, 2, 3, 7, 31, 32, 33])
def test_pieces_of_any_size_give_the_same(size: int) -> None:
    pieces = [HELLO, *(REST[at : at + size] for at in range(0, len(REST), size))]
    assert deliver(iter(pieces)) == WHOLE
    pieces = [*(HELLO[at : at + size] for at in range(0, len(HELLO), size)), REST]
    assert deliver(iter(pieces)) == WHOLE
