"""The tap's main program: what a guest waits for at each start is imported lean, and the collector runs afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, sys
from primary_agent.tap.main import main
sys.argv = ["vmreplica-tap", sys.argv[1]]
code = main()
print(code, gc.isenabled(), gc.get_freeze_count() > 0, sorted({"rich", "pygments", "cryptography"} & set(sys.modules)))
"""


def test_the_tap_imports_nothing_for_terminals_and_collects_again(tmp_path: Path) -> None:
    """Started on a folder without a configuration, which it says."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert "tap.json" in done.stderr
    code, told = done.stdout.split(maxsplit=1)
    assert int(code) > 0
    assert told.strip() == "True True []"
