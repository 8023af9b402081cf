"""What all tests share: the quick selection, and how hard property tests try.

``--quick`` (``scripts/test --quick``) leaves out tests marked ``slow``. Everything in ``tests/pair`` starts
real processes and so counts as slow, unless it is marked ``quick``.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.places import is_thorough

PAIR = Path(__file__).parent / "pair"

# A deadline would turn a busy machine into a failure. In CI a failure must repeat when run again.
hypothesis.settings.register_profile("full", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("full"), derandomize=True, max_examples=50
)
hypothesis.settings.register_profile("quick", parent=hypothesis.settings.get_profile("full"), max_examples=25)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out slow tests; property tests try fewer examples")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in its background so, and programs that tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--quick"):
        profile = "quick"
    elif os.environ.get("CI"):
        profile = "ci"
    else:
        profile = "full"
    hypothesis.settings.load_profile(profile)


def is_slow(item: pytest.Item) -> bool:
    """Whether the quick selection leaves the test out."""
    if item.get_closest_marker("slow"):
        return True
    return item.path.is_relative_to(PAIR) and not item.get_closest_marker("quick")


def is_left_out(item: pytest.Item, *, quick: bool) -> bool:
    """Whether this run does without the test."""
    if item.get_closest_marker("thorough") and not is_thorough():
        return True
    return quick and is_slow(item)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if is_left_out(item, quick=config.getoption("--quick"))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


def pytest_collection_finish() -> None:
    """Thousands of collected tests stay to the end: no garbage collection has to look at them again."""
    gc.collect()
    gc.freeze()
