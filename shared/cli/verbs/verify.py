"""The verb ``verify``: compare both sides of a VM at a cut, follow that to its end, and tell the result."""

from __future__ import annotations

import argparse
import time

from shared.admin import verbs as admin
from shared.cli.agents import Found, connect, socket_paths
from shared.cli.console import Console
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.live import WORK_SECONDS, LiveDisplay, Poller
from shared.cli.text import time_text
from shared.cli.verify_text import progress_line, progress_lines, result_lines
from shared.errors import UsageError, VmreplicaError
from shared.status import VerifyResult, VmStatus, to_plain
from shared.verify_outcomes import GOOD

PLAIN_SECONDS = 10.0
"""Between two lines about one that runs, where the screen can't be redrawn."""


def verify(options: argparse.Namespace, context: Context) -> int:
    """Start a verify, or join the one that runs."""
    if options.stop and (options.at or options.repair):
        raise UsageError("--stop ends the verify that runs.", "Give it alone.")
    console = context.console
    rejoin = f"vmreplica status {options.vm}" + "".join(f" --socket {path}" for path in options.socket)
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        before = _last(found.vm)
        found.call(admin.VERIFY, at=options.at, repair=options.repair, stop=options.stop)
        vm = found.refresh()
        if options.at:
            moment = vm.verify.next_time if vm.verify is not None else None
            console.print(
                f"No verify of {vm.name} is to come."
                if moment is None
                else f"The next verify of {vm.name} starts {time_text(moment, None)}."
            )
            return SUCCESS
        if options.stop:
            console.print(f"{vm.name}: no verify runs any more.")
            return SUCCESS
        if options.no_wait:
            console.print(f"Started. To see it: {rejoin}")
            return SUCCESS
        result = _follow(found, console, before, quiet=options.json, rejoin=rejoin)
    if result is None:
        return SUCCESS
    if options.json:
        console.print_json({"name": found.vm.name, "uuid": found.vm.uuid, **to_plain(result)})
        return SUCCESS if result.outcome in GOOD else VmreplicaError.exit_code
    sentence, *rest = result_lines(found.vm.name, result)
    if result.outcome in GOOD:
        console.print([sentence, *rest])
        return SUCCESS
    console.print(rest)
    raise VmreplicaError(sentence, result.remedy)


def run(found: Found, console: Console, *, quiet: bool, rejoin: str) -> VerifyResult | None:
    """Start a verify, or join the one that runs, and follow it: its result, or None where it was left with Ctrl-C."""
    before = _last(found.vm)
    found.call(admin.VERIFY)
    return _follow(found, console, before, quiet=quiet, rejoin=rejoin)


def _follow(
    found: Found, console: Console, before: VerifyResult | None, *, quiet: bool, rejoin: str
) -> VerifyResult | None:
    """The result of the verify that runs; None where it was left with Ctrl-C."""
    poller = Poller(found.agent.connection.path, found.vm)
    live = LiveDisplay(console) if console.live and not quiet else None
    told_at, told = -PLAIN_SECONDS, ""
    try:
        if live is not None:
            live.__enter__()
        while True:
            vm = poller.poll()
            if vm is not None and (vm.verify is None or not vm.verify.running):
                last = _last(vm)
                if last is None or last == before:
                    raise VmreplicaError(f"The verify of {vm.name} came to no result.", "See `vmreplica events`.")
                return last
            if vm is not None and live is not None:
                live.show_lines(progress_lines(vm))
            elif vm is not None and not quiet:
                assert vm.verify is not None
                if vm.verify.phase != told or time.monotonic() - told_at >= PLAIN_SECONDS:
                    told_at, told = time.monotonic(), vm.verify.phase
                    console.print(progress_line(vm))
            time.sleep(WORK_SECONDS)
    except KeyboardInterrupt:
        console.print(["", f"The verify goes on. To see it again: {rejoin}"])
        return None
    finally:
        if live is not None:
            live.__exit__(None, None, None)
        poller.close()


def _last(vm: VmStatus) -> VerifyResult | None:
    return vm.verify.last if vm.verify is not None else None
