"""What an agent does beside replicating: its own events, the journal, alarms, health watched, its configuration.

Made by shared.service, around the agent: the agent itself knows nothing of it, and goes on where any of it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog

from protocol.messages import ErrorCode
from shared.admin import verbs
from shared.admin.methods import Methods, NoParams
from shared.admin.server import Client
from shared.admin.verbs import AgentEventsParams, AlarmTestParams, AnyVmParams
from shared.agent_events import HEALTH, AgentEvents
from shared.alarms import Alarms, AlarmStatus
from shared.config import find_mistakes, load_config
from shared.config_sections import PrimaryConfig, ReplicaConfig
from shared.config_state import ConfigState, ConfigStatus, in_force
from shared.errors import VmreplicaError
from shared.events import EventId
from shared.expiry import certificates_of, endings
from shared.journal_entries import entry_of
from shared.ports import Peer, Ports
from shared.ports.alarm_ways import AlarmWays
from shared.ports.journal import Journal
from shared.ports.trust import Trust
from shared.states import Health
from shared.status import Cause, VmStatus
from shared.tasks import Signal
from shared.telling import TellingStores, Told

LOOK_SECONDS = 10.0
"""How often the health of all VMs is looked at. A change counts when it is there twice."""
JOURNAL_WAITING_MAX = 1000
"""Events that wait for the journal; one more loses the oldest, and that is logged."""
CERTIFICATE_LOOK_SECONDS = 3600.0
"""How often certificates are looked at: each tells once that its end is near, close, and there."""
REFUSED_SECONDS = 600.0
"""Of one peer's refusals, one event in so long."""
PEERS_MAX = 1000

log = structlog.get_logger(__name__)

LEVELS = {Health.CRITICAL.title: "error", Health.WARNING.title: "warning"}


