"""How a verify ends, in the words that are stored, sent and shown in JSON: none is ever given another meaning."""

from __future__ import annotations

EQUAL = "equal"
DIFFERENT = "different"
REPAIRED = "repaired"
"""It was different, and after the repair it was compared once more and equal."""
UNDECIDED = "undecided"
"""Both sides could not be compared: nothing is known, good or bad."""

GOOD = (EQUAL, REPAIRED)
"""Both sides are equal now."""
