"""A VM that writes past its tap is Critical, whatever its replica holds; the doctor says who it is, and what to do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from primary_agent.attachments import AttachmentWatch
from shared.admin.verbs import DiskUseParams
from shared.attachment import NO_CLIENT, OPENED
from shared.errors import ForbiddenError
from shared.ports import Peer
from shared.ports.disk_use import Guest, ProcDiskUse, Usage
from shared.status import Cause
from tests.pair.hosts import MIB, VM, Hosts
from tests.pair.rig import Pair
from tests.unit.ports.test_disk_use import opener


class Seen:
    """A port that sees what the test says (shared.ports.disk_use.DiskUse)."""

    def __init__(self) -> None:
        self.usage = Usage()

    def look(self, disks: object, sockets: object) -> Usage:
        return self.usage


async def test_vm_that_is_written_past_its_tap_is_critical(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await pair.cut()
    told: list[tuple[str, str]] = []

    async def bypassed(vm: str, _uuid: str, cause: Cause) -> None:
        told.append((vm, cause.code))

    watch = AttachmentWatch(pair.primary, ProcDiskUse(), bypassed)
    await watch.look()
    before = await pair.vm.status()
    assert (before.health, before.protected, before.bypasses) == ("Normal", True, [])
    writer = await asyncio.to_thread(_enter, pair.disk(0))
    try:
        await watch.look()
        await watch.look()
        status = await pair.vm.status()
        assert (status.health, status.protected) == ("Critical", False)
        assert status.summary.startswith(f"Not protected: Process {writer.pid} ")
        assert "--resynchronize" in status.remedy
        assert told == [("web", OPENED)], "told once, however often it is seen"
    finally:
        await asyncio.to_thread(writer.communicate)
    await watch.look()
    assert (await pair.vm.status()).health == "Normal"


def _enter(path: Path) -> subprocess.Popen[bytes]:
    code = f"import sys; f = open({str(path)!r}, 'r+b'); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen(["/usr/bin/python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


async def test_guest_without_its_tap_counts_when_it_lasts(pair: Pair) -> None:
    """A client that comes back to its tap takes a moment: one look alone proves nothing."""
    await pair.replicate(4 * MIB)
    told: list[str] = []

    async def bypassed(_vm: str, _uuid: str, cause: Cause) -> None:
        told.append(cause.code)

    seen = Seen()
    watch = AttachmentWatch(pair.primary, seen, bypassed)
    seen.usage = Usage(guests=[Guest(4711, "web", "")])
    await watch.look()
    assert (await pair.vm.status()).bypasses == []
    await watch.look()
    assert [cause.code for cause in (await pair.vm.status()).bypasses] == [NO_CLIENT]
    seen.usage = Usage()
    await watch.look()
    assert ((await pair.vm.status()).bypasses, told) == ([], [NO_CLIENT])


async def test_nobody_but_root_may_tell_who_uses_the_disks(pair: Pair) -> None:
    async def bypassed(_vm: str, _uuid: str, _cause: Cause) -> None:
        raise AssertionError

    watch = AttachmentWatch(pair.primary, Seen(), bypassed)
    stranger: Any = SimpleNamespace(peer=Peer(uid=os.getuid() + 4242))
    with pytest.raises(ForbiddenError):
        await watch.reported(DiskUseParams(usage=Usage(unseen=7)), stranger)
    assert pair.primary.unseen_processes == 0
    stranger.peer = Peer(uid=0)
    await watch.reported(DiskUseParams(usage=Usage(unseen=7)), stranger)
    assert (await pair.primary.status()).unseen_processes == 7


def doctor(hosts: Hosts, *more: str) -> tuple[int, list[dict[str, Any]]]:
    ran = hosts.command("doctor", "--json", *more)
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)["findings"]


def problems(findings: list[dict[str, Any]]) -> list[str]:
    return [f"{each['subject']}: {each['text']}" for each in findings if each["level"] == "problem"]


def virsh(hosts: Hosts, xml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for libvirt's command: it knows one domain."""
    folder = hosts.folder / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "domain.xml").write_text(xml)
    (folder / "virsh").write_text(
        f'#!/bin/sh\nfor last; do :; done\n[ "$last" = {VM} ] && exec cat {folder}/domain.xml\nexit 1\n'
    )
    (folder / "virsh").chmod(0o755)
    hosts.environment["PATH"] = f"{folder}:{os.environ['PATH']}"


DOMAIN = "<domain><devices><disk type='{}' device='disk'>{}<target dev='vda'/></disk></devices></domain>"


@pytest.mark.slow
def test_doctor_finds_what_is_wrong_on_the_way_from_guest_to_copy(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.replicate(8 * MIB)
    code, found = doctor(hosts)
    assert (code, problems(found)) == (0, [])
    texts = "\n".join(each["text"] for each in found)
    for healthy in ("localhost is", "authorization: This host may replicate there", "Nobody but the tap has its disks"):
        assert healthy in texts
    (clock,) = [each for each in found if "clock_difference_seconds" in each["evidence"]]
    assert abs(clock["evidence"]["clock_difference_seconds"]) < 1, "both are on one machine"

    with opener(hosts.disks[0], "r+b") as pid:
        code, found = doctor(hosts, VM)
        assert code == 1
        assert any(f"Process {pid} " in text and "past the tap" in text for text in problems(found))

    socket = str(hosts.tap_folder / "nbd.sock")
    tap = f"<source protocol='nbd' name='disk0'><host transport='unix' socket='{socket}'/></source>"
    virsh(hosts, DOMAIN.format("network", tap), monkeypatch)
    code, found = doctor(hosts, VM)
    assert (code, problems(found)) == (0, [])
    assert any("vda is on the tap" in each["text"] for each in found)
    overlay = "<source file='/x/snap.qcow2'/><backingStore type='network'>" + tap + "</backingStore>"
    virsh(hosts, DOMAIN.format("file", overlay), monkeypatch)
    code, found = doctor(hosts, VM)
    assert code == 1
    assert any("writes into the overlay /x/snap.qcow2" in text for text in problems(found))
    virsh(hosts, DOMAIN.format("file", f"<source file='{hosts.disks[0]}'/>"), monkeypatch)
    code, found = doctor(hosts, VM)
    assert any("attached to the file" in text for text in problems(found))

    # What a watcher saw that sees all processes is the agent's verdict at once.
    with opener(hosts.disks[0], "r+b"):
        assert hosts.command("watch-disks", "--once").returncode == 0
        told = hosts.status("primary")
        assert (told["health"], told["protected"]) == ("Critical", False)
        assert "past the tap" in told["summary"]
    assert hosts.command("watch-disks", "--once").returncode == 0
    assert hosts.status("primary")["bypasses"] == []
    bypassed = hosts.command("events", "--id", "bypassed", "--json")
    assert [each["vm"] for each in json.loads(bypassed.stdout)["events"]] == [VM]

    hosts.kill("replica")
    code, found = doctor(hosts)
    assert code == 1
    assert any("is interrupted" in each["text"] or "Nobody listens" in each["text"] for each in found)
