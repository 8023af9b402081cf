"""Bounds of the methods' numbers that the command's grammar names as well, which should not load the methods."""

from __future__ import annotations

PLAN_BLOCKS, PLAN_BLOCKS_MAX = 512, 4096
"""Blocks that a plan compares with the replica."""
CHURN_TOP, CHURN_TOP_MAX = 5, 1024
"""Regions that are told of a disk."""
