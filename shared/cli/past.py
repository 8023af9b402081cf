"""Moments in the past as people type them: how long ago, a day, or a time of this host."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from shared.cli.units import parse_duration
from shared.errors import UsageError

_FORMS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_TIMES = ("%H:%M:%S", "%H:%M")


def parse_past(text: str, now: datetime | None = None) -> float:
    """Seconds since the Unix epoch of ``2h`` (ago), ``yesterday``, ``today``, ``18:30``, ``2026-11-28 02:00`` or an ISO
    time with its zone; without one it is this host's. ``now`` has a zone. Raises UsageError.
    """
    now = now or datetime.now().astimezone()
    word = text.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if word == "now":
        return now.timestamp()
    if word in ("today", "yesterday"):
        return (midnight - timedelta(days=word == "yesterday")).timestamp()
    if re.fullmatch(r"-?[0-9.]+ ?[a-z]+", word):
        return now.timestamp() - parse_duration(word.removeprefix("-"))
    for form in _TIMES:
        try:
            clock = datetime.strptime(word, form)  # noqa: DTZ007 - the zone is put to it below.
        except ValueError:
            continue
        moment = midnight.replace(hour=clock.hour, minute=clock.minute, second=clock.second)
        # 23:00 asked for in the morning is that of yesterday.
        return (moment if moment <= now else moment - timedelta(days=1)).timestamp()
    for form in _FORMS:
        try:
            return datetime.strptime(word, form).astimezone().timestamp()
        except ValueError:
            continue
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"{text!r} is no moment in the past.",
            "Write 2h, yesterday, today, 18:30, 2026-11-28 or '2026-11-28 02:00'.",
        ) from None
    return (found if found.tzinfo is not None else found.astimezone()).timestamp()
