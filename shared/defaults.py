"""What holds where no setting says otherwise, for those who need not know the settings."""

from __future__ import annotations

DEFAULT_PORT = 8443
"""TCP port of a replica agent."""
