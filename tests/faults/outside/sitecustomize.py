"""Takes a defence out of a process that a test starts: Python imports this first (see tests/faults/defences.py)."""

import os

if os.environ.get("VMR_DEFENCE_OUT"):
    from tests.faults.defences import take_out

    take_out(os.environ["VMR_DEFENCE_OUT"])
