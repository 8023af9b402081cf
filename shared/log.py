"""How programs log: one line an event on standard error, as key=value for people or JSON for collectors."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import structlog

FORMATS = ("text", "json")


def configure(log_format: str = "text", stream: TextIO | None = None) -> None:
    """Set up structlog for this process. Fields bound with ``bind`` are part of each line of their task."""
    target = stream or sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"], drop_missing=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )


def bind(**fields: object) -> None:
    """Add fields, such as ``vm``, to all lines of the current task and the tasks it starts."""
    structlog.contextvars.bind_contextvars(**fields)
