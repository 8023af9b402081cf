"""The handshake: every option accepted, not allowed, too large and truncated; whole, and in pieces of any size."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.nbd.constants import (
    MAXIMUM_NAME,
    MAXIMUM_OPTION_DATA,
    MAXIMUM_OPTIONS,
    MAXIMUM_SKIPPED,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)
from shared.nbd.ending import Ending, EndReason
from shared.nbd.handshake import TRANSITIONS, Event, Handshake, Phase, Selection
from tests.unit.nbd.file_backend import Directory, FileBackend

FIXED = struct.pack(">I", 3)
SIZE = 1 << 20


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[FileBackend]:
    path: Path = tmp_path_factory.mktemp("exports") / "disk"
    path.write_bytes(bytes(SIZE))
    return [
        FileBackend(path, name="system", description="the system's disk"),
        FileBackend(path, name="data", read_only=True),
    ]


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(encoded)) + encoded


def info(name: str | bytes, *wanted: int) -> bytes:
    return text(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def contexts(name: str, *queries: str | bytes) -> bytes:
    return text(name) + struct.pack(">I", len(queries)) + b"".join(text(query) for query in queries)


@dataclass
class Outcome:
    """All that a handshake said and where it ended."""

    output: bytes = b""
    ending: Ending | None = None
    selection: Selection | None = None
    rest: bytes = b""
    phase: Phase = Phase.CLIENT_FLAGS
    replies: list[tuple[int, OptionReply, bytes]] = field(default_factory=list)

    def kinds(self) -> list[OptionReply]:
        return [kind for _, kind, _ in self.replies]


def shake(exports: list[FileBackend], *pieces: bytes, closing: bool = False) -> Outcome:
    """Feed the pieces as a connection would: a growing buffer, of which each step takes some."""
    handshake = Handshake(Directory(*exports), lambda: closing)
    outcome = Outcome()
    buffer = b""
    for piece in pieces:
        buffer += piece
        while outcome.ending is None and handshake.selection is None:
            step = handshake.advance(memoryview(buffer), 0, len(buffer))
            if step is None:
                break
            buffer = buffer[step.consumed :]
            outcome.output += step.reply
            outcome.ending = step.ending
    outcome.selection = handshake.selection
    outcome.rest = buffer
    outcome.phase = handshake.phase
    return outcome


def parsed(outcome: Outcome) -> Outcome:
    """The option replies of an output that holds nothing else."""
    position = 0
    while position < len(outcome.output):
        magic, number, kind, length = struct.unpack_from(">QIII", outcome.output, position)
        assert magic == 0x3E889045565A9
        position += 20
        outcome.replies.append((number, OptionReply(kind), outcome.output[position : position + length]))
        position += length
    assert position == len(outcome.output)
    return outcome


def talk(exports: list[FileBackend], *options: bytes, closing: bool = False) -> Outcome:
    return parsed(shake(exports, FIXED + b"".join(options), closing=closing))


def test_greeting_is_fixed_newstyle_without_zeroes(exports: list[FileBackend]) -> None:
    assert Handshake(Directory(*exports), lambda: False).greeting() == b"NBDMAGICIHAVEOPT\x00\x03"


# --- client flags -----------------------------------------------------------------------------------------------------


def test_client_flags_accepted(exports: list[FileBackend]) -> None:
    for flags in range(4):
        assert shake(exports, struct.pack(">I", flags)).phase is Phase.OPTIONS


def test_client_flags_unknown_bit_ends_the_connection(exports: list[FileBackend]) -> None:
    outcome = shake(exports, struct.pack(">I", 1 << 2))
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.BAD_CLIENT_FLAGS
    assert outcome.phase is Phase.ENDED


def test_http_request_instead_of_a_handshake_is_named(exports: list[FileBackend]) -> None:
    outcome = shake(exports, b"GET / HTTP/1.1\r\n\r\n")
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.BAD_CLIENT_FLAGS
    assert not outcome.output


def test_without_fixed_newstyle_only_export_name_is_allowed(exports: list[FileBackend]) -> None:
    outcome = shake(exports, struct.pack(">I", 0) + option(Option.LIST))
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.OPTION_NOT_ALLOWED
    outcome = shake(exports, struct.pack(">I", 0) + option(Option.EXPORT_NAME, b"system"))
    assert outcome.selection is not None


# --- options as such --------------------------------------------------------------------------------------------------


def test_option_with_bad_magic_ends_the_connection(exports: list[FileBackend]) -> None:
    outcome = shake(exports, FIXED + b"IHAVEOPX" + bytes(8))
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.BAD_OPTION_MAGIC


@pytest.mark.parametrize("number", [0, Option.PEEK_EXPORT, Option.EXTENDED_HEADERS, 12, 0xFFFFFFFF])
def test_unknown_option_is_unsupported_and_the_handshake_goes_on(exports: list[FileBackend], number: int) -> None:
    outcome = talk(exports, option(number, b"whatever"), option(Option.LIST))
    assert outcome.kinds() == [
        OptionReply.ERR_UNSUP,
        OptionReply.SERVER,
        OptionReply.SERVER,
        OptionReply.ACK,
    ]
    assert outcome.replies[0][0] == number


@pytest.mark.parametrize("number", [Option.LIST, Option.INFO, Option.GO, Option.SET_META_CONTEXT, 77])
def test_option_too_large_is_skipped_and_answered(exports: list[FileBackend], number: int) -> None:
    data = bytes(MAXIMUM_OPTION_DATA + 1)
    outcome = talk(exports, option(number, data), option(Option.LIST))
    assert outcome.kinds()[0] is OptionReply.ERR_TOO_BIG
    assert outcome.kinds()[-1] is OptionReply.ACK


def test_option_of_four_gigabytes_ends_the_connection_at_its_header(exports: list[FileBackend]) -> None:
    outcome = shake(exports, FIXED + option(Option.LIST, length=0xFFFFFFFF))
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.OPTION_TOO_LARGE


def test_oversized_options_may_not_add_up_without_end(exports: list[FileBackend]) -> None:
    each = option(Option.LIST, bytes(MAXIMUM_OPTION_DATA + 1))
    outcome = shake(exports, FIXED + each * (MAXIMUM_SKIPPED // MAXIMUM_OPTION_DATA + 1))
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.OPTION_TOO_LARGE


def test_too_many_options_end_the_connection(exports: list[FileBackend]) -> None:
    outcome = shake(exports, FIXED + option(99) * MAXIMUM_OPTIONS)
    assert outcome.ending is None
    outcome = shake(exports, FIXED + option(99) * (MAXIMUM_OPTIONS + 1))
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.TOO_MANY_OPTIONS


@pytest.mark.parametrize("number", [Option.LIST, Option.STARTTLS, Option.STRUCTURED_REPLY])
def test_options_without_data_refuse_data(exports: list[FileBackend], number: int) -> None:
    assert talk(exports, option(number, b"x")).kinds() == [OptionReply.ERR_INVALID]


def test_truncated_option_waits_for_the_rest(exports: list[FileBackend]) -> None:
    whole = FIXED + option(Option.GO, info("system"))
    for end in range(len(whole)):
        outcome = shake(exports, whole[:end])
        assert not outcome.output
        assert outcome.ending is None
        assert outcome.selection is None
    assert shake(exports, whole).selection is not None


# --- EXPORT_NAME and ABORT --------------------------------------------------------------------------------------------


def test_export_name_accepted_without_zeroes(exports: list[FileBackend]) -> None:
    outcome = shake(exports, FIXED + option(Option.EXPORT_NAME, b"system") + b"next")
    assert struct.unpack(">Q", outcome.output[:8]) == (SIZE,)
    assert len(outcome.output) == 10
    assert outcome.selection is not None
    assert not outcome.selection.structured
    assert outcome.rest == b"next", "requests that follow belong to the transmission phase"


def test_export_name_accepted_with_zeroes(exports: list[FileBackend]) -> None:
    outcome = shake(exports, struct.pack(">I", 1) + option(Option.EXPORT_NAME, b"system"))
    assert outcome.output[10:] == bytes(124)


def test_export_name_unknown_ends_the_connection(exports: list[FileBackend]) -> None:
    for name in (b"nothing", b"", b"\xff\xfe", b"system\0"):
        outcome = shake(exports, FIXED + option(Option.EXPORT_NAME, name))
        assert outcome.ending is not None
        assert outcome.ending.reason is EndReason.UNKNOWN_EXPORT


def test_export_name_too_large_ends_the_connection(exports: list[FileBackend]) -> None:
    outcome = shake(exports, FIXED + option(Option.EXPORT_NAME, length=MAXIMUM_NAME + 1))
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.OPTION_TOO_LARGE


def test_empty_name_is_the_only_export(exports: list[FileBackend]) -> None:
    outcome = shake(exports[:1], FIXED + option(Option.EXPORT_NAME))
    assert outcome.selection is not None
    assert outcome.selection.export is exports[0]


def test_abort_is_acknowledged(exports: list[FileBackend]) -> None:
    outcome = talk(exports, option(Option.ABORT))
    assert outcome.kinds() == [OptionReply.ACK]
    assert outcome.ending is not None
    assert outcome.ending.reason is EndReason.DISCONNECTED


# --- LIST, STARTTLS ---------------------------------------------------------------------------------------------------


def test_list_names_every_export(exports: list[FileBackend]) -> None:
    outcome = talk(exports, option(Option.LIST))
    assert [data for _, kind, data in outcome.replies if kind is OptionReply.SERVER] == [
        text("system") + b"the system's disk",
        text("data"),
    ]


def test_starttls_is_refused_and_plain_text_goes_on(exports: list[FileBackend]) -> None:
    outcome = talk(exports, option(Option.STARTTLS), option(Option.GO, info("system")))
    assert outcome.kinds()[0] is OptionReply.ERR_UNSUP
    assert outcome.selection is not None


# --- INFO and GO ------------------------------------------------------------------------------------------------------


def flags_of(outcome: Outcome) -> TransmissionFlag:
    for _, kind, data in outcome.replies:
        if kind is OptionReply.INFO and data[:2] == bytes(2):
            size, flags = struct.unpack(">QH", data[2:])
            assert size == SIZE
            return TransmissionFlag(flags)
    raise AssertionError("no information about the export")


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_info_and_go_describe_the_export(exports: list[FileBackend], number: Option) -> None:
    outcome = talk(exports, option(number, info("system", Info.BLOCK_SIZE, Info.NAME, Info.DESCRIPTION, 99)))
    items = {struct.unpack(">H", data[:2])[0]: data[2:] for _, _, data in outcome.replies[:-1]}
    assert items[Info.BLOCK_SIZE] == struct.pack(">III", 512, 4096, 32 << 20)
    assert items[Info.NAME] == b"system"
    assert items[Info.DESCRIPTION] == b"the system's disk"
    assert outcome.kinds()[-1] is OptionReply.ACK
    assert flags_of(outcome) == (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.SEND_FUA
        | TransmissionFlag.SEND_TRIM
        | TransmissionFlag.SEND_WRITE_ZEROES
        | TransmissionFlag.SEND_FAST_ZERO
        | TransmissionFlag.SEND_CACHE
        | TransmissionFlag.CAN_MULTI_CONN
    )
    assert (outcome.selection is not None) == (number is Option.GO)
    assert outcome.phase is (Phase.TRANSMISSION if number is Option.GO else Phase.OPTIONS)


def test_block_size_is_told_even_unasked(exports: list[FileBackend]) -> None:
    outcome = talk(exports, option(Option.GO, info("system")))
    assert struct.pack(">HIII", Info.BLOCK_SIZE, 512, 4096, 32 << 20) in [data for _, _, data in outcome.replies]


def test_read_only_export_offers_no_changes(exports: list[FileBackend]) -> None:
    flags = flags_of(talk(exports, option(Option.GO, info("data"))))
    assert TransmissionFlag.READ_ONLY in flags
    assert not flags & (
        TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
    )


def test_df_is_offered_only_with_structured_replies(exports: list[FileBackend]) -> None:
    plain = talk(exports, option(Option.GO, info("system")))
    assert TransmissionFlag.SEND_DF not in flags_of(plain)
    structured = talk(exports, option(Option.STRUCTURED_REPLY), option(Option.GO, info("system")))
    assert TransmissionFlag.SEND_DF in flags_of(structured)
    assert structured.selection is not None
    assert structured.selection.structured


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(info("nothing"), OptionReply.ERR_UNKNOWN, id="unknown export"),
        pytest.param(info(""), OptionReply.ERR_UNKNOWN, id="no default among several"),
        pytest.param(b"", OptionReply.ERR_INVALID, id="empty"),
        pytest.param(text("system")[:3], OptionReply.ERR_INVALID, id="length of the name truncated"),
        pytest.param(text("system")[:-1], OptionReply.ERR_INVALID, id="name truncated"),
        pytest.param(text("system"), OptionReply.ERR_INVALID, id="count missing"),
        pytest.param(info("system", 1)[:-1], OptionReply.ERR_INVALID, id="requests truncated"),
        pytest.param(info("system", 1) + b"x", OptionReply.ERR_INVALID, id="bytes left over"),
        pytest.param(info(b"\xff\xff"), OptionReply.ERR_INVALID, id="not UTF-8"),
        pytest.param(info("x" * (MAXIMUM_NAME + 1)), OptionReply.ERR_TOO_BIG, id="name too large"),
        pytest.param(struct.pack(">I", 0xFFFFFFFF), OptionReply.ERR_INVALID, id="length far past the end"),
    ],
)
def test_info_and_go_refused(exports: list[FileBackend], number: Option, data: bytes, expected: OptionReply) -> None:
    outcome = talk(exports, option(number, data), option(Option.GO, info("system")))
    assert outcome.kinds()[0] is expected
    assert outcome.replies[0][2], "an error explains itself"
    assert outcome.selection is not None, "the handshake went on"


def test_go_is_refused_while_the_server_closes(exports: list[FileBackend]) -> None:
    outcome = talk(exports, option(Option.GO, info("system")), closing=True)
    assert outcome.kinds() == [OptionReply.ERR_SHUTDOWN]
    assert outcome.selection is None


# --- metadata contexts ------------------------------------------------------------------------------------------------

STRUCTURED = option(Option.STRUCTURED_REPLY)


@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_contexts_not_allowed_before_structured_replies(exports: list[FileBackend], number: Option) -> None:
    outcome = talk(exports, option(number, contexts("system", "base:allocation")))
    assert outcome.kinds() == [OptionReply.ERR_INVALID]


@pytest.mark.parametrize("queries", [(), ("base:",), ("base:allocation",), ("qemu:x", "base:allocation")])
def test_list_contexts_finds_allocation(exports: list[FileBackend], queries: tuple[str, ...]) -> None:
    outcome = talk(exports, STRUCTURED, option(Option.LIST_META_CONTEXT, contexts("system", *queries)))
    assert outcome.replies[1] == (
        Option.LIST_META_CONTEXT,
        OptionReply.META_CONTEXT,
        struct.pack(">I", 0) + b"base:allocation",
    )
    assert outcome.kinds()[-1] is OptionReply.ACK


def test_list_contexts_finds_nothing_for_foreign_queries(exports: list[FileBackend]) -> None:
    outcome = talk(exports, STRUCTURED, option(Option.LIST_META_CONTEXT, contexts("system", "qemu:", "nonsense")))
    assert outcome.kinds() == [OptionReply.ACK, OptionReply.ACK]


def test_set_context_selects_allocation(exports: list[FileBackend]) -> None:
    outcome = talk(
        exports,
        STRUCTURED,
        option(Option.SET_META_CONTEXT, contexts("system", "base:allocation")),
        option(Option.GO, info("system")),
    )
    assert outcome.replies[1][2] == struct.pack(">I", 1) + b"base:allocation"
    assert outcome.selection is not None
    assert outcome.selection.allocation


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(contexts("system"), id="nothing asked"),
        pytest.param(contexts("system", "base:"), id="a namespace selects nothing"),
        pytest.param(contexts("data", "base:allocation"), id="another export"),
        pytest.param(contexts("nothing", "base:allocation"), id="a failed attempt"),
        pytest.param(b"garbage", id="an invalid attempt"),
    ],
)
def test_set_context_replaces_what_was_selected(exports: list[FileBackend], later: bytes) -> None:
    outcome = talk(
        exports,
        STRUCTURED,
        option(Option.SET_META_CONTEXT, contexts("system", "base:allocation")),
        option(Option.SET_META_CONTEXT, later),
        option(Option.GO, info("system")),
    )
    assert outcome.selection is not None
    assert not outcome.selection.allocation


@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", OptionReply.ERR_INVALID, id="empty"),
        pytest.param(text("system"), OptionReply.ERR_INVALID, id="count missing"),
        pytest.param(contexts("system", "base:")[:-1], OptionReply.ERR_INVALID, id="query truncated"),
        pytest.param(contexts("system", "base:") + b"x", OptionReply.ERR_INVALID, id="bytes left over"),
        pytest.param(text("system") + b"\xff\xff\xff\xff", OptionReply.ERR_INVALID, id="count far too large"),
        pytest.param(contexts("system", b"\xff"), OptionReply.ERR_INVALID, id="query not UTF-8"),
        pytest.param(contexts("system", "q" * (MAXIMUM_NAME + 1)), OptionReply.ERR_TOO_BIG, id="query too large"),
        pytest.param(contexts("nothing", "base:"), OptionReply.ERR_UNKNOWN, id="unknown export"),
    ],
)
def test_contexts_refused(exports: list[FileBackend], number: Option, data: bytes, expected: OptionReply) -> None:
    assert talk(exports, STRUCTURED, option(number, data)).kinds() == [OptionReply.ACK, expected]


# --- the table, and pieces --------------------------------------------------------------------------------------------


def test_transitions_lead_only_forward() -> None:
    order = list(Phase)
    for (phase, event), following in TRANSITIONS.items():
        assert phase not in {Phase.TRANSMISSION, Phase.ENDED}
        assert order.index(following) >= order.index(phase)
        assert (following is Phase.ENDED) == (event is Event.ENDED)


SCRIPTS = [
    FIXED + option(Option.EXPORT_NAME, b"system") + b"rest",
    FIXED + option(Option.LIST) + option(Option.STARTTLS) + option(12, b"abc") + option(Option.ABORT),
    FIXED
    + STRUCTURED
    + option(Option.LIST_META_CONTEXT, contexts("system"))
    + option(Option.SET_META_CONTEXT, contexts("system", "base:allocation"))
    + option(Option.INFO, info("data", Info.NAME))
    + option(Option.INFO, b"bad")
    + option(Option.GO, info("system", Info.BLOCK_SIZE))
    + b"requests",
    FIXED + option(Option.LIST) + b"garbage that is no option at all",
    b"\xff\xff\xff\xff",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_byte_by_byte_equals_whole(exports: list[FileBackend], script: bytes) -> None:
    whole = shake(exports, script)
    pieces = shake(exports, *(script[i : i + 1] for i in range(len(script))))
    assert pieces == whole


@given(script=st.sampled_from(SCRIPTS), cuts=st.lists(st.integers(0, 300), max_size=12))
def test_random_pieces_equal_whole(exports: list[FileBackend], script: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(script)) for cut in cuts), len(script)]
    pieces = [script[a:b] for a, b in pairwise(edges)]
    assert shake(exports, *pieces) == shake(exports, script)


@given(
    options=st.lists(st.tuples(st.integers(0, 13), st.binary(max_size=64)), max_size=8),
    tail=st.binary(max_size=64),
)
def test_any_bytes_are_answered_or_end_the_connection(
    exports: list[FileBackend], options: list[tuple[int, bytes]], tail: bytes
) -> None:
    """I18: whatever a client sends is a valid message, a typed refusal, or a typed end."""
    script = FIXED + b"".join(option(number, data) for number, data in options) + tail
    outcome = shake(exports, script)
    if outcome.ending is None and outcome.selection is None:
        # Everything whole was taken; what is left is the beginning of an option.
        assert outcome.phase in {Phase.OPTIONS, Phase.CLIENT_FLAGS}
        assert len(outcome.rest) <= len(tail)
