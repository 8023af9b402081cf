"""Everything that requires a resync, one by one over real parts: what is told of it, and that it is told whole.

Each trigger puts the VM into WaitingForStartResynchronize with the words that users know, and names itself and its
evidence in the status, in the events and in ``resync show``.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from primary_agent.resync_report import report
from primary_agent.streaming import LogSender
from shared.cli.resync_text import report_lines
from shared.events import EventId
from shared.health import resync_required_text
from shared.hrl_files import Run
from shared.states import ReplicationState
from shared.status import Cause
from shared.tap_control import Tracking
from tests.pair.rig import MIB, Pair
from tests.pair.test_pair_identity import stop_primary
from tests.pair.test_pair_maps import stop_the_host

SIZE = 4 * MIB
LOG_LIMIT = 8 * MIB
WAITING = ReplicationState.WAITING_FOR_START_RESYNCHRONIZE


# --- what goes wrong -------------------------------------------------------------------------------------------------


def scribble(path: Path, offset: int = 5000) -> None:
    """Somebody else writes a byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


async def written_while_the_tap_was_off(pair: Pair) -> None:
    await stop_primary(pair)
    scribble(pair.disk(0))
    scribble(pair.disk(1))
    await pair.start_primary()


async def another_file_in_its_place(pair: Pair) -> None:
    await stop_primary(pair)
    other = pair.folder / "other.raw"
    shutil.copy2(pair.disk(0), other)
    other.rename(pair.disk(0))
    await pair.start_primary()


async def written_under_the_tap(pair: Pair) -> None:
    scribble(pair.disk(0))


async def resized_under_the_tap(pair: Pair) -> None:
    os.truncate(pair.disk(0), SIZE + 512)


async def written_after_the_tap_was_killed(pair: Pair) -> None:
    pid = pair.vm.parts.tap.require().status.pid
    await pair.primary.stop()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    scribble(pair.disk(0))
    await pair.start_primary()


async def more_than_the_log_may_take(pair: Pair) -> None:
    await pair.write(0, *(f"write -P {number + 1} {number % 2}M 1M" for number in range(20)))


async def log_that_takes_no_write(pair: Pair) -> None:
    """The operating system refuses what lies behind 64 KiB of any file: of what is written here, the log's end."""
    pid = pair.vm.parts.tap.require().status.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    await pair.write(0, "write -P 1 0 32k", "write -P 2 0 32k", "write -P 3 0 32k")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def newest_log(pair: Pair) -> Path:
    return max(Path(pair.vm.folder).glob("tap/log/[0-9]*.hrl"))


async def damaged_end_of_the_log(pair: Pair) -> None:
    await pair.write(0, "write -P 1 0 64k")
    log = newest_log(pair)
    await stop_primary(pair)
    scribble(log, 4096 + 100)
    await pair.start_primary()


async def stopped_host_without_maps(pair: Pair) -> None:
    folder = Path(pair.vm.folder)
    await stop_the_host(pair)
    (folder / "tap" / "hot.map").unlink()
    await pair.start_primary()


async def stopped_host(pair: Pair) -> None:
    await pair.write(0, "write -P 1 0 64k")
    await stop_the_host(pair)
    await pair.start_primary()


async def lost_state_of_the_tap(pair: Pair) -> None:
    folder = Path(pair.vm.folder)
    await stop_primary(pair)
    (folder / "tap" / "tap.state").unlink()
    await pair.start_primary()


async def ended_tracking(pair: Pair) -> None:
    await pair.vm.parts.tap.require().client.stop_tracking("the test")


async def unreadable_log(pair: Pair) -> None:
    """Rot in what was logged and not sent yet."""
    await pair.replica.stop()
    await pair.until("the end of the session", lambda: pair.vm.parts.link.dialled is None)
    connection = pair.vm.parts.tap.require()
    end = (await connection.client.status()).position
    assert end is not None
    place = await connection.client.locate(end.position())
    await pair.write(0, "write -P 1 0 256k")
    scribble(newest_log(pair), place.offset + 100_000)
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()


async def foreign_write_at_the_replica(pair: Pair) -> None:
    path = Path(pair.copy.parts.layout.disk(0))
    await pair.replica.stop()
    scribble(path)
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()


async def replica_without_its_copy(pair: Pair) -> None:
    await pair.replica.stop()
    shutil.rmtree(pair.folder / "store")
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()


