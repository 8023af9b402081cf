"""Alarms on their ways: real commands, a real HTTPS server, and what is held, joined, tried again and given up."""

from __future__ import annotations

import asyncio
import http.server
import json
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared import alarms as module
from shared.alarms import Alarm, Alarms, AlarmStatus
from shared.config_sections import AlarmSection
from shared.errors import NotFoundError, UnreachableError, UsageError
from shared.events import EventId, make_event
from shared.ports.alarm_ways import RealAlarmWays
from shared.ports.clock import RealClock
from shared.telling import Told
from tests.unit.ports.authority import Authority

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"


def health(before: str, after: str, vm: str = "web") -> Told:
    event = make_event(EventId.HEALTH_CHANGED, f"{before} -> {after}", time=1.0, before=before, after=after,
                       level={"Critical": "error", "Warning": "warning"}.get(after, "info"))  # fmt: skip
    return Told(event, vm, f"{vm}-{UUID}")


def other(number: EventId) -> Told:
    return Told(make_event(number, "It happened.", time=1.0), "web", UUID)


def alarm(**options: Any) -> Alarm:
    section = AlarmSection(name="a", **({"command": ["/bin/true"]} | options))
    return Alarm(section, AlarmStatus(name="a", way="command"))


def texts(each: Alarm, now: float) -> list[str]:
    found = []
    while (due := each.due(now)[0]) is not None:
        found.append(f"{due.told.vm} {due.told.event['text']} x{due.count}")
    return found


# --- what is told when


def test_alarm_is_held_and_then_told_once() -> None:
    each = alarm(hold_seconds=30)
    each.take(health("Normal", "Warning"), 0)
    each.take(health("Warning", "Critical"), 10)
    assert texts(each, 29.9) == []
    assert texts(each, 30) == ["web Warning -> Critical x2"]
    assert texts(each, 1000) == []


def test_what_is_over_before_it_is_told_is_not_told() -> None:
    each = alarm(hold_seconds=30)
    for before, after in (("Normal", "Critical"), ("Critical", "Normal")):
        each.take(health(before, after), 0)
    assert texts(each, 60) == []
    assert each.status.over == 1
    each.take(health("Normal", "Critical"), 60)
    assert texts(each, 90) == ["web Normal -> Critical x1"]
    each.take(health("Critical", "Normal"), 100)
    assert texts(each, 130) == ["web Critical -> Normal x1"], "who was told of the one is told of the other"


def test_vms_are_told_apart() -> None:
    each = alarm(hold_seconds=0)
    each.take(health("Normal", "Critical", "web"), 0)
    each.take(health("Normal", "Critical", "mail"), 0)
    assert len(texts(each, 0)) == 2


def test_no_more_than_so_many_an_hour() -> None:
    each = alarm(hold_seconds=0, per_hour=2)
    for number in range(5):
        each.take(health("Normal", "Critical", f"vm{number}"), 0)
    assert len(texts(each, 0)) == 2
    assert each.due(1)[1] == pytest.approx(3599)
    assert len(texts(each, 3601)) == 2
    assert len(texts(each, 7202)) == 1


def test_too_many_that_wait_drop_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 3)
    each = alarm(hold_seconds=0)
    for number in range(5):
        each.take(health("Normal", "Critical", f"vm{number}"), 0)
    assert [text.split()[0] for text in texts(each, 0)] == ["vm2", "vm3", "vm4"]
    assert each.status.dropped == 2


@pytest.mark.parametrize(
    "options, told, wanted",
    [
        ({}, health("Normal", "Critical"), True),
        ({}, health("NotApplicable", "Normal"), False),
        ({}, health("NotApplicable", "Critical"), True),
        ({"health": ["Critical"]}, health("Normal", "Warning"), False),
        ({"health": []}, health("Normal", "Critical"), False),
        ({"health": [], "levels": ["error"]}, other(EventId.DAMAGED), True),
        ({"levels": ["error"]}, other(EventId.CONNECTED), False),
        ({"events": [60007]}, other(EventId.CONNECTED), True),
        ({"vms": ["mail"]}, health("Normal", "Critical"), False),
        ({"vms": [f"web-{UUID}"]}, health("Normal", "Critical"), True),
    ],
)
def test_entry_says_what_it_is_about(options: dict[str, Any], told: Told, wanted: bool) -> None:
    assert alarm(**options).wants(told) is wanted


def test_alarm_is_not_told_of_its_own_failure() -> None:
    event = make_event(EventId.ALARM_FAILED, "x", time=1.0, data={"alarm": "a"})
    assert not alarm(levels=["warning"]).wants(Told(event))
    event["data"]["alarm"] = "b"
    assert alarm(levels=["warning"]).wants(Told(event))


# --- the ways


