"""What a start of a tap may conclude about block devices: a room of its own, so that the command loads no codecs."""

from __future__ import annotations

from enum import StrEnum


class BlockDevicePolicy(StrEnum):
    """What a start may conclude about block devices, whose times prove nothing (R27). The values are stable."""

    COMPARE = "compare"
    """After an unclean stop all is compared; an orderly stop is vouched for by samples."""
    TRUST = "trust"
    """Also after an unclean stop: that nobody else wrote is trusted, and hot regions alone are compared."""
    STRICT = "strict"
    """Whenever the tap was stopped all is compared."""
