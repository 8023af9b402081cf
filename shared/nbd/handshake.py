"""The handshake of the NBD protocol (fixed newstyle) as a state machine: bytes in, bytes and a selected export out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from shared.nbd.backend import ExportBackend, ExportDirectory
from shared.nbd.constants import (
    ALLOCATION_CONTEXT,
    ALLOCATION_CONTEXT_ID,
    CLIENT_FLAGS,
    GREETING,
    GREETING_MAGIC,
    MAXIMUM_NAME,
    MAXIMUM_OPTION_DATA,
    MAXIMUM_OPTIONS,
    MAXIMUM_PAYLOAD,
    MAXIMUM_SKIPPED,
    MINIMUM_BLOCK,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PREFERRED_BLOCK,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)
from shared.nbd.ending import Ending, EndReason

_U16 = Struct(">H")
_U32 = Struct(">I")
_EXPORT_INFO = Struct(">HQH")
_BLOCK_SIZE_INFO = Struct(">HIII")
_EXPORT_NAME_REPLY = Struct(">QH")
_EXPORT_NAME_ZEROES = bytes(124)


class Phase(Enum):
    """Where a connection stands."""

    CLIENT_FLAGS = "client flags"
    OPTIONS = "options"
    TRANSMISSION = "transmission"
    ENDED = "ended"


class Event(Enum):
    """What moves a connection from one phase to another."""

    FLAGS_ACCEPTED = "flags accepted"
    OPTION_ANSWERED = "option answered"
    EXPORT_SELECTED = "export selected"
    ENDED = "ended"


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.CLIENT_FLAGS, Event.FLAGS_ACCEPTED): Phase.OPTIONS,
    (Phase.CLIENT_FLAGS, Event.ENDED): Phase.ENDED,
    (Phase.OPTIONS, Event.OPTION_ANSWERED): Phase.OPTIONS,
    (Phase.OPTIONS, Event.EXPORT_SELECTED): Phase.TRANSMISSION,
    (Phase.OPTIONS, Event.ENDED): Phase.ENDED,
}
"""A pair that is missing can't happen; a KeyError here is a bug, never a client's doing."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one message of the client led to. ``consumed`` bytes are done with; ``reply`` goes out first."""

    consumed: int
    reply: bytes = b""
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What the transmission phase starts with."""

    export: ExportBackend
    structured: bool
    allocation: bool
    """Whether base:allocation was selected for this export."""


class _InvalidOption(Exception):
    """The option is answered with an error; the handshake goes on."""

    def __init__(self, reply: OptionReply, text: str) -> None:
        super().__init__(text)
        self.reply = reply
        self.text = text


def transmission_flags(export: ExportBackend, *, structured: bool) -> TransmissionFlag:
    """What the export offers to a client that did or did not negotiate structured replies."""
    flags = (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.CAN_MULTI_CONN
        | TransmissionFlag.SEND_CACHE
    )
    if export.read_only:
        flags |= TransmissionFlag.READ_ONLY
    else:
        flags |= (
            TransmissionFlag.SEND_FUA
            | TransmissionFlag.SEND_TRIM
            | TransmissionFlag.SEND_WRITE_ZEROES
            | TransmissionFlag.SEND_FAST_ZERO
        )
    if structured:
        flags |= TransmissionFlag.SEND_DF
    return flags


class Handshake:
    """One client's handshake, from our greeting to the transmission phase.

    ``closing`` says whether the server is going away; then no export can be selected any more.
    """

    def __init__(self, directory: ExportDirectory, closing: Callable[[], bool]) -> None:
        self.phase = Phase.CLIENT_FLAGS
        self.selection: Selection | None = None
        self._directory = directory
        self._closing = closing
        self._fixed = False
        self._no_zeroes = False
        self._structured = False
        self._allocation_of: ExportBackend | None = None
        self._options = 0
        self._skip = 0
        self._skipped = 0
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            Option.LIST: self._list,
            Option.STARTTLS: self._start_tls,
            Option.INFO: self._info,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._list_contexts,
            Option.SET_META_CONTEXT: self._set_contexts,
        }

    def greeting(self) -> bytes:
        """What the server says first."""
        return GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)

    def advance(self, view: memoryview, start: int, end: int) -> Step | None:
        """Take one message from ``view[start:end]``; None means that it isn't whole yet and nothing was taken."""
        if self._skip:
            taken = min(self._skip, end - start)
            self._skip -= taken
            return Step(taken) if taken else None
        match self.phase:
            case Phase.CLIENT_FLAGS:
                step = self._take_client_flags(view, start, end)
            case Phase.OPTIONS:
                step = self._take_option(view, start, end)
            case _:
                raise AssertionError(f"no handshake message can be taken in phase {self.phase.value}")
        if step is not None and step.ending is not None:
            self._move(Event.ENDED)
        return step

    def _move(self, event: Event) -> None:
        self.phase = TRANSITIONS[self.phase, event]

    # --- client flags ---------------------------------------------------------------------------------------------

    def _take_client_flags(self, view: memoryview, start: int, end: int) -> Step | None:
        if end - start < CLIENT_FLAGS.size:
            return None
        (flags,) = CLIENT_FLAGS.unpack_from(view, start)
        unknown = flags & ~int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)
        if unknown:
            detail = f"client flags {flags:#010x} contain unknown bits {unknown:#x}"
            return Step(CLIENT_FLAGS.size, ending=Ending(EndReason.BAD_CLIENT_FLAGS, detail))
        self._fixed = bool(flags & ClientFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & ClientFlag.NO_ZEROES)
        self._move(Event.FLAGS_ACCEPTED)
        return Step(CLIENT_FLAGS.size)

    # --- options ----------------------------------------------------------------------------------------------------

    def _take_option(self, view: memoryview, start: int, end: int) -> Step | None:
        if end - start < OPTION.size:
            return None
        magic, number, length = OPTION.unpack_from(view, start)
        ending = self._judge_option(magic, number, length)
        if ending is not None:
            return Step(OPTION.size, ending=ending)
        if length > MAXIMUM_OPTION_DATA:
            self._options += 1
            self._skip = length
            self._skipped += length
            text = f"{length} bytes of option data are more than {MAXIMUM_OPTION_DATA}"
            return Step(OPTION.size, _error(number, OptionReply.ERR_TOO_BIG, text))
        whole = OPTION.size + length
        if end - start < whole:
            return None
        self._options += 1
        data = bytes(view[start + OPTION.size : start + whole])
        return self._answer(number, data, whole)

    def _judge_option(self, magic: bytes, number: int, length: int) -> Ending | None:
        """What is wrong enough with an option's header to end the connection."""
        if magic != OPTION_MAGIC:
            return Ending(EndReason.BAD_OPTION_MAGIC, f"an option begins with {magic.hex()}, not {OPTION_MAGIC.hex()}")
        if self._options >= MAXIMUM_OPTIONS:
            return Ending(EndReason.TOO_MANY_OPTIONS, f"more than {MAXIMUM_OPTIONS} options")
        if not self._fixed and number != Option.EXPORT_NAME:
            return Ending(EndReason.OPTION_NOT_ALLOWED, f"option {number} from a client without fixed newstyle")
        if number == Option.EXPORT_NAME and length > MAXIMUM_NAME:
            return Ending(EndReason.OPTION_TOO_LARGE, f"an export name of {length} bytes; the limit is {MAXIMUM_NAME}")
        if length > MAXIMUM_OPTION_DATA and self._skipped + length > MAXIMUM_SKIPPED:
            return Ending(EndReason.OPTION_TOO_LARGE, f"option {number} with {length} bytes of data")
        return None

    def _answer(self, number: int, data: bytes, whole: int) -> Step:
        if number == Option.EXPORT_NAME:
            return self._export_name(data, whole)
        if number == Option.ABORT:
            return Step(whole, _reply(number, OptionReply.ACK), Ending(EndReason.DISCONNECTED, "option ABORT"))
        try:
            if number == Option.GO:
                return self._go(data, whole)
            handler = self._handlers.get(number)
            if handler is None:
                raise _InvalidOption(OptionReply.ERR_UNSUP, f"option {number} is not supported")
            reply = handler(data)
        except _InvalidOption as error:
            reply = _error(number, error.reply, error.text)
        self._move(Event.OPTION_ANSWERED)
        return Step(whole, reply)

    # --- selecting an export ----------------------------------------------------------------------------------------

    def _export_name(self, data: bytes, whole: int) -> Step:
        name = data.decode("utf-8", "replace")
        export = None if self._closing() else self._directory.find(name)
        if export is None:
            return Step(whole, ending=Ending(EndReason.UNKNOWN_EXPORT, f"no export is named {name!r}"))
        self._select(export)
        flags = transmission_flags(export, structured=self._structured)
        reply = _EXPORT_NAME_REPLY.pack(export.size, flags)
        return Step(whole, reply if self._no_zeroes else reply + _EXPORT_NAME_ZEROES)

    def _go(self, data: bytes, whole: int) -> Step:
        if self._closing():
            raise _InvalidOption(OptionReply.ERR_SHUTDOWN, "the server is shutting down")
        export, wanted = self._parse_info(data)
        reply = self._describe(Option.GO, export, wanted)
        self._select(export)
        return Step(whole, reply)

    def _select(self, export: ExportBackend) -> None:
        # Contexts that were negotiated for another export do not count for this one.
        allocation = self._structured and self._allocation_of is export
        self.selection = Selection(export, self._structured, allocation)
        self._move(Event.EXPORT_SELECTED)

    def _info(self, data: bytes) -> bytes:
        export, wanted = self._parse_info(data)
        return self._describe(Option.INFO, export, wanted)

    def _parse_info(self, data: bytes) -> tuple[ExportBackend, set[int]]:
        """Data: name length u32, name, count u16, that many information types u16."""
        name, position = _take_string(data, 0, "export name")
        if len(data) - position < _U16.size:
            raise _InvalidOption(OptionReply.ERR_INVALID, "the count of information requests is missing")
        (count,) = _U16.unpack_from(data, position)
        position += _U16.size
        if len(data) - position != count * _U16.size:
            text = f"{count} information requests need {count * _U16.size} bytes, not {len(data) - position}"
            raise _InvalidOption(OptionReply.ERR_INVALID, text)
        wanted = {kind for (kind,) in _U16.iter_unpack(data[position:])}
        return self._find(name), wanted

    def _find(self, name: str) -> ExportBackend:
        export = self._directory.find(name)
        if export is None:
            raise _InvalidOption(OptionReply.ERR_UNKNOWN, f"no export is named {name!r}")
        return export

    def _describe(self, option: Option, export: ExportBackend, wanted: set[int]) -> bytes:
        """The information replies and the final ACK. Block sizes are always told, since they bind every client."""
        flags = transmission_flags(export, structured=self._structured)
        items = [
            _EXPORT_INFO.pack(Info.EXPORT, export.size, flags),
            _BLOCK_SIZE_INFO.pack(Info.BLOCK_SIZE, MINIMUM_BLOCK, PREFERRED_BLOCK, MAXIMUM_PAYLOAD),
        ]
        if Info.NAME in wanted:
            items.append(_U16.pack(Info.NAME) + _text(export.name))
        if Info.DESCRIPTION in wanted and export.description:
            items.append(_U16.pack(Info.DESCRIPTION) + _text(export.description))
        replies = [_reply(option, OptionReply.INFO, item) for item in items]
        return b"".join(replies) + _reply(option, OptionReply.ACK)

    # --- other options ----------------------------------------------------------------------------------------------

    def _list(self, data: bytes) -> bytes:
        _refuse_data(data)
        replies = []
        for name, description in self._directory.names():
            encoded = _text(name)
            item = _U32.pack(len(encoded)) + encoded + _text(description)
            replies.append(_reply(Option.LIST, OptionReply.SERVER, item))
        return b"".join(replies) + _reply(Option.LIST, OptionReply.ACK)

    def _start_tls(self, data: bytes) -> bytes:
        _refuse_data(data)
        # Never upgrade a connection: it only serves unix sockets and loopback, where the kernel says who is there.
        raise _InvalidOption(OptionReply.ERR_UNSUP, "this server does not speak TLS")

    def _structured_reply(self, data: bytes) -> bytes:
        _refuse_data(data)
        self._structured = True
        return _reply(Option.STRUCTURED_REPLY, OptionReply.ACK)

    def _list_contexts(self, data: bytes) -> bytes:
        _, queries = self._parse_contexts(data)
        listed = not queries or any(query in {"base:", ALLOCATION_CONTEXT} for query in queries)
        return _contexts(Option.LIST_META_CONTEXT, 0, listed=listed)

    def _set_contexts(self, data: bytes) -> bytes:
        # A failed attempt leaves no context selected, as the specification demands.
        self._allocation_of = None
        export, queries = self._parse_contexts(data)
        selected = ALLOCATION_CONTEXT in queries
        if selected:
            self._allocation_of = export
        return _contexts(Option.SET_META_CONTEXT, ALLOCATION_CONTEXT_ID, listed=selected)

    def _parse_contexts(self, data: bytes) -> tuple[ExportBackend, list[str]]:
        """Data: name length u32, name, count u32, that many queries of length u32 and text."""
        if not self._structured:
            raise _InvalidOption(OptionReply.ERR_INVALID, "metadata contexts need structured replies, negotiated first")
        name, position = _take_string(data, 0, "export name")
        if len(data) - position < _U32.size:
            raise _InvalidOption(OptionReply.ERR_INVALID, "the count of queries is missing")
        (count,) = _U32.unpack_from(data, position)
        position += _U32.size
        if count > (len(data) - position) // _U32.size:
            raise _InvalidOption(OptionReply.ERR_INVALID, f"{count} queries do not fit the option's data")
        queries = []
        for _ in range(count):
            query, position = _take_string(data, position, "query")
            queries.append(query)
        if position != len(data):
            raise _InvalidOption(OptionReply.ERR_INVALID, f"{len(data) - position} bytes follow the last query")
        return self._find(name), queries


