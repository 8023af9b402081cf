"""Guests are frozen by a real guard process, and thawed whatever becomes of who asked for it (R44)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.errors import VmreplicaError
from shared.guest_settings import FreezeKind
from shared.ports.freezing import FREEZE_NOT_BEGUN, FreezeOrder, GuardedFreezer, ThawFailedError
from shared.ports.guest_freezing import FreezeError, GuestAgent, LibvirtDomain
from tests.unit.ports.fake_guest import FakeGuest


@pytest.fixture
def guest() -> Iterator[FakeGuest]:
    with tempfile.TemporaryDirectory() as folder:
        yield FakeGuest(Path(folder) / "qga.sock")


@pytest.fixture
async def freezer() -> AsyncIterator[GuardedFreezer]:
    """Every test ends with the end of its guards: what they froze is thawed."""
    freezer = GuardedFreezer()
    yield freezer
    await freezer.settled()


def order(kind: FreezeKind, target: object, *, freeze: float = 5.0, frozen: float = 10.0) -> FreezeOrder:
    return FreezeOrder(kind, str(target), "web", freeze, frozen)


async def test_a_guest_is_held_from_the_freeze_to_the_thaw(freezer: GuardedFreezer, guest: FakeGuest) -> None:
    frozen = await freezer.freeze(order(FreezeKind.AGENT, guest.path))
    assert guest.frozen
    assert (await frozen.thaw()).held
    assert not guest.frozen
    # Each client synchronized first, behind what another had left in the channel.
    assert guest.asked[:2] == ["guest-sync-delimited", "guest-fsfreeze-freeze"]


async def test_a_guest_that_thawed_by_itself_was_not_held(freezer: GuardedFreezer, guest: FakeGuest) -> None:
    frozen = await freezer.freeze(order(FreezeKind.AGENT, guest.path))
    guest.auto_thaw()
    thawed = await frozen.thaw()
    assert not thawed.held
    assert "not frozen any more" in thawed.text


async def test_the_time_limit_thaws_and_says_so(freezer: GuardedFreezer, guest: FakeGuest) -> None:
    frozen = await freezer.freeze(order(FreezeKind.AGENT, guest.path, frozen=0.3))
    assert await asyncio.to_thread(guest.until, False)
    assert not (await frozen.thaw()).held


async def test_whoever_leaves_has_the_guest_thawed(freezer: GuardedFreezer, guest: FakeGuest) -> None:
    frozen = await freezer.freeze(order(FreezeKind.AGENT, guest.path, frozen=600.0))
    frozen.leave()
    assert await asyncio.to_thread(guest.until, False)


async def test_a_freeze_that_is_not_answered_fails_and_is_thawed(freezer: GuardedFreezer, guest: FakeGuest) -> None:
    guest.hangs.add("guest-fsfreeze-freeze")
    with pytest.raises(VmreplicaError, match=r"did not answer within 0\.3 s"):
        await freezer.freeze(order(FreezeKind.AGENT, guest.path, freeze=0.3))
    assert await asyncio.to_thread(guest.until, False)
    assert "guest-fsfreeze-freeze" in guest.asked


async def test_a_thaw_that_fails_is_told_and_tried_on(freezer: GuardedFreezer, guest: FakeGuest) -> None:
    frozen = await freezer.freeze(order(FreezeKind.AGENT, guest.path))
    guest.refuses.add("guest-fsfreeze-thaw")
    with pytest.raises(ThawFailedError, match="has been disabled"):
        await frozen.thaw()
    with pytest.raises(ThawFailedError):
        await freezer.thaw(order(FreezeKind.AGENT, guest.path))
    assert guest.frozen
    guest.refuses.clear()
    # The guard that froze it goes on by itself.
    assert await asyncio.to_thread(guest.until, False)


async def test_a_guest_that_is_gone_counts_as_thawed(freezer: GuardedFreezer, tmp_path: Path) -> None:
    await freezer.thaw(order(FreezeKind.AGENT, tmp_path / "gone.sock"))
    with pytest.raises(VmreplicaError, match="Nobody listens"):
        await freezer.freeze(order(FreezeKind.AGENT, tmp_path / "gone.sock"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_agent_leaves_no_frozen_guest(guest: FakeGuest, number: signal.Signals) -> None:
    """A process that froze the guest is killed; with SIGTERM it is its guard that is told to end."""
    program = (
        "import asyncio, sys\nfrom shared.ports.freezing import *\n"
        "async def main():\n"
        "    order = FreezeOrder(FreezeKind.AGENT, sys.argv[1], 'web', 5.0, 600.0)\n"
        "    frozen = await GuardedFreezer().freeze(order)\n"
        "    print(frozen._process.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    words = [sys.executable, "-c", program, str(guest.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        guard = int(process.stdout.readline())
        assert guest.frozen
        os.kill(process.pid if number is signal.SIGKILL else guard, number)
        assert guest.until(False)
        process.kill()


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_a_program_is_told_what_to_do_for_which_vm(freezer: GuardedFreezer, tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = write_program(tmp_path / "hook", f'echo "$@" >> {told}')
    frozen = await freezer.freeze(order(FreezeKind.PROGRAM, program))
    assert (await frozen.thaw()).held
    assert told.read_text() == "freeze web\nthaw web\n"


async def test_a_program_that_hangs_is_killed_with_what_it_started(freezer: GuardedFreezer, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    hang = f'[ "$1" = thaw ] && exit 0; (sleep 1.5; touch {alive}) & wait'
    program = write_program(tmp_path / "hook", hang)
    with pytest.raises(VmreplicaError, match="did not end within"):
        await freezer.freeze(order(FreezeKind.PROGRAM, program, freeze=0.2))
    children = subprocess.run(["pgrep", "-f", str(program)], capture_output=True, text=True, check=False)
    assert children.stdout == ""
    assert not alive.exists()


async def test_a_program_that_anybody_could_have_written_is_not_run(freezer: GuardedFreezer, tmp_path: Path) -> None:
    program = write_program(tmp_path / "hook", "exit 0")
    program.chmod(0o777)
    with pytest.raises(VmreplicaError, match="can be written by others") as refused:
        await freezer.freeze(order(FreezeKind.PROGRAM, program))
    assert refused.value.code == FREEZE_NOT_BEGUN


def test_libvirt_is_believed_by_its_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    write_program(
        tmp_path / "virsh", f'echo "$@" >> {tmp_path}/asked; cat {said}; grep -q error {said} && exit 1; exit 0'
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    domain = LibvirtDomain("web")
    said.write_text("Froze 2 filesystem(s)\n")
    domain.freeze(5)
    said.write_text("Froze 0 filesystem(s)\n")
    with pytest.raises(FreezeError):
        domain.freeze(5)
    said.write_text("Thawed 2 filesystem(s)\n")
    assert domain.thaw(5).held
    said.write_text("Thawed 0 filesystem(s)\n")
    assert not domain.thaw(5).held
    said.write_text("error: Requested operation is not valid: domain is not running\n")
    assert "does not run" in domain.thaw(5).text
    said.write_text("error: Guest agent is not responding\n")
    with pytest.raises(FreezeError, match="not responding"):
        domain.thaw(5)
    assert (tmp_path / "asked").read_text().startswith("--quiet domfsfreeze --domain web\n")


@pytest.mark.skipif(shutil.which("qemu-ga") is None, reason="qemu-guest-agent is not installed")
def test_the_real_guest_agent_is_understood(tmp_path: Path) -> None:
    """Only asked how it is, and told to thaw what is not frozen: freezing would freeze this machine's file systems."""
    path = tmp_path / "qga.sock"
    # It ends its listening with each client, so it is not one process for all.
    words = ["qemu-ga", "-m", "unix-listen", "-p", str(path), "-t", str(tmp_path), "-b", "guest-fsfreeze-freeze"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not path.exists():
                assert process.poll() is None
            thawed = GuestAgent(str(path)).thaw(10)
            assert not thawed.held
        finally:
            process.kill()
    assert "not frozen" in thawed.text
