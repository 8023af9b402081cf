"""Planted bugs of when a resync begins and rests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

import primary_agent.starting
from primary_agent.parts import LinkState, Parts
from primary_agent.scheduling import Start
from primary_agent.starting import Starting
from shared.schedule import ResyncMode
from tests.simulation.mutants_kit import Patch, forever, nothing_async


def window_never_ends() -> Sequence[Patch]:
    """schedule: a resync that its window started does not rest when the window ends."""
    return [
        (Starting, "until_closed", forever),
        (Starting, "until_open", nothing_async),
        (Starting, "rests", lambda _original: lambda _starting: ""),
    ]


def rests_for_ever() -> Sequence[Patch]:
    """I12: a resync that rests outside of its window does not hear that it may go on."""

    def make(original: Any) -> Any:
        async def until_open(starting: Starting) -> None:
            if starting.rests():
                await forever(None)()
            await original(starting)

        return until_open

    return [(Starting, "until_open", make)]


def gate_left_open() -> Sequence[Patch]:
    """I20: a session that was healthy is taken for proof that it is."""

    def make(_original: Any) -> Any:
        async def proven(link: LinkState, _seconds: float = 0.0) -> bool:
            return link.dialled is not None

        return proven

    return [(LinkState, "proven", make)]


def put_off_forgotten() -> Sequence[Patch]:
    """schedule: a resync that was put off begins at once."""

    def make(original: Any) -> Any:
        def planned(parts: Parts, now: float) -> Start:
            start: Start = original(parts, now)
            return start if start.moment is None else replace(start, moment=min(start.moment, now))

        return planned

    return [(primary_agent.starting, "planned", make)]


def mode_ignored() -> Sequence[Patch]:
    """schedule: a required resync starts by itself in every mode."""

    def make(original: Any) -> Any:
        def schedule(parts: Parts) -> Any:
            return replace(original(parts), mode=ResyncMode.AUTOMATIC)

        return schedule

    return [(primary_agent.starting, "_schedule", make)]


def cancelled_starts_anew() -> Sequence[Patch]:
    """schedule: what an administrator cancelled starts by itself again."""

    def make(original: Any) -> Any:
        def planned_start(record: Any, *args: Any, **options: Any) -> Start:
            return original(msgspec.structs.replace(record, stopped_time=None), *args, **options)  # type: ignore[no-any-return]

        return planned_start

    return [(primary_agent.starting, "planned_start", make)]
