"""Errors of the codecs and state machines: what a peer or a file got wrong, named.

A :class:`ProtocolError` always ends the connection that it came from, and nothing else (I18).
A :class:`LogError` says why a log can't be read past a point.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """The peer sent bytes that are no valid message in a valid state; the connection ends.

    ``code`` is one of :class:`protocol.messages.ErrorCode`'s names in lower case.
    """

    def __init__(self, text: str, *, code: str = "protocol") -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class LogError(Exception):
    """A log record at ``offset`` is not valid: ``reason`` is a stable word, the text is for people."""

    def __init__(self, offset: int, reason: str, text: str) -> None:
        super().__init__(f"offset {offset}: {text}")
        self.offset = offset
        self.reason = reason
        self.text = text
