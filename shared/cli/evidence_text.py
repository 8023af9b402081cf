"""The evidence of a cause for people: what was found, and of each disk that changed the old value and the new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any

from shared.cli.tables import label_text, quantity_text
from shared.cli.text import time_text


def evidence_lines(evidence: Mapping[str, Any], zone: tzinfo | None = None) -> Iterator[str]:
    """A line with all that is one value, and one for each disk's change and each cause of the replica's."""
    plain = {key: value for key, value in evidence.items() if not isinstance(value, list | dict)}
    if plain:
        yield ", ".join(f"{label_text(key)} {_value(key, value, zone)}" for key, value in plain.items())
    for key, value in evidence.items():
        if not isinstance(value, list | dict):
            continue
        for each in value if isinstance(value, list) else [value]:
            yield _item(key, each)


def _item(key: str, item: Any) -> str:
    match item:
        case {"disk": disk, "part": str(part), "old": old, "new": new}:
            where = f"disk {disk}, {item['path']}" if item.get("path") else f"disk {disk}"
            return f"{where}: {label_text(part.removesuffix('_ns'))} was {_part(part, old)}, is {_part(part, new)}"
        case {"code": code, "text": text}:
            return f"{label_text(key)}: {code}: {text}"
    return f"{label_text(key)}: {item}"


def _value(key: str, value: Any, zone: tzinfo | None) -> str:
    if key == "time" and isinstance(value, int | float):
        return time_text(value, zone)
    return quantity_text(key, value, zone)


def _part(part: str, value: Any) -> str:
    """Exact, since a difference of a byte or a nanosecond is what it is about."""
    if part == "size_bytes":
        return f"{value} bytes"
    if part.endswith("_ns") and isinstance(value, int):
        seconds, fraction = divmod(value, 10**9)
        try:
            return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"
        except (OverflowError, ValueError, OSError):
            return f"{value} ns"
    return str(value)
