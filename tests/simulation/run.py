"""Runs one seed from its first step to its verdict."""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import structlog

import replica_agent.exports
from shared.states import ReplicationState
from tests.simulation.chaos import Chaos
from tests.simulation.constants import MAX_STEPS
from tests.simulation.exports import SilentNbdServer
from tests.simulation.hooks import observed, replaced
from tests.simulation.loop import SimulationLoop
from tests.simulation.options import Options, draw
from tests.simulation.oracle import Violation, difference
from tests.simulation.reversals import Reversals, disaster
from tests.simulation.runs_view import rounds_of
from tests.simulation.trust import trusted
from tests.simulation.tuning import small_constants
from tests.simulation.turns import Failover, Turns, in_sync, until
from tests.simulation.world import World

CONVERGENCE_SECONDS = 700.0
"""How long after the last fault the pair may take to be in sync again: two of the slow retries, and some more."""
STALE_SECONDS = 6.0
"""How long a stale primary goes on after a promotion."""
POLL_SECONDS = 0.25

_S = ReplicationState


@dataclass(slots=True)
class Result:
    """How a run went."""

    options: Options
    failure: BaseException | None = None
    trace: int = 0
    steps: int = 0
    virtual_seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    journal: list[str] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = "ok" if self.failure is None else "FAILED"
        trace = f"{self.trace & (1 << 64) - 1:016x}"
        lines = [
            f"seed {self.options.seed}: {verdict} at {self.virtual_seconds:.3f} s, trace {trace}",
            f"  options: {self.options}",
            f"  counts: {dict(sorted(self.counts.items()))}",
        ]
        if self.failure is not None:
            shown = traceback.format_exception(self.failure)
            lines += [
                *(line for part in shown for line in part.rstrip().splitlines()),
                f"  again: python -m tests.simulation --seed {self.options.seed} --verbose",
            ]
        return "\n".join(lines)


def run(
    options: Options | int,
    *,
    verbose: bool = False,
    keep_events: bool = False,
    patches: tuple[AbstractContextManager[Any], ...] = (),
) -> Result:
    """Run one seed. ``patches`` are entered around the run: planted bugs. Never raises for what the product does."""
    if isinstance(options, int):
        options = draw(options)
    result = Result(options)
    loop = SimulationLoop(MAX_STEPS)
    world: World | None = None
    if keep_events:
        loop.trace.kept = result.events
    enabled = gc.isenabled()
    gc.disable()
    try:
        asyncio.set_event_loop(loop)
        world = World(options, loop)
        if verbose:
            world.journal = result.journal
        with ExitStack() as stack:
            stack.enter_context(small_constants(options.seed))
            stack.enter_context(replaced(replica_agent.exports, "NbdServer", lambda _original: SilentNbdServer))
            stack.enter_context(observed(world))
            stack.enter_context(trusted(world))
            for patch in patches:
                stack.enter_context(patch)
            stack.callback(structlog.reset_defaults)
            structlog.configure(processors=[_Listener(world, verbose=verbose)], cache_logger_on_first_use=False)
            try:
                loop.run_until_complete(_live(world))
            except Exception as error:
                result.failure = error
            result.failure = result.failure or _unseen(loop)
        if result.failure is not None:
            for where in loop.waiting():
                world.tell(where)
        result.trace = loop.trace.value
        result.steps = loop.steps
        result.virtual_seconds = loop.now
        result.counts = world.counts
        result.counts["writes"] = world.guest.answered
        result.counts["flushes"] = world.guest.flushes
        result.counts["points checked"] = world.view.checks
        result.counts["older points checked"] = world.view.history_checks
        result.counts["rounds at P"], result.counts["rounds at R"] = map(rounds_of, world.hosts)
        result.counts["exports checked"] = world.exports.checks
        result.counts["writable exports checked"] = world.overlays.checks
        result.counts["exports read on after a death"] = world.exports.outlived
        result.counts["starts judged"] = world.schedule.starts
        result.counts["compare questions judged"] = world.schedule.asked
        result.counts["verifies equal"] = world.verifies.equal
        world.promoted.end()
        result.counts["writes of promoted guests"] = world.promoted.writes
        if world.second is not None:
            world.second.returned.end()
            result.counts["writes of guests that returned"] = world.second.returned.writes
        result.counts["failovers undone"] = world.view.undone
        result.counts["reverse maps checked"] = world.view.maps
        result.counts["failovers judged lossless"] = world.plans.lossless
        if world.second is not None:
            result.counts["questions after a reversal judged"] = world.second.asked
            result.counts["points of a former primary kept"] = sum(side.view.kept for side in world.second.sides)
    finally:
        if world is not None:
            # What the dismantling does to the product is of no interest.
            world.journal = None
        loop.dismantle()
        asyncio.set_event_loop(None)
        if enabled:
            gc.enable()
    return result


def _unseen(loop: SimulationLoop) -> BaseException | None:
    """An exception that ended a part of the product and that nobody looked at."""
    found = loop.unretrieved()
    return found[0] if found else None


