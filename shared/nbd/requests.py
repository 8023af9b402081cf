"""Parses and judges requests of the transmission phase: everything that a buffer holds, in one pass, without I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.nbd.backend import CommandKind, Mutation
from shared.nbd.constants import (
    MAXIMUM_PAYLOAD,
    MINIMUM_BLOCK,
    REQUEST,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    Errno,
)
from shared.nbd.ending import Ending, EndReason

MAXIMUM_BATCH = 512
"""Requests taken in one pass."""
MAXIMUM_BATCH_READ = 2 << 20
"""A pass ends once its READs ask for this many bytes, so that a full send queue is noticed in time."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is valid for one command."""

    flags: int
    """Command flags that are accepted; FUA is accepted everywhere, as the specification demands."""
    changes: bool = False
    past_end: Errno = Errno.EINVAL
    """The error for a range that does not lie inside the export."""
    limit: int | None = None
    """Largest length in bytes, None where only the length field's width limits it."""
    ranged: bool = True
    """Whether offset and length name a range; otherwise both must be zero."""


RULES: dict[int, Rule] = {
    Command.READ: Rule(CommandFlag.FUA | CommandFlag.DF, limit=MAXIMUM_PAYLOAD),
    Command.WRITE: Rule(CommandFlag.FUA, changes=True, past_end=Errno.ENOSPC, limit=MAXIMUM_PAYLOAD),
    Command.FLUSH: Rule(CommandFlag.FUA, ranged=False),
    Command.TRIM: Rule(CommandFlag.FUA, changes=True),
    Command.CACHE: Rule(CommandFlag.FUA),
    Command.WRITE_ZEROES: Rule(
        CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO, changes=True, past_end=Errno.ENOSPC
    ),
    Command.BLOCK_STATUS: Rule(CommandFlag.FUA | CommandFlag.REQ_ONE),
}
"""The commands that are answered; DISC is not, and any other number is EINVAL."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is answered with an error and reaches no export."""

    cookie: bytes
    error: Errno
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """A READ, CACHE or BLOCK_STATUS; ``one`` is the flag REQ_ONE."""

    command: Command
    cookie: bytes
    offset: int
    length: int
    one: bool = False
    begun: float = 0.0
    """When it was decoded, monotonic seconds; of READs only."""


@dataclass(slots=True)
class Batch:
    """What one pass found, in order of arrival within each list. ``cookies`` go with ``mutations``."""

    mutations: list[Mutation] = field(default_factory=list)
    cookies: list[bytes] = field(default_factory=list)
    fua: bool = False
    """Whether any mutation carries FUA."""
    payload: int = 0
    """Bytes that WRITEs brought."""
    reads: list[tuple[bytes, int, int]] = field(default_factory=list)
    """Cookie, offset and length of each READ."""
    queries: list[Query] = field(default_factory=list)
    """CACHE and BLOCK_STATUS."""
    flushes: list[bytes] = field(default_factory=list)
    """Cookies; each FLUSH follows all mutations of the batch, which is more than it has to."""
    refusals: list[Refusal] = field(default_factory=list)
    begun: float = 0.0
    """When decoding began, monotonic seconds."""
    ending: Ending | None = None
    """Set when nothing after this batch can be read: DISC, or a request that does not begin with the magic."""

    def count(self) -> int:
        """Requests that will be answered."""
        return len(self.mutations) + len(self.reads) + len(self.queries) + len(self.flushes) + len(self.refusals)


_READ = int(Command.READ)
_WRITE = int(Command.WRITE)
_DISC = int(Command.DISC)
_FLUSH = int(Command.FLUSH)
_FUA = int(CommandFlag.FUA)
_NO_HOLE = int(CommandFlag.NO_HOLE)
_DF = int(CommandFlag.DF)
_FAST_ZERO = int(CommandFlag.FAST_ZERO)
_MISALIGNED = MINIMUM_BLOCK - 1
_HEADER = REQUEST.size
_KIND_WRITE = CommandKind.WRITE
_KINDS = {int(Command.TRIM): CommandKind.TRIM, int(Command.WRITE_ZEROES): CommandKind.ZEROES}


