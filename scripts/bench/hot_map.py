"""Measures what the hot-region map costs: the tap with its map and, in turn, the same tap without waiting for it.

fio writes 4 KiB blocks at random at queue depth 32 over a sparse disk of 64 GiB, where nearly every write finds a cold
region, and over a hot 1 GiB of it. "Without" is the same program with the one question left out that a write asks the
map; after a power loss it would have to compare everything. Absolute figures move from run to run: ratios count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.bench import tap as bench

WITHOUT = (
    "import sys, primary_agent.tap.hot_regions as hot\n"
    "hot.HotRegions.ready = lambda *_: True\n"
    "from primary_agent.tap.main import main\n"
    "sys.exit(main())"
)
SPARSE = 64 << 30
HOT = 1 << 30
LOADS = {
    "64 GiB, sparse": ("--rw=randwrite", "--bs=4k", "--iodepth=32", f"--size={SPARSE}"),
    "1 GiB, hot": ("--rw=randwrite", "--bs=4k", "--iodepth=32", f"--size={HOT}"),
}


@contextlib.contextmanager
def served(folder: Path, *, with_map: bool, log_limit: int) -> Iterator[tuple[str, int]]:
    """URI and process id of a tap on a sparse disk."""
    command = [sys.executable, "-m", "primary_agent.tap.main"] if with_map else [sys.executable, "-c", WITHOUT]
    disk = folder / "tap.raw"
    with disk.open("wb") as file:
        file.truncate(SPARSE)
    with bench.tap_on(folder, disk, SPARSE, log_limit, command) as (uri, pid):
        yield uri, pid
    disk.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/hot_map.py", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--seconds", type=float, default=5, help="of each fio run (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind in turn (default 3)")
    parser.add_argument("--log-limit", type=int, default=1024, help="of the tap's log in MiB (default 1024)")
    options = parser.parse_args()
    folder = options.folder / f"vmreplica-bench-{os.getpid()}"
    folder.mkdir()
    print(f"{folder} ({bench.file_system(folder)}), {options.rounds} rounds in turn, 4 KiB random write, qd 32")
    try:
        for name, arguments in LOADS.items():
            load, rates = bench.Load(name, arguments, 0), dict[bool, list[float]]()
            for _ in range(options.rounds):
                for with_map in (True, False):
                    with served(folder, with_map=with_map, log_limit=options.log_limit) as (uri, _pid):
                        bench.fio(uri, load, options.seconds / 2)
                        rates.setdefault(with_map, []).append(bench.fio(uri, load, options.seconds)[0])
            ratios = [ours / theirs for ours, theirs in zip(rates[True], rates[False], strict=True)]
            print(
                f"  {name:15} with the map {statistics.median(rates[True]):8,.0f} IOPS, without "
                f"{statistics.median(rates[False]):8,.0f}; ratio {statistics.median(ratios):.2f} "
                f"(rounds: {' '.join(f'{ratio:.2f}' for ratio in ratios)})",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
