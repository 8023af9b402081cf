"""Finding events in stores that only tell their newest ones: as few are read as the question needs.

Of many VMs those that can be read are told, and which ones can't.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, Required, TypedDict, Unpack

import msgspec

from shared.errors import NotFoundError, VmreplicaError

EVENTS_KEPT = 10_000
"""No store keeps more."""
STEPS = (1, 10, 100)

Event = dict[str, Any]
Wants = Callable[[Event], bool]


class Choice(TypedDict, total=False):
    """Which events: the newest ``limit`` above ``after`` that ``wants`` takes; none is older than ``since`` (seconds
    since the Unix epoch).
    """

    limit: Required[int]
    after: Required[int]
    wants: Wants
    since: float


class Unread(msgspec.Struct):
    """A VM whose events could not be read, and the error that says why."""

    vm: str
    uuid: str
    code: str
    exit_code: int
    text: str
    remedy: str


class EventsAnswer(msgspec.Struct):
    """The answer of ``events``, the oldest first; those of the VMs in ``missing`` are not among them."""

    events: list[Event]
    missing: list[Unread] = []


class Read(Protocol):
    """The newest ``limit`` events with an id above ``after``, oldest first."""

    def __call__(self, *, limit: int, after: int) -> Awaitable[list[Event]]: ...


def everything(_event: Event) -> bool:
    return True


async def sought(read: Read, *, limit: int, after: int, wants: Wants = everything, since: float = 0.0) -> list[Event]:
    """What is as the Choice says, oldest first."""
    chosen: list[Event] = []
    for size in (*(min(limit * step, EVENTS_KEPT) for step in STEPS), EVENTS_KEPT):
        found = await read(limit=size, after=after)
        chosen = [event for event in found if event["time"] >= since and wants(event)]
        if len(chosen) >= limit or len(found) < size or found[0]["time"] < since:
            break
    return chosen[-limit:]


async def sought_of_vm(name: str, uuid: str, read: Read, **choice: Unpack[Choice]) -> list[Event]:
    """One VM's, each with the VM's name and UUID."""
    return [{**event, "vm": name, "uuid": uuid} for event in await sought(read, **choice)]


async def sought_of_all(
    names: Mapping[str, str], events_of: Callable[[str], Awaitable[list[Event]]], limit: int
) -> EventsAnswer:
    """Those of all VMs, whose names are given by UUID, in order of time; one that is removed meanwhile has none."""

    async def of(uuid: str) -> list[Event]:
        return await events_of(uuid)

    outcomes = await asyncio.gather(*map(of, names), return_exceptions=True)
    found: list[Event] = []
    missing: list[Unread] = []
    for (uuid, name), outcome in zip(names.items(), outcomes, strict=True):
        match outcome:
            case list():
                found += outcome
            case NotFoundError():
                pass
            case VmreplicaError() as error:
                missing.append(Unread(name, uuid, error.code, type(error).exit_code, error.text, error.remedy))
            case _:
                raise outcome
    return EventsAnswer(sorted(found, key=lambda event: (event["time"], event["id"]))[-limit:], missing)