class RequestParser:
    """The requests of one connection to one export of ``size`` bytes.

    ``needed`` is how many bytes, from where the last pass stopped, make the next request whole.
    """

    __slots__ = (
        "_allocation",
        "_pending",
        "_read_flags",
        "_read_only",
        "_size",
        "_skip",
        "_structured",
        "needed",
    )

    def __init__(self, size: int, *, read_only: bool, structured: bool, allocation: bool) -> None:
        self.needed = _HEADER
        self._size = size
        self._read_only = read_only
        self._structured = structured
        self._allocation = allocation
        self._read_flags = _FUA | _DF if structured else _FUA
        self._skip = 0
        self._pending: Refusal | None = None

    def parse(self, view: memoryview, start: int, end: int, batch: Batch, *, draining: bool) -> int:
        """Take the whole requests in ``view[start:end]`` into ``batch``; returns where the first untaken byte is.

        Payloads stay where they are: the mutations hold views of ``view``. The payload of a refused WRITE is
        skipped, also over several passes, and the refusal joins the batch when the last byte of it has arrived.
        While ``draining``, changes are refused with ESHUTDOWN.
        """
        position = start
        if self._pending is not None:
            position = self._skip_payload(position, end, batch)
        unpack = REQUEST.unpack_from
        writable = not self._read_only and not draining
        size = self._size
        mutations = batch.mutations
        cookies = batch.cookies
        budget = MAXIMUM_BATCH
        asked = 0
        received = 0
        self.needed = _HEADER
        while budget and end - position >= _HEADER and self._pending is None:
            budget -= 1
            magic, flags, command, cookie, offset, length = unpack(view, position)
            if magic != REQUEST_MAGIC:
                detail = f"a request begins with {magic:#010x}, not {REQUEST_MAGIC:#010x}"
                batch.ending = Ending(EndReason.BAD_REQUEST_MAGIC, detail)
                break
            # The two hot commands are judged right here; whatever fails goes through the one gate below.
            valid = not (offset | length) & _MISALIGNED and 0 < length <= size - offset
            if command == _WRITE:
                if valid and flags <= _FUA and writable and length <= MAXIMUM_PAYLOAD:
                    payload = position + _HEADER
                    after = payload + length
                    if after > end:
                        self.needed = after - position
                        break
                    mutations.append(
                        Mutation(_KIND_WRITE, offset, length, view[payload:after], flags == _FUA, False, False)
                    )
                    cookies.append(cookie)
                    received += length
                    if flags:
                        batch.fua = True
                    position = after
                    continue
            elif command == _READ:
                if valid and not flags & ~self._read_flags and length <= MAXIMUM_PAYLOAD:
                    position += _HEADER
                    batch.reads.append((cookie, offset, length))
                    asked += length
                    if asked >= MAXIMUM_BATCH_READ:
                        break
                    continue
            elif command == _DISC:
                batch.ending = Ending(EndReason.DISCONNECTED, "command DISC")
                position += _HEADER
                break
            position += _HEADER
            refusal = self._judge(flags, command, cookie, offset, length, draining=draining)
            if refusal is None:
                self._take(batch, flags, command, cookie, offset, length)
            elif command == _WRITE and length:
                self._pending = refusal
                self._skip = length
                position = self._skip_payload(position, end, batch)
            else:
                batch.refusals.append(refusal)
        batch.payload = received
        if self._pending is not None:
            self.needed = 1
        return position

    def _skip_payload(self, position: int, end: int, batch: Batch) -> int:
        taken = min(self._skip, end - position)
        self._skip -= taken
        if self._skip == 0 and self._pending is not None:
            batch.refusals.append(self._pending)
            self._pending = None
        return position + taken

    def _take(self, batch: Batch, flags: int, command: int, cookie: bytes, offset: int, length: int) -> None:
        """A valid request that is neither READ nor WRITE."""
        kind = _KINDS.get(command)
        if kind is not None:
            fua = bool(flags & _FUA)
            batch.fua |= fua
            batch.mutations.append(
                Mutation(kind, offset, length, None, fua, bool(flags & _NO_HOLE), bool(flags & _FAST_ZERO))
            )
            batch.cookies.append(cookie)
        elif command == _FLUSH:
            batch.flushes.append(cookie)
        else:
            one = bool(flags & CommandFlag.REQ_ONE)
            batch.queries.append(Query(Command(command), cookie, offset, length, one))

    def _judge(
        self, flags: int, command: int, cookie: bytes, offset: int, length: int, *, draining: bool
    ) -> Refusal | None:
        """The one gate before I/O: what is wrong with a request, or None."""
        rule = RULES.get(command)
        if rule is None:
            return Refusal(cookie, Errno.EINVAL, f"command {command} is not supported")
        what = Command(command).name
        # The complement of an IntFlag would only know the bits that have names.
        if flags & ~int(rule.flags):
            return Refusal(cookie, Errno.EINVAL, f"{what} does not take the command flags {flags:#x}")
        if flags & CommandFlag.DF and not self._structured:
            return Refusal(cookie, Errno.EINVAL, "the flag DF needs structured replies")
        if command == Command.BLOCK_STATUS and not self._allocation:
            return Refusal(cookie, Errno.EINVAL, "BLOCK_STATUS needs a metadata context, none was selected")
        if not rule.ranged:
            if offset or length:
                return Refusal(cookie, Errno.EINVAL, f"{what} takes no range, not {length} bytes at {offset}")
            return None
        return self._judge_range(rule, what, cookie, offset, length, draining=draining)

    def _judge_range(
        self, rule: Rule, what: str, cookie: bytes, offset: int, length: int, *, draining: bool
    ) -> Refusal | None:
        if rule.changes and self._read_only:
            return Refusal(cookie, Errno.EPERM, f"{what} is not allowed: the export is read-only")
        if length == 0 or (offset | length) & _MISALIGNED:
            text = f"{what} of {length} bytes at {offset}: not whole blocks of {MINIMUM_BLOCK} bytes"
            return Refusal(cookie, Errno.EINVAL, text)
        if rule.limit is not None and length > rule.limit:
            return Refusal(cookie, Errno.EINVAL, f"{what} of {length} bytes: the limit is {rule.limit}")
        if length > self._size - offset:
            text = f"{what} of {length} bytes at {offset} ends past the export's {self._size} bytes"
            return Refusal(cookie, rule.past_end, text)
        if rule.changes and draining:
            return Refusal(cookie, Errno.ESHUTDOWN, f"{what} is refused: the disk is being handed over")
        return None
