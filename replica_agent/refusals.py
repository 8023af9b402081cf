"""How what went wrong while serving a primary is told to it: an error code of the protocol, text and remedy."""

from __future__ import annotations

import errno

from protocol.errors import ProtocolError
from protocol.messages import ErrorCode, Fence
from shared.errors import (
    ForbiddenError,
    InvalidStateError,
    NoSpaceError,
    StorageError,
    StoreDamagedError,
    VmreplicaError,
)


class Refusal(VmreplicaError):
    """Ends a connection with exactly this answer; ``fence`` goes with FENCED."""

    def __init__(self, code: ErrorCode, text: str, remedy: str = "", fence: Fence | None = None) -> None:
        super().__init__(text, remedy, code=code.value)
        self.fence = fence


def refusal(error: Exception, vm: str) -> Refusal:
    """The answer for ``error``; ``vm`` names the VM to people."""
    if isinstance(error, Refusal):
        return error
    text = f"{vm}: {error.text if isinstance(error, VmreplicaError | ProtocolError) else error}"
    remedy = error.remedy if isinstance(error, VmreplicaError) else ""
    return Refusal(_code(error), text, remedy)


def _code(error: Exception) -> ErrorCode:
    match error:
        case ProtocolError(code=code) if code in ErrorCode._value2member_map_:
            return ErrorCode(code)
        case ProtocolError():
            return ErrorCode.PROTOCOL
        case NoSpaceError():
            return ErrorCode.NO_SPACE
        case OSError(errno=number) if number in (errno.ENOSPC, errno.EDQUOT):
            return ErrorCode.NO_SPACE
        case StoreDamagedError():
            return ErrorCode.DAMAGED
        case InvalidStateError():
            return ErrorCode.STATE
        case ForbiddenError():
            return ErrorCode.UNAUTHORIZED
        case StorageError() | OSError():
            return ErrorCode.STORAGE
        case _:
            return ErrorCode.BUSY
