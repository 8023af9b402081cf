"""vmreplica-tap: the process in a VM's I/O path, one for each VM."""

from __future__ import annotations

import argparse
import os
import sys

from shared.lean_imports import lean_imports


def main() -> int:
    """Run a tap until SIGTERM or SIGINT; the exit code is that of the error (shared.errors)."""
    parser = argparse.ArgumentParser(
        prog="vmreplica-tap",
        description="Serves a VM's disks over NBD and logs every write. Started by an agent, which prepares FOLDER.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the tap's folder, with tap.json in it")
    folder = os.path.abspath(parser.parse_args().folder)
    with lean_imports():
        from primary_agent.tap.program import run  # noqa: PLC0415
    return run(folder)


if __name__ == "__main__":
    sys.exit(main())
