"""The fuzz targets as tests: every kept input, planted bugs that must be noticed, a short run of each under atheris."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.__main__ import Outcome, has_atheris, run
from tests.fuzz.mutators import tweak
from tests.fuzz.target import CORPUS, MODULES, REGRESSIONS, ROOT, Target, inputs, load

PLANTED = [(name, plant.name) for name in MODULES for plant in load(name).plants]
MUTATIONS = 10_000
RUNS = 400
SECONDS = 2
CANARY = "any_flags"
CANARY_RUNS = 20_000

needs_atheris = pytest.mark.skipif(
    not has_atheris(), reason="atheris is not installed: it has no wheel for this version of Python or this machine"
)


@pytest.mark.parametrize("name", MODULES)
def test_kept_inputs_hold_the_properties(name: str) -> None:
    target = load(name)
    paths = inputs(name)
    assert paths
    for path in paths:
        target.fuzz(path.read_bytes())


def test_every_folder_of_inputs_has_a_target() -> None:
    found = {folder.name for root in (CORPUS, REGRESSIONS) for folder in root.iterdir()}
    assert found <= set(MODULES)


def test_page_has_every_target() -> None:
    page = (ROOT / "docs" / "fuzzing.md").read_text(encoding="utf-8")
    assert [name for name in MODULES if f"\n| `{name}` |" not in page] == []


def test_corpora_are_small() -> None:
    paths = [path for root in (CORPUS, REGRESSIONS) for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) < 1 << 20


def notices(target: Target, data: bytes) -> bool:
    try:
        target.fuzz(data)
    except Exception:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name, plant", PLANTED)
def test_planted_bug_is_noticed(name: str, plant: str) -> None:
    """By one of the kept inputs, or soon by changing them: a property that notices nothing proves nothing."""
    target = load(name)
    (apply,) = [each.apply for each in target.plants if each.name == plant]
    kept = [path.read_bytes() for path in inputs(name)]
    with apply():
        if any(notices(target, data) for data in kept):
            return
        random = Random(1)
        for _ in range(MUTATIONS):
            data = random.choice(kept)
            for _ in range(random.choice((1, 1, 2, 4))):
                structured = target.mutate is not None and random.random() < 0.8
                data = target.mutate(data, random) if structured and target.mutate else tweak(data, random)
            if notices(target, data[: target.max_bytes]):
                return
    pytest.fail(f"{name} does not notice {plant}")


def crashless(outcome: Outcome) -> None:
    assert not outcome.failed, outcome.failed
    assert outcome.crash is None, f"a property failed: python -m tests.fuzz {outcome.target} --replay {outcome.crash}"


@pytest.mark.thorough
@needs_atheris
@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_short_run_finds_nothing(name: str, tmp_path: Path) -> None:
    outcome = run(name, runs=RUNS, seconds=SECONDS, seed=1, work=tmp_path)
    crashless(outcome)
    assert outcome.executions > 0
    assert outcome.edges > 0, "the product is not instrumented"


@needs_atheris
@pytest.mark.slow
def test_run_finds_a_planted_bug_from_one_sound_input(tmp_path: Path) -> None:
    """The canary: the run, not the corpus, has to get behind checksum and chain to where the bug is."""
    corpus = tmp_path / "seed"
    corpus.mkdir()
    seed = next(iter(load("hrl_records").seeds()))
    (corpus / "sound").write_bytes(seed)
    sound = run("hrl_records", runs=RUNS, seed=1, work=tmp_path / "sound", corpus=[corpus])
    crashless(sound)
    found = run("hrl_records", runs=CANARY_RUNS, seed=1, plant=CANARY, work=tmp_path / "planted", corpus=[corpus])
    assert found.crash is not None, "the run does not find a bug that is there"
    crash = found.crash.read_bytes()
    target = load("hrl_records")
    target.fuzz(crash)
    (apply,) = [each.apply for each in target.plants if each.name == CANARY]
    with apply():
        assert notices(target, crash)
