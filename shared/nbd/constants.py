"""The numbers of the NBD protocol: magics, options, reply types, commands, flags, errors, and our limits.

All integers on the wire are big-endian. Names follow the NBD specification without its ``NBD_`` prefixes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

# --- magics and fixed layouts ---------------------------------------------------------------------------------------

GREETING_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

GREETING = Struct(">8s8sH")
"""Magic, option magic, handshake flags (18 bytes)."""
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">8sII")
"""Magic, option, length of the data that follow (16 bytes)."""
OPTION_REPLY = Struct(">QIII")
"""Magic, option, reply type, length of the data that follow (20 bytes)."""
REQUEST = Struct(">IHH8sQI")
"""Magic, command flags, command, cookie (opaque), offset, length (28 bytes)."""

# --- limits ---------------------------------------------------------------------------------------------------------

MINIMUM_BLOCK = 512
PREFERRED_BLOCK = 4096
MAXIMUM_PAYLOAD = 32 << 20
"""Largest READ or WRITE in bytes; commands without payload may cover up to 4 GiB - 512."""

MAXIMUM_NAME = 4096
"""Bytes of an export name, a description or a metadata query, as the specification sets."""
MAXIMUM_OPTION_DATA = 64 << 10
"""Bytes of one option's data that are kept; longer data are skipped and answered ERR_TOO_BIG."""
MAXIMUM_SKIPPED = 1 << 20
"""Bytes of oversized option data that one handshake may make us skip."""
MAXIMUM_OPTIONS = 1024
"""Options in one handshake."""
MAXIMUM_ERROR_TEXT = 1024
"""Bytes of the message in an error reply."""


# --- handshake ------------------------------------------------------------------------------------------------------


class HandshakeFlag(IntFlag):
    """Sent by the server in its greeting."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """Sent by the client in answer to the greeting."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    """What a client may ask for during the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(IntEnum):
    """How an option was answered. Errors have bit 31 set and carry a message."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """Items of information about an export, inside INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


ALLOCATION_CONTEXT = "base:allocation"
ALLOCATION_CONTEXT_ID = 1


# --- transmission ---------------------------------------------------------------------------------------------------


class Command(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    """Modifies a request."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class Errno(IntEnum):
    """The only error numbers that the protocol knows; everything else travels as EIO."""

    NONE = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class Chunk(IntEnum):
    """Types of structured reply chunks. Errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


class ChunkFlag(IntFlag):
    """Marks a structured reply chunk."""

    DONE = 1 << 0


class BlockState(IntFlag):
    """Status of a range in the context base:allocation."""

    HOLE = 1 << 0
    ZERO = 1 << 1
