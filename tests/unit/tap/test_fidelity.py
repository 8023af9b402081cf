"""I1, I2: replaying the log over what the disks held at its beginning gives, at every cut, what they held then."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.hrl import SealReason
from protocol.position import Position
from shared.nbd.backend import Mutation
from shared.tap_control import Tracking
from tests.unit.tap.rig import EPOCH, KIB, MIB, Images, apply, copy, make_box, trim, write, zeroes

SIZES = (3 * MIB, 512)
SECTOR = 512


@st.composite
def mutations(draw: st.DrawFn) -> tuple[int, Mutation]:
    """A change of one of the disks: often small, sometimes longer than an entry may be, anywhere."""
    index = draw(st.sampled_from((0, 0, 0, 1)))
    size = SIZES[index]
    length = SECTOR * draw(st.one_of(st.integers(1, 16), st.integers(1, size // SECTOR)))
    length = min(length, size)
    offset = SECTOR * draw(st.integers(0, (size - length) // SECTOR))
    match draw(st.sampled_from("wwwztn")):
        case "w":
            return index, write(offset, bytes([draw(st.integers(0, 255))]) * length, fua=draw(st.booleans()))
        case "z":
            return index, zeroes(offset, length)
        case "n":
            return index, zeroes(offset, length, no_hole=True)
        case _:
            return index, trim(offset, length)


actions = st.one_of(
    st.tuples(st.just("batch"), st.lists(mutations(), min_size=1, max_size=6)),
    st.tuples(st.just("batch"), st.lists(mutations(), min_size=1, max_size=6)),
    st.tuples(st.just("cut"), st.none()),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.sampled_from(("stop", "kill", "release")), st.none()),
)


@settings(max_examples=min(60, settings().max_examples))
@given(st.lists(actions, min_size=1, max_size=25))
@pytest.mark.slow
def test_every_cut_is_what_the_disks_held(story: list[tuple[str, list[tuple[int, Mutation]] | None]]) -> None:
    """I1, I2: over two disks, with restarts and kills between."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        asyncio.run(live(Path(folder), story))


async def live(folder: Path, story: list[tuple[str, list[tuple[int, Mutation]] | None]]) -> None:
    async with make_box(folder, SIZES) as box:
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        base = box.images()
        model: Images = {index: bytearray(image) for index, image in base.items()}
        cuts: dict[Position, dict[int, bytes]] = {}
        for action, batch in story:
            match action:
                case "batch":
                    assert batch is not None
                    for index in (0, 1):
                        own = [mutation for disk, mutation in batch if disk == index]
                        done = engine.mutate(engine.disks[index], own) if own else None
                        if done is not None:
                            await done
                        for mutation in own:
                            assert mutation.error == 0
                            apply(model[index], mutation)
                case "cut":
                    cut = await engine.cut(SealReason.COMMAND)
                    cuts[cut.position] = copy(model)
                case "flush":
                    assert await engine.flush(engine.disks[0]) == 0
                case "release":
                    # Nothing has left the first file yet, so that all of the log can still be replayed.
                    engine.tracker.files.lease("test", 1, 3600)
                    if engine.tracker.newest_cut is not None:
                        engine.tracker.release(EPOCH, engine.tracker.newest_cut.position.segment)
                case "stop" | "kill":
                    await (engine.stop() if action == "stop" else box.killed(engine))
                    engine = box.engine()
                    await engine.start()
                    assert engine.tracker.tracking is Tracking.ON, engine.tracker.loss
        await engine.stop()
        result = box.replay(base)
        assert {position: result.cuts[position] for position in cuts} == cuts
        assert copy(result.images) == box.images() == copy(model)


@pytest.mark.slow
async def test_cut_parts_no_batch(tmp_path: Path) -> None:
    """I2: a write of 32 MiB is many records in several files, and wholly in a cut or wholly out."""
    async with make_box(tmp_path, (40 * MIB,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        base = box.images()
        data = bytes(range(256)) * (32 * MIB // 256)
        before = await engine.cut(SealReason.COMMAND)
        assert engine.mutate(engine.disks[0], [write(SECTOR, data)]) is None
        after = await engine.cut(SealReason.COMMAND)
        result = box.replay(base)
        assert result.cuts[before.position] == base
        assert result.cuts[after.position] == box.images()
        assert after.position.entry == 32


async def test_many_cuts_at_once_are_told_in_order(tmp_path: Path) -> None:
    """R5: cuts that share one sync are all durable, in the order in which they were made, with what was before them."""
    async with make_box(tmp_path, (1 * MIB,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        base, expected, waiting = box.images(), [], []
        for number in range(20):
            assert engine.mutate(engine.disks[0], [write(number * 4096, bytes([number + 1]) * 4096)]) is None
            waiting.append(asyncio.ensure_future(engine.cut(SealReason.COMMAND)))
            # Only now does the cut begin; what is written later is not in it.
            await asyncio.sleep(0)
            expected.append(box.images())
        cuts = await asyncio.gather(*waiting)
        result = box.replay(base)
        assert [cut.position.segment for cut in cuts] == list(range(1, 21))
        assert [result.cuts[cut.position] for cut in cuts] == expected


@pytest.mark.parametrize("size", [512, 4096, 64 * KIB + 512])
async def test_smallest_disks(tmp_path: Path, size: int) -> None:
    """A disk of a single sector, and one whose last sector stands alone."""
    async with make_box(tmp_path, (size,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        base = box.images()
        assert engine.mutate(engine.disks[0], [write(size - 512, b"e" * 512), trim(0, 512)]) is None
        cut = await engine.cut(SealReason.COMMAND)
        assert box.replay(base).cuts[cut.position] == box.images() != base
