"""A database under load on a replicated disk: both agents are killed, and promoted it has every transaction of the cut.

Nothing is simulated here: SQLite writes to ext4 on a loop device on the tap's export, and the promoted disk is mounted
by the same kernel.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.agent_pair import signal_process
from tests.guest.crash_image import assert_clean, recover
from tests.pair.database import add, judge, opened
from tests.pair.hosts import MIB, ROOT, VM, Hosts, patience
from tests.pair.nbd_mount import fuse_file, mounted_disk, needed

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

SIZE = 32 * MIB
CUTS = 5
NAME = "accounts.db"
NO_CUTS_OF_ITS_OWN = 3600.0


@dataclass(frozen=True)
class Moment:
    """A cut, and what the database had told: at least ``before`` transactions are in it, and no more than ``limit``."""

    before: int
    limit: int


class Load:
    """tests/pair/database.py in a process, as a guest's program; what it told is durable."""

    def __init__(self, folder: Path, told: Path, mode: str) -> None:
        self._told = told
        with told.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.pair.database", str(folder / NAME), mode],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def committed(self) -> int:
        """The newest number told."""
        lines = self._told.read_text().splitlines(keepends=True)
        numbers = [int(line) for line in lines if line.endswith("\n") and line.strip().isdigit()]
        return numbers[-1] if numbers else 0

    def until(self, number: int) -> None:
        """Wait until so many are committed."""
        for _ in patience(f"{number} transactions", {"told": str(self._told)}):
            if self.committed() >= number:
                return
            assert self._process.poll() is None, self._told.read_text()[-2000:]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def cut_under_load(hosts: Hosts, load: Load, rng: random.Random) -> dict[int, Moment]:
    """Cuts at random moments by their number."""
    cuts = {}
    for _ in range(CUTS):
        load.until(load.committed() + rng.randrange(3, 12))
        before = load.committed()
        segment = hosts.tap("cut", reason="test")["segment"]
        # One more may be under way: its number is told after its COMMIT.
        cuts[segment] = Moment(before, load.committed() + 1)
    return cuts


def assert_sound(hosts: Hosts, uri: str, moment: Moment, mode: str) -> int:
    """A copy of what is served is clean after its journal is replayed; what the kernel mounts has the transactions.

    Some more are committed on it, as by a guest that goes on there. How many there are then.
    """
    image, folder = hosts.folder / "image.raw", hosts.folder / "promoted"
    subprocess.run(["nbdcopy", uri, str(image)], check=True)
    recover(image)
    image.unlink()
    with mounted_disk(uri, folder) as place:
        found = judge(place / NAME)
        assert moment.before <= found <= moment.limit
        database = opened(place / NAME, mode)
        for _ in range(3):
            newest = add(database)
        database.close()
        assert newest == judge(place / NAME) == found + 3
    folder.mkdir()
    with fuse_file(uri, folder / "fuse") as file:
        assert_clean(file)
    folder.rmdir()
    return newest


def kill_agents(hosts: Hosts, rng: random.Random) -> int:
    """SIGKILL to both at a random moment. The newest cut that the replica was seen to have before."""
    received = int(hosts.status("replica")["applied_cut"]["segment"])
    time.sleep(rng.random() * 0.2)
    for role in rng.sample(["primary", "replica"], 2):
        hosts.kill(role)
    return received


def promote(hosts: Hosts, point: str = "newest") -> tuple[int, str]:
    """The cut that is promoted, and where its disk is served."""
    cut = hosts.call("replica", "vm.failover", vm=VM, point=point)["failover"]["cut"]
    status = hosts.wait("the disks", "replica", lambda vm: vm["uris"])
    return cut["segment"], status["uris"][0]


def undo(hosts: Hosts) -> None:
    """It is a replica again when this is answered."""
    assert hosts.call("replica", "vm.failover_undo", vm=VM)["failover"] is None


def test_every_transaction_of_the_promoted_cut_is_there(hosts: Hosts) -> None:
    """I1, I6, I8: the newest cut that arrived; an older point; and, committed, the replica's own disk.

    First the agents are killed while the database goes on; then tap and database, too, as when the host ends.
    """
    needed()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    hosts.replicate(SIZE, interval=NO_CUTS_OF_ITS_OWN)
    with mounted_disk(hosts.uris[0], hosts.folder / "guest", make=True) as place:
        with Load(place, hosts.folder / "told", "WAL") as load:
            load.until(5)
            begun, flushes = load.committed(), hosts.tap("status")["latency"]["flushes"]
            cuts = cut_under_load(hosts, load, rng)
            ended = load.committed()
            flushed = hosts.tap("status")["latency"]["flushes"] - flushes
            assert flushed >= ended - begun - 1, "a COMMIT is no FLUSH of the export, and promises nothing"
            received = kill_agents(hosts, rng)
            load.until(ended + 5)
            hosts.start("replica")
            newest, uri = promote(hosts)
            assert newest >= received
            assert_sound(hosts, uri, cuts[newest], "WAL")
            undo(hosts)

            points = hosts.call("replica", "vm.points", vm=VM)["points"]
            older = rng.choice([each for each in points if each["cut"]["segment"] in cuts and not each["newest"]])
            cut, uri = promote(hosts, older["point"])
            assert cut == older["cut"]["segment"] < newest
            assert_sound(hosts, uri, cuts[cut], "WAL")
            undo(hosts)

        with Load(place, hosts.folder / "told again", "DELETE") as load:
            hosts.start("primary")
            hosts.connect()
            load.until(1)
            cuts = cut_under_load(hosts, load, rng)
            tap = hosts.tap_pid()
            hosts.wait("a cut", "replica", lambda vm: vm["applied_cut"]["segment"] in cuts)
            received = kill_agents(hosts, rng)
            signal_process(tap, signal.SIGKILL)
    hosts.start("replica")
    newest, uri = promote(hosts)
    assert newest >= received
    kept = assert_sound(hosts, uri, cuts[newest], "DELETE")

    with mounted_disk(uri, hosts.folder / "guest") as place:
        with Load(place, hosts.folder / "told here", "DELETE") as load:
            load.until(kept + 1)
            hosts.call("replica", "vm.failover_commit", vm=VM)
            settled = hosts.wait("settled", "replica", lambda vm: not vm["failover"]["layered"])
            assert settled["state"] == "FailedOver"
            load.until(load.committed() + 3)
        assert judge(place / NAME) >= load.committed()
    assert_clean(hosts.copy(0))
