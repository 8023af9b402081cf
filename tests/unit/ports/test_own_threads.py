"""Work in threads of its own: what it returns and raises, and that nobody waits for what hangs."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from shared.ports.own_threads import in_own_thread


async def test_outcome_is_the_works() -> None:
    assert await in_own_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_own_thread(divmod, 7, 0)
    assert await in_own_thread(threading.get_ident) != threading.get_ident()


def test_program_ends_though_work_hangs() -> None:
    """An executor's threads would be joined, without a limit."""
    program = (
        "import asyncio, threading\n"
        "from shared.ports.own_threads import in_own_thread\n"
        "async def main():\n"
        "    hanging = asyncio.create_task(in_own_thread(threading.Event().wait))\n"
        "    await asyncio.sleep(0.05)\n"
        "    hanging.cancel()\n"
        "    await asyncio.gather(hanging, return_exceptions=True)\n"
        "asyncio.run(main())\n"
        "print('ended')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ended\n"
