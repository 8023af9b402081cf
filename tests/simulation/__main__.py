"""Runs seeds from the command line: ``python -m tests.simulation --seed N [--count N] [--mutant NAME] [--verbose]``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter

from tests.simulation.mutants import MUTANTS
from tests.simulation.options import draw
from tests.simulation.run import Result, run


def main() -> int:
    """0 where all seeds pass (or, with a mutant, one fails); 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1, help="so many seeds, one after another")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="plant this bug until a seed notices")
    parser.add_argument("--weather", action="store_true", help="only the faults under which the mutant shows soon")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--verbose", action="store_true", help="tell everything that happened")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare the traces")
    parser.add_argument("--table", action="store_true", help="only print the table of bugs that can be planted")
    arguments = parser.parse_args()
    if arguments.table:
        print(*(mutant.row() for mutant in MUTANTS.values()), sep="\n")
        return 0
    started, totals = time.monotonic(), Counter[str]()
    failed: list[Result] = []
    # The collection after each seed need not look at the modules. Only once: what a run leaves, the next one collects.
    gc.freeze()
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    done = 0
    virtual = 0.0
    for seed in seeds:
        mutant = MUTANTS[arguments.mutant] if arguments.mutant else None
        options = mutant.options(seed) if mutant is not None and arguments.weather else draw(seed)
        patches = (mutant.planted(),) if mutant is not None else ()
        result = run(options, verbose=arguments.verbose, patches=patches)
        done += 1
        totals += result.counts
        virtual += result.virtual_seconds
        for line in result.journal:
            print(line)
        if arguments.twice and run(seed).trace != result.trace:
            print(f"seed {seed}: two runs differ")
            return 1
        if result.failure is not None:
            failed.append(result)
            print(result, flush=True)
            if not arguments.keep_going:
                break
        elif arguments.count == 1:
            print(result)
    seconds = time.monotonic() - started
    rate = done / seconds * 60
    print(f"{done} seeds, {len(failed)} failed, {seconds:.1f} s, {rate:.0f} a minute, {virtual:.0f} virtual seconds")
    print(f"totals: {dict(sorted(totals.items()))}")
    if failed:
        print(f"failed: {[result.options.seed for result in failed]}")
    return 1 if bool(failed) != bool(arguments.mutant) else 0


if __name__ == "__main__":
    sys.exit(main())
