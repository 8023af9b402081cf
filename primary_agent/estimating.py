"""How sure a part is that was estimated from a random sample: the exact interval of Clopper and Pearson."""

from __future__ import annotations

import math

CERTAINTY = 0.9
STEPS = 50


def interval(hits: int, sampled: int) -> tuple[float, float]:
    """Between which parts the true one lies with 90 % certainty, when ``hits`` of ``sampled`` random ones have it."""
    return 1.0 - _upper(sampled - hits, sampled), _upper(hits, sampled)


def _upper(hits: int, sampled: int) -> float:
    """The largest part at which so few hits still are as likely as what is left on one side."""
    if hits >= sampled:
        return 1.0
    low, high = hits / sampled, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _at_most(hits, sampled, middle) > (1 - CERTAINTY) / 2:
            low = middle
        else:
            high = middle
    return high


def _at_most(hits: int, sampled: int, part: float) -> float:
    """How likely it is that at most ``hits`` of ``sampled`` have what that part of all has."""
    if part >= 1.0:
        return 0.0
    if part <= 0.0:
        return 1.0
    yes, no, total = math.log(part), math.log1p(-part), math.lgamma(sampled + 1)
    return math.fsum(
        math.exp(total - math.lgamma(k + 1) - math.lgamma(sampled - k + 1) + k * yes + (sampled - k) * no)
        for k in range(hits + 1)
    )
