"""A verify of a live volume: no false alarm, no false "equal", and what differs is found and brought right."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from primary_agent.verify_run import COMPARING
from protocol.messages import BLOCK_SIZE
from replica_agent.verify import PointImage, VerifyConnection
from shared.errors import InvalidStateError, UsageError
from shared.events import EventId
from shared.ports.files import RealFile
from shared.states import ReplicationState
from shared.status import VerifyResult
from shared.verify_outcomes import DIFFERENT, EQUAL, REPAIRED, UNDECIDED
from tests.pair.rig import MIB, Pair
from tests.pair.test_pair_schedule import NOON, SetClock, clock, settings
from tests.places import is_thorough

__all__ = ["clock"]


async def verify(pair: Pair, *, repair: bool = False) -> VerifyResult:
    """Order a verify, and wait for its result."""
    verifier = pair.vm.verifier
    before = verifier.record.last
    await verifier.order(repair=repair)
    await pair.until("the verify", lambda: verifier.record.last is not before and not verifier.status().running)
    assert verifier.record.last is not None
    return verifier.record.last


def image_digest(path: Path) -> str:
    """As the page for administrators says."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(65536):
            whole.update(hashlib.sha256(block).digest())
    return whole.hexdigest()


def flip(pair: Pair, disk: int, offset: int) -> None:
    """Change a byte of the replica's disk behind its back."""
    path = pair.copy.parts.layout.disk(disk)
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte[0] ^ 0xFF]), offset)
    finally:
        os.close(descriptor)


class Writer:
    """Writes to the disks through the tap until it is stopped."""

    def __init__(self, pair: Pair, sizes: tuple[int, ...], seed: int) -> None:
        self._pair = pair
        self._sizes = sizes
        self._rng = random.Random(seed)
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopping:
            disk = self._rng.randrange(len(self._sizes))
            commands = []
            for _ in range(40):
                length = self._rng.choice((512, 4096, 65536, 200 * 1024))
                offset = self._rng.randrange(0, self._sizes[disk] - length) // 512 * 512
                pattern = self._rng.randrange(1, 255)
                kind = self._rng.choice((f"write -q -P {pattern}", "write -q -z", "discard -q"))
                commands.append(f"{kind} {offset} {length}")
            await self._pair.write(disk, *commands)

    async def stop(self) -> None:
        self._stopping = True
        await self._task


async def test_quiet_pair_is_equal_with_the_proof(pair: Pair) -> None:
    await pair.replicate(9 * MIB + 512, 2 * MIB)
    result = await verify(pair)
    assert result.outcome == EQUAL, result
    await pair.assert_same()
    for image in result.images:
        assert image.sha256 == image_digest(pair.disk(image.disk))
    assert [image.disk for image in result.images] == [0, 1]
    assert result.compared_bytes == 11 * MIB + 512
    assert not [name for name in os.listdir(pair.vm.folder) if name.startswith("verify.")]


async def test_live_volume_gives_no_false_alarm(pair: Pair) -> None:
    sizes = (80 * MIB, 3 * MIB + 4096)
    await pair.replicate(*sizes, log_limit_bytes=256 * MIB)
    writer = Writer(pair, sizes, 7)
    try:
        for _ in range(3 if is_thorough() else 1):
            before = (await pair.vm.parts.tap.refresh()).bytes_written
            result = await verify(pair)
            assert result.outcome == EQUAL, result
            assert (await pair.vm.parts.tap.refresh()).bytes_written > before
    finally:
        await writer.stop()


async def test_changed_byte_is_found_and_repaired(pair: Pair) -> None:
    await pair.replicate(20 * MIB, 2 * MIB)
    flip(pair, 0, 7 * BLOCK_SIZE + 99)
    flip(pair, 1, 2 * MIB - 1)
    result = await verify(pair)
    assert result.outcome == DIFFERENT, result
    assert [(found.disk, found.offset, found.length) for found in result.different] == [
        (0, 7 * BLOCK_SIZE, BLOCK_SIZE),
        (1, 31 * BLOCK_SIZE, BLOCK_SIZE),
    ]
    assert (result.different_ranges, result.different_bytes) == (2, 2 * BLOCK_SIZE)
    repaired = await verify(pair, repair=True)
    assert repaired.outcome == REPAIRED, repaired
    assert repaired.repaired_bytes == 2 * BLOCK_SIZE
    await pair.assert_same()
    assert (await verify(pair)).outcome == EQUAL


