"""vmreplica-tap: the process in a VM's I/O path, one for each VM."""

from __future__ import annotations

import argparse
import gc
import os
import sys


def main() -> int:
    """Run a tap until SIGTERM or SIGINT; the exit code is that of the error (shared.errors)."""
    parser = argparse.ArgumentParser(
        prog="vmreplica-tap",
        description="Serves a VM's disks over NBD and logs every write. Started by an agent, which prepares FOLDER.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the tap's folder, with tap.json in it")
    folder = os.path.abspath(parser.parse_args().folder)
    # A guest waits for its tap at each start of it, and most of that are the imports. They leave no garbage behind, and
    # structlog imports rich wherever it is installed, for tracebacks on a terminal, which nobody has here.
    gc.disable()
    sys.modules["rich"] = None  # type: ignore[assignment]
    from primary_agent.tap.program import run  # noqa: PLC0415

    del sys.modules["rich"]
    return run(folder)


if __name__ == "__main__":
    sys.exit(main())