class _Listener:
    """Hears the product's log: an unexpected error in it is a bug, whatever else the product does about it."""

    def __init__(self, world: World, *, verbose: bool) -> None:
        self.world = world
        self.verbose = verbose

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        error = event.get("exc_info")
        if error:
            if error is True:
                error = sys.exc_info()[1]
            # What an injected fault raised is an error like any other that a disk may have.
            if not (isinstance(error, OSError) and "simulated" in str(error)):
                self.world.fail(error if isinstance(error, BaseException) else Violation(f"unexpected: {event}"))
        if self.verbose:
            text = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("event", "exc_info"))
            self.world.tell(f"  log {method}: {event.get('event')} {text}")
        raise structlog.DropEvent


# --- one life ---


async def _live(world: World) -> None:
    life = asyncio.ensure_future(_phases(world))
    await asyncio.wait({life, world.failure}, return_when=asyncio.FIRST_COMPLETED)
    if world.failure.done():
        life.cancel()
        world.failure.result()
    life.result()


async def _phases(world: World) -> None:
    options = world.options
    for host in world.hosts:
        world.start_agent(host)
    await world.enable()
    guest = world.loop.create_task(world.guest.run())
    chaos = Chaos(world)
    if not options.calm_start:
        chaos.start()
    else:
        await _until(world, lambda: world.view.point() is not None, 60, "the initial replication")
        chaos.start()
    failover = Failover(world)
    if options.reversals:
        failover.disaster = lambda: disaster(world, guest)
    promoter = world.loop.create_task(failover.run()) if options.promote_at is not None else None
    await asyncio.sleep(options.seconds)
    guest.cancel()
    if promoter is not None:
        promoter.cancel()
        await _until(world, lambda: failover.decided, 100, "an answer to the failover")
    if world.view.promoted is None:
        chaos.stop()
        await _converge(world)
    elif options.reversals:
        await Reversals(world, chaos).go()
    elif options.ends:
        await _turns(world, chaos, failover)
    else:
        await _stale_primary(world, chaos)


async def _until(world: World, condition: Callable[[], bool], seconds: float, what: str) -> None:
    try:
        await until(world, condition, seconds, what)
    except Violation as violation:
        raise Violation(f"{violation}: {situation(world)}") from None


# --- failover ---


async def _stale_primary(world: World, chaos: Chaos) -> None:
    """The primary lives on, and must change nothing at the replica any more (I8)."""
    guest = world.loop.create_task(world.guest.run())
    await asyncio.sleep(STALE_SECONDS / 2)
    chaos.stop()
    guest.cancel()
    await world.revive()
    await _until(world, lambda: world.view.handed_over, 60, "the promotion's end")
    await _until(world, lambda: _state(world, "P") is _S.FAILED_OVER, CONVERGENCE_SECONDS, "fencing the old primary")
    await asyncio.sleep(STALE_SECONDS / 2)
    world.view.check_promoted("I8", "the promoted image, with a stale primary about,")
    world.plans.judge("after")
    world.check_runs()


async def _turns(world: World, chaos: Chaos, failover: Failover) -> None:
    """The failover is undone, perhaps another one comes, or it is committed; the old primary lives on all the time."""
    guest, turns = world.loop.create_task(world.guest.run()), Turns(world, failover)
    committed = await turns.go()
    turns.stop()
    chaos.stop()
    guest.cancel()
    await world.revive()
    if not committed:
        await _converge(world)
        await _until(world, turns.takes_writes, 60, "writing to the old primary after an undo")
        return
    await turns.settle()
    await _until(world, lambda: _state(world, "P") is _S.FAILED_OVER, CONVERGENCE_SECONDS, "fencing the old primary")
    await asyncio.sleep(STALE_SECONDS / 2)
    world.promoted.check_exactly("I8: with a stale primary about")
    world.plans.judge("after")
    world.check_runs()


# --- convergence ---


def _state(world: World, host: str) -> ReplicationState | None:
    record = world.view.record("replication") if host == "R" else world.primary_record()
    return _S(record["state"]) if record else None


async def _converge(world: World) -> None:
    """Faults have stopped: the pair gets in sync by itself (I12)."""
    await world.revive()
    await _until(world, lambda: _in_sync_or_ordered(world), CONVERGENCE_SECONDS, "convergence")
    wanted, found = world.disks(), world.view.images()
    for index, (ours, theirs) in enumerate(zip(wanted, found, strict=True)):
        if ours != theirs:
            raise Violation(f"I12: in sync, but {difference(index, ours, theirs)}")
    world.oracle.check_disks(wanted, "at the end the guest's disks", "I1")
    world.check_runs()


def _in_sync_or_ordered(world: World) -> bool:
    """What was cancelled starts only when it is asked for again, and that may be refused."""
    world.order_again()
    return _in_sync(world)


def _in_sync(world: World) -> bool:
    """Both say that they replicate, in the same epoch, and the newest point is younger than the last write."""
    primary, replica = world.primary_record(), world.view.record("replication")
    return not world.guest.in_flight and in_sync(primary, replica, world.view.point(), world.oracle)


def situation(world: World) -> str:
    """Where both sides stand, for a failure's text."""
    return (
        f"primary {_state(world, 'P')}, replica {_state(world, 'R')}, point {world.view.point()}, "
        f"alive {[p.name for host in world.hosts for p in host.processes.values() if not p.dead]}"
    )
