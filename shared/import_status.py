"""An import of a first copy at the replica, as agents tell it."""

from __future__ import annotations

import msgspec

SEED, EXPORT = "seed", "export"
IMPORTED, FAILED = "imported", "failed"


class ImportStatus(msgspec.Struct, kw_only=True):
    """An import that is under way, or the last one since the agent started."""

    name: str
    uuid: str
    """Of the VM, as people write it."""
    kind: str
    """``seed``: a copy whose content counts for nothing before it is compared; ``export``: one by courier."""
    source: str
    """Where it comes from: folder, or files."""
    started_time: float
    running: bool = True
    done_bytes: int = 0
    total_bytes: int = 0
    """Bytes of the disks, holes included."""
    ended_time: float | None = None
    outcome: str = ""
    """``imported`` or ``failed``."""
    text: str = ""
    remedy: str = ""
