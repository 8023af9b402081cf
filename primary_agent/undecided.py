"""How a verify ends that can't tell whether both sides are equal: never as "equal", and never as a fault."""

from __future__ import annotations

from shared.errors import VmreplicaError


class UndecidedError(VmreplicaError):
    """Both sides could not be compared; the text says why."""

    code = "undecided"