class Operations:
    """Of one agent; ``ports`` are the agent's, with stores that tell of events. ``blocking`` runs a call in a thread
    that nothing else waits for: journal and alarms may take long.
    """

    def __init__(
        self,
        role: str,
        path: str,
        config: PrimaryConfig | ReplicaConfig,
        ports: Ports,
        *,
        journal: Journal,
        ways: AlarmWays,
        blocking: Callable[..., Awaitable[Any]],
    ) -> None:
        self.role = role
        self.ports = replace(ports, stores=TellingStores(ports.stores, self._told))
        self.state = ConfigState(path, config, ports.clock.wall())
        self.events = AgentEvents(self.ports, config.state_dir, self._undurable)
        self.alarms = Alarms(ports.clock, ways, blocking, config.host, role, self._alarm_failed)
        self.on_refused: Callable[[Peer, str, str], None] = lambda _peer, _code, _text: None
        """Told each refusal of a peer, with code and text."""
        self._journal = journal
        self._blocking = blocking
        self._entries: deque[dict[str, str]] = deque()
        self._lost = 0
        self._news = Signal()
        self._seen: dict[str, str] = {}
        self._followers: dict[Client, str | None] = {}
        """Who is told of events as they happen, and of which VM alone."""
        self._refused: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # --- life

    async def open(self) -> None:
        """Before the agent starts: whatever happens from now on is told."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._write_journal()))
        await self.events.open()
        self.alarms.configure(self.state.current.alarms)

    async def started(
        self, software: str, vms: Callable[[], Awaitable[list[VmStatus]]], trust: Callable[[], Trust]
    ) -> None:
        """The agent serves."""
        await self.events.note(EventId.AGENT_STARTED, f"The {self.role} agent {software} has started.")
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._watch_health(vms)))
        self._tasks.append(loop.create_task(self._watch_certificates(trust)))

    async def close(self) -> None:
        """After the agent's end: what is known is written, as far as somebody takes it."""
        await self.events.note(EventId.AGENT_STOPPED, f"The {self.role} agent has stopped in order.")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.alarms.stop()
        await self.events.close()
        with contextlib.suppress(OSError):
            while self._entries:
                await self._blocking(self._journal.send, self._entries.popleft())

    # --- the configuration

    async def reload(self, take: Callable[[Any], Awaitable[None]]) -> None:
        """Read the file again and have ``take`` put it in force, but for what only the next start may bring. A file
        with a mistake changes nothing.

        Raises VmreplicaError.
        """
        try:
            loaded = load_config(self.state.path, type(self.state.current))
            await take(in_force(self.state.current, loaded))
        except VmreplicaError as error:
            self.state.refused = str(error)
            await self.events.note(EventId.NOT_RELOADED, f"The configuration was not reloaded: {error}")
            raise
        self.alarms.configure(loaded.alarms)
        changed, waiting = self.state.take_over(loaded, self.ports.clock.wall())
        text = f"{self.state.path} was read again: {_listed(changed, 'is in force', 'are in force')}."
        if waiting:
            text += f" The next start will bring {', '.join(waiting)}."
            log.warning("settings that only a restart brings into force", settings=waiting)
        await self.events.note(EventId.RELOADED, text, data={"in_force": changed, "at_next_start": waiting})

    # --- what the agent tells

    def refused(self, peer: Peer, text: str) -> None:
        """A peer is not authorized, and was refused: an event, but not for each of its attempts."""
        self.on_refused(peer, ErrorCode.UNAUTHORIZED.value, text)
        now = self.ports.clock.monotonic()
        host = peer.address.rpartition(":")[0] or peer.address
        if now - self._refused.get(host, -REFUSED_SECONDS) < REFUSED_SECONDS:
            return
        if len(self._refused) >= PEERS_MAX:
            self._refused.clear()
        self._refused[host] = now
        told = f"{peer.address} was refused: {text}"
        data = {"peer": peer.address, "fingerprint": peer.fingerprint, "names": list(peer.names)}
        work = self.events.note(EventId.PEER_REFUSED, told, data=data)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def bypassed(self, vm: str, uuid: str, cause: Cause) -> None:
        """A VM's disk is written past its tap."""
        data = {
            "vm": vm,
            "uuid": uuid,
            "remedy": cause.remedy,
            **cause.evidence,
            "vm_disk": cause.evidence.get("path", ""),
        }
        await self.events.note(EventId.BYPASSED, cause.text, cause=cause.code, data=data)

    def problems(self) -> list[str]:
        """What concerns the agent as a whole."""
        return [f"The agent's own events can't be recorded: {self.events.error}"] if self.events.error else []

    # --- the admin socket

    def add_methods(self, methods: Methods) -> None:
        """What both agents' sockets offer beside their own methods."""
        kind = type(self.state.current)

        async def config(params: NoParams, client: Client) -> ConfigStatus:
            run, path = self.ports.workers.run, self.state.path
            mistakes = [str(mistake) for mistake in await run(find_mistakes, path, kind)]
            found = None if mistakes else await run(load_config, path, kind)
            return self.state.status(self.role, found, mistakes)

        async def events(params: AgentEventsParams, client: Client) -> dict[str, Any]:
            found = await self.events.events(
                limit=params.limit, after=params.after, wants=params.wants, since=params.since
            )
            return {"events": found}

        async def follow(params: AnyVmParams, client: Client) -> None:
            if client not in self._followers:
                client.on_closed(lambda: self._unfollow(client))
            self._followers[client] = params.vm

        async def alarms(params: NoParams, client: Client) -> dict[str, list[AlarmStatus]]:
            return {"alarms": self.alarms.statuses()}

        async def test(params: AlarmTestParams, client: Client) -> dict[str, list[AlarmStatus]]:
            return {"alarms": await self.alarms.test(params.name)}

        methods.add(verbs.CONFIG, NoParams, config)
        methods.add(verbs.AGENT_EVENTS, AgentEventsParams, events)
        methods.add(verbs.EVENTS_FOLLOW, AnyVmParams, follow)
        methods.add(verbs.ALARMS, NoParams, alarms)
        methods.add(verbs.ALARM_TEST, AlarmTestParams, test)

    # --- inner parts

    def _unfollow(self, client: Client) -> None:
        self._followers.pop(client, None)

    def _undurable(self, event: dict[str, Any]) -> None:
        """An event of the agent's own could not be recorded: it is told all the same."""
        self._told(Told(event, event["data"].get("vm", ""), event["data"].get("uuid", "")))

    def _told(self, told: Told) -> None:
        """An event is durable, or could not be."""
        self.alarms.take(told)
        for client, vm in self._followers.items():
            if vm in (None, told.vm, told.uuid):
                client.notify(verbs.EVENT, {**told.event, "vm": told.vm, "uuid": told.uuid})
        if len(self._entries) >= JOURNAL_WAITING_MAX:
            self._entries.popleft()
            self._lost += 1
        self._entries.append(entry_of(told, self.role))
        self._news.notify()

    async def _write_journal(self) -> None:
        while True:
            if not self._entries:
                await self._news.wait()
                continue
            entry = self._entries.popleft()
            try:
                await self._blocking(self._journal.send, entry)
            except Exception as error:
                log.warning("an event did not get into the journal", event=entry.get("MESSAGE"), reason=str(error))
            if self._lost:
                log.warning("events did not get into the journal: it takes too few", count=self._lost)
                self._lost = 0

    async def _watch_health(self, vms: Callable[[], Awaitable[list[VmStatus]]]) -> None:
        told = self.events.health()
        while True:
            try:
                await self._look(await vms(), told)
            except Exception:
                log.exception("looking at the health of the VMs failed")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, vms: list[VmStatus], told: dict[str, str]) -> None:
        """Tell of each VM whose health changed and was the same at the last look."""
        before, self._seen = self._seen, {vm.uuid: vm.health for vm in vms}
        for gone in told.keys() - self._seen.keys():
            del told[gone]
        for vm in vms:
            known = told.get(vm.uuid, Health.NOT_APPLICABLE.title)
            if vm.health == known or before.get(vm.uuid) != vm.health:
                continue
            told[vm.uuid] = vm.health
            reason = vm.reasons[0] if vm.reasons else vm.summary
            await self.events.note(
                EventId.HEALTH_CHANGED,
                f"Health of {vm.name}: {known} -> {vm.health}. {reason}".rstrip(),
                cause=vm.remedy,
                before=known,
                after=vm.health,
                data={"vm": vm.name, "uuid": vm.uuid, "reasons": list(vm.reasons), "remedy": vm.remedy},
                level=LEVELS.get(vm.health, "info"),
                changes={HEALTH: dict(told)},
            )

    async def _watch_certificates(self, trust: Callable[[], Trust]) -> None:
        told: dict[tuple[str, str, float], tuple[Health, bool]] = {}
        while True:
            now, before = self.ports.clock.wall(), told
            told = {}
            for each in endings(certificates_of(trust()), now):
                found = each.certificate
                key = (found.what, found.subject, found.not_after_time)
                told[key] = (each.level, found.not_after_time <= now)
                if before.get(key) == told[key]:
                    continue
                data = {"what": found.what, "subject": found.subject, "path": found.path}
                await self.events.note(
                    EventId.CERTIFICATE_ENDS,
                    each.sentence,
                    cause=each.remedy,
                    data={**data, "not_after_time": found.not_after_time, "remedy": each.remedy},
                    level=LEVELS[each.level.title],
                )
            await asyncio.sleep(CERTIFICATE_LOOK_SECONDS)

    async def _alarm_failed(self, name: str, reason: str) -> None:
        await self.events.note(EventId.ALARM_FAILED, f"The alarm {name} was given up: {reason}", data={"alarm": name})


def _listed(keys: list[str], one: str, many: str) -> str:
    if not keys:
        return "nothing in it changed that a reload brings into force"
    return f"{', '.join(keys)} {one if len(keys) == 1 else many}"
