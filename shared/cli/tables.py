"""Settings, points and events as lines: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any

from shared.cli.console import Palette
from shared.cli.text import columns, joined, time_text
from shared.cli.units import SETTINGS
from shared.rates import duration_text, size_text
from shared.status import VmStatus


def settings_lines(vm: VmStatus) -> list[str]:
    """A VM's settings, one a line: ``key = value``, the keys as ``set`` knows them."""
    lines = [f"{vm.name}  {vm.role}"]
    keys = {name: key for key, (name, _, _) in SETTINGS.items()}
    rows = [[keys.get(name, name), _setting_text(vm, name, value)] for name, value in sorted(vm.settings.items())]
    return [*lines, *(f"  {joined([key, '=', value])}" for key, value in columns(rows))]


def resync_lines(vms: Iterable[VmStatus]) -> list[str]:
    """How the required resyncs of these VMs start, a VM a line; empty where none of them is a primary's."""
    names = ("resync_mode", "resync_window_start", "resync_window_end")
    rows = [[vm.name, *(str(vm.settings.get(name, "-")) for name in names)] for vm in vms if vm.role == "primary"]
    if not rows:
        return []
    return [joined(row) for row in columns([["VM", "RESYNC MODE", "WINDOW START", "WINDOW END"], *rows])]


def _setting_text(vm: VmStatus, name: str, value: Any) -> str:
    later = "  (from the tap's next start on)" if name in vm.pending_settings else ""
    if isinstance(value, bool):
        text = "on" if value else "off"
    else:
        text = _rate_text(value) if name.endswith("_rate") else quantity_text(name, value)
    return f"{text}{later}"


def _rate_text(rates: Sequence[int]) -> str:
    """A cap, of the day and perhaps another one of the night, as ``set`` takes it."""
    shown = [f"{size_text(rate)}/s" if rate else "none" for rate in rates] or ["none"]
    return " by day, ".join(shown) + (" by night" if len(shown) > 1 else "")


def event_lines(events: Sequence[Mapping[str, Any]], palette: Palette, zone: tzinfo | None = None) -> list[str]:
    """One line for each event: when, which VM, how bad, number, what, and from which state to which."""
    rows = columns(
        [
            [
                time_text(event.get("time"), zone),
                str(event.get("vm", "")),
                str(event.get("level", "")),
                str(event.get("event", "")),
                _what(event),
            ]
            for event in events
        ],
        right=[3],
    )
    paints = {"error": palette.critical, "warning": palette.warning}
    for row in rows:
        paint = paints.get(row[2].strip())
        if paint is not None:
            row[2] = paint(row[2])
    return [joined(row) for row in rows]


def label_text(key: str) -> str:
    """A field's name for people: without its unit, in words."""
    for unit in ("_seconds", "_bytes", "_ms"):
        key = key.removesuffix(unit)
    return key.replace("_", " ")


def quantity_text(key: str, value: Any, zone: tzinfo | None = None) -> str:
    """A field's value for people, by the unit in its name."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() | float() if key.endswith("_seconds"):
            return duration_text(value) if value >= 1 or value == 0 else f"{1000 * value:.0f} ms"
        case int() | float() if key.endswith("_bytes"):
            return size_text(value)
        case int() | float() if key.endswith("_time"):
            return time_text(value, zone)
        case list():
            return ", ".join(quantity_text("", item) for item in value)
        case float():
            return f"{value:g}"
    return str(value)


def _what(event: Mapping[str, Any]) -> str:
    text = str(event.get("text", ""))
    before, after, cause = (str(event.get(key) or "") for key in ("before", "after", "cause"))
    told = before in text and after in text
    moved = f" ({before} to {after})" if before and after and before != after and not told else ""
    return f"{text}{moved}" + (f" [{cause}]" if cause and cause not in text else "")
