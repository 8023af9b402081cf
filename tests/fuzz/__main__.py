"""Runs the fuzz targets: ``python -m tests.fuzz --help``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.target import CORPUS, MODULES, REGRESSIONS, ROOT, WORK, file_name, inputs, load

HANG_SECONDS = 30
RSS_MIB = 2048
KEEP_BYTES = 3000
KEEP_FILES = 6
PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("protocol", "shared", "primary_agent", "replica_agent"))

_STATUS = re.compile(r"^#\d+\s.*?cov: (\d+) ft: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a run came to. ``crash`` is the input that a property failed for, None where none did."""

    target: str
    executions: int
    rate: int
    seconds: int
    edges: int
    features: int
    crash: Path | None
    failed: str
    """Why the run itself failed, "" where it did not."""

    def line(self) -> str:
        text = (
            f"{self.target:<16} {self.executions:>10} executions  {self.rate:>6}/s  {self.seconds:>5} s"
            f"  {self.edges:>5} edges  {self.features:>6} features"
        )
        return f"{text}  CRASH" if self.crash is not None else f"{text}  {self.failed}".rstrip()


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def run(
    target: str,
    *,
    seconds: int = 0,
    runs: int = 0,
    seed: int = 0,
    plant: str = "",
    corpus: list[Path] | None = None,
    work: Path | None = None,
) -> Outcome:
    """Fuzz one target in a process of its own until a bound is reached or a property fails."""
    work = WORK / target if work is None else work
    found, crashes = work / "corpus", work / "crashes"
    for folder in (found, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    folders = [CORPUS / target, REGRESSIONS / target] if corpus is None else corpus
    command = [sys.executable, "-m", "tests.fuzz.run", target, plant]
    command += [f"-max_total_time={seconds}"] * bool(seconds) + [f"-runs={runs}"] * bool(runs)
    command += [f"-seed={seed}"] * bool(seed)
    command += [f"-artifact_prefix={crashes}/", "-print_final_stats=1", f"-timeout={HANG_SECONDS}"]
    command += [f"-rss_limit_mb={RSS_MIB}", str(found), *(str(folder) for folder in folders if folder.is_dir())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    log = work / "log"
    with log.open("wb") as output:
        ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False)
    text = log.read_text(encoding="utf-8", errors="replace")
    crash = next(iter(sorted(set(crashes.iterdir()) - before)), None)
    failed = "" if ended.returncode == 0 or crash is not None else f"exit code {ended.returncode}, see {log}"
    status = _STATUS.findall(text)
    return Outcome(
        target,
        executions=_statistic(text, "number_of_executed_units"),
        rate=_statistic(text, "average_exec_per_sec"),
        seconds=_seconds(text),
        edges=int(status[-1][0]) if status else 0,
        features=int(status[-1][1]) if status else 0,
        crash=crash,
        failed=failed,
    )


def _statistic(text: str, name: str) -> int:
    found = re.search(rf"^stat::{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found is not None else 0


def _seconds(text: str) -> int:
    found = re.search(r"^Done \d+ runs in (\d+) second", text, re.MULTILINE)
    return int(found[1]) if found is not None else 0


def replay(target: str, path: Path, plant: str = "") -> None:
    """Give one input to the target, without atheris: it raises what the run ended with."""
    loaded = load(target)
    data = path.read_bytes()
    for each in loaded.plants:
        if each.name == plant:
            with each.apply():
                loaded.fuzz(data)
            return
    loaded.fuzz(data)


def write_seeds() -> None:
    """Add each target's seeds to its corpus."""
    for name in MODULES:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for data in load(name).seeds():
            (folder / file_name(data)).write_bytes(data)


def arcs(fuzz: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """Which steps from line to line of the product an input leads through."""
    found: set[tuple[str, int, int]] = set()

    def step(frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGES):
            return None
        last = 0

        def line(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal last
            if event == "line":
                found.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    sys.settrace(step)
    try:
        fuzz(data)
    finally:
        sys.settrace(None)
    return found


def keep(name: str) -> int:
    """Add to a target's corpus the few small inputs of its runs that lead where no other does."""
    fuzz = load(name).fuzz
    known: set[tuple[str, int, int]] = set()
    for path in inputs(name):
        known |= arcs(fuzz, path.read_bytes())
    kept = 0
    for path in sorted((WORK / name / "corpus").glob("*"), key=lambda each: (each.stat().st_size, each.name)):
        data = path.read_bytes()
        if kept == KEEP_FILES or len(data) > KEEP_BYTES:
            break
        fresh = arcs(fuzz, data) - known
        if fresh:
            known |= fresh
            (CORPUS / name / file_name(data)).write_bytes(data)
            kept += 1
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads bytes of others.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="see --list")
    parser.add_argument("--all", action="store_true", help="every target, one after another")
    parser.add_argument("--list", action="store_true", help="name the targets, with their planted bugs and inputs")
    parser.add_argument("--seconds", type=int, default=0, help="end each run after so many seconds")
    parser.add_argument("--runs", type=int, default=0, help="end each run after so many executions")
    parser.add_argument("--seed", type=int, default=0, help="libFuzzer's seed, for the same run again")
    parser.add_argument("--plant", default="", help="plant this bug into the product")
    parser.add_argument("--replay", type=Path, help="give one file to the target and end")
    parser.add_argument("--seeds", action="store_true", help="write the seeds into the corpora anew and end")
    parser.add_argument("--keep", action="store_true", help="take what the runs found into the corpora, and end")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    chosen = parser.parse_args()
    names = list(MODULES) if chosen.all else chosen.targets
    if unknown := set(names) - set(MODULES):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; --list names them")
    if chosen.list:
        for name in MODULES:
            print(f"{name:<16} {len(inputs(name)):>4} inputs  plants: {', '.join(p.name for p in load(name).plants)}")
        return 0
    if chosen.seeds:
        write_seeds()
        return 0
    if not names:
        parser.error("name targets, or give --all")
    if chosen.keep:
        for name in names:
            print(f"{name:<16} {keep(name)} inputs kept")
        return 0
    if chosen.replay is not None:
        replay(names[0], chosen.replay, chosen.plant)
        print("no property failed")
        return 0
    if not has_atheris():
        print("atheris is not installed: it has wheels for some versions of Python only", file=sys.stderr)
        return 2
    return fuzz(names, chosen)


def fuzz(names: list[str], chosen: argparse.Namespace) -> int:
    worst = 0
    for name in names:
        if chosen.fresh:
            shutil.rmtree(WORK / name, ignore_errors=True)
        outcome = run(name, seconds=chosen.seconds, runs=chosen.runs, seed=chosen.seed, plant=chosen.plant)
        print(outcome.line(), flush=True)
        if outcome.crash is not None:
            plant = ["--plant", chosen.plant] if chosen.plant else []
            words = [sys.executable, "-m", "tests.fuzz", name, *plant, "--replay", str(outcome.crash)]
            print(f"  to repeat it: {shlex.join(words)}", flush=True)
        if outcome.crash is not None or outcome.failed:
            worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
