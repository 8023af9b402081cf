"""The simulated ports keep the promises of the real ones, and break exactly what a crash may break."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DiskInUseError, StoreDamagedError, UnreachableError
from shared.ports import Address, Link, Peer
from shared.ports.file_system import RealFileSystem
from tests.simulation.disk import PAGE, SimulatedFile, SimulatedFileSystem, Volume
from tests.simulation.loop import CURRENT, Deadlock, Livelock, Process, ProcessDead, SimulationLoop
from tests.simulation.net import WINDOW, SimulatedNetwork, Wire
from tests.simulation.services import SimulatedStores, SimulatedWorkers, StoreContent

SEEDS = range(40)


def run(main: Callable[[SimulationLoop], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    loop = SimulationLoop(**options)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.dismantle()


def volume(seed: int = 0, **options: Any) -> Volume:
    return Volume(random.Random(seed), lambda: 0.0, **options)


def files(on: Volume, process: Process | None = None) -> SimulatedFileSystem:
    system = SimulatedFileSystem(on, process or Process("test"))
    system.make_folder("/d")
    return system


def create(on: Volume, path: str = "/d/f", process: Process | None = None) -> SimulatedFile:
    return files(on, process).open(path, write=True, create=True)


# --- loop and processes ---


def test_time_jumps_to_the_next_timer() -> None:
    async def main(loop: SimulationLoop) -> float:
        await asyncio.sleep(3600)
        return loop.time()

    assert run(main) == 3600


def test_equal_times_keep_their_order() -> None:
    async def main(loop: SimulationLoop) -> list[int]:
        order: list[int] = []
        for number in range(50):
            loop.call_at(1.0, order.append, number)
        await asyncio.sleep(2)
        return order

    assert run(main) == list(range(50))


def test_cancelled_timer_does_not_run() -> None:
    async def main(loop: SimulationLoop) -> list[int]:
        order: list[int] = []
        loop.call_later(1, order.append, 1).cancel()
        loop.call_later(2, order.append, 2)
        await asyncio.sleep(3)
        return order

    assert run(main) == [2]


def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def main(_loop: SimulationLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main)


def test_spinning_is_a_livelock() -> None:
    async def main(_loop: SimulationLoop) -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run(main, max_steps=1000)


def test_killed_process_runs_nothing_any_more() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(2)
            seen.append("went on")
        finally:
            seen.append("finally")

    async def main(loop: SimulationLoop) -> list[str]:
        process = Process("victim", loop)
        process.spawn(work())
        process.run(loop.call_later, 2, seen.append, "callback")
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(5)
        return list(seen)

    assert run(main) == []


def test_everything_a_process_starts_belongs_to_it() -> None:
    async def child() -> Process | None:
        await asyncio.sleep(1)
        return CURRENT.get()

    async def parent() -> Process | None:
        return await asyncio.create_task(child())

    async def main(loop: SimulationLoop) -> tuple[Process, Process | None]:
        process = Process("owner", loop)
        return process, await process.spawn(parent())

    process, seen = run(main)
    assert seen is process


def test_process_dies_at_the_operation_it_was_told() -> None:
    process = Process("victim")
    process.die_at = 3
    process.operation()
    process.operation()
    with pytest.raises(ProcessDead):
        process.operation()
    assert process.dead


def test_exception_that_nobody_looks_at_is_found() -> None:
    async def fails() -> None:
        raise ValueError("lost")

    async def main(loop: SimulationLoop) -> list[BaseException]:
        process = Process("careless", loop)
        process.spawn(fails())
        process.run(loop.call_soon, int, "x")
        await asyncio.sleep(1)
        return loop.unretrieved()

    found = run(main)
    assert [str(error) for error in found][1:] == ["lost"]
    assert "invalid literal" in str(found[0])


def test_sets_of_tasks_have_one_order() -> None:
    async def main(_loop: SimulationLoop) -> list[str]:
        tasks = [asyncio.create_task(asyncio.sleep(1), name=str(number)) for number in range(100)]
        done, _ = await asyncio.wait(set(tasks))
        return [task.get_name() for task in done]

    assert run(main) == run(main)


# --- files ---


def _random_change(rng: random.Random) -> Callable[[Any], Any]:
    offset, length = rng.randrange(0, 40000), rng.randrange(1, 20000)
    match rng.randrange(8):
        case 0:
            return lambda file: file.punch_hole(offset, length)
        case 1:
            return lambda file: file.write_zeroes(offset, length)
        case 2:
            return lambda file: file.truncate(offset)
        case 3:
            return lambda file: file.allocate(offset, length)
        case 4:
            data = [rng.randbytes(700), bytearray(rng.randbytes(5000)), memoryview(rng.randbytes(3))]
            return lambda file: file.write_many(offset, data)
        case _:
            data_one = rng.randbytes(length)
            return lambda file: file.write(offset, data_one)


@pytest.mark.parametrize("seed", range(20))
def test_file_reads_as_a_real_one(seed: int, tmp_path: Path) -> None:
    """The same calls on a real file and a simulated one: the same bytes, sizes and data behind holes."""
    rng = random.Random(seed)
    real = RealFileSystem().open(str(tmp_path / "f"), write=True, create=True)
    simulated = create(volume())
    for _ in range(40):
        change = _random_change(rng)
        change(real)
        change(simulated)
        offset, length = rng.randrange(0, 50000), rng.randrange(1, 30000)
        assert simulated.size() == real.size()
        assert simulated.read(offset, length) == real.read(offset, length)
        assert simulated.read_cached(offset, length) == real.read(offset, length)
        extents = list(simulated.extents(offset, length))
        assert [extent.offset for extent in extents] == [
            offset,
            *(extent.offset + extent.length for extent in extents[:-1]),
        ]
        assert sum(extent.length for extent in extents) == length
        assert all(a.hole != b.hole for a, b in itertools.pairwise(extents))
        assert not any(any(real.read(extent.offset, extent.length)) for extent in extents if extent.hole)
    real.close()


def test_whole_pages_that_were_punched_are_holes() -> None:
    file = create(volume())
    file.write(0, b"x" * (4 * PAGE))
    file.punch_hole(PAGE - 1, 2 * PAGE + 1)
    assert [(e.offset, e.length, e.hole) for e in file.extents(0, 5 * PAGE)] == [
        (0, PAGE, False),
        (PAGE, 2 * PAGE, True),
        (3 * PAGE, PAGE, False),
        (4 * PAGE, PAGE, True),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_power_loss_keeps_what_was_synced(seed: int) -> None:
    disk = volume(seed)
    file = create(disk)
    file.write(0, b"a" * (8 * PAGE))
    file.sync()
    files(disk).sync_folder("/d")
    file.write(0, b"b" * (2 * PAGE))
    file.punch_hole(6 * PAGE, PAGE)
    disk.lose_power()
    found = files(disk).open("/d/f").read(0, 8 * PAGE)
    assert found[2 * PAGE : 6 * PAGE] == b"a" * (4 * PAGE)
    assert found[7 * PAGE :] == b"a" * PAGE
    assert set(found[: 2 * PAGE]) <= set(b"ab")
    assert set(found[6 * PAGE : 7 * PAGE]) <= {0, ord("a")}


def test_power_loss_keeps_drops_and_tears() -> None:
    fates = set()
    for seed in SEEDS:
        disk = volume(seed)
        file = create(disk)
        file.write(0, b"a" * PAGE)
        file.sync()
        files(disk).sync_folder("/d")
        file.write(0, b"b" * PAGE)
        disk.lose_power()
        fates.add(tuple(sorted(set(files(disk).open("/d/f").read(0, PAGE)))))
    assert fates == {(ord("a"),), (ord("b"),), (ord("a"), ord("b"))}


def test_kill_loses_nothing_that_was_written() -> None:
    disk = volume()
    process = Process("writer")
    create(disk, process=process).write(100, b"kept")
    process.kill()
    assert files(disk).open("/d/f").read(100, 4) == b"kept"


def test_kill_in_a_write_may_part_it_between_pages() -> None:
    lengths = set()
    for seed in SEEDS:
        disk = volume(seed)
        process = Process("writer")
        file = create(disk, process=process)
        process.die_at = process.operations + 1
        with pytest.raises(ProcessDead):
            file.write(0, b"x" * (3 * PAGE))
        lengths.add(files(disk).open("/d/f").read(0, 3 * PAGE).count(b"x"))
    assert lengths == {0, PAGE, 2 * PAGE, 3 * PAGE}


def test_new_file_needs_its_folder_synced() -> None:
    survivors = set()
    for seed in SEEDS:
        disk = volume(seed)
        create(disk).sync()
        disk.lose_power()
        survivors.add(files(disk).exists("/d/f"))
    assert survivors == {False, True}


@pytest.mark.parametrize("seed", SEEDS)
def test_rename_replaces_wholly_or_not_at_all(seed: int) -> None:
    disk = volume(seed)
    for name in ("f", "part"):
        file = create(disk, f"/d/{name}")
        file.write(0, name.encode())
        file.sync()
    system = files(disk)
    system.sync_folder("/d")
    system.rename("/d/part", "/d/f")
    assert system.open("/d/f").read(0, 9) == b"part"
    disk.lose_power()
    assert files(disk).open("/d/f").read(0, 9) == (b"f" if files(disk).exists("/d/part") else b"part")


@pytest.mark.parametrize("seed", SEEDS)
def test_synced_rename_survives(seed: int) -> None:
    disk = volume(seed)
    file = create(disk, "/d/part")
    file.write(0, b"part")
    file.sync()
    system = files(disk)
    system.rename("/d/part", "/d/f")
    system.sync_folder("/d")
    disk.lose_power()
    assert files(disk).list("/d") == ["f"]


def test_failed_sync_lies_when_it_is_repeated() -> None:
    """After a failed fsync the pages count as clean: a second one succeeds and keeps nothing (R17)."""
    for seed in SEEDS:
        disk = volume(seed)
        file = create(disk)
        files(disk).sync_folder("/d")
        file.write(0, b"x")
        disk.fault = lambda operation, _path: errno.EIO if operation == "sync" else 0
        with pytest.raises(OSError):
            file.sync()
        disk.fault = lambda _operation, _path: 0
        file.sync()
        disk.lose_power()
        assert files(disk).open("/d/f").read(0, 1).strip(b"\0") == b""


def test_full_volume_refuses_and_tells_its_space() -> None:
    disk = volume(capacity=4 * PAGE)
    file = create(disk)
    file.allocate(0, 3 * PAGE)
    assert files(disk).free_space("/d") == PAGE
    with pytest.raises(OSError) as refusal:
        file.allocate(0, 5 * PAGE)
    assert refusal.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        file.write(3 * PAGE, b"x" * (2 * PAGE))
    file.write(0, b"x" * (3 * PAGE))
    file.punch_hole(0, 2 * PAGE)
    file.write(3 * PAGE, b"x" * PAGE)
    assert files(disk).free_space("/d") == 2 * PAGE


def test_lock_excludes_others_until_its_process_dies() -> None:
    disk = volume()
    holder = Process("holder")
    create(disk, process=holder).lock()
    other = files(disk).open("/d/f", write=True)
    with pytest.raises(DiskInUseError):
        other.lock()
    holder.kill()
    other.lock()


def test_dead_process_touches_no_file() -> None:
    disk = volume()
    process = Process("victim")
    file = create(disk, process=process)
    process.kill()
    for call in (lambda: file.write(0, b"x"), file.sync, lambda: file.read(0, 1), lambda: files(disk, process)):
        with pytest.raises(ProcessDead):
            call()


# --- network ---


class Sink:
    """A receiver that keeps what it gets, in small buffers."""

    def __init__(self, link: Link, size: int = 1000) -> None:
        self.data = bytearray()
        self.ended: list[Exception | None] = []
        self.buffer = bytearray(size)
        self.link = link
        link.attach(self)

    def get_buffer(self, size_hint: int) -> bytearray:
        assert size_hint > 0
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        assert not self.ended
        self.data += self.buffer[:count]

    def lost(self, error: Exception | None) -> None:
        self.ended.append(error)


ADDRESS = Address("replica", 7000, tls=True)


class Pair:
    """Two processes on two hosts with one established link between them."""

    def __init__(self, loop: SimulationLoop, seed: int = 0) -> None:
        self.wire = Wire(loop, random.Random(seed))
        self.wire.splits = 0.5
        self.here, self.there = Process("here", loop), Process("there", loop)
        self.networks = [
            SimulatedNetwork(self.wire, process, process.name, Peer(fingerprint=process.name))
            for process in (self.here, self.there)
        ]
        self.accepted: list[Sink] = []

    async def connect(self) -> tuple[Sink, Sink]:
        await self.there.spawn(self.networks[1].listen(ADDRESS, lambda link: self.accepted.append(Sink(link))))
        link = await self.here.spawn(self.networks[0].connect(ADDRESS, timeout=5))
        sink = Sink(link)
        await asyncio.sleep(1)
        return sink, self.accepted[-1]


@pytest.mark.parametrize("seed", range(5))
def test_bytes_arrive_in_order(seed: int) -> None:
    async def main(loop: SimulationLoop) -> tuple[bytes, bytes, str]:
        here, there = await Pair(loop, seed).connect()
        sent = b"".join(random.Random(seed).randbytes(5000) for _ in range(20))
        for start in range(0, len(sent), 5000):
            here.link.write(sent[start : start + 77], memoryview(sent)[start + 77 : start + 5000])
        await asyncio.sleep(5)
        return sent, bytes(there.data), there.link.peer.fingerprint

    sent, received, peer = run(main)
    assert sent == received
    assert peer == "here"


def test_close_delivers_what_was_sent_before() -> None:
    async def main(loop: SimulationLoop) -> tuple[Sink, Sink]:
        here, there = await Pair(loop).connect()
        here.link.write(b"last words")
        here.link.close()
        await asyncio.sleep(5)
        return here, there

    here, there = run(main)
    assert bytes(there.data) == b"last words"
    assert here.ended == there.ended == [None]


def test_reset_loses_what_is_in_flight_and_tells_both() -> None:
    async def main(loop: SimulationLoop) -> tuple[Sink, Sink]:
        pair = Pair(loop)
        here, there = await pair.connect()
        here.link.write(b"x")
        pair.wire.reset()
        await asyncio.sleep(5)
        here.link.write(b"y")
        await here.link.drain()
        return here, there

    here, there = run(main)
    assert bytes(there.data) == b""
    assert [type(error) for error in here.ended + there.ended] == [ConnectionResetError] * 2


def test_partition_is_silent_and_heals() -> None:
    async def main(loop: SimulationLoop) -> None:
        pair = Pair(loop)
        here, there = await pair.connect()
        pair.wire.partition()
        here.link.write(b"held")
        await asyncio.sleep(60)
        assert (bytes(there.data), here.ended, there.ended) == (b"", [], [])
        with pytest.raises(UnreachableError):
            await pair.here.spawn(pair.networks[0].connect(ADDRESS, timeout=5))
        pair.wire.heal()
        here.link.write(b" back")
        await asyncio.sleep(5)
        assert bytes(there.data) == b"held back"

    run(main)


def test_reset_during_a_partition_reaches_the_peer_when_it_heals() -> None:
    async def main(loop: SimulationLoop) -> None:
        pair = Pair(loop)
        here, there = await pair.connect()
        pair.wire.partition()
        here.link.abort()
        await asyncio.sleep(60)
        assert there.ended == []
        pair.wire.heal()
        await asyncio.sleep(1)
        assert len(there.ended) == 1

    run(main)


def test_writer_waits_for_a_reader_that_pauses() -> None:
    async def main(loop: SimulationLoop) -> None:
        here, there = await Pair(loop).connect()
        there.link.pause()
        here.link.write(bytes(WINDOW + 1))
        drained = asyncio.ensure_future(here.link.drain())
        await asyncio.sleep(60)
        assert not drained.done()
        assert there.data == b""
        there.link.resume()
        await drained

    run(main)


def test_death_of_a_process_ends_its_links() -> None:
    async def main(loop: SimulationLoop) -> tuple[Sink, Sink]:
        pair = Pair(loop)
        here, there = await pair.connect()
        here.link.write(b"sent before")
        pair.here.kill()
        await asyncio.sleep(5)
        return here, there

    here, there = run(main)
    assert bytes(there.data) == b"sent before"
    assert there.ended == [None]
    assert here.ended == []


def test_power_loss_is_noticed_late() -> None:
    async def main(loop: SimulationLoop) -> None:
        pair = Pair(loop)
        here, there = await pair.connect()
        here.link.write(b"x")
        for end in list(pair.wire.ends.values()):
            if end.process is pair.here:
                end.vanish(10)
        pair.here.kill()
        await asyncio.sleep(5)
        assert there.ended == []
        await asyncio.sleep(10)
        assert len(there.ended) == 1

    run(main)


def test_nobody_listens_after_the_process_died() -> None:
    async def main(loop: SimulationLoop) -> None:
        pair = Pair(loop)
        await pair.connect()
        pair.there.kill()
        with pytest.raises(UnreachableError):
            await pair.here.spawn(pair.networks[0].connect(ADDRESS, timeout=5))

    run(main)


# --- workers and store ---


def test_work_takes_time_and_ends_although_its_caller_was_cancelled() -> None:
    async def main(loop: SimulationLoop) -> None:
        process = Process("worker", loop)
        workers = SimulatedWorkers(process, random.Random(0), lambda: 5.0)
        done: list[float] = []
        task = process.spawn(workers.run(lambda: done.append(loop.now)))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(1)
        assert not task.done()
        await asyncio.sleep(5)
        assert task.cancelled()
        assert len(done) == 1

    run(main)


def test_work_happens_at_its_beginning_or_its_end() -> None:
    async def main(loop: SimulationLoop) -> set[bool]:
        process = Process("worker", loop)
        early = set()
        workers = SimulatedWorkers(process, random.Random(0), lambda: 5.0)
        for _ in range(20):
            start = loop.now
            early.add(await process.spawn(workers.run(lambda: loop.now)) < start + 1)
        return early

    assert run(main) == {False, True}


def test_failing_work_raises() -> None:
    async def main(loop: SimulationLoop) -> None:
        process = Process("worker", loop)
        workers = SimulatedWorkers(process, random.Random(0), lambda: 0.0)
        for _ in range(10):
            with pytest.raises(ZeroDivisionError):
                await process.spawn(workers.run(lambda: 1 // 0))

    run(main)


def test_store_commits_wholly_or_not_at_all() -> None:
    async def main(loop: SimulationLoop) -> set[Any]:
        outcomes: set[Any] = set()
        for seed in SEEDS:
            rng = random.Random(seed)
            process = Process("agent", loop)
            contents: dict[str, StoreContent] = {}
            store = await process.spawn(
                SimulatedStores(process, rng, volume(), contents, lambda: 0.0).open("/vm", create=True)
            )
            await process.spawn(store.commit({"a": 1, "b": {"x": b"\0"}}, [{"what": "made"}]))
            commit = process.spawn(store.commit({"a": 2, "b": None}, [{"what": "changed"}]))
            await asyncio.sleep(rng.uniform(0, 0.006))
            process.kill()
            content = contents["/vm"]
            kept = content.record("a")
            assert (kept, content.record("b") is None, len(content.events)) in {(1, False, 1), (2, True, 2)}
            if commit.done():
                assert kept == 2
            outcomes.add(kept)
        return outcomes

    assert run(main) == {1, 2}


def test_store_gives_copies_and_keeps_order() -> None:
    async def main(loop: SimulationLoop) -> None:
        process = Process("agent", loop)
        contents: dict[str, StoreContent] = {}
        stores = SimulatedStores(process, random.Random(0), volume(), contents, lambda: 0.0)
        store = await process.spawn(stores.open("/vm", create=True))
        value = {"list": [1]}
        first = process.spawn(store.commit({"a": value}, [{"n": 1}]))
        second = process.spawn(store.commit({"a": {"list": [2]}}, [{"n": 2}]))
        await asyncio.sleep(0)
        value["list"].append(99)
        await asyncio.gather(first, second)
        store.get("a")["list"].append(99)
        assert store.get("a") == {"list": [2]}
        assert [event["n"] for event in await process.spawn(store.events(limit=5))] == [1, 2]
        later = await process.spawn(store.events(limit=5, after=1))
        assert [event["id"] for event in later] == [2]
        with pytest.raises(StoreDamagedError):
            await process.spawn(stores.open("/vm", create=True))
        with pytest.raises(StoreDamagedError):
            await process.spawn(stores.open("/other"))

    run(main)
