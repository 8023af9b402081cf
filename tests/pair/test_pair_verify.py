"""A verify of a live volume: no false alarm, no false "equal", and what differs is found and brought right."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from pathlib import Path

from primary_agent.verifying import DIFFERENT, EQUAL, REPAIRED
from protocol.messages import BLOCK_SIZE
from shared.status import VerifyResult
from tests.pair.rig import MIB, Pair


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
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
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
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


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
        for _ in range(6):
            result = await verify(pair)
            assert result.outcome == EQUAL, result
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
