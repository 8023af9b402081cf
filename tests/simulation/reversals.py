"""Reversing the direction after a failover, there and back, while everything that takes part in it dies at any moment.

The old primary's guest ends at the failover, or goes on although it should not: then both sides were written. Somebody
orders ``reverse`` on both hosts, in any order, or gives one side up, until it is done. What is judged: what both sides
have alone is told before anything of it is given up (I8), nothing that the guest of the side that counts was answered
is lost, no more is compared than one of both doubts (R41), and the pair gets in sync in the new direction (I12).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidStateError, VmreplicaError
from shared.states import ReplicationState
from tests.simulation.commands import SPLIT_BRAIN, Commands, Killed
from tests.simulation.oracle import Violation, difference
from tests.simulation.second_agents import SECOND, SecondAgents, Side, position
from tests.simulation.turns import in_sync, until

if TYPE_CHECKING:
    from tests.simulation.chaos import Chaos
    from tests.simulation.world import World

SERVED_SECONDS = 100.0
ORDER_SECONDS = 300.0
"""How long an order may take, with deaths about it."""
SYNC_SECONDS = 700.0
FENCED_SHARE = 0.3
"""Share of the former primaries whose fence is waited for before they become the replica."""
TOO_EARLY_SHARE = 0.4
"""Share of the orders to keep the old primary's side that are given there before the failover is given up."""
FAULT_SECONDS = 6.0
"""How long things die; orders that are not done by then are done in peace."""
AIM = 150
ROLES = ("agent", SECOND, "tap")

_S = ReplicationState


async def disaster(world: World, guest: asyncio.Task[None]) -> None:
    """What a failover that is reversed later comes from: the VM's end, or only that its host can't be reached."""
    rng = random.Random(f"{world.options.seed}/reversals/disaster")
    if rng.random() >= world.options.stale:
        guest.cancel()
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0, 3))))
    elif rng.random() < 0.5 and not world.wire.partitioned:
        world.count("partition")
        world.wire.partition()
        world.loop.call_later(rng.uniform(1, 5), world.wire.heal)


