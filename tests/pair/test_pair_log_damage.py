"""A tracked log that can't be read on: the resync that it belongs to starts anew, and ends by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from primary_agent.comparing import Comparing
from shared.planning import ResyncCause
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair

PATTERN = b"\x5a" * (64 << 10)


async def test_a_resync_whose_tracked_log_is_damaged_starts_anew(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """P9, I12: a bit rots in what was written while the disks are compared. It is found, told, and healed."""
    await pair.replicate(8 * MIB)
    await pair.assert_same()
    compare_disk, reached, goes_on = Comparing._compare_disk, False, False

    async def held(comparing: Comparing, *rest: object) -> None:
        nonlocal reached
        reached = True
        await pair.until("the order to go on", lambda: goes_on)
        await compare_disk(comparing, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Comparing, "_compare_disk", held)
    await pair.vm.resume(resynchronize=True)
    await pair.until("the compare", lambda: reached)
    resync = pair.vm.parts.replication.record.resync
    assert resync is not None
    await pair.write(0, "write -P 0x5a 1M 64k", "flush")
    log = next(path for path in _log_files(pair) if PATTERN in path.read_bytes())
    with log.open("r+b") as file:
        file.seek(log.read_bytes().index(PATTERN) + 1000)
        file.write(b"\x00")
    goes_on = True
    await pair.until(
        "another resync", lambda: pair.vm.parts.replication.record.epoch not in (resync.epoch, resync.parent)
    )
    await pair.state(ReplicationState.REPLICATING)
    monkeypatch.undo()
    await pair.assert_same()
    told = [event["text"] for event in await pair.vm.events(limit=1000, after=0)]
    assert any("starts anew" in text and f"{log} is damaged" in text for text in told), told
    assert ResyncCause.LOG_DAMAGED not in {cause.code for cause in pair.vm.parts.replication.record.causes}


def _log_files(pair: Pair) -> list[Path]:
    return sorted(Path(pair.vm.parts.tap.folder, "log").glob("*.hrl"))
