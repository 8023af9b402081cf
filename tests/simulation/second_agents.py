"""The other agent of each host, without which no direction is reversed, and what must never be so while it is.

The host that the VM began on gets a replica agent as well, and the one of its replica a primary agent. What is judged:
at every moment one agent of a host has the VM, and once the former primary knows of the failover never more than one
host believes that the VM is its own (I6, I8). What is compared after a reversal is what one of both sides names (R41).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import primary_agent.agent
import replica_agent.agent
from protocol.hrl import Geometry
from protocol.messages import ManifestRequest, ResyncKind
from protocol.position import NO_EPOCH
from shared.config_sections import ListenSection
from shared.handover import read_map
from shared.map_file import MapDamagedError, Range
from shared.planning import ResyncCause
from shared.ports import Ports
from shared.states import ReplicationState
from tests.simulation.agents import primary_agent_of, replica_agent_of
from tests.simulation.constants import (
    PRIMARY_STORE,
    VM_ID,
)
from tests.simulation.disk import SimulatedFileSystem
from tests.simulation.hosts import Host
from tests.simulation.loop import Process
from tests.simulation.oracle import Cut, Images, Oracle, Violation
from tests.simulation.promoted import PromotedVm
from tests.simulation.replica_view import ReplicaView
from tests.simulation.services import STORE_NAME, StoreContent

if TYPE_CHECKING:
    from tests.simulation.world import World

SECOND = "second"
"""The role of these processes among those of a host."""
PORT = 8476
UNTRACKED = ("log ", "edit ", "replica ", "fill ", "finding", "resynchronize", "power loss")
"""What may have happened before where whole disks are compared."""
AWAY = (ReplicationState.FAILED_OVER, ReplicationState.PREPARED_FOR_FAILOVER, ReplicationState.DISABLED)

Agent = primary_agent.agent.PrimaryAgent | replica_agent.agent.ReplicaAgent


class Side:
    """One of both hosts, with whatever of the VM is on it."""

    def __init__(self, world: World, host: Host, view: ReplicaView, promoted: PromotedVm) -> None:
        self.world = world
        self.host = host
        self.view = view
        """Of the copy that its replica agent has, or had."""
        self.promoted = promoted
        self.other: Side

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def is_first(self) -> bool:
        """Whether the VM began here."""
        return self.host is self.world.primary

    def agent(self, role: str) -> tuple[Agent | None, Process | None]:
        """The living agent of that role."""
        first = (role == "primary") == self.is_first
        assert self.world.second is not None
        agents = self.world.agents if first else self.world.second.agents
        return agents.get(self.name), self.host.alive("agent" if first else SECOND)

    @property
    def oracle(self) -> Oracle:
        """What the VM of this host has written, or was begun with."""
        if self.is_first and not self.world.second.taken:  # type: ignore[union-attr]
            return self.world.oracle
        assert self.promoted.oracle is not None
        return self.promoted.oracle

    @property
    def is_over(self) -> bool:
        """Whether its disks are nobody's but the copy's by now."""
        return (not self.is_first or self.world.second.taken) and self.promoted.oracle is None  # type: ignore[union-attr]

    # --- what is on record ---

    def _content(self, folder: str) -> StoreContent | None:
        return self.host.contents.get(folder) if f"{folder}/{STORE_NAME}" in self.host.volume.entries else None

    def primary(self, name: str = "replication") -> Any:
        """A record of the primary agent; empty where it does not know the VM."""
        content = self._content(PRIMARY_STORE)
        return (content.record(name) or {}) if content is not None else {}

    def copy(self, name: str = "replication") -> Any:
        """A record of the replica agent; empty where it does not know the VM."""
        content = self._content(self.view.folder)
        return (content.record(name) or {}) if content is not None else {}

    @property
    def is_primary(self) -> bool:
        """Whether its primary agent has the VM, and takes this host for the one that it runs on."""
        record = self.primary()
        # One that was told of a failover and is to try again takes no writes until a session says otherwise.
        return bool(record) and not (
            ReplicationState(record["state"]) in AWAY or record["fenced"] or self.primary("handover")
        )

    @property
    def is_promoted(self) -> bool:
        """Whether its replica agent has the VM, failed over."""
        promotion = self.copy("promotion")
        return bool(promotion) and not promotion["handed_over"] and not promotion["undoing"]

    @property
    def is_told(self) -> bool:
        """Whether its primary agent knows that the VM was failed over."""
        state = self.primary().get("state")
        return state is not None and ReplicationState(state) is ReplicationState.FAILED_OVER


class SecondAgents:
    """Both, from the moment on at which somebody may reverse the direction."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.agents: dict[str, Agent] = {}
        self.taken = False
        """The guest that the VM began with is over: its disks are the other host's copy, or were."""
        self.told = False
        """Both sides have spoken of the failover."""
        self.asked = 0
        """Questions of compares that were judged."""
        self.view = ReplicaView(
            world.primary, world.view.folder, world.view.disk_count, world.oracle, world.fail, paths=world.disk_path
        )
        self.view.required = world.view.required
        self.returned = PromotedVm(world, world.primary, self.view, "returned")
        self.here = Side(world, world.primary, self.view, self.returned)
        self.there = Side(world, world.replica, world.view, world.promoted)
        self.here.other, self.there.other = self.there, self.here
        for side in self.sides:
            side.view.on_taken = partial(self._taken, side)
            side.view.on_given_up = partial(self._give_up, side)
        world.replica.committed = partial(self._committed_there, world.replica.committed)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.here, self.there

    def side(self, process: Process) -> Side:
        return self.here if process.name.endswith("@P") else self.there

    # --- processes ---

    def start(self, host: Host) -> None:
        if host.up and host.alive(SECOND) is None:
            host.start(SECOND, self._replica_main if host is self.world.primary else self._primary_main)

    def died(self, host: Host) -> None:
        world = self.world
        self.agents.pop(host.name, None)
        if not world.losing_power:
            world.loop.call_later(world.rng.uniform(0.02, 1.5), self.start, host, context=world.context)

    async def _replica_main(self, ports: Ports, process: Process) -> None:
        agent = replica_agent_of(ports, self.world.options, "P", ListenSection(host="primary", port=PORT), "R")
        await agent.start()
        await self.world.run_agent(self.world.primary, agent, process, self.agents)

    async def _primary_main(self, ports: Ports, process: Process) -> None:
        agent = primary_agent_of(ports, "R")
        await agent.start()
        await self.world.run_agent(self.world.replica, agent, process, self.agents)

    def lost_power(self) -> None:
        """The host that the VM began on lost power."""
        self.view.check_after_crash()
        self.returned.lost_power()

    # --- a VM changes its agent ---

    def _taken(self, side: Side) -> tuple[Oracle, Images]:
        """Its disks became a copy: of what, and what they hold until then."""
        left = side.oracle
        left.check_disks(side.view.images(), "the disks that become a copy", "I1")
        if side.is_first:
            self.taken = True
        side.promoted.end()
        return side.other.oracle, tuple(map(bytes, left.images))

    def _give_up(self, side: Side) -> tuple[Oracle, Images]:
        """A failover was given up: the same."""
        left = side.oracle
        left.check_disks(side.view.images(), "the disks of a failover that was given up", "I1")
        side.promoted.end()
        return side.other.oracle, tuple(map(bytes, left.images))

    # --- what must never be so ---

    def _committed_there(self, former: Callable[[str, StoreContent], None], folder: str, content: StoreContent) -> None:
        former(folder, content)
        self.check_owners()

    def committed(self, folder: str, content: StoreContent) -> None:
        """A transaction took place on the host that the VM began on."""
        self.view.committed(folder, content)
        self.check_owners()

    def check_owners(self) -> None:
        """Who takes the VM for its own."""
        try:
            self._check_owners()
        except Violation as violation:
            self.world.fail(violation)

    def _check_owners(self) -> None:
        owners = []
        for side in self.sides:
            has = [bool(side.primary()) and not side.primary("handover"), self._has_copy(side)]
            if all(has):
                raise Violation(f"I6: both agents of {side.name} have the VM")
            if side.is_primary or side.is_promoted:
                owners.append(side)
            tap = side.host.alive("tap")
            if has[1] and not side.copy("promotion") and tap is not None and tap in self.world.served:
                raise Violation(f"I8: the disks of {side.name} are a copy, and its tap serves them")
        for side in self.sides:
            if side.other.is_promoted and side.is_told:
                self.told = True
        if self.told and len(owners) > 1:
            raise Violation("I6: both hosts take the VM for their own, although both have spoken")

    @staticmethod
    def _has_copy(side: Side) -> bool:
        """Whether its replica agent has the VM, or its copy."""
        record, promotion = side.copy(), side.copy("promotion")
        if not record or record["epoch"] == NO_EPOCH:
            return False
        return not (promotion and promotion["handed_over"])

    def failed_over(self) -> None:
        """Somebody is about to fail over once more: until both have spoken again, both may be primary."""
        self.told = False

    # --- the network and the tap ---

    def released(self, process: Process, epoch: bytes, segment: int) -> None:
        """Log is forgotten that the copy has. Raises Violation."""
        side = self.side(process)
        view = side.other.view
        if segment <= self.world.acknowledged_cuts.get(epoch, 0) or view.promoted is not None:
            return
        if view.baseline() == epoch and (missing := view.holds(epoch, segment)):
            raise Violation(f"I5: the log was released up to {segment}, but {missing}")

    def asking(self, process: Process, question: ManifestRequest) -> None:
        """After a reversal only what one of both sides names is compared (R41). Raises Violation."""
        side = self.side(process)
        record = side.primary()
        if process.name not in ("agent@P", f"{SECOND}@R") or not record or question.round > 1:
            return
        resync = record["resync"]
        if resync is None or resync["id"] != question.id:
            return
        if resync["kind"] != ResyncKind.BOUNDED.value:
            # One that never heard of a failover that was given up has its log, and no map beside it.
            if self.told or side.primary("vm").get("handover"):
                self._check_whole(record)
            return
        named = self.named(side)
        if named is None:
            return
        self.asked += 1
        at, end = question.offset, question.offset + question.length
        for offset, length in sorted(named[question.disk]):
            if offset <= at < offset + length:
                at = offset + length
        if at < end:
            raise Violation(f"R41: {end - at} bytes at {at} of disk {question.disk} are compared, which nobody doubts")

    def _check_whole(self, record: dict[str, Any]) -> None:
        """Whole disks are compared after a reversal only where something befell what was tracked."""
        turned = any(cause["code"] == ResyncCause.REVERSED.value for cause in record["causes"])
        if turned and not any(name.startswith(UNTRACKED) for name in self.world.counts):
            raise Violation("R41: whole disks are compared after a reversal, although nothing befell what was tracked")

    def named(self, side: Side) -> dict[int, list[Range]] | None:
        """What both sides have on record of a reversal, by disk; None where one of the maps is not there."""
        found: dict[int, list[Range]] = {}
        tap = side.primary("vm")["tap"]
        folder = tap["folder"] if tap is not None else f"{PRIMARY_STORE}/tap"
        places = [(side, f"{folder}/dirty.map"), (side.other, f"{side.view.folder}/doubt.map")]
        reversal = side.primary()["reversal"]
        if reversal is not None and reversal["mapped"]:
            places.append((side, f"{PRIMARY_STORE}/reverse.map"))
        for where, path in places:
            files = SimulatedFileSystem(where.host.volume, Process("reader"))
            disks = side.primary("vm")["disks"]
            geometry = [Geometry(disk["index"], disk["size"], disk["uuid"]) for disk in disks]
            try:
                ranges = read_map(files, path, uuid.UUID(VM_ID).bytes, geometry)
            except (MapDamagedError, OSError):
                return None
            for disk, each in ranges.items():
                found.setdefault(disk, []).extend(each)
        return found


def position(record: dict[str, Any] | None) -> Cut | None:
    """A position on record as the oracle names it."""
    return (record["epoch"], record["segment"]) if record is not None else None
