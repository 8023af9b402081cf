"""Typed errors across JSON-RPC: from an exception to an answer, and back to the same class.

A :class:`VmreplicaError` travels with its class's exit code as JSON-RPC code, and with ``data`` = {code, text,
remedy}. JSON-RPC's own errors (negative codes) become a UsageError, an internal one a plain VmreplicaError.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.admin.codec import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Failure,
    RequestId,
)
from shared.errors import UsageError, VmreplicaError

TEXT_MAX = 4096
"""Characters of an error's text and of its remedy that travel."""

RPC_CODES = {
    PARSE_ERROR: "parse_error",
    INVALID_REQUEST: "invalid_request",
    METHOD_NOT_FOUND: "unknown_method",
    INVALID_PARAMS: "invalid_params",
    INTERNAL_ERROR: "internal",
}
"""The ``data.code`` of JSON-RPC's own errors."""


def error_classes(base: type[VmreplicaError] = VmreplicaError) -> Iterator[type[VmreplicaError]]:
    """``base`` and all classes below it that are loaded, each class before its own subclasses."""
    yield base
    for below in base.__subclasses__():
        yield from error_classes(below)


def failure_of(identity: RequestId | None, error: VmreplicaError) -> Failure:
    """The answer that carries a typed error."""
    text = error.text[:TEXT_MAX]
    data = {"code": error.code, "text": text, "remedy": error.remedy[:TEXT_MAX]}
    return Failure(identity, type(error).exit_code, text, data)


def rpc_failure(identity: RequestId | None, code: int, text: str, remedy: str = "") -> Failure:
    """The answer that carries one of JSON-RPC's own errors."""
    return Failure(identity, code, text, {"code": RPC_CODES[code], "text": text, "remedy": remedy})


def error_of(failure: Failure) -> VmreplicaError:
    """The exception of an answer: the class of its ``data.code``, else of its number, else VmreplicaError."""
    code = failure.data.get("code")
    text = failure.data.get("text")
    remedy = failure.data.get("remedy")
    error_class = _class_of(failure.code, code if isinstance(code, str) else "")
    error = error_class.__new__(error_class)
    # Subclasses may take other arguments; what travels is what the base class knows.
    VmreplicaError.__init__(
        error,
        text if isinstance(text, str) else failure.message,
        remedy if isinstance(remedy, str) else "",
        code=code if isinstance(code, str) else None,
    )
    return error


def _class_of(number: int, code: str) -> type[VmreplicaError]:
    if number in RPC_CODES:
        return VmreplicaError if number == INTERNAL_ERROR else UsageError
    classes = list(error_classes())
    for error_class in classes:
        if error_class.code == code:
            return error_class
    for error_class in classes:
        if error_class.exit_code == number:
            return error_class
    return VmreplicaError
