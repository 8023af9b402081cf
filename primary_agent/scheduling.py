"""How a VM's required resync starts: its settings, and for what it waits at a given moment. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo

import msgspec

from primary_agent.record import ReplicationRecord, StartedBy, VmRecord
from shared.config_sections import ResyncSection
from shared.errors import UsageError
from shared.schedule import (
    PastWindow,
    ResyncMode,
    Window,
    end_of,
    moment_text,
    next_start,
    parse_time,
    time_text,
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What holds for one VM: its own settings, and the agent's for the rest."""

    mode: ResyncMode
    window: Window
    past_window: PastWindow

    @classmethod
    def of(cls, vm: VmRecord, defaults: ResyncSection) -> Schedule:
        """Raises UsageError where the window would be empty."""
        window = Window.parse(defaults.window)
        start = vm.resync_window_start or time_text(window.start)
        end = vm.resync_window_end or time_text(window.end)
        past_window = vm.resync_past_window or defaults.past_window
        return cls(vm.resync_mode or defaults.mode, Window.parse(f"{start}-{end}"), past_window)

    def end(self, now: float, zone: tzinfo) -> float | None:
        """When the window that is open at ``now`` closes; None while it is closed."""
        return end_of(self.window, now, zone)

    def settings(self) -> dict[str, object]:
        """As ``get`` names them."""
        return {
            "resync_mode": self.mode.value,
            "resync_window_start": time_text(self.window.start),
            "resync_window_end": time_text(self.window.end),
            "resync_past_window": self.past_window.value,
        }


@dataclass(frozen=True, slots=True)
class Start:
    """When a required resync starts: ``moment`` (seconds since the Unix epoch; None: when it is ordered), and why."""

    moment: float | None
    by: StartedBy
    text: str
    """What it waits for, or what starts it."""


def planned_start(
    record: ReplicationRecord, schedule: Schedule, now: float, zone: tzinfo, *, history_lost: bool
) -> Start:
    """When the required resync of ``record`` starts by what is known at ``now``; a moment up to ``now`` means: now.

    An order goes before a scheduled one, that before the mode. ``history_lost``: only an administrator's order starts
    it.
    """
    if record.resync_wanted:
        return Start(now, StartedBy.ADMINISTRATOR, "the administrator asked for it")
    if record.resync_at is not None:
        text = f"the administrator scheduled it for {moment_text(record.resync_at, zone)}"
        return Start(record.resync_at, StartedBy.SCHEDULE, text)
    if record.stopped_time is not None:
        return Start(None, StartedBy.ADMINISTRATOR, "the administrator cancelled it")
    if history_lost:
        return Start(None, StartedBy.ADMINISTRATOR, "what the replica holds may be newer: only an order replaces it")
    match schedule.mode:
        case ResyncMode.MANUAL:
            return Start(None, StartedBy.ADMINISTRATOR, "the resynchronization mode is manual")
        case ResyncMode.AUTOMATIC:
            return Start(now, StartedBy.AUTOMATIC, "the resynchronization mode is automatic")
    if end_of(schedule.window, now, zone) is not None:
        return Start(now, StartedBy.WINDOW, f"the window {schedule.window} is open")
    opens = next_start(schedule.window, now, zone)
    text = f"the window {schedule.window} opens at {moment_text(opens, zone)}"
    return Start(opens, StartedBy.WINDOW, text)


def paused_until(record: ReplicationRecord, schedule: Schedule, now: float, zone: tzinfo) -> tuple[float, str] | None:
    """Until when the running resync of ``record`` has to rest, and why, in words; None where it may run at ``now``.

    Only one that the window started rests outside of it, and only while the mode still is the window.
    """
    if record.started_by is not StartedBy.WINDOW or schedule.mode is not ResyncMode.WINDOW:
        return None
    if schedule.past_window is PastWindow.FINISH or end_of(schedule.window, now, zone) is not None:
        return None
    opens = next_start(schedule.window, now, zone)
    return opens, f"the window {schedule.window} is closed; it opens again at {moment_text(opens, zone)}"


def with_window(vm: VmRecord, window: str | None) -> VmRecord:
    """The record with both ends of the window replaced; None stands for the agent's. Raises UsageError."""
    start, end = ("", "") if window is None else str(Window.parse(window)).split("-")
    return msgspec.structs.replace(vm, resync_window_start=start, resync_window_end=end)


def checked_time(text: str | None) -> str:
    """An end of the window as the record keeps it; empty for None. Raises UsageError."""
    return "" if text is None else time_text(parse_time(text))


def backs_off(vm: VmRecord, defaults: ResyncSection) -> bool:
    """Whether reading the VM's disks is held back when its guest's latency rises."""
    return defaults.back_off if vm.resync_back_off is None else vm.resync_back_off


def check_schedule(vm: VmRecord, defaults: ResyncSection) -> None:
    """Raises UsageError where the VM's settings and the agent's do not fit together."""
    try:
        Schedule.of(vm, defaults)
    except UsageError as error:
        raise UsageError(f"The resynchronization window of {vm.name} can't be so: {error.text}", error.remedy) from None
