"""Imports the modules of a program in less time: without the collector, and without what only terminals need."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """What is imported within leaves no garbage behind, so that nothing is collected, and nothing of it ever will be.

    structlog imports rich wherever it is installed, for tracebacks on a terminal, which no daemon has. Whoever imports
    rich within gets ImportError. It all takes a fifth less processor time, which is most of what the start of a daemon
    takes, and a guest waits for its tap at each start.
    """
    gc.disable()
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["rich"]
        # What is frozen is not looked at when the collector begins again.
        gc.freeze()
        gc.enable()
