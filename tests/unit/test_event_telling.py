"""Events on their way out of the store: who is told, what the journal gets, and how they are found again."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from shared.cli.past import parse_past
from shared.errors import UsageError
from shared.event_query import sought
from shared.events import EventId, make_event
from shared.journal_entries import entry_of, message_id
from shared.ports.clock import RealClock
from shared.ports.journal import NoJournal, SystemJournal, encode, system_journal
from shared.ports.store import SqliteStores
from shared.telling import TellingStores, Told

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"


# --- who is told


@pytest.fixture
async def stores(tmp_path: Path) -> Any:
    told: list[Told] = []
    real = SqliteStores(RealClock())
    (tmp_path / UUID).mkdir()
    yield TellingStores(real, told.append), told, str(tmp_path / UUID)
    await real.close()


def event(text: str = "It happened.", time: float = 1.0) -> dict[str, Any]:
    return make_event(EventId.CONNECTED, text, time=time)


async def test_event_is_told_when_it_is_durable_with_the_vm(stores: Any) -> None:
    telling, told, folder = stores
    store = await telling.open(folder, create=True)
    work = store.commit({"vm": {"name": "web"}}, [event("first")])
    assert told == []
    await work
    assert [(each.event["text"], each.vm, each.uuid) for each in told] == [("first", "web", UUID)]
    await store.commit({"other": 1})
    assert len(told) == 1
    assert [each["text"] for each in await store.events(limit=10)] == ["first"]
    await store.close()


async def test_event_is_told_though_whoever_recorded_it_is_cancelled(stores: Any) -> None:
    telling, told, folder = stores
    store = await telling.open(folder, create=True)
    task = asyncio.create_task(store.commit({"vm": {"name": "web"}}, [event()]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.close()
    assert len(told) == 1


async def test_event_that_did_not_become_durable_is_not_told(stores: Any) -> None:
    telling, told, folder = stores
    store = await telling.open(folder, create=True)
    with pytest.raises(TypeError):
        await store.commit({"vm": object()}, [event()])
    assert told == []
    await store.close()


async def test_agents_own_event_may_be_of_a_vm(stores: Any) -> None:
    telling, told, folder = stores
    store = await telling.open(folder, create=True)
    await store.commit({}, [{**event(), "data": {"vm": "web", "uuid": UUID}}, event()])
    assert [(each.vm, each.uuid) for each in told] == [("web", UUID), ("", "")]
    await store.close()


# --- the journal


def decode(data: bytes) -> dict[str, str]:
    """The native protocol, read as journald does."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, data = rest[8 : 8 + size], rest[8 + size + 1 :]
        else:
            data = rest
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "journal"))
        end.settimeout(10)
        yield end


def test_entry_has_the_event_in_fields(journal: socket.socket) -> None:
    changed = make_event(EventId.STATE_CHANGED, "web: one -> two.", time=1.0, before="one", after="two", cause="x\ny",
                         data={"n": 1})  # fmt: skip
    SystemJournal(str(journal.getsockname())).send(entry_of(Told(changed, "web", UUID), "primary"))
    assert decode(journal.recv(1 << 16)) == {
        "MESSAGE": "web: web: one -> two.", "MESSAGE_ID": message_id(60001), "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "vmreplica-primary", "VMREPLICA_EVENT": "60001", "VMREPLICA_NAME": "state_changed",
        "VMREPLICA_LEVEL": "info", "VMREPLICA_ROLE": "primary", "VMREPLICA_VM": "web", "VMREPLICA_UUID": UUID,
        "VMREPLICA_BEFORE": "one", "VMREPLICA_AFTER": "two", "VMREPLICA_CAUSE": "x\ny", "VMREPLICA_DATA": '{"n": 1}',
    }  # fmt: skip


def test_large_entry_goes_as_a_sealed_file(journal: socket.socket) -> None:
    big = "x" * (1 << 20)
    SystemJournal(str(journal.getsockname())).send({"MESSAGE": big})
    data, rights, _, _ = journal.recvmsg(10, socket.CMSG_SPACE(4))
    assert data == b""
    (descriptor,) = array.array("i", rights[0][2])
    try:
        assert decode(os.pread(descriptor, 1 << 21, 0)) == {"MESSAGE": big}
        with pytest.raises(PermissionError):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_host_without_a_journal_has_none(tmp_path: Path) -> None:
    assert isinstance(system_journal({"VMREPLICA_JOURNAL_SOCKET": ""}), NoJournal)
    with pytest.raises(FileNotFoundError):
        SystemJournal(str(tmp_path / "nowhere")).send({"MESSAGE": "x"})


def test_number_of_an_event_has_one_message_id_for_ever() -> None:
    """Whoever filters by it must find it in ten years."""
    assert message_id(29242) == "56435671a5b45882bee697bd3d03dacc"
    assert len({message_id(number) for number in EventId}) == len(EventId)


def test_field_with_a_line_break_can_not_pass_for_another_field() -> None:
    assert decode(encode({"MESSAGE": "x\nPRIORITY=0", "A": "b"})) == {"MESSAGE": "x\nPRIORITY=0", "A": "b"}


# --- finding them again


async def found(count: int, **question: Any) -> tuple[list[float], list[int]]:
    """The times found among events at 1, 2, 3 ..., and how many were read at a time."""
    events = [{**event(time=float(number)), "id": number} for number in range(1, count + 1)]
    sizes = []

    async def read(*, limit: int, after: int) -> list[dict[str, Any]]:
        sizes.append(limit)
        return [each for each in events if each["id"] > after][-limit:]

    chosen = await sought(read, **{"limit": 5, "after": 0, **question})
    return [each["time"] for each in chosen], sizes


async def test_as_few_are_read_as_the_question_needs() -> None:
    assert await found(1000) == ([996, 997, 998, 999, 1000], [5])
    assert await found(1000, since=990.0, limit=100) == ([float(each) for each in range(990, 1001)], [100])
    times, sizes = await found(1000, wants=lambda each: each["time"] % 100 == 0)
    assert (times, sizes) == ([600, 700, 800, 900, 1000], [5, 50, 500])
    assert (await found(1000, wants=lambda each: each["time"] < 3))[0] == [1, 2]
    assert (await found(10, after=7))[0] == [8, 9, 10]


@pytest.mark.parametrize(
    "text, hour, day",
    [("2h", 10, 27), ("yesterday", 0, 26), ("today", 0, 27), ("11:30", 11.5, 27), ("23:00", 23, 26), ("now", 12, 27)],
)
def test_moments_in_the_past(text: str, hour: float, day: int) -> None:
    zone = timezone(timedelta(hours=2))
    now = datetime(2026, 11, 27, 12, 0, tzinfo=zone)
    midnight = datetime(2026, 11, day, tzinfo=zone)
    assert parse_past(text, now) == (midnight + timedelta(hours=hour)).timestamp()


def test_moment_with_a_zone_is_in_it() -> None:
    assert parse_past("2026-11-27T02:00+01:00") == datetime(2026, 11, 27, 1, tzinfo=timezone.utc).timestamp()  # noqa: UP017
    with pytest.raises(UsageError, match="no moment"):
        parse_past("soon")
