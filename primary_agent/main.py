"""vmreplica-primary: the agent on the host that runs the VMs."""

from __future__ import annotations

import sys

from shared.lean_imports import lean_imports


def main() -> int:
    """Run the agent until SIGTERM or SIGINT; the exit code is that of the error (shared.errors)."""
    with lean_imports():
        from primary_agent.program import run  # noqa: PLC0415
    return run()


if __name__ == "__main__":
    sys.exit(main())