class Reversals:
    """One run's life from its failover on."""

    def __init__(self, world: World, chaos: Chaos) -> None:
        self.world = world
        self.chaos = chaos
        self.rng = random.Random(f"{world.options.seed}/reversals/life")
        self.second = world.second = SecondAgents(world)
        self.commands = Commands(world)
        self._faults: list[asyncio.Task[None]] = []

    # --- the life ---

    async def go(self) -> None:
        """Live it to its end. Raises Violation."""
        world, rng = self.world, self.rng
        await until(world, lambda: world.view.handed_over, SERVED_SECONDS, "serving the promoted disks")
        for host in world.hosts:
            self.second.start(host)
        self.chaos.stop()
        former, target = self.second.here, self.second.there
        kept = rng.random() < world.options.kept
        await self._turn(former, target, keep=kept, first=True)
        if kept or rng.random() >= world.options.again:
            return
        await self._fail_over(former, target)
        await self._turn(target, former, keep=False, first=False)

    async def _turn(self, former: Side, target: Side, *, keep: bool, first: bool) -> None:
        """From a failover to ``target`` to a pair that is in sync again."""
        world, rng = self.world, self.rng
        if rng.random() < 0.8:
            target.promoted.run()
        await asyncio.sleep(rng.choice((rng.uniform(0, 0.3), rng.uniform(0, 4))))
        await self._revive(first=first)
        self._start_faults()
        if keep:
            await self._keep(former, target)
        else:
            await asyncio.gather(self._reverse(target, after=0.0), self._reverse_former(former, target))
        await asyncio.sleep(rng.uniform(0, 2))
        self._stop_faults()
        counting, copy = (former, target) if keep else (target, former)
        if counting.is_first and not self.second.taken:
            if rng.random() < 0.5:
                writer = world.loop.create_task(world.guest.run())
                await asyncio.sleep(rng.uniform(0, 2))
                writer.cancel()
        else:
            await asyncio.sleep(rng.uniform(0, 2))
            counting.promoted.halt()
        await self._in_sync(counting, copy)

    async def _revive(self, *, first: bool) -> None:
        """Everything runs, and the former primary knows of the failover, or will soon."""
        if first:
            await self.world.revive()

    # --- orders ---

    async def _reverse(self, side: Side, *, after: float) -> None:
        """The promoted side becomes the primary."""
        await asyncio.sleep(self.rng.choice((after, self.rng.uniform(after, after + 3))))
        order = self.commands.reverse
        await self.commands.until_done(
            f"reverse on {side.name}", lambda: order(side), lambda: side.is_primary, ORDER_SECONDS
        )

    async def _reverse_former(self, side: Side, target: Side) -> None:
        """The former primary becomes the replica, once it knows of the failover and nobody uses its disks."""
        await self._stopped(side)
        await asyncio.sleep(self.rng.choice((0.0, self.rng.uniform(0, 3))))
        if self.rng.random() < FENCED_SHARE:
            what = f"refusing writes on {side.name}, which was failed over,"
            await until(self.world, lambda: self._is_fenced(side), ORDER_SECONDS, what)
        despite, confirmed = False, ""

        async def order() -> None:
            nonlocal despite, confirmed
            judge, self.commands.confirmed = self._judgement(side, target), ""
            try:
                await self.commands.reverse(side, despite_split=despite)
            except InvalidStateError as error:
                if error.code == SPLIT_BRAIN:
                    judge(SPLIT_BRAIN)
                    despite = True
                raise
            finally:
                confirmed = confirmed or self.commands.confirmed
                judge(confirmed, despite=despite)

        await self.commands.until_done(
            f"reverse on {side.name}", order, lambda: not side.primary() and self._has_copy(side), ORDER_SECONDS
        )

    async def _keep(self, former: Side, target: Side) -> None:
        """Give the failover up, and go on with what the former primary has."""
        await self._stopped(former)
        await self._stopped(target)
        keep = self.commands.keep
        if self.rng.random() < TOO_EARLY_SHARE:
            await until(self.world, lambda: former.is_told, ORDER_SECONDS, "fencing the old primary")
            # On the wrong host first: it is refused as long as the other one is failed over (I6).
            with contextlib.suppress(VmreplicaError, Killed):
                await keep(former)
        target.view.giving_up = True
        await self.commands.until_done(
            f"resolve on {target.name}", lambda: keep(target), lambda: not target.is_promoted, ORDER_SECONDS
        )
        await self.commands.until_done(
            f"resolve on {former.name}", lambda: keep(former), lambda: former.is_primary, ORDER_SECONDS
        )

    def _is_fenced(self, side: Side) -> bool:
        """Whether nobody can start the VM there any more (I8)."""
        guest = self.world.guest if side.is_first and not self.second.taken else side.promoted.guest
        assert guest is not None
        return side.is_told and bool(guest.exports) and all(export.read_only for export in guest.exports)

    def _is_let_go(self, side: Side) -> bool:
        return bool(side.primary("handover"))

    def _has_copy(self, side: Side) -> bool:
        promotion = side.copy("promotion")
        return bool(side.copy()) and not promotion

    async def _stopped(self, side: Side) -> None:
        """The VM of that host is shut down: nothing is under way any more."""
        if not (side.is_first and not self.second.taken):
            side.promoted.halt()
        guest = self.world.guest if side.is_first and not self.second.taken else side.promoted.guest
        if guest is not None:
            await until(
                self.world, lambda: not guest.in_flight, SERVED_SECONDS, f"an answer to the guest of {side.name}"
            )
            guest.unanswered = []

    # --- what has to be told ---

    def _judgement(self, side: Side, target: Side) -> Callable[..., None]:
        """What an order to let go of this side has to be confirmed for, by what is so when it is given."""
        if side.is_over:
            return lambda _told, *, despite=False: None
        promotion, view = target.copy("promotion"), target.view
        cut = side.oracle.cuts.get(position(promotion.get("received")) or (b"", 0)) if promotion else None
        has = tuple(map(bytes, side.oracle.images))
        lost, later = cut is not None and cut != has, has != view.at_failover
        idle = len(side.oracle.history) == view.changes_at_failover
        # Also what its guest wrote once it was handed over there, whatever was on record then.
        known = bool(promotion) and promotion["handed_over"] and promotion["written"]
        wrote = known or (bool(promotion) and self._has_written(target, promotion))
        before, lived = self._moment(), self._unharmed(side)

        def judge(told: str, *, despite: bool = False) -> None:
            if told:
                self.world.counts[f"told: {told}"] += 1
            gone = self._is_let_go(side) or not side.primary()
            if gone and lost and not told and not despite:
                raise Violation("I8: what only the former primary has is given up, and nobody was asked")
            if gone and later and wrote and lived and before == self._moment() and told != SPLIT_BRAIN and not despite:
                raise Violation("I8: both sides were written since the failover, and nobody was told of a split brain")
            if told == SPLIT_BRAIN and lived and idle:
                raise Violation("I8: a split brain is told, although the former primary wrote nothing since")

        return judge

    def _has_written(self, target: Side, promotion: dict[str, Any]) -> bool:
        """Whether the promoted guest has written by now what is not what its disks began with."""
        guest, oracle = target.promoted.guest, target.promoted.oracle
        if guest is None or oracle is None or not guest.answered:
            return False
        began = target.view.oracle.cuts[promotion["parent"], promotion["parent_segment"]]
        return tuple(map(bytes, oracle.images)) != began

    def _unharmed(self, side: Side) -> bool:
        """Whether nothing has befallen a host that the times of its disks would not survive."""
        return (
            not any(name.startswith(("power", "kill tap", "crash", "edit", "stop tap")) for name in self.world.counts)
            and side.host.boots == 1
        )

    def _moment(self) -> tuple[Any, ...]:
        """What is another one after anything went wrong."""
        world = self.world
        faults = sum(count for name, count in world.counts.items() if name.startswith(("reset", "partition")))
        processes = [process.number for host in world.hosts for process in host.processes.values()]
        return faults, world.wire.partitioned, sorted(processes)

    # --- once more ---

    async def _fail_over(self, side: Side, former: Side) -> None:
        """Back to the host that the VM was on before; the other one goes on for a while, or ends."""
        world, rng = self.world, self.rng
        self.second.failed_over()
        former.promoted.run()
        await asyncio.sleep(rng.uniform(0, 3))
        if rng.random() >= world.options.stale:
            former.promoted.halt()
            await asyncio.sleep(rng.choice((0.0, rng.uniform(0, 3))))

        async def order() -> None:
            agent, process = side.agent("replica")
            if agent is not None and process is not None and not process.dead:
                await self.commands.call(side, "replica", lambda _steps, agent: agent.find("vm").failover())

        await self.commands.until_done(f"failover on {side.name}", order, lambda: side.view.handed_over, SERVED_SECONDS)

    # --- in sync ---

    async def _in_sync(self, counting: Side, copy: Side) -> None:
        """The pair gets in sync in its direction, and both hold what the guest that counts wrote."""
        world = self.world
        guest = world.guest if counting.is_first and not self.second.taken else counting.promoted.guest

        def reached() -> bool:
            ours, theirs = counting.primary(), copy.copy()
            idle = guest is None or not guest.in_flight
            return idle and in_sync(ours, theirs, copy.view.point(), counting.oracle)

        def where() -> str:
            states = [
                f"{role} at {side.name} {_S(record['state']).title}"
                for side in self.second.sides
                for role, record in (("primary", side.primary()), ("copy", side.copy()))
                if record
            ]
            causes = [cause["text"] for cause in counting.primary().get("causes", ())]
            mode = counting.primary("vm").get("resync_mode")
            return f": {', '.join(states)}; point {copy.view.point()}, causes {causes}, mode {mode}"

        try:
            await until(world, reached, SYNC_SECONDS, f"replicating from {counting.name}")
        except Violation as violation:
            raise Violation(f"{violation}{where()}") from None
        counting.oracle.check_disks(counting.view.images(), "at the end the guest's disks", "I1")
        for index, (ours, theirs) in enumerate(zip(counting.view.images(), copy.view.images(), strict=True)):
            if ours != theirs:
                raise Violation(f"I12: in sync, but {difference(index, ours, theirs)}")
        world.counts["directions settled"] += 1

    # --- what goes wrong ---

    def _start_faults(self) -> None:
        rate = self.world.options.reversals
        self.commands.dangerous = True
        self.world.loop.call_later(FAULT_SECONDS, self._end_danger, context=self.world.context)
        self._faults = [self.world.loop.create_task(self._break(rate))]

    def _end_danger(self) -> None:
        self.commands.dangerous = False

    async def _break(self, rate: float) -> None:
        world, rng = self.world, self.rng
        for host in world.hosts:
            host.stalling = True
        end = world.loop.now + FAULT_SECONDS
        while True:
            await asyncio.sleep(rng.expovariate(rate))
            if world.loop.now > end:
                return
            host, kind = rng.choice(world.hosts), rng.random()
            if kind < 0.15:
                world.lose_power(host)
            elif kind < 0.3:
                if not world.wire.partitioned:
                    world.count("partition")
                    world.wire.partition()
                    world.loop.call_later(rng.uniform(0.1, 4), world.wire.heal)
            elif kind < 0.4:
                world.count("reset")
                world.wire.reset()
            else:
                role = rng.choice(ROLES)
                process = host.alive(role)
                if process is not None and rng.random() < 0.6:
                    process.die_at = process.operations + rng.randint(1, AIM)
                    if rng.random() < 0.2:
                        world.doomed.add(process)
                else:
                    world.kill(host, role)

    def _stop_faults(self) -> None:
        world, self.commands.dangerous = self.world, False
        for task in self._faults:
            task.cancel()
        world.wire.heal()
        for host in world.hosts:
            host.stalling = False
            for process in host.processes.values():
                process.die_at = None
        world.doomed.clear()
