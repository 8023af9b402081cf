"""Application-consistent cuts and the VM's definition, between two agents: each point has its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from primary_agent.admin import with_settings
from primary_agent.consistent_cuts import CutTaken
from protocol.position import Position
from replica_agent.points import find_point, points_of, set_rules
from replica_agent.vm_status import status_of
from scripts.agent_pair import PairError
from shared.config_sections import ConsistencySection
from shared.events import EventId
from tests.pair.hosts import Hosts
from tests.pair.rig import MIB, Pair
from tests.unit.ports.fake_guest import FakeGuest


async def set_vm(pair: Pair, **settings: Any) -> None:
    await pair.vm.set(with_settings(pair.vm.record, settings), settings)


async def applied(pair: Pair, taken: CutTaken) -> Position:
    """Wait until the replica has applied the cut."""
    cut = taken.sealed.position()

    def reached() -> bool:
        point = pair.copy.point()
        return point is not None and point.epoch == cut.epoch and point.segment >= cut.segment

    await pair.until(f"cut {cut}", reached)
    return cut


def kinds(pair: Pair) -> dict[int, str]:
    """Of each point at the replica, by its number."""
    return {point.cut.segment: point.consistency for point in points_of(pair.copy).points}


@pytest.fixture
async def guest(pair: Pair) -> AsyncIterator[FakeGuest]:
    guest = FakeGuest(pair.sockets / "qga.sock")
    yield guest
    with contextlib.suppress(FileNotFoundError):
        guest.close()


@pytest.mark.slow
async def test_points_say_which_kind_they_are_and_have_their_own_definition(pair: Pair, guest: FakeGuest) -> None:
    pair.primary_options["consistency"] = ConsistencySection(freeze_seconds=0.5, frozen_seconds=3.0)
    pair.primary.surroundings.consistency = pair.primary_options["consistency"]
    await pair.replicate(4 * MIB)
    await set_rules(pair.copy, {"newest": 20})
    await set_vm(pair, consistency=f"agent:{guest.path}", interval_seconds=3600.0)
    good = await pair.vm.cuts.take(consistent=True)
    assert good.consistent and not guest.frozen
    number = (await applied(pair, good)).segment
    await pair.until("the mark", lambda: kinds(pair).get(number) == "application")

    # A guest that does not answer costs the kind of the cut, never the cut, and it is thawed.
    guest.hangs.add("guest-fsfreeze-freeze")
    bad = await pair.vm.cuts.take(consistent=True)
    assert not bad.consistent and bad.failure is not None and "did not answer" in bad.failure.text
    guest.hangs.clear()
    await applied(pair, bad)
    assert await asyncio.to_thread(guest.until, False)
    status = await pair.vm.status()
    assert status.health == "Warning" and "only crash-consistent" in " ".join(status.reasons)
    (event,) = await pair.events(EventId.CUT_NOT_CONSISTENT)
    assert event["level"] == "warning" and event["data"]["remedy"]

    # One that thawed by itself meanwhile was not frozen for the whole cut.
    guest.thaws_itself = True
    unheld = await pair.vm.cuts.take(consistent=True)
    assert not unheld.consistent and unheld.failure is not None and unheld.failure.code == "not_held"
    guest.thaws_itself = False
    await applied(pair, unheld)
    assert kinds(pair)[number] == "application"
    assert [kinds(pair)[each.sealed.segment] for each in (bad, unheld)] == ["crash", "crash"]

    # --- the definition
    xml, nvram = pair.folder / "web.xml", pair.folder / "web_VARS.fd"
    first, second = b"<domain><name>one</name></domain>", b"<domain><name>two</name></domain>"
    variables = os.urandom(200_000)
    xml.write_bytes(first)
    nvram.write_bytes(variables)
    await set_vm(pair, definition=f"file:{xml}", definition_files=[str(nvram)])
    await pair.until("the first version", lambda: pair.copy.companions.record.definitions)
    one = await applied(pair, await pair.vm.cuts.take(consistent=False))
    xml.write_bytes(second)
    await pair.vm.definition.look()
    await pair.until("the second version", lambda: len(pair.copy.companions.record.definitions) == 2)
    two = await applied(pair, await pair.vm.cuts.take(consistent=False))

    def digest(cut: Position) -> bytes:
        point = find_point(pair.copy, str(cut.segment))
        assert point is not None
        version, later = pair.copy.companions.definition_of(point)
        assert not later
        return version.files[0].digest

    assert (digest(one), digest(two)) == (hashlib.sha256(first).digest(), hashlib.sha256(second).digest())
    folder = Path(pair.copy.parts.layout.definitions)
    assert {path.read_bytes() for path in folder.iterdir()} == {first, second, variables}
    assert {path.name for path in folder.iterdir()} == {
        hashlib.sha256(each).hexdigest() for each in (first, second, variables)
    }
    told = (await pair.vm.status()).definition
    assert told is not None and told.kept and told.failure is None

    # What is too large is refused with a clear error, and what was kept stays.
    with nvram.open("r+b") as file:
        file.truncate((64 << 20) + 1)
    await pair.vm.definition.look()
    told = (await pair.vm.status()).definition
    assert told is not None and told.failure is not None and "has more than 64.0 MiB" in told.failure.text
    nvram.write_bytes(variables)

    # --- both, over restarts
    # A mark outlives the link, and both agents; a guest that can't be thawed is Critical until it is.
    pair.cut_link()
    guest.refuses.add("guest-fsfreeze-thaw")
    stuck = await pair.vm.cuts.take(consistent=True)
    assert not stuck.consistent
    status = await pair.vm.status()
    assert status.health == "Critical" and "is not thawed yet" in " ".join(status.reasons)
    await pair.primary.stop()
    guest.refuses.clear()
    await pair.start_primary()
    assert await asyncio.to_thread(guest.until, False)
    await pair.until("the intent to be over", lambda: pair.vm.cuts.record.freeze is None)
    last = await pair.vm.cuts.take(consistent=True)
    assert last.consistent
    await applied(pair, last)
    await pair.until("the mark", lambda: kinds(pair).get(last.sealed.segment) == "application")
    await pair.until("that it is told", lambda: not pair.vm.cuts.record.untold)
    await pair.replica.stop()
    await pair.start_replica()
    assert kinds(pair)[number] == "application" == kinds(pair)[last.sealed.segment]
    figures = status_of(pair.copy).statistics
    assert figures.last_snapshot_time == pytest.approx(last.sealed.time_ns / 1e9)
    assert (await pair.vm.status()).statistics.last_snapshot_time == pytest.approx(last.sealed.time_ns / 1e9)

    # So do the definitions: nothing is sent or kept twice.
    await pair.until("the definition", lambda: pair.vm.definition.kept)
    assert (digest(one), digest(two)) == (hashlib.sha256(first).digest(), hashlib.sha256(second).digest())
    assert len(pair.copy.companions.record.definitions) == 2
    # A version that no point has any more goes, with its files; the newest stays.
    await applied(pair, await pair.vm.cuts.take(consistent=False))
    await set_rules(pair.copy, {"newest": 1, "hourly": 0})
    await pair.copy.companions.tidy()
    assert {path.read_bytes() for path in folder.iterdir()} == {second, variables}


DOMAIN = """<domain type='kvm'><name>demo</name><os><type>hvm</type></os><devices>
<disk type='file' device='disk'><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>"""


@pytest.mark.slow
def test_an_agent_that_is_killed_leaves_no_frozen_guest(hosts: Hosts) -> None:
    """By the command; then SIGKILL between freeze and thaw: the guard thaws, and the next start sees to the record."""
    guest = FakeGuest(hosts.folder / "qga.sock")
    # No cut of the interval pushes the point out that is looked at.
    hosts.replicate(4 * MIB, interval=60.0)
    xml, variables = hosts.folder / "demo.xml", hosts.folder / "VARS.fd"
    xml.write_text(DOMAIN.format(disk=hosts.disks[0]))
    variables.write_bytes(os.urandom(60_000))
    settings = {"consistency": f"agent:{guest.path}", "definition": f"file:{xml}"}
    hosts.call("primary", "vm.set", vm="demo", settings=settings | {"definition_files": [str(variables)]})
    done = hosts.command("cut", "demo", "--consistent", "--json")
    report = json.loads(done.stdout)
    assert report["consistency"] == "application" and not guest.frozen
    number = report["cut"]["segment"]
    hosts.wait("the mark", "replica", lambda vm: (vm["application_cut"] or {}).get("segment") == number)
    hosts.wait("the definition", "replica", lambda vm: vm["definition"])
    points = hosts.call("replica", "vm.points", vm="demo")["points"]
    assert [each["consistency"] for each in points if each["cut"]["segment"] == number] == ["application"]
    output = hosts.folder / "out"
    shown = hosts.command("definition", "demo", "--output", str(output), "--test")
    assert shown.returncode == 0 and "Disk 0 is not served here yet" in shown.stderr
    text = (output / "definition.xml").read_text()
    assert "demo - Test" in text and "{disk0}" in text and str(hosts.disks[0]) not in text
    assert (output / "1-VARS.fd").read_bytes() == variables.read_bytes()
    # Of an export of that very point it has the disks.
    export = hosts.call("replica", "vm.export", vm="demo")
    here = json.loads(hosts.command("definition", "demo", "--json").stdout)
    socket = export["uris"][0].rpartition("socket=")[2]
    same = here["report"]["cut"]["segment"] == export["cut"]["segment"]
    assert (unquote(socket) in here["text"]) is same

    # A tap that is stopped makes the cut, and so the freeze, last.
    tap = hosts.tap_pid()

    def order() -> None:
        with contextlib.suppress(PairError, OSError, ValueError):
            hosts.call("primary", "vm.cut", vm="demo", consistent=True)

    os.kill(tap, signal.SIGSTOP)
    try:
        threading.Thread(target=order, daemon=True).start()
        assert guest.until(True)
        hosts.kill("primary")
        assert guest.until(False)
    finally:
        os.kill(tap, signal.SIGCONT)
    hosts.start("primary")
    status = hosts.wait("the record", "primary", lambda vm: vm["consistency"] and not vm["consistency"]["running"])
    assert status["application_cut"]["segment"] == number
