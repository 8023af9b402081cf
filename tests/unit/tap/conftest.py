"""What tests of the maps share: small regions, and a life of a tap."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.tap.life import Life, small_maps


@pytest.fixture
def small_maps_of_taps() -> Iterator[None]:
    with small_maps():
        yield


@pytest.fixture
def seed() -> int:
    """Of ``life``; a module may have another one."""
    return 0


@pytest.fixture
def life(seed: int) -> Iterator[Life]:
    life = Life(seed)
    yield life
    life.world.close()
