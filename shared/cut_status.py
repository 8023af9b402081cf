"""The parts of a status that other parts have in them: a cut, and a cause."""

from __future__ import annotations

from typing import Any

import msgspec


class CutStatus(msgspec.Struct, kw_only=True):
    """One cut: ``epoch`` in hex, the number of its ``segment``, ``entry`` = writes of the epoch before it."""

    epoch: str
    segment: int
    entry: int
    time: float | None
    """When the segment was sealed at the primary, seconds since the Unix epoch."""


class Cause(msgspec.Struct, kw_only=True):
    """One reason why a resync is required or why the VM is in trouble: ``code`` is stable, the text is for
    people.
    """

    code: str
    text: str
    time: float
    remedy: str = ""
    evidence: dict[str, Any] = {}
