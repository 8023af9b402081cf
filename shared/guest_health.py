"""Health of what concerns a VM beside its disks: application-consistent cuts, and its definition. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shared.rates import duration_text
from shared.states import Health
from shared.status import VmStatus

LATE_FACTOR = 2.0
"""No application-consistent cut for so many of its intervals is a warning, whatever kept it."""
HOUR_SECONDS = 3600.0


def judge_guest(status: VmStatus, now: float) -> Iterator[tuple[Health, str, str]]:
    """What makes the health worse than Normal: how bad, text and remedy."""
    cuts, definition = status.consistency, status.definition
    if cuts is not None:
        if cuts.frozen_since is not None:
            age = duration_text(max(0.0, now - cuts.frozen_since))
            text = f"The guest of virtual machine '{status.name}' was frozen for a cut {age} ago and is not thawed yet"
            remedy = "It is tried again and again. Thaw it from inside, or reset the VM."
            yield Health.CRITICAL, f"{text}: {cuts.frozen_text}", remedy
        if cuts.failure is not None:
            yield (
                Health.WARNING,
                f"The last cut that was to be application-consistent is only crash-consistent: {cuts.failure.text}",
                cuts.failure.remedy,
            )
        elif cuts.next_time is not None and now - cuts.next_time > (LATE_FACTOR - 1) * cuts.hours * HOUR_SECONDS:
            yield (
                Health.WARNING,
                f"No application-consistent cut was taken for more than {LATE_FACTOR * cuts.hours:g} hours.",
                "It is taken when the VM replicates again.",
            )
    if definition is not None and definition.failure is not None:
        yield (
            Health.WARNING,
            f"The definition of virtual machine '{status.name}' does not go with its cuts: {definition.failure.text}",
            definition.failure.remedy,
        )