async def test_repair_under_a_live_writer(pair: Pair) -> None:
    sizes = (70 * MIB,)
    await pair.replicate(*sizes, log_limit_bytes=256 * MIB)
    writer = Writer(pair, (40 * MIB,), 3)
    try:
        flip(pair, 0, 50 * MIB + 4711)
        result = await verify(pair, repair=True)
        assert result.outcome == REPAIRED, result
        assert [(found.offset, found.length) for found in result.different] == [(50 * MIB, BLOCK_SIZE)]
        assert (await verify(pair)).outcome == EQUAL
    finally:
        await writer.stop()
    await pair.assert_same()
    assert pair.vm.parts.replication.state is ReplicationState.REPLICATING
    assert [event["cause"] for event in await pair.events(EventId.VERIFY_DIFFERENT)] == [REPAIRED]


async def test_difference_is_critical_until_it_is_gone(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    flip(pair, 0, 0)
    assert (await verify(pair)).outcome == DIFFERENT
    status = await pair.vm.status()
    assert (status.health, status.verify is not None) == ("Critical", True)
    assert "--repair" in status.remedy
    assert (await verify(pair, repair=True)).outcome == REPAIRED
    assert (await pair.vm.status()).health == "Normal"


async def test_what_can_not_be_read_here_is_never_equal(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R24."""
    await pair.replicate(4 * MIB)
    bad = pair.disk(0).open("rb")
    read, inode = RealFile.read, os.fstat(bad.fileno()).st_ino
    bad.close()

    def failing(self: RealFile, offset: int, length: int) -> bytes:
        if self.identity().inode == inode and offset <= 5 * BLOCK_SIZE < offset + length:
            raise OSError(5, "bad sector")
        return read(self, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(RealFile, "read", failing)
        result = await verify(pair)
        assert result.outcome == UNDECIDED, result
        assert [(found.offset, found.length) for found in result.unreadable_here] == [(5 * BLOCK_SIZE, BLOCK_SIZE)]
        assert result.images == []
        flip(pair, 0, 9 * BLOCK_SIZE)
        result = await verify(pair)
        assert (result.outcome, result.different_ranges) == (DIFFERENT, 1), result
    assert (await verify(pair, repair=True)).outcome == REPAIRED


async def test_what_can_not_be_read_there_is_repaired(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R24."""
    await pair.replicate(4 * MIB)
    read, broken = PointImage.read, [True]

    def failing(self: PointImage, offset: int, length: int) -> bytes:
        if broken and offset <= BLOCK_SIZE < offset + length:
            raise OSError(5, "bad sector")
        return read(self, offset, length)

    monkeypatch.setattr(PointImage, "read", failing)
    result = await verify(pair)
    assert (result.outcome, result.unreadable_bytes) == (DIFFERENT, BLOCK_SIZE), result
    result = await verify(pair, repair=True)
    assert result.outcome == DIFFERENT, result
    assert "--resynchronize" in result.remedy
    # A disk that is written anew where it had a bad sector can be read again.
    broken.clear()
    assert (await verify(pair)).outcome == EQUAL


async def begun(pair: Pair, phase: str) -> None:
    """Begin a verify, and wait until it is in that phase."""
    await pair.vm.verifier.order()
    await pair.until(phase, lambda: pair.vm.verifier.status().phase == phase)


async def ended(pair: Pair) -> VerifyResult:
    await pair.until("the end", lambda: not pair.vm.verifier.status().running)
    assert pair.vm.verifier.record.last is not None
    return pair.vm.verifier.record.last


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Answers of the replica take a while, until the list is cleared."""
    hash_range, waits = VerifyConnection._hash, [True]

    async def hashed(self: VerifyConnection, disk: int, offset: int, length: int) -> bytearray:
        while waits:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return await hash_range(self, disk, offset, length)

    monkeypatch.setattr(VerifyConnection, "_hash", hashed)
    return waits


WAYS = ("replica restarted", "link cut", "suspended", "tap killed", "resynchronized", "stopped", "point gave way")


@pytest.mark.parametrize("way", WAYS)
async def test_what_takes_its_ground_ends_it_undecided(pair: Pair, slow: list[bool], way: str) -> None:
    await pair.replicate(4 * MIB)
    await begun(pair, COMPARING)
    match way:
        case "replica restarted":
            slow.clear()
            await pair.replica.stop()
            await pair.start_replica()
        case "link cut":
            pair.cut_link()
        case "suspended":
            await pair.vm.suspend()
        case "tap killed":
            await pair.kill_tap()
        case "resynchronized":
            await pair.vm.resume(resynchronize=True)
        case "stopped":
            await pair.vm.verifier.order(stop=True)
        case "point gave way":
            for reading in pair.copy.parts.history.readings:
                reading.reader.lose("The recovery point was deleted.")
            slow.clear()
    result = await ended(pair)
    assert result.outcome == UNDECIDED, result
    slow.clear()
    if way == "suspended":
        await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    await pair.healthy()
    assert (await verify(pair)).outcome == EQUAL
    await pair.assert_same()
    assert not pair.copy.parts.history.readings


async def test_agent_that_is_started_anew_tells_that_it_ended(pair: Pair, slow: list[bool]) -> None:
    """I16."""
    await pair.replicate(4 * MIB)
    await begun(pair, COMPARING)
    await pair.primary.stop()
    slow.clear()
    await pair.start_primary()
    await pair.until("the result", lambda: pair.vm.verifier.record.last)
    last = pair.vm.verifier.record.last
    assert last is not None
    assert (last.outcome, pair.vm.verifier.record.running) == (UNDECIDED, None)
    assert "started anew" in last.text
    await pair.healthy()
    assert (await verify(pair)).outcome == EQUAL


async def test_verify_is_refused_where_it_can_not_begin(pair: Pair) -> None:
    await pair.enable(MIB)
    with pytest.raises(InvalidStateError, match="ReadyForInitialReplication"):
        await pair.vm.verifier.order()
    await pair.healthy()
    await pair.vm.initial()
    await pair.state(ReplicationState.REPLICATING)
    await pair.vm.suspend()
    with pytest.raises(InvalidStateError, match="Suspended"):
        await pair.vm.verifier.order(repair=True)


# --- when it runs --------------------------------------------------------------------------------------------------


async def test_order_for_later_and_its_cancelling(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(MIB)
    verifier = pair.vm.verifier
    await verifier.order(at="02:00")
    assert verifier.status().next_time == NOON + 14 * 3600
    await verifier.order(at="never")
    assert verifier.status().next_time is None
    with pytest.raises(UsageError):
        await verifier.order(at="+8d")
    flip(pair, 0, 1)
    await verifier.order(at="+2h", repair=True)
    await pair.primary.stop()
    await pair.start_primary()
    await pair.healthy()
    assert pair.vm.verifier.status().next_time is not None
    clock.set(NOON + 2 * 3600 + 60)
    await pair.until("the verify", lambda: pair.vm.verifier.record.last)
    last = pair.vm.verifier.record.last
    assert last is not None
    assert (last.outcome, last.started_by) == (REPAIRED, "administrator")
    assert pair.vm.verifier.status().next_time is None


async def scheduled(pair: Pair) -> None:
    """The schedule counts from when it was seen."""
    await pair.until("the schedule", lambda: pair.vm.verifier.record.schedule != "never")


async def test_schedule(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(MIB)
    await settings(pair, verify_schedule="Weekly  Sunday 03:00")
    assert (await pair.vm.status()).settings["verify_schedule"] == "weekly sunday 03:00"
    await scheduled(pair)
    sunday = NOON + 5 * 86400 + 15 * 3600
    assert pair.vm.verifier.status().next_time == sunday
    clock.set(sunday + 1)
    await pair.until("the verify", lambda: pair.vm.verifier.record.last)
    last = pair.vm.verifier.record.last
    assert last is not None
    assert (last.outcome, last.started_by) == (EQUAL, "schedule")
    assert pair.vm.verifier.status().next_time == sunday + 7 * 86400
    with pytest.raises(UsageError):
        await settings(pair, verify_schedule="hourly")
    await settings(pair, verify_schedule="never")
    assert pair.vm.verifier.status().next_time is None


async def test_one_that_could_not_begin_is_told_and_is_over(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(MIB)
    await settings(pair, verify_schedule="daily 13:00")
    await scheduled(pair)
    await pair.vm.suspend()
    clock.set(NOON + 3600 + 60)
    await asyncio.sleep(1.5)
    assert pair.vm.verifier.record.last is None
    clock.set(NOON + 2 * 3600 + 60)
    await pair.until("its end", lambda: pair.vm.verifier.record.last)
    last = pair.vm.verifier.record.last
    assert last is not None
    assert (last.outcome, last.started_by) == (UNDECIDED, "schedule")
    assert pair.vm.verifier.status().next_time == NOON + 25 * 3600


async def test_recipe_of_the_page_gives_the_digest(pair: Pair) -> None:
    """docs/verify.md: anybody can check the proof."""
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    recipe = page.split("<<'END'\n")[1].split("END\n")[0]
    await pair.replicate(3 * MIB + 1024)
    result = await verify(pair)
    copy = pair.copy.parts.layout.disk(0)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-", copy, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate(recipe.encode())
    assert output.decode().strip() == result.images[0].sha256
