"""How far applying may go while a verify is under way: its cut is not passed over (R46)."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.position import Position


@dataclass(slots=True)
class Ceiling:
    """``cut`` is the last one to apply, of its epoch; None while nothing holds applying up."""

    cut: Position | None = None

    def stops(self, applied: Position | None) -> bool:
        """Whether nothing may be applied behind ``applied``."""
        cut = self.cut
        return cut is not None and applied is not None and applied.epoch == cut.epoch and applied.segment >= cut.segment