def once(monkeypatch: pytest.MonkeyPatch, change: Callable[[LogSender, Run], Run | None]) -> None:
    """Let the primary send something else in the place of the first run that has a batch."""
    send, done = LogSender._send_run, False

    async def sent(sender: LogSender, file: int, run: Run) -> None:
        nonlocal done
        if done or run.sealed or len(run.data) < 32 << 10:
            await send(sender, file, run)
            return
        done = True
        other = change(sender, run)
        if other is not None:
            await send(sender, file, other)

    monkeypatch.setattr(LogSender, "_send_run", sent)


async def left_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    once(monkeypatch, lambda _sender, _run: None)
    await pair.write(0, "write -P 1 0 64k")


async def ordered_by_an_administrator(pair: Pair) -> None:
    await pair.vm.suspend()
    await pair.replica.stop()
    await pair.vm.resume(resynchronize=True)


@dataclass(frozen=True)
class Trigger:
    """``parts``: what of disks has changed; ``evidence``: what else the cause has to name; ``away``: no replica."""

    act: Callable[..., Awaitable[None]]
    code: str
    reason: str = ""
    text: str = ""
    parts: tuple[tuple[int, str], ...] = ()
    evidence: tuple[str, ...] = ()
    bounded: bool = False
    away: bool = True

    def __str__(self) -> str:
        return self.act.__name__.replace("_", " ")


LOST = "tracking_lost"
TRIGGERS = [
    Trigger(written_while_the_tap_was_off, LOST, "disk_changed", "its mtime was",
            ((0, "mtime_ns"), (0, "ctime_ns"), (1, "mtime_ns"), (1, "ctime_ns"))),
    Trigger(another_file_in_its_place, LOST, "disk_changed", "its inode was", ((0, "inode"), (0, "ctime_ns"))),
    Trigger(written_under_the_tap, LOST, "disk_changed", "its mtime was", ((0, "mtime_ns"),)),
    Trigger(resized_under_the_tap, LOST, "disk_changed", f"its size was {SIZE} and is {SIZE + 512}",
            ((0, "size_bytes"),)),
    Trigger(written_after_the_tap_was_killed, LOST, "disk_changed", "the tap left it at", ((0, "mtime_ns"),)),
    Trigger(more_than_the_log_may_take, LOST, "log_full", f"its limit of {LOG_LIMIT} bytes", bounded=True),
    Trigger(log_that_takes_no_write, LOST, "log_failed", "the log can't be written: File too large", bounded=True),
    Trigger(damaged_end_of_the_log, LOST, "log_damaged", ".hrl"),
    Trigger(stopped_host_without_maps, LOST, "unclean_stop", "maps are damaged or missing"),
    Trigger(stopped_host, LOST, "unclean_stop", "that were written last are in doubt", bounded=True),
    Trigger(lost_state_of_the_tap, LOST, "state_damaged", "the state file is missing"),
    Trigger(ended_tracking, "tracking_off", text="tracking is off", evidence=("tracking",)),
    Trigger(unreadable_log, "log_damaged", "chain", ".hrl", evidence=("file", "offset", "reason"), away=False),
    Trigger(foreign_write_at_the_replica, "replica_request", text="Somebody else changed the replica's disks",
            evidence=("received", "replica_causes"), away=False),
    Trigger(replica_without_its_copy, "replica_empty", text="no baseline of this VM", away=False),
    Trigger(left_out, "gap", evidence=("acked", "log_end"), away=False),
    Trigger(ordered_by_an_administrator, "administrator", text="The administrator asked for it.", away=False),
]  # fmt: skip


# --- what is told ----------------------------------------------------------------------------------------------------


def causes(pair: Pair) -> list[Cause]:
    return list(pair.vm.parts.replication.record.causes)


