"""A tap that takes no writes: durable, with one last cut, and taken back only by whoever knows the order (R43)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from primary_agent.tap.engine import TapEngine
from protocol.hrl import SealReason
from shared.admin.access import Access
from shared.errors import InvalidStateError, StorageError
from shared.nbd.constants import Errno
from shared.tap_config import REFUSED_NAME
from shared.tap_control import Tracking
from tests.unit.tap.rig import EPOCH, KIB, make_box, write, zeroes
from tests.unit.tap.test_control import serve

ORDER, SIZE = "ab" * 16, 256 * KIB


def refusal(engine: TapEngine) -> int:
    """What a write fails with; 0 where it is taken."""
    mutation = write(8192, b"b" * 4096)
    assert engine.mutate(engine.disks[0], [mutation]) is None
    return mutation.error


async def test_writes_are_refused_over_restarts_until_the_order_is_taken_back(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        async with box.running() as tap:
            await tap.begin(EPOCH)
            assert refusal(tap) == Errno.NONE
            # Taken before the order, and longer than one step: it is on the disk, and in the last cut.
            long = tap.mutate(tap.disks[0], [zeroes(0, SIZE)])
            assert long is None or not long.done()
            await tap.gate.close(tap, ORDER, "a failover is prepared")
            assert long is None or long.done()
            cut = await tap.cut(SealReason.COMMAND)
            assert refusal(tap) == Errno.EPERM
            assert await tap.cut(SealReason.COMMAND) is cut, "it is the last one"
            assert not tap.tracker.wants_interval_cut()
            assert await tap.read(tap.disks[0], 8192, 4096) == bytes(4096)
        async with box.running() as tap:
            refused = tap.gate.refused
            assert refused is not None and (refused.id, refused.text) == (ORDER, "a failover is prepared")
            assert refusal(tap) == Errno.EPERM
            assert tap.tracker.log is not None and tap.tracker.log.entry == cut.position.entry
            with pytest.raises(InvalidStateError, match="by the order"):
                await tap.gate.open(tap, "cd" * 16)
            await tap.gate.open(tap, ORDER)
            assert refusal(tap) == Errno.NONE
        async with box.running() as tap:
            assert tap.gate.refused is None and tap.tracker.tracking is Tracking.ON


async def test_order_that_cannot_be_read_counts(tmp_path: Path) -> None:
    """Nobody has taken it back, as far as this tap can know."""
    async with make_box(tmp_path, (SIZE,)) as box:
        path = Path(box.tap_folder, REFUSED_NAME)
        path.write_bytes(b"\x00" * 100)
        async with box.running() as tap:
            refused = tap.gate.refused
            assert refused is not None and refused.id == "" and "can't be read" in refused.text
            assert refusal(tap) == Errno.EPERM
            await tap.gate.open(tap, "")
            assert not path.exists() and refusal(tap) == Errno.NONE


async def test_order_that_cannot_be_made_durable_changes_nothing(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box, box.running() as tap:
        # In the way of the file that is written first.
        Path(box.tap_folder, f"{REFUSED_NAME}.part").mkdir()
        with pytest.raises(StorageError, match="can't be made durable"):
            await tap.gate.close(tap, ORDER, "a failover is prepared")
        assert tap.gate.refused is None and refusal(tap) == Errno.NONE
        assert not Path(box.tap_folder, REFUSED_NAME).exists()


async def test_agent_orders_it_over_the_control_socket(tmp_path: Path) -> None:
    async with serve(tmp_path, Access(os.getuid())) as served:
        client = await served.client()
        assert (await client.status()).refused is None
        status = await client.refuse_writes(bytes.fromhex(ORDER), "a failover is prepared")
        assert status.refused is not None and status.refused.id == ORDER
        assert (await client.refuse_writes(bytes.fromhex(ORDER), "again")).refused is not None
        for _ in range(2):
            assert (await client.allow_writes(ORDER)).refused is None
        client.close()
