"""How programs log: one line an event on standard error, as key=value for people or JSON for collectors.

Where standard error is the journal, each line carries its priority in front as sd-daemon(3) has it, and no time, since
the journal has its own. Secrets never reach a line: fields with the name of one are blotted out, and of bytes only
their number is shown.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

FORMATS = ("text", "json")

PRIORITIES = {"critical": 2, "exception": 3, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""Levels as syslog numbers them."""

SECRET = re.compile(r"(?:.*_)?(?:key|secret|passphrase|password|token|credential|nonce)s?", re.IGNORECASE)
"""Names of fields that may hold a secret; ``key_id`` or ``tokens_left`` do not."""
BLOT = "(secret)"

Event = MutableMapping[str, Any]


def configure(log_format: str = "text", stream: TextIO | None = None, *, journal: bool | None = None) -> None:
    """Set up structlog for this process. Fields bound with ``bind`` are part of each line of their task.

    ``journal`` says whether the stream is systemd's journal; None finds out.
    """
    set_format(log_format)
    target = stream or sys.stderr
    to_journal = _is_journal(target) if journal is None else journal
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *([] if to_journal else [structlog.processors.TimeStamper(fmt="iso", utc=True)]),
            structlog.processors.format_exc_info,
            blot_secrets,
            _render,
            *([cast(Any, _put_priority_in_front)] if to_journal else []),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )


def bind(**fields: object) -> None:
    """Add fields, such as ``vm``, to all lines of the current task and the tasks it starts."""
    structlog.contextvars.bind_contextvars(**fields)


def blot_secrets(_logger: Any, _method: str, event: Event) -> Event:
    """Take secrets out of an event, also where they lie deep inside a value."""
    for name, value in event.items():
        event[name] = _without_secrets(name, value)
    return event


def _without_secrets(name: str, value: Any) -> Any:
    if SECRET.fullmatch(name):
        return BLOT
    match value:
        case bytes() | bytearray() | memoryview():
            return f"({len(value)} bytes)"
        case dict():
            return {key: _without_secrets(str(key), each) for key, each in value.items()}
        case list() | tuple():
            return [_without_secrets("", each) for each in value]
    return value


def set_format(log_format: str) -> None:
    """Write lines in that form from now on, also those of loggers that exist."""
    _present[0] = _RENDERERS[log_format]


_RENDERERS: dict[str, Any] = {
    "json": structlog.processors.JSONRenderer(default=str),
    "text": structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True),
}
_present = [_RENDERERS["text"]]


def _render(logger: Any, method: str, event: Event) -> Any:
    return _present[0](logger, method, event)


def _put_priority_in_front(_logger: Any, method: str, line: str) -> str:
    priority = f"<{PRIORITIES.get(method, 6)}>"
    # Every line of its own is an entry of the journal.
    return "\n".join(priority + part for part in line.splitlines())


def _is_journal(stream: TextIO) -> bool:
    """Whether the stream is the one that systemd connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        state = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{state.st_dev}:{state.st_ino}"
