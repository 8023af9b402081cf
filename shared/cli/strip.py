"""A disk's address space as one line of symbols: what is equal, different, sent, durable there, or not yet compared."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from shared.cli.console import Palette
from shared.progress_status import StripStatus

NOT_YET, EQUAL, DIFFERENT, SENT, SETTLED, OUTSIDE = "·", "━", "◆", "▲", "■", " "
LEGEND = f"{EQUAL} equal  {DIFFERENT} different  {SENT} sent  {SETTLED} durable there  {NOT_YET} not yet"


def strip_text(strip: StripStatus, width: int, palette: Palette) -> str:
    """The strip in at most ``width`` columns. A difference shows, however small a part of its column it is."""
    count = len(strip.equal)
    columns = max(1, min(width, count))
    edges = [at * count // columns for at in range(columns + 1)]
    return _painted([_symbol(strip, first, end) for first, end in pairwise(edges)], palette)


def _symbol(strip: StripStatus, first: int, end: int) -> str:
    equal, different, sent, settled, outside = (
        sum(part[first:end]) for part in (strip.equal, strip.different, strip.sent, strip.settled, strip.outside)
    )
    left = (end - first) * strip.cell_bytes - equal - different - sent - settled - outside
    if different:
        return DIFFERENT
    if sent:
        return SENT
    if left > equal + settled and left >= strip.cell_bytes // 2:
        return NOT_YET
    if settled:
        return SETTLED
    return EQUAL if equal else OUTSIDE


def _painted(symbols: list[str], palette: Palette) -> str:
    paints: dict[str, Callable[[str], str]] = {
        NOT_YET: palette.dim,
        EQUAL: palette.good,
        DIFFERENT: palette.critical,
        SENT: palette.warning,
        SETTLED: palette.strong,
    }
    text, run = "", ""
    for symbol in [*symbols, ""]:
        if run and symbol != run[0]:
            text += paints.get(run[0], str)(run)
            run = ""
        run += symbol
    return text
