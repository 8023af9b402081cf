"""Power cuts of real processes: the tap, and the whole pair with its SQLite stores (rows P2, R1, R2)."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest

from primary_agent.tap.dirty_map import DirtyMap
from protocol.position import Position
from scripts.agent_pair import signal_process
from shared.map_file import MapFile, MapKind
from shared.ports.file_system import RealFileSystem
from shared.tap_config import DIRTY_BLOCK_BITS, MAP_NAME
from shared.tap_control import Tracking
from tests.faults.power import Loss, cut_power
from tests.faults.shim import Action, Operation, Shim
from tests.pair.hosts import Hosts
from tests.pair.tap_rig import EPOCH, TapRun, Writer, needs, tap_run
from tests.unit.tap.rig import MIB

pytestmark = [pytest.mark.slow, needs("libnbd", "qemu-io")]

SIZES = (12 * MIB, 4 * MIB)
Images = dict[int, bytes]


class Told:
    """What a tap told of its cuts, and which of them the map was held against."""

    def __init__(self) -> None:
        self.cuts: dict[Position, Images] = {}
        self.compared = 0
        self.bounded = 0
        self.loss = Loss()


def map_of(run: TapRun) -> DirtyMap:
    disks = [disk.geometry for disk in run.config.disks]
    path = str(run.home / MAP_NAME)
    files = RealFileSystem()
    return DirtyMap(MapFile.open(files, path, MapKind.DIRTY, run.config.vm_id, DIRTY_BLOCK_BITS, disks, write=False))


async def life(run: TapRun, seed: int, told: Told) -> None:
    """Track, write, cut at known contents, go on writing, and die."""
    rng = random.Random(seed)
    client = await run.start()
    await client.begin(EPOCH)
    with Writer(run, seed=seed, depth=8, align=512) as writer:
        for _ in range(rng.randrange(1, 3)):
            await writer.go()
            await asyncio.sleep(rng.uniform(0.0, 0.05))
            shadow = await writer.settle()
            told.cuts[(await client.cut()).position()] = shadow
        if rng.random() < 0.7:
            await writer.go()
            # Where in it the end comes is left to chance.
            await asyncio.sleep(rng.uniform(0.0, 0.1))
            run.kill()
        else:
            run.kill()
            told.cuts[Position(b"-" * 16, 0, 0, b"-" * 16)] = shadow


async def power_cut(shim: Shim, seed: int, told: Told, *, sizes: tuple[int, ...] = SIZES) -> None:
    """I3, I4: after a power cut everything flushed is there, and what differs from any cut is in the map."""
    options = {"log_limit_bytes": 256 * MIB, "hot_region_bytes": MIB, "hot_regions": 8192}
    with tap_run(sizes, parent=shim.folder, **options) as run:
        shim.trace(run.folder)
        shim.new_boot(f"first-{seed}")
        await life(run, seed, told)
        told.loss = cut_power(shim.folder, run.folder, random.Random(seed))
        shim.new_boot(f"second-{seed}")
        client = await run.start()
        status = await run.until(lambda status: status.tracking is not Tracking.MAP or map_of(run).is_complete(EPOCH))
        now = run.images()
        assert status.tracking is Tracking.MAP, status.lost
        dirty = map_of(run)
        for cut, image in told.cuts.items():
            if cut.segment == 0:
                # Compared beforehand, here and below: pytest would take minutes to show how MiBs differ.
                same = now == image
                assert same, f"I4: seed {seed}: what was flushed is not there"
                continue
            if cut.segment < dirty.note.base_segment or not await client.knows_cut(cut):
                continue
            told.compared += 1
            for index, content in now.items():
                patched = bytearray(image[index])
                for offset, length in dirty.file.ranges(index):
                    patched[offset : offset + length] = content[offset : offset + length]
                    told.bounded += length
                same = bytes(patched) == content
                assert same, f"I3: seed {seed}: disk {index} differs from cut {cut} beside the map"
        dirty.file.close()
        assert await run.stop() == 0


@pytest.mark.parametrize("seed", range(3))
async def test_power_cut_of_a_tap(shim: Shim, seed: int) -> None:
    """P2."""
    told = Told()
    await power_cut(shim, seed, told)
    assert told.compared


@pytest.mark.parametrize("lie", ["*/hot.map*", "*/disk-*.raw"])
async def test_power_cut_notices_a_sync_that_is_left_out(shim: Shim, lie: str) -> None:
    """The net catches something: without the sync of hot.map I3 breaks, without that of the disks I4."""
    with shim.fault(Operation.SYNC, lie, action=Action.LIE):
        for seed in range(30):
            try:
                await power_cut(shim, seed, Told())
            except AssertionError as error:
                noticed = str(error)
                break
        else:
            pytest.fail("nothing was noticed")
    assert f"{'I4' if 'disk' in lie else 'I3'}:" in noticed or "damaged or missing" in noticed


# --- the pair --------------------------------------------------------------------------------------------------------


def test_power_cut_of_the_replica(shim: Shim, hosts: Hosts) -> None:
    """I5, I6, R1: what was acknowledged is there, also in SQLite's files, so that nothing has to be compared."""
    shim.trace(hosts.storage)
    shim.new_boot("first")
    hosts.replicate(4 * MIB, 2 * MIB)
    epoch = hosts.status("primary")["epoch"]
    writer = hosts.start_writer(70, pause=0.004)
    rng = random.Random(3)
    lost = 0
    for boot in range(2):
        writer.go()
        hosts.caught_up()
        hosts.kill("replica")
        loss = cut_power(shim.folder, hosts.storage, rng)
        lost += loss.pages + loss.names_undone
        shim.new_boot(f"boot-{boot}")
        hosts.start("replica")
        hosts.connect()
        writer.settle()
        hosts.assert_same(writer.shadows)
    status = hosts.status("primary")
    assert (status["epoch"], status["state"], status["causes"]) == (epoch, "Replicating", [])
    assert lost, "nothing was ever at risk"


def test_power_cut_of_the_primary(shim: Shim, hosts: Hosts) -> None:
    """I3, R3: agent, tap and store at once; the resync that heals it is bounded and begins by itself."""
    shim.trace(hosts.state)
    shim.new_boot("first")
    hosts.replicate(4 * MIB, 2 * MIB)
    writer = hosts.start_writer(80, pause=0.004)
    writer.go()
    hosts.wait("cuts", "replica", lambda vm: vm["applied_cut"]["segment"] > 2)
    writer.settle()
    hosts.caught_up()
    writer.go()
    hosts.wait("writes", "primary", lambda vm: vm["tap"]["writes"] > 100)
    pid = hosts.tap_pid()
    hosts.kill("primary")
    signal_process(pid, signal.SIGKILL)
    writer.kill()
    loss = cut_power(shim.folder, hosts.state, random.Random(8))
    assert loss.pages_kept + loss.pages + loss.names_undone, "nothing was at risk"
    shim.new_boot("second")
    hosts.start("primary")
    hosts.connect()
    hosts.wait_state("Replicating")
    hosts.assert_same()
    assert [event for event in hosts.events() if "in doubt" in event["text"]]
