"""Work that a cancelled caller waits for: a write or a transaction that has begun is never left running behind."""

from __future__ import annotations

from shared.tasks import uninterrupted as finish

__all__ = ["finish"]