def test_command_gets_the_alarm(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"import os, sys; open({str(out)!r}, 'w').write(os.environ['VMREPLICA_VM'] + sys.stdin.read())"
    RealAlarmWays().run([sys.executable, "-c", script], {"VMREPLICA_VM": "web"}, b'{"x": 1}', 20)
    assert out.read_text() == 'web{"x": 1}'


def test_command_that_fails_or_lasts_is_told() -> None:
    ways = RealAlarmWays()
    with pytest.raises(UnreachableError, match=r"exit status 3: no\b"):
        ways.run(["/bin/sh", "-c", "echo no; exit 3"], {}, b"", 20)
    with pytest.raises(UsageError, match="can't be run"):
        ways.run(["/nowhere"], {}, b"", 20)
    with pytest.raises(UnreachableError, match="was killed"):
        # What it starts is killed with it: else its output would stay open, and this would wait.
        ways.run(["/bin/sh", "-c", "sleep 60 & sleep 60"], {}, b"", 0.2)


def test_agents_own_environment_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    RealAlarmWays().run(["/bin/sh", "-c", 'test -z "$CREDENTIALS_DIRECTORY"'], {}, b"", 20)


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted; answers as it was told to."""

    got: list[dict[str, Any]]
    answers: list[int]

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append(json.loads(data))
        status = self.answers.pop(0) if self.answers else 204
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is to be printed."""


@pytest.fixture
def receiver() -> type[Receiver]:
    """A handler of its own for each test."""
    return type("Own", (Receiver,), {"got": [], "answers": []})


@pytest.fixture
def https(tmp_path: Path, receiver: type[Receiver]) -> Iterator[tuple[str, str]]:
    """A server whose certificate a private authority issued: its address, and that authority's file."""
    authority = Authority(tmp_path / "ca")
    identity = authority.issue("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), receiver)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}/hook?token=x", identity.ca
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_webhook_is_posted_to_over_verified_tls(https: tuple[str, str], receiver: type[Receiver]) -> None:
    url, ca = https
    RealAlarmWays().post(url, b'{"vm": "web"}', 20, ca)
    assert receiver.got == [{"vm": "web"}]
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        RealAlarmWays().post(url, b"{}", 20)
    assert len(receiver.got) == 1, "nothing is sent to whom nobody vouches for"


def test_answer_that_is_none_is_told(https: tuple[str, str], receiver: type[Receiver]) -> None:
    url, ca = https
    receiver.answers.extend([500, 302])
    for status in (500, 302):
        with pytest.raises(UnreachableError, match=f"answers {status}"):
            RealAlarmWays().post(url, b"{}", 20, ca)


# --- all together


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Alarms, list[tuple[str, str]]]]:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.01, 0.01))
    failed: list[tuple[str, str]] = []

    async def gave_up(name: str, reason: str) -> None:
        failed.append((name, reason))

    alarms = Alarms(RealClock(), RealAlarmWays(), asyncio.to_thread, "alpha", "primary", gave_up)
    yield alarms, failed
    await alarms.stop()


async def until(reached: Any) -> None:
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


async def test_attempt_that_fails_is_made_again(
    running: tuple[Alarms, list[tuple[str, str]]], https: tuple[str, str], receiver: type[Receiver]
) -> None:
    alarms, failed = running
    receiver.answers.extend([503])
    section = AlarmSection(name="hook", webhook=https[0], webhook_ca=https[1], hold_seconds=0)
    alarms.configure([section])
    alarms.take(health("Normal", "Critical"))
    await until(lambda: alarms.statuses()[0].sent)
    assert [got["after"] for got in receiver.got] == ["Critical", "Critical"]
    assert {name: receiver.got[0][name] for name in ("host", "role", "vm", "event", "count")} == {
        "host": "alpha", "role": "primary", "vm": "web", "event": 60205, "count": 1,
    }  # fmt: skip
    assert (failed, alarms.statuses()[0].last_error) == ([], "")


async def test_alarm_that_is_given_up_is_told_and_the_next_one_is_tried(
    running: tuple[Alarms, list[tuple[str, str]]],
) -> None:
    alarms, failed = running
    alarms.configure([AlarmSection(name="bad", command=["/bin/false"], hold_seconds=0)])
    alarms.take(health("Normal", "Critical"))
    await until(lambda: failed)
    assert failed[0][0] == "bad"
    assert "exit status 1" in alarms.statuses()[0].last_error
    alarms.configure([AlarmSection(name="bad", command=["/bin/true"], hold_seconds=0)])
    alarms.take(health("Critical", "Normal"))
    await until(lambda: alarms.statuses()[0].sent)
    assert alarms.statuses()[0].failed == 1


async def test_tests_go_out_at_once_and_tell_what_fails(
    running: tuple[Alarms, list[tuple[str, str]]], tmp_path: Path
) -> None:
    alarms, _ = running
    sent = tmp_path / "sent"
    alarms.configure(
        [
            AlarmSection(name="good", command=["/bin/sh", "-c", f"cat > {sent}"]),
            AlarmSection(name="bad", command=["/bin/false"]),
        ]
    )
    good, bad = await alarms.test("")
    assert (good.sent, good.last_error) == (1, "")
    told = json.loads(sent.read_text())
    assert (told["event"], told["alarm"], told["vm"], told["level"]) == (EventId.ALARM_TEST, "good", "", "info")
    assert "Nothing is wrong." in told["text"]
    assert "exit status 1" in bad.last_error
    with pytest.raises(NotFoundError, match="no alarm pager"):
        await alarms.test("pager")
