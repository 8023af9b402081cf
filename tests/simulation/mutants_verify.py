"""Planted bugs of a verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from primary_agent.live_image import LiveImage
from tests.simulation.mutants_kit import Patch, nothing


def verify_unlaid() -> Sequence[Patch]:
    """R46: blocks that were read while they were written are hashed as they were read."""
    return [(LiveImage, "overlay", nothing)]


def verify_late_unread() -> Sequence[Patch]:
    """R46: what is written for the first time between the last reading and the cut is not looked at again."""

    def make(original: Any) -> Any:
        del original
        return lambda _image, _place: False

    return [(LiveImage, "_wants", make)]


def verify_late_trusted() -> Sequence[Patch]:
    """R46: what was read behind the cut is taken for the cut's, whatever was written between them."""

    def make(original: Any) -> Any:
        def read_late(image: LiveImage) -> Any:
            yield from original(image)
            image._late = {}
            return True

        return read_late

    return [(LiveImage, "_read_late", make)]
