"""The ERROR that ends a connection: what is told of a failure, in what fits."""

from __future__ import annotations

import msgspec

from protocol.messages import RETRYABLE, ErrorCode, Fence, Problem

TEXT_LIMIT = 1000


def describe(code: ErrorCode | str, text: str, remedy: str = "", fence: Fence | None = None) -> Problem:
    """The ERROR for ``code``, with texts cut to what fits; an unknown code is told as ``protocol``."""
    known = ErrorCode(code) if code in ErrorCode._value2member_map_ else ErrorCode.PROTOCOL
    return Problem(
        code=known,
        text=text[:TEXT_LIMIT],
        remedy=remedy[:TEXT_LIMIT],
        retryable=known in RETRYABLE,
        fence=fence if fence is not None else msgspec.UNSET,
    )