def _reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def _error(option: int, kind: OptionReply, text: str) -> bytes:
    return _reply(option, kind, _text(text))


def _contexts(option: Option, identifier: int, *, listed: bool) -> bytes:
    item = _U32.pack(identifier) + ALLOCATION_CONTEXT.encode()
    context = _reply(option, OptionReply.META_CONTEXT, item) if listed else b""
    return context + _reply(option, OptionReply.ACK)


def _text(text: str) -> bytes:
    """UTF-8, at most as long as the specification allows, never cut inside a character."""
    return text.encode("utf-8", "replace")[:MAXIMUM_NAME].decode("utf-8", "ignore").encode()


def _refuse_data(data: bytes) -> None:
    if data:
        raise _InvalidOption(OptionReply.ERR_INVALID, f"this option takes no data, not {len(data)} bytes")


def _take_string(data: bytes, position: int, what: str) -> tuple[str, int]:
    """Length u32 and UTF-8 text at ``position``; returns the text and the position behind it."""
    if len(data) - position < _U32.size:
        raise _InvalidOption(OptionReply.ERR_INVALID, f"the length of the {what} is missing")
    (length,) = _U32.unpack_from(data, position)
    position += _U32.size
    if length > len(data) - position:
        text = f"the {what} is said to have {length} bytes, but {len(data) - position} follow"
        raise _InvalidOption(OptionReply.ERR_INVALID, text)
    if length > MAXIMUM_NAME:
        text = f"the {what} has {length} bytes; the limit is {MAXIMUM_NAME}"
        raise _InvalidOption(OptionReply.ERR_TOO_BIG, text)
    try:
        return data[position : position + length].decode(), position + length
    except UnicodeDecodeError as error:
        raise _InvalidOption(OptionReply.ERR_INVALID, f"the {what} is not UTF-8: {error}") from error