async def assert_told(pair: Pair, trigger: Trigger) -> Cause:
    """State, health, words and evidence of the trigger, everywhere; its cause."""
    await pair.state(WAITING)
    await pair.until("the cause", lambda: any(cause.code == trigger.code for cause in causes(pair)))
    if trigger.bounded:
        await pair.until("the bounds", lambda: any("doubt_bytes" in each.evidence for each in causes(pair)))
    cause = next(each for each in causes(pair) if each.code == trigger.code)
    assert trigger.text in cause.text
    assert cause.evidence.get("reason", "") == trigger.reason
    changes = cause.evidence.get("changes", [])
    assert {(each["disk"], each["part"]) for each in changes} == set(trigger.parts)
    assert all(each["old"] != each["new"] and each["path"] == str(pair.disk(each["disk"])) for each in changes)
    assert set(trigger.evidence) <= set(cause.evidence)
    status = await pair.vm.status()
    assert (status.state, status.health) == (WAITING.title, "Critical")
    assert status.reasons[0].startswith(resync_required_text("web"))
    assert cause in status.causes
    events = [event["data"] for event in await pair.events(EventId.RESYNC_REQUIRED) if event["cause"] == cause.code]
    told = {key: value for key, value in cause.evidence.items() if key not in ("doubt_bytes", "disk_bytes")}
    assert {"code": cause.code, "evidence": told} in events
    shown = report(pair.vm)
    assert shown.required and cause in shown.causes
    assert shown.scope == ("what is in doubt" if trigger.bounded else "whole disks")
    lines = "\n".join(report_lines("web", shown, None))
    assert f"{cause.code}: {cause.text}" in lines
    assert all(f"disk {disk}, {pair.disk(disk)}: {part.split('_')[0]} was" in lines for disk, part in trigger.parts)
    if trigger.bounded:
        assert 0 < cause.evidence["doubt_bytes"] < 2 * SIZE == cause.evidence["disk_bytes"]
        assert f"of {2 * SIZE / MIB:.1f} MiB were in doubt" in cause.text
        assert f"of {2 * SIZE / MIB:.1f} MiB are in doubt" in status.reasons[0]
        (bounded,) = await pair.events(EventId.RESYNC_BOUNDED)
        assert bounded["data"] == {key: cause.evidence[key] for key in ("doubt_bytes", "disk_bytes")}
    return cause


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
async def test_trigger(pair: Pair, monkeypatch: pytest.MonkeyPatch, trigger: Trigger) -> None:
    await pair.replicate(SIZE, SIZE, log_limit_bytes=LOG_LIMIT)
    await pair.write(0, "write -P 7 1M 64k")
    await pair.assert_same()
    if trigger.away:
        # What is bounded would begin by itself.
        await pair.replica.stop()
    if trigger.act is left_out:
        await trigger.act(pair, monkeypatch)
    else:
        await trigger.act(pair)
    await assert_told(pair, trigger)


async def restarted(pair: Pair) -> None:
    """Everything ends and begins again: both agents and the tap."""
    await stop_primary(pair)
    await pair.replica.stop()
    await pair.start_primary()
    await pair.vm.parts.tap.connected()


async def test_several_at_once_are_all_kept_and_the_widest_scope_counts(pair: Pair) -> None:
    """What bounds one of them does not bound the others: their union is compared, here whole disks."""
    await pair.replicate(SIZE, SIZE, log_limit_bytes=LOG_LIMIT)
    await pair.assert_same()
    path = Path(pair.copy.parts.layout.disk(1))
    await pair.replica.stop()
    await more_than_the_log_may_take(pair)
    await pair.until("the dirty map", lambda: pair.vm.parts.tap.require().tracking is Tracking.MAP)
    await pair.until("the bounds", lambda: any("doubt_bytes" in each.evidence for each in causes(pair)))
    scribble(pair.disk(1))
    scribble(path)
    await pair.until("the second cause", lambda: len(causes(pair)) == 2)
    await restarted(pair)
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.until("the third cause", lambda: len(causes(pair)) == 3)
    kept = causes(pair)
    assert [(each.code, each.evidence.get("reason")) for each in kept] == [
        (LOST, "log_full"), (LOST, "disk_changed"), ("replica_request", None),
    ]  # fmt: skip
    await restarted(pair)
    assert causes(pair) == kept
    assert pair.vm.parts.replication.state is WAITING
    assert report(pair.vm).scope == "whole disks"
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    assert causes(pair) == []
    await pair.assert_same()
    run = report(pair.vm).last
    assert run is not None
    assert (run.kind, run.total("compared_bytes"), run.causes) == ("resync", 2 * SIZE, kept)


async def test_two_that_are_bounded_stay_so_and_both_bounds_are_compared(pair: Pair) -> None:
    """A full log, and then a host that stops: what the map named already, and what was hot since."""
    await pair.replicate(64 * MIB, SIZE, log_limit_bytes=LOG_LIMIT)
    await pair.assert_same()
    await pair.replica.stop()
    await more_than_the_log_may_take(pair)
    await pair.until("the bounds", lambda: any("doubt_bytes" in each.evidence for each in causes(pair)))
    await pair.write(0, "write -P 9 40M 64k")
    await stop_the_host(pair)
    await pair.start_primary()
    await pair.vm.parts.tap.connected()
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.until("its end", lambda: not causes(pair))
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    run = report(pair.vm).last
    assert run is not None
    assert (run.kind, {each.code for each in run.causes}) == ("bounded", {LOST})
    assert 2 * MIB + (64 << 10) <= run.total("compared_bytes") < 64 * MIB
