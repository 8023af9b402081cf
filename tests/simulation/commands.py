"""``vmreplica reverse`` and ``resolve`` as an administrator gives them on one host, over the agents' own methods.

The steps and what is decided between them are those of ``shared/cli/verbs/reversing.py``, which waits where this would
have to go on. The command dies between two steps, or while an agent is at one, and is given again until it is done.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from primary_agent.admin import with_settings
from primary_agent.agent import PrimaryAgent
from primary_agent.reversing import Reversing as PrimarySteps
from replica_agent.reversing import Reversing as ReplicaSteps
from replica_agent.vm_status import status_of
from shared.admin.verbs import PART_BYTES, AdoptParams, AdoptPartParams, HandedOverParams, HandOverParams, ResolveParams
from shared.errors import InvalidStateError, UnreachableError, UsageError, VmreplicaError
from shared.handover import HandOver
from shared.states import ReplicationState
from tests.connected import Connected
from tests.simulation.constants import PORT, VM, VM_ID
from tests.simulation.loop import ProcessDead
from tests.simulation.oracle import Violation
from tests.simulation.second_agents import PORT as SECOND_PORT
from tests.simulation.second_agents import Agent, Side

if TYPE_CHECKING:
    from tests.simulation.world import World

NEEDS_YES, SPLIT_BRAIN = "needs_confirmation", "split_brain"
DEATHS = 0.04
"""Probability that a command ends before or after one of its steps, or in the middle of it."""
AIMED, AIM = 0.12, 40
"""Share of the steps at one of whose first operations the agent dies."""
QUIET = 0.01
"""With so few deaths of processes the commands live, too."""
CLIENT: Any = Connected()
"""The same for all, so that an order whose command was killed goes on beside the next one."""

_S = ReplicationState
_FAILED_OVER = (_S.FAILED_OVER, _S.PREPARED_FOR_FAILOVER)
_PROMOTED = (_S.FAILED_OVER_WAITING_COMPLETION, _S.FAILED_OVER)
Steps = PrimarySteps | ReplicaSteps


class Killed(Exception):
    """The command was."""


class Commands:
    """The administrator of both hosts; ``deaths`` of his commands."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.deaths = DEATHS if world.options.reversals > QUIET else 0.0
        self.rng = random.Random(f"{world.options.seed}/commands")
        self.dangerous = False
        """Whether commands die between two steps, and agents at what they are asked for."""
        self.confirmed = ""
        """What the last order had to be confirmed for, or was refused as."""
        self._steps: dict[Agent, Steps] = {}

    # --- calls of an agent ---

    async def call(self, side: Side, role: str, work: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        """What ``work`` comes to, given the agent's steps and the agent. Raises UnreachableError where it is away."""
        agent, process = side.agent(role)
        if agent is None or process is None or process.dead:
            raise UnreachableError(f"The {role} agent of {side.name} does not answer.", "")
        steps = self._steps.get(agent)
        if steps is None:
            made = PrimarySteps(agent, with_settings) if isinstance(agent, PrimaryAgent) else ReplicaSteps(agent)
            steps = self._steps[agent] = made
        self._may_die()
        dies = self.dangerous and self.rng.random() < self.deaths
        end = self.world.loop.now + (self.rng.uniform(0, 0.05) if dies else 1e9)

        if self.dangerous and self.deaths and self.rng.random() < AIMED:
            process.die_at = process.operations + self.rng.randint(1, AIM)

        async def run() -> Any:
            return await work(steps, agent)

        try:
            task = process.spawn(run())
        except ProcessDead:
            raise UnreachableError(f"The {role} agent of {side.name} ended.", "") from None
        # Its end is seen by whoever waits, if anybody does.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        while process.dead or not task.done():
            if process.dead:
                raise UnreachableError(f"The {role} agent of {side.name} ended.", "")
            if self.world.loop.now > end:
                raise Killed
            await asyncio.sleep(0.005)
        if task.cancelled():
            raise UnreachableError(f"The {role} agent of {side.name} ended.", "")
        self._may_die()
        return task.result()

    def _may_die(self) -> None:
        if self.dangerous and self.rng.random() < self.deaths:
            raise Killed

    async def _status(self, side: Side, role: str) -> Any:
        """What that agent says of the VM; None where it does not know it, or is away."""

        async def ask(_steps: Any, agent: Any) -> Any:
            known = [vm for vm in agent.vms.values() if vm.name == VM or str(getattr(vm, "uuid", "")) == VM_ID]
            if not known:
                return None
            return await known[0].status() if isinstance(agent, PrimaryAgent) else status_of(known[0])

        return await self.call(side, role, ask)

    # --- the verbs ---

    async def reverse(self, side: Side, *, despite_split: bool = False) -> None:
        """Make that host the primary, or the replica, by what it was. Raises VmreplicaError, or Killed."""
        primary, replica = await self._status(side, "primary"), await self._status(side, "replica")
        if primary is not None and (primary.handed_over or _S(primary.state_code) in _FAILED_OVER):
            await self._become_replica(side, despite_split=despite_split)
        elif replica is not None and (replica.handed_over or _S(replica.state_code) in _PROMOTED):
            raw = await self.call(
                side, "replica", lambda steps, _agent: steps.hand_over(HandOverParams(vm=VM, yes=True), CLIENT)
            )
            await self._carry(side, "replica", "primary", raw)
        elif replica is None or not any(cause.code == "reversed" for cause in replica.causes):
            raise InvalidStateError(f"{VM} is in no state for that on {side.name}.", "Fail it over first.")

    async def _become_replica(self, side: Side, *, despite_split: bool) -> None:
        self.confirmed = ""

        def order(*, yes: bool) -> Awaitable[Any]:
            params = HandOverParams(vm=VM, yes=yes, despite_split=despite_split)
            return self.call(side, "primary", lambda steps, _agent: steps.hand_over(params, CLIENT))

        try:
            raw = await order(yes=False)
        except InvalidStateError as error:
            self.confirmed = error.code
            if error.code != NEEDS_YES:
                raise
            raw = await order(yes=True)
        await self._carry(side, "primary", "replica", raw)

    async def _carry(self, side: Side, source: str, target: str, handed: HandOver) -> None:
        """Bring the VM from the one agent to the other. Where that one refuses, the first one keeps it."""
        raw = msgspec.to_builtins(handed)
        address = f"replica:{PORT}" if side.is_first else f"primary:{SECOND_PORT}"
        try:
            data = side.host.volume.entries[handed.ranges_path].image()[: handed.ranges_bytes]
            for at in range(0, max(1, len(data)), PART_BYTES):
                # As it travels: in base64.
                part = base64.b64decode(base64.b64encode(data[at : at + PART_BYTES]))
                params = AdoptPartParams(vm=handed.vm, offset=at, data=part)
                await self.call(side, target, partial(_adopt_part, params))
            adopt = AdoptParams(vm=VM_ID, handover=raw, replica=address if target == "primary" else "")
            await self.call(side, target, lambda steps, _agent: steps.adopt(adopt, CLIENT))
        except UnreachableError:
            raise
        except VmreplicaError as error:
            self.world.tell(f"{side.name}: the {target} agent refuses: {error}")
            self.world.counts["hand-overs refused"] += 1
            await self._handed_over(side, source, taken=False)
            raise
        await self._handed_over(side, source, taken=True)

    async def _handed_over(self, side: Side, source: str, *, taken: bool) -> None:
        params = HandedOverParams(vm=VM, taken=taken)
        await self.call(side, source, lambda steps, _agent: steps.handed_over(params, CLIENT))

    async def keep(self, side: Side) -> None:
        """``resolve --keep primary`` on that host."""
        primary = await self._status(side, "primary")
        former = primary is not None and (primary.handed_over or _S(primary.state_code) in _FAILED_OVER)

        def order(*, yes: bool) -> Awaitable[Any]:
            params = ResolveParams(vm=VM, yes=yes)
            role = "primary" if former else "replica"
            return self.call(side, role, lambda steps, _agent: steps.resolve(params, CLIENT))

        try:
            await order(yes=False)
        except UsageError:
            await order(yes=True)

    async def until_done(
        self, what: str, order: Callable[[], Awaitable[None]], done: Callable[[], bool], seconds: float
    ) -> None:
        """Give an order again and again until it is done. Raises Violation where that takes too long."""
        world, end = self.world, self.world.loop.now + seconds
        last: BaseException | None = None
        while not done():
            if world.loop.now > end:
                raise Violation(f"I12: {what} did not come about within {seconds:g} s: {last}")
            try:
                world.count(what)
                await order()
            except Killed as error:
                last = error
                world.count("command killed")
            except VmreplicaError as error:
                last = error
                world.tell(f"{what}: {error}")
            await asyncio.sleep(self.rng.uniform(0.02, 0.6))


def _adopt_part(params: AdoptPartParams, steps: Steps, _agent: Agent) -> Awaitable[None]:
    return steps.adopt_part(params, CLIENT)
