"""Requests: every command accepted, not allowed, out of range, misaligned, too large and truncated; in any pieces."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.nbd.backend import CommandKind
from shared.nbd.constants import MAXIMUM_PAYLOAD, Command, CommandFlag, Errno
from shared.nbd.ending import Ending, EndReason
from shared.nbd.requests import MAXIMUM_BATCH, MAXIMUM_BATCH_READ, Batch, RequestParser

SIZE = 1 << 30


def request(
    command: int,
    offset: int = 0,
    length: int = 512,
    *,
    flags: int = 0,
    payload: bytes | None = None,
    cookie: int = 7,
    magic: int = 0x25609513,
) -> bytes:
    if payload is None:
        payload = bytes(length) if command == Command.WRITE else b""
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + payload


def parser(
    *, size: int = SIZE, read_only: bool = False, structured: bool = True, allocation: bool = True
) -> RequestParser:
    return RequestParser(size, read_only=read_only, structured=structured, allocation=allocation)


def parse(data: bytes, on: RequestParser | None = None, *, draining: bool = False) -> tuple[Batch, int]:
    batch = Batch()
    taken = (on or parser()).parse(memoryview(data), 0, len(data), batch, draining=draining)
    return batch, taken


def refusal(data: bytes, on: RequestParser | None = None, *, draining: bool = False) -> Errno:
    """The error of the only request; it must have reached no other list, and its payload must be gone."""
    batch, taken = parse(data, on, draining=draining)
    assert taken == len(data)
    assert batch.count() == len(batch.refusals) == 1
    assert batch.refusals[0].text
    assert batch.refusals[0].cookie == (7).to_bytes(8, "big")
    return batch.refusals[0].error


# --- accepted ---------------------------------------------------------------------------------------------------------


def test_write_accepted_with_a_view_of_its_payload() -> None:
    data = request(Command.WRITE, 4096, 1024, payload=b"ab" * 512)
    batch, taken = parse(data)
    assert taken == len(data)
    (mutation,) = batch.mutations
    assert (mutation.kind, mutation.offset, mutation.length) == (CommandKind.WRITE, 4096, 1024)
    assert mutation.payload is not None
    assert bytes(mutation.payload) == b"ab" * 512
    assert not mutation.fua
    assert not batch.fua
    assert batch.payload == 1024
    assert batch.cookies == [(7).to_bytes(8, "big")]


def test_write_with_fua_accepted() -> None:
    batch, _ = parse(request(Command.WRITE, flags=CommandFlag.FUA))
    assert batch.mutations[0].fua
    assert batch.fua


def test_largest_write_accepted() -> None:
    batch, _ = parse(request(Command.WRITE, 0, MAXIMUM_PAYLOAD))
    assert batch.mutations[0].length == MAXIMUM_PAYLOAD


@pytest.mark.parametrize("flags", [0, CommandFlag.FUA, CommandFlag.DF, CommandFlag.DF | CommandFlag.FUA])
def test_read_accepted(flags: int) -> None:
    batch, _ = parse(request(Command.READ, 512, 1024, flags=flags))
    assert batch.reads == [((7).to_bytes(8, "big"), 512, 1024)]


def test_trim_accepted_up_to_four_gigabytes() -> None:
    batch, _ = parse(request(Command.TRIM, 0, 0xFFFFFE00, flags=CommandFlag.FUA), parser(size=1 << 40))
    (mutation,) = batch.mutations
    assert (mutation.kind, mutation.length, mutation.payload) == (CommandKind.TRIM, 0xFFFFFE00, None)
    assert batch.fua


@pytest.mark.parametrize("no_hole", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_write_zeroes_accepted_with_its_flags(no_hole: bool, fast: bool) -> None:
    flags = CommandFlag.NO_HOLE * no_hole | CommandFlag.FAST_ZERO * fast
    batch, _ = parse(request(Command.WRITE_ZEROES, flags=flags))
    (mutation,) = batch.mutations
    assert (mutation.kind, mutation.no_hole, mutation.fast) == (CommandKind.ZEROES, no_hole, fast)


@pytest.mark.parametrize("flags", [0, CommandFlag.FUA])
def test_flush_accepted(flags: int) -> None:
    batch, _ = parse(request(Command.FLUSH, 0, 0, flags=flags))
    assert batch.flushes == [(7).to_bytes(8, "big")]


@pytest.mark.parametrize("one", [False, True])
def test_block_status_accepted(one: bool) -> None:
    batch, _ = parse(request(Command.BLOCK_STATUS, 0, SIZE, flags=CommandFlag.REQ_ONE * one))
    (query,) = batch.queries
    assert (query.command, query.length, query.one) == (Command.BLOCK_STATUS, SIZE, one)


def test_cache_accepted() -> None:
    batch, _ = parse(request(Command.CACHE, 0, SIZE, flags=CommandFlag.FUA))
    assert batch.queries[0].command is Command.CACHE


def test_disc_ends_and_nothing_behind_it_is_taken() -> None:
    data = request(Command.READ) + request(Command.DISC, 0, 0)
    batch, taken = parse(data + request(Command.WRITE))
    assert taken == len(data)
    assert len(batch.reads) == 1
    assert batch.ending == Ending(EndReason.DISCONNECTED, "command DISC")
    assert batch.count() == 1, "there is no reply to DISC"


def test_last_block_accepted() -> None:
    batch, _ = parse(request(Command.WRITE, SIZE - 512, 512))
    assert len(batch.mutations) == 1


# --- not allowed ------------------------------------------------------------------------------------------------------


def test_bad_magic_ends_after_what_came_before() -> None:
    good = request(Command.READ)
    batch, taken = parse(good + request(Command.READ, magic=0x25609512))
    assert taken == len(good)
    assert len(batch.reads) == 1
    assert batch.ending is not None
    assert batch.ending.reason is EndReason.BAD_REQUEST_MAGIC
    assert "0x25609512" in batch.ending.detail


@pytest.mark.parametrize("command", [Command.RESIZE, 9, 0xFFFF])
def test_unknown_command_is_invalid(command: int) -> None:
    assert refusal(request(command)) is Errno.EINVAL


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (Command.READ, CommandFlag.NO_HOLE),
        (Command.READ, CommandFlag.REQ_ONE),
        (Command.WRITE, CommandFlag.DF),
        (Command.WRITE, CommandFlag.NO_HOLE | CommandFlag.FUA),
        (Command.WRITE, CommandFlag.PAYLOAD_LEN),
        (Command.TRIM, CommandFlag.FAST_ZERO),
        (Command.WRITE_ZEROES, CommandFlag.DF),
        (Command.CACHE, CommandFlag.REQ_ONE),
        (Command.BLOCK_STATUS, CommandFlag.DF),
        (Command.READ, 0x8000),
        (Command.TRIM, 0x8000),
        (Command.WRITE, 0xFFFF),
    ],
)
def test_foreign_flag_is_invalid(command: int, flags: int) -> None:
    assert refusal(request(command, flags=flags)) is Errno.EINVAL


def test_df_not_allowed_without_structured_replies() -> None:
    assert refusal(request(Command.READ, flags=CommandFlag.DF), parser(structured=False)) is Errno.EINVAL


def test_block_status_not_allowed_without_a_context() -> None:
    assert refusal(request(Command.BLOCK_STATUS), parser(allocation=False)) is Errno.EINVAL


def test_flush_takes_no_range() -> None:
    assert refusal(request(Command.FLUSH, 0, 512)) is Errno.EINVAL
    assert refusal(request(Command.FLUSH, 512, 0)) is Errno.EINVAL


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_changes_not_allowed_on_a_read_only_export(command: Command) -> None:
    assert refusal(request(command), parser(read_only=True)) is Errno.EPERM


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_changes_not_allowed_while_draining(command: Command) -> None:
    assert refusal(request(command), draining=True) is Errno.ESHUTDOWN


@pytest.mark.parametrize("command", [Command.READ, Command.FLUSH, Command.CACHE, Command.BLOCK_STATUS])
def test_reading_goes_on_while_draining(command: Command) -> None:
    length = 0 if command is Command.FLUSH else 512
    batch, _ = parse(request(command, 0, length), draining=True)
    assert not batch.refusals
    assert batch.count() == 1


RANGED = [
    Command.READ,
    Command.WRITE,
    Command.TRIM,
    Command.WRITE_ZEROES,
    Command.CACHE,
    Command.BLOCK_STATUS,
]


@pytest.mark.parametrize("command", RANGED)
@pytest.mark.parametrize(("offset", "length"), [(0, 511), (1, 512), (512, 513), (0, 0), (1, 1)])
def test_misaligned_or_empty_is_invalid(command: Command, offset: int, length: int) -> None:
    assert refusal(request(command, offset, length)) is Errno.EINVAL


@pytest.mark.parametrize("command", RANGED)
@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, 512), (SIZE - 512, 1024), ((1 << 64) - 512, 512), ((1 << 64) - 512, 1024), (1 << 63, 512)],
)
def test_out_of_range(command: Command, offset: int, length: int) -> None:
    expected = Errno.ENOSPC if command in {Command.WRITE, Command.WRITE_ZEROES} else Errno.EINVAL
    assert refusal(request(command, offset, length)) is expected


# --- too large --------------------------------------------------------------------------------------------------------


def test_read_too_large_is_invalid() -> None:
    assert refusal(request(Command.READ, 0, MAXIMUM_PAYLOAD + 512)) is Errno.EINVAL


def test_write_too_large_is_drained_then_answered() -> None:
    """The refusal comes with the last byte of the payload, not before, and what follows is understood."""
    on = parser()
    length = MAXIMUM_PAYLOAD + 512
    batch, taken = parse(request(Command.WRITE, 0, length, payload=b""), on)
    assert taken == 28
    assert not batch.count()
    piece = bytes(1 << 20)
    left = length
    while left:
        batch, taken = parse(piece[: min(left, len(piece))], on)
        left -= taken
        assert batch.count() == (left == 0)
    assert batch.refusals[0].error is Errno.EINVAL
    batch, _ = parse(request(Command.READ), on)
    assert len(batch.reads) == 1


def test_payload_of_a_refused_write_is_not_taken_for_requests() -> None:
    """A guest chooses its bytes: a payload may look like a request."""
    disguised = request(Command.TRIM, 0, 512) * 18 + bytes(8)
    data = request(Command.WRITE, SIZE, 512, payload=disguised) + request(Command.READ, 512, 512)
    batch, taken = parse(data)
    assert taken == len(data)
    assert not batch.mutations
    assert [refused.error for refused in batch.refusals] == [Errno.ENOSPC]
    assert len(batch.reads) == 1


def test_a_pass_is_bounded_in_requests_and_in_bytes_to_read() -> None:
    batch, taken = parse(request(Command.TRIM) * (MAXIMUM_BATCH + 5))
    assert len(batch.mutations) == MAXIMUM_BATCH
    assert taken == 28 * MAXIMUM_BATCH
    batch, _ = parse(request(Command.READ, 0, 1 << 20) * 100)
    assert sum(length for _, _, length in batch.reads) <= MAXIMUM_BATCH_READ


# --- truncated and in pieces ------------------------------------------------------------------------------------------


def test_truncated_write_is_not_taken_and_tells_what_it_needs() -> None:
    on = parser()
    data = request(Command.WRITE, 0, 1024)
    for end in range(len(data)):
        batch, taken = parse(data[:end], on)
        assert taken == 0
        assert not batch.count()
        assert on.needed == (28 if end < 28 else len(data))


@dataclass(frozen=True)
class Seen:
    """What happened to one request, comparable between runs."""

    what: str
    cookie: bytes
    offset: int = 0
    length: int = 0
    payload: bytes | None = None
    flags: tuple[bool, ...] = ()
    error: int = 0


def run(
    pieces: list[bytes], *, read_only: bool = False, draining: bool = False
) -> tuple[list[set[Seen]], Ending | None]:
    """Parse pieces as a connection would; returns what was seen, list by list, and how it ended."""
    on = parser(size=1 << 20, read_only=read_only)
    mutations: list[Seen] = []
    others: list[Seen] = []
    buffer = b""
    for piece in pieces:
        buffer += piece
        while len(buffer) >= on.needed:
            batch, taken = parse(buffer, on, draining=draining)
            buffer = buffer[taken:]
            for mutation, cookie in zip(batch.mutations, batch.cookies, strict=True):
                payload = None if mutation.payload is None else bytes(mutation.payload)
                flags = (mutation.fua, mutation.no_hole, mutation.fast)
                mutations.append(Seen(mutation.kind.value, cookie, mutation.offset, mutation.length, payload, flags))
            others += [Seen("read", cookie, offset, length) for cookie, offset, length in batch.reads]
            others += [Seen("flush", cookie) for cookie in batch.flushes]
            others += [Seen(q.command.name, q.cookie, q.offset, q.length, flags=(q.one,)) for q in batch.queries]
            others += [Seen("refused", refused.cookie, error=refused.error) for refused in batch.refusals]
            if batch.ending is not None:
                return [set(mutations), set(others)], batch.ending
    return [set(mutations), set(others)], None


@st.composite
def scripts(draw: st.DrawFn) -> bytes:
    """Requests good and bad, some with payloads, perhaps with garbage at the end."""
    pieces = []
    for cookie in range(draw(st.integers(0, 12))):
        command = draw(st.sampled_from([0, 1, 1, 1, 3, 4, 5, 6, 7, 9]))
        offset = draw(st.sampled_from([0, 512, 4096, (1 << 20) - 512, 1 << 20, 3, 1 << 63]))
        length = draw(st.sampled_from([0, 512, 1024, 4096, 7, 1 << 21]))
        if command == Command.WRITE:
            length = min(length, 4096)
        flags = draw(st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 32]))
        payload = draw(st.binary(min_size=length, max_size=length)) if command == Command.WRITE else b""
        if command == Command.FLUSH and draw(st.booleans()):
            offset = length = 0
        pieces.append(request(command, offset, length, flags=flags, payload=payload, cookie=cookie))
    return b"".join(pieces) + draw(st.binary(max_size=40))


@given(script=scripts(), cuts=st.lists(st.integers(0, 40_000), max_size=10), draining=st.booleans())
def test_random_pieces_equal_whole(script: bytes, cuts: list[int], draining: bool) -> None:
    """I18: any bytes are requests, refusals or a typed end, however the socket cuts them."""
    edges = [0, *sorted(min(cut, len(script)) for cut in cuts), len(script)]
    pieces = [script[a:b] for a, b in pairwise(edges)]
    assert run(pieces, draining=draining) == run([script], draining=draining)


@given(script=scripts(), read_only=st.booleans())
def test_byte_by_byte_equals_whole(script: bytes, read_only: bool) -> None:
    pieces = [script[i : i + 1] for i in range(len(script))]
    assert run(pieces, read_only=read_only) == run([script], read_only=read_only)


@given(script=scripts())
def test_every_change_that_passes_lies_inside_the_export(script: bytes) -> None:
    """I18: nothing reaches an export that is misaligned, empty or outside of it."""
    (mutations, others), _ = run([script])
    for seen in mutations | {other for other in others if other.length}:
        assert seen.length > 0
        assert seen.offset % 512 == seen.length % 512 == 0
        assert seen.offset + seen.length <= 1 << 20
