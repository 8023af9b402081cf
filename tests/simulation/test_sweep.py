"""A resync survives the death of each of its parts in each call of a port, in CI in a sample of them (I7, I11, R35)."""

from __future__ import annotations

import pytest

from tests.places import step
from tests.simulation.mutants import MUTANTS
from tests.simulation.sweep import PARTS, Death, Story

SEED = 1
SAMPLED = 127
"""Every so manieth call; each test begins at another one."""
TELLING = 155
"""A few calls before the first one whose death tells the planted bug."""


def whole(*, rounds: bool) -> Story:
    """The story that nobody dies in: it tells how many calls there are."""
    story = Story(rounds=rounds)
    result = story.run(SEED)
    assert result.failure is None, str(result)
    assert story.committed
    assert (result.counts["rounds at P"] > 0) == rounds, "the log failed too early or too late for another round"
    return story


@pytest.mark.parametrize("rounds", [False, True], ids=["one round", "two rounds"])
def test_story_is_one_resync(rounds: bool) -> None:
    """What is counted are the calls of a compare that sends something, from the order to the merge."""
    calls = whole(rounds=rounds).calls
    assert set(calls) == set(PARTS)
    assert min(calls.values()) > 100


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("rounds", [False, True], ids=["one round", "two rounds"])
@pytest.mark.parametrize(("host", "role"), PARTS)
def test_death_in_each_call(host: str, role: str, rounds: bool, power: bool) -> None:
    """I7, I11, R32, R35: the point from before stands until the commit, and the pair gets in sync by itself."""
    calls = whole(rounds=rounds).calls[host, role]
    every = step(SAMPLED, all_places=1)
    # Other calls for each kind of death, so that a sample is spread over all of them.
    first = 1 + (7 * rounds + 17 * power) % every
    for call in range(first, calls + 1, every):
        story = Story(Death(host, role, call, power), rounds)
        result = story.run(SEED)
        assert result.failure is None, f"{story.death}: {result}"
        assert story.died, f"{story.death} never came"


@pytest.mark.slow
def test_sweep_tells_a_planted_bug() -> None:
    """The one that random seeds notice least often: the differencing file is not synced before a range is settled."""
    bug = MUTANTS["differencing_nosync"]
    for call in range(step(TELLING, all_places=1), whole(rounds=True).calls["R", "agent"], 7):
        result = Story(Death("R", "agent", call, power=True), rounds=True).run(SEED, bug.planted())
        if result.failure is not None:
            assert bug.is_told_by(result.failure), str(result)
            return
    pytest.fail("no death in any of these calls tells it")
