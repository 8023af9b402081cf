"""A replication that was recorded with protocol version 1: today's code still understands all of it, and speaks it.

Where this fails the wire has changed: that is another version of the protocol, and both have to be spoken
(docs/protocol.md, section 7).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from protocol.bulk import Bulk
from protocol.errors import ProtocolError
from protocol.frames import FRAME_HEADER_BYTES, FrameReader
from protocol.messages import MAX_HELLO_BODY, PROTOCOL_VERSIONS, TYPE_OF, Hello, MessageType, Welcome, encode_body
from protocol.session import Identity, Message, PrimarySession, ReplicaSession, Session, SessionState, Side

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "session-1.json").read_text())
CONNECTIONS: list[dict[str, Any]] = [each for each in RECORDED["connections"] if each["token"]]
CAPABILITIES = ("zstd",)


def both(connection: dict[str, Any], versions: tuple[int, ...]) -> dict[Side, Session]:
    """A side of today for each recorded one, to hear what that one said."""
    return {
        Side.PRIMARY: PrimarySession(Identity("today", "alpha", capabilities=CAPABILITIES, versions=versions)),
        Side.REPLICA: ReplicaSession(
            Identity("today", "beta", capabilities=CAPABILITIES, versions=versions), connection["token"]
        ),
    }


def replayed(
    connection: dict[str, Any], versions: tuple[int, ...] = PROTOCOL_VERSIONS
) -> list[tuple[Side, Message, bytes]]:
    """Every recorded frame, heard by a side of today; the other's own words are put in its mouth as they are."""
    sides = both(connection, versions)
    heard: list[tuple[Side, Message, bytes]] = []
    for name, text in connection["frames"]:
        speaker, data = Side(name), bytes.fromhex(text)
        listener = sides[speaker.other]
        (frame,) = listener.reader.feed(data)
        message = listener.receive(frame)
        heard.append((speaker, message, data))
        own = sides[speaker]
        if not isinstance(message, Bulk):
            own.send(message)
        else:
            own.send_bulk(message.type, [frame.payload], message.raw_length if message.compressed else None)
    return heard


def test_there_is_a_recording_of_each_version_that_is_spoken() -> None:
    assert RECORDED["version"] in PROTOCOL_VERSIONS
    assert PROTOCOL_VERSIONS == (1,), "record the new version as well, and add it here"


def test_whole_replication_is_understood_by_both_sides() -> None:
    seen: Counter[MessageType] = Counter()
    for connection in CONNECTIONS:
        for _, message, _ in replayed(connection):
            seen[message.type if isinstance(message, Bulk) else TYPE_OF[type(message)]] += 1
    needed = {
        *(MessageType.HELLO, MessageType.WELCOME, MessageType.OPEN, MessageType.OPENED, MessageType.HEARTBEAT),
        *(MessageType.RESYNC_BEGIN, MessageType.RESYNC_READY, MessageType.MANIFEST_REQUEST, MessageType.MANIFEST),
        *(MessageType.BLOCKS, MessageType.RANGE_DONE, MessageType.RANGE_SETTLED, MessageType.COMMIT),
        *(MessageType.COMMITTED, MessageType.LOG, MessageType.SEAL, MessageType.RECEIVED, MessageType.APPLIED),
    }
    assert needed <= set(seen), f"not recorded: {needed - set(seen)}"


def test_todays_words_are_the_recorded_ones_byte_for_byte() -> None:
    """An older peer gets from us exactly what it got from its like."""
    for connection in CONNECTIONS:
        for _, message, data in replayed(connection):
            if not isinstance(message, Bulk):
                assert encode_body(message) == data[FRAME_HEADER_BYTES:], type(message).__name__


def test_peer_that_also_speaks_a_newer_version_agrees_on_this_one() -> None:
    """A program of the next version, whose HELLO or WELCOME names both, goes on in the one that both have."""
    for connection in CONNECTIONS:
        for _, message, _ in replayed(connection, versions=(2, 1)):
            if isinstance(message, Welcome):
                assert message.version == 1
            if isinstance(message, Hello):
                assert message.versions == [1]


def test_peer_that_gave_this_version_up_is_refused_by_name() -> None:
    (side, data) = next((Side(name), bytes.fromhex(text)) for name, text in CONNECTIONS[0]["frames"])
    assert side is Side.PRIMARY
    later = ReplicaSession(Identity("later", "beta", versions=(3, 2)), 1)
    (frame,) = FrameReader(MAX_HELLO_BODY).feed(data)
    with pytest.raises(ProtocolError, match="no common version") as refused:
        later.receive(frame)
    assert refused.value.code == "version" and later.state is SessionState.NEW
