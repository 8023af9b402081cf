"""Runs an administrator's program for a bounded time, with little of our environment, and ends all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence


def run_program(
    words: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    *,
    inherited: Sequence[str],
    data: bytes | None = None,
) -> tuple[int, bytes]:
    """Exit status and output of a program; killed with all that it started after ``seconds``. Blocks.

    It gets ``environment``, what is set of our variables ``inherited``, and ``data`` on its standard input. Raises
    OSError where it can't be run, subprocess.TimeoutExpired where it was killed for the time.
    """
    ours = {name: os.environ[name] for name in inherited if name in os.environ}
    process = subprocess.Popen(
        list(words),
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={**ours, **environment},
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(data, seconds)
    except BaseException:
        _end(process)
        raise
    return process.returncode, said


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program with all that it started and did not part from it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
