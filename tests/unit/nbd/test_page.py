"""docs/nbd.md says what the code says: states, reasons, options, commands and limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.nbd import connection, constants, memory, querying, receiving, replies, requests, sending, server
from shared.nbd.constants import CommandFlag, Errno
from shared.nbd.ending import EndReason
from shared.nbd.handshake import TRANSITIONS

PAGE = (Path(__file__).parents[3] / "docs" / "nbd.md").read_text(encoding="utf-8")
PLAIN = " ".join(PAGE.split())


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose header begins with this cell."""
    lines = PAGE.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_states() -> None:
    expected = [[phase.value, event.value, following.value] for (phase, event), following in TRANSITIONS.items()]
    assert rows("in phase") == expected


def test_every_end_reason_is_named() -> None:
    for reason in EndReason:
        assert reason.value in PLAIN.lower(), reason


def test_commands_and_their_flags() -> None:
    table = {row[0]: row for row in rows("command")}
    assert set(table) == {constants.Command(number).name for number in requests.RULES} | {"DISC"}
    for number, rule in requests.RULES.items():
        _, flags, past_end, _ = table[constants.Command(number).name]
        named = {flag for flag in CommandFlag if flag.name and re.search(rf"\b{flag.name}\b", flags)}
        assert named == {flag for flag in CommandFlag if flag & rule.flags} - {CommandFlag.FUA}
        if rule.ranged:
            assert past_end == f"outside: {rule.past_end.name}"


def test_every_error_is_named() -> None:
    for number in Errno:
        if number not in {Errno.NONE, Errno.EOVERFLOW}:
            assert number.name in PAGE


MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("32 MiB largest payload", constants.MAXIMUM_PAYLOAD, 32 * MIB),
        ("1024 options", constants.MAXIMUM_OPTIONS, 1024),
        ("64 KiB of data per option", constants.MAXIMUM_OPTION_DATA, 64 << 10),
        ("1 MiB of skipped oversized data", constants.MAXIMUM_SKIPPED, MIB),
        ("| 4096 bytes |", constants.MAXIMUM_NAME, 4096),
        ("| 2 MiB, touched only as far as used", receiving.BASE_CAPACITY - 4096, 2 * MIB),
        ("| 65 MiB (`memory_limit`)", server.MEMORY_LIMIT, 65 * MIB),
        ("for 10 s (`stall_timeout`)", server.STALL_TIMEOUT, 10.0),
        ("| 1 MiB, then no further request begins", sending.SEND_HIGH_WATER, MIB),
        ("what has begun may add 2 MiB", requests.MAXIMUM_BATCH_READ, 2 * MIB),
        ("| 16 queries, 4 MiB |", querying.MAXIMUM_RUNNING, 16),
        ("| 16 queries, 4 MiB |", querying.MAXIMUM_COLD_BYTES, 4 * MIB),
        ("| 1024, and the rest of one batch", connection.MAXIMUM_PENDING, 1024),
        ("one batch of 512", requests.MAXIMUM_BATCH, 512),
        ("at most 8192 descriptors", replies.MAXIMUM_DESCRIPTORS, 8192),
        ("| 5 s |", connection.LINGER_SECONDS, 5.0),
    ],
)
def test_limits(text: str, value: float, expected: float) -> None:
    assert text in PLAIN
    assert value == expected


def test_the_default_limit_holds_two_of_the_largest_requests() -> None:
    largest = constants.MAXIMUM_PAYLOAD + constants.REQUEST.size
    assert memory.MemoryBudget(server.MEMORY_LIMIT, 1).limit >= 2 * largest
