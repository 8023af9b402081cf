"""One replicated VM at the primary: its tasks, and the orders an administrator may give."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Unpack

import structlog

from primary_agent.clockwork import Clockwork
from primary_agent.companions import Companions
from primary_agent.consistent_cuts import ConsistentCuts
from primary_agent.definition_watch import DefinitionWatch
from primary_agent.enabling import tap_folder, with_settings_of
from primary_agent.export_waiting import refuse_export, require_seed
from primary_agent.exporting import Exporter
from primary_agent.handing_over import GIVEN_AWAY
from primary_agent.parts import Parts
from primary_agent.planned_steps import step_of
from primary_agent.problems import set_problem
from primary_agent.record import VmRecord
from primary_agent.replication import Replication
from primary_agent.resuming import resume
from primary_agent.resyncing import abandon
from primary_agent.scheduling import check_schedule
from primary_agent.session_loop import SessionLoop
from primary_agent.starting import cancel, hold, put_off, put_off_initial
from primary_agent.surroundings import Surroundings
from primary_agent.tap_link import TapLink
from primary_agent.tracking_loss import note_loss
from primary_agent.verifying import Verifier
from primary_agent.vm_status import status_of, with_guest
from protocol.position import NO_EPOCH
from shared.errors import InvalidStateError, StoreDamagedError, UsageError, VmreplicaError
from shared.event_query import Choice, Event, sought_of_vm
from shared.events import EventId
from shared.schedule import NEVER
from shared.states import PLANNED_TOKEN, PrimaryEvent, ReplicationState
from shared.status import VmStatus
from shared.tap_config import TapConfig

STATUS_SECONDS, FRESH_SECONDS = 1.0, 0.5
"""A status does not wait longer for the tap, then it tells what is known; what is so fresh is not asked for."""
RESTART_SECONDS = 5.0
"""After an unexpected error of its own a task begins again after so long."""
GATE_SECONDS = 15.0
"""An order waits so long for a session that is just dialled, rather than being refused."""

_S = ReplicationState
log = structlog.get_logger(__name__)


class PrimaryVm:
    """A VM with its tap link and its session loop. ``start`` and ``stop`` own all its tasks."""

    def __init__(self, folder: str, replication: Replication, config: TapConfig, surroundings: Surroundings) -> None:
        self.folder = folder
        link = TapLink(tap_folder(config), config, surroundings.ports, folder)
        self.parts = Parts(surroundings, replication, link)
        self.verifier = Verifier(self.parts, folder)
        self.cuts = ConsistentCuts(self.parts)
        self.definition = DefinitionWatch(self.parts)
        self.exporter = Exporter(self.parts)
        self.failure: VmreplicaError | None = None
        """Why this VM's tasks have ended, where its store failed."""
        self.on_failure: Callable[[PrimaryVm], None] | None = None
        self._replication = replication
        self.ordering = asyncio.Lock()
        """Held while an order is carried out: one that came in between would take its half for the whole."""
        self._ports = surroundings.ports
        self._task: asyncio.Task[None] | None = None

    @property
    def record(self) -> VmRecord:
        return self._replication.vm

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def uuid(self) -> str:
        return str(uuid.UUID(bytes=self.record.vm))

    # --- tasks -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start its tasks; they run until :meth:`stop`. One that was let go to the replica agent has none."""
        if self.parts.handed_over is not None:
            return
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"vm {self.name}")

    async def stop(self) -> None:
        """End its tasks and close the store. The tap goes on."""
        await self.rest()
        if self.failure is None:
            self._replication.runs.interrupt("the agent stopped")
            try:
                await self._replication.store_progress()
            except VmreplicaError as error:
                log.warning("the statistics could not be stored", vm=self.name, reason=str(error))
        await self._replication.store.close()

    async def rest(self) -> None:
        """End its tasks; the store stays open, and the tap goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        companions = Companions(self.parts, self.cuts, self.definition)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._guard("tap link", self.parts.tap.run))
                group.create_task(self._guard("session", SessionLoop(self.parts, companions).run))
                group.create_task(self._guard("tracking", self._watch_tracking))
                group.create_task(self._guard("clockwork", Clockwork(self).run))
                group.create_task(self._guard("verify", self.verifier.run))
                group.create_task(self._guard("consistent cuts", self.cuts.run))
                group.create_task(self._guard("definition", self.definition.run))
                group.create_task(self._guard("export", self.exporter.run))
        except* VmreplicaError as group_error:
            found = group_error.exceptions[0]
            assert isinstance(found, VmreplicaError)
            self.failure = found
            log.error("the VM stops: its state can't be written", vm=self.name, reason=str(found))
            if self.on_failure is not None:
                self.on_failure(self)

    async def _guard(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` for ever: an unexpected error is put on record and the work begins again.

        Raises VmreplicaError where it can't be put on record: after a failed commit a store takes no more of them.
        """
        while True:
            try:
                await work()
            except StoreDamagedError:
                raise
            except Exception as error:
                log.exception("a task of the VM failed", vm=self.name, part=part)
                text = f"The {part} of {self.name} failed unexpectedly: {type(error).__name__}: {error}"
                failure = VmreplicaError(text, "See the agent's log, and report it.", code="internal")
                await set_problem(self._replication, failure, EventId.COULD_NOT_REPLICATE)
            await asyncio.sleep(RESTART_SECONDS)

    async def _watch_tracking(self) -> None:
        """Put a loss of tracking on record at once, whether or not there is a session (I3)."""
        while True:
            await self.give_up_cancelled()
            await note_loss(self.parts)
            await self.parts.tap.changed.wait()

    async def give_up_cancelled(self) -> None:
        """Have the tap give up what was cancelled; what fails is tried again at the next tick."""
        try:
            await abandon(self._replication, self.parts.tap)
        except VmreplicaError as error:
            log.info("the tap could not give up a log", vm=self.name, reason=str(error))

    async def refresh_tap(self, older_than: float) -> None:
        """Ask the tap for its status where the known one is older; one that does not answer is connected anew."""
        connection = self.parts.tap.connection
        if connection is None:
            return
        try:
            await self.parts.tap.refresh(older_than=older_than)
        except VmreplicaError as error:
            # It is connected anew, or started where it is gone.
            log.info("the tap did not tell its status", vm=self.name, reason=str(error))
            connection.client.close()

    # --- orders ----------------------------------------------------------------------------------------------------

    async def status(self, *, fresh: bool = True) -> VmStatus:
        """The VM's status; ``fresh`` asks the tap first."""
        if fresh and self.failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    await self.refresh_tap(FRESH_SECONDS)
        status = status_of(self.parts, self.folder, self.failure, self.verifier.status())
        return with_guest(status, self.cuts.status(), self.definition.status(), self._ports.clock.wall())

    async def initial(self, *, at: str = "", export: str = "", use_seed: bool = False) -> None:
        """Start the initial replication; joins the running one. ``at`` puts it off, or with ``never`` cancels that.

        ``export``: the folder into which the copy is written for a courier. ``use_seed``: only over a seed.
        """
        if bool(at) + bool(export) + use_seed > 1:
            raise UsageError("The first copy is made in one way.", "Give one of --at, --export and --use-seed.")
        async with self.ordering:
            refuse_export(self._replication)
            if self._replication.state is _S.INITIAL_REPLICATION_IN_PROGRESS and not at:
                self.parts.link.poke.notify()
                return
            if self._replication.state not in (_S.READY_FOR_INITIAL_REPLICATION, _S.WAITING_FOR_INITIAL_REPLICATION):
                begun = "It was begun before; `vmreplica resume` goes on."
                raise self._not_now("initial replication", "" if self._replication.state in GIVEN_AWAY else begun)
            if at:
                await put_off_initial(self.parts, at)
                return
            await self.check_gate("initial replication", remote=not export)
            if export:
                await self.exporter.order(export)
                return
            if use_seed:
                require_seed(self.parts)
            cause = "the administrator asked for it"
            await self._replication.transition(PrimaryEvent.INITIAL_STARTED, cause, resync_at=None)

    async def suspend(self) -> None:
        """Stop sending; the tap goes on tracking."""
        async with self.ordering:
            state = self._replication.state
            if state in (_S.SUSPENDED, _S.RESYNCHRONIZE_SUSPENDED):
                return
            if state in GIVEN_AWAY:
                raise self._not_now("suspend", "")
            await self._replication.transition(PrimaryEvent.SUSPENDED, "the administrator asked for it")
            await cancel(self.parts, "the administrator suspended replication")
            self._replication.replan()

    async def stop_resync(self) -> None:
        """Cancel the open resync or initial replication before its commit; of a required one, its start (I7)."""
        async with self.ordering:
            state, record = self._replication.state, self._replication.record
            what = self._replication.open_work
            match state:
                case _S.RESYNCHRONIZING | _S.RESYNCHRONIZE_SUSPENDED | _S.INITIAL_REPLICATION_IN_PROGRESS:
                    pass
                case _S.SUSPENDED if record.epoch == NO_EPOCH and not record.causes:
                    pass
                case _S.WAITING_FOR_START_RESYNCHRONIZE:
                    await hold(self.parts)
                    return
                case _S.WAITING_FOR_INITIAL_REPLICATION:
                    await put_off_initial(self.parts, NEVER)
                    return
                case _:
                    raise self._not_now("stop", "No resynchronization or initial replication is running or required.")
            await self._replication.cancel(f"The administrator cancelled the {what} of {self.name}.")
            self._replication.replan()
            self.parts.link.poke.notify()
            self.parts.settle_progress()
            await self.give_up_cancelled()

    async def resume(self, *, resynchronize: bool, at: str = "", go_on: bool = False) -> None:
        """Go on after a suspension, or start a resync that is required or asked for (the gate, I20).

        ``at`` puts the resync off (shared.schedule.parse_moment), or with ``never`` cancels that; ``go_on``: only to go
        on with a suspended compare, in place.
        """
        if at and not resynchronize:
            raise UsageError("A time is for a resynchronization.", "Add --resynchronize.")
        async with self.ordering:
            if go_on and self._replication.record.resync is None:
                remedy = f"No compare was suspended. To start one: `vmreplica resume {self.name} --resynchronize`."
                raise self._not_now("resume --continue", remedy)
            if at:
                await put_off(self.parts, at)
            else:
                await resume(self.parts, self.check_gate, self._not_now, resynchronize=resynchronize)

    async def check_gate(self, what: str, *, remote: bool = True) -> None:
        """I20: raises InvalidStateError with reason and remedy unless connectivity and tracking are healthy.

        ``remote``: the replica takes part in it.
        """
        link, tap, replication = self.parts.link, self.parts.tap, self._replication
        if tap.connection is None:
            raise InvalidStateError(
                f"The {what} of {self.name} can't begin: its tap does not answer. {tap.error}".strip(),
                "See the tap's log.",
            )
        failed = [disk for disk in tap.connection.status.disks if disk.failed]
        if failed:
            raise InvalidStateError(
                f"The {what} of {self.name} can't begin: disk {failed[0].path} fails: {failed[0].failed}.",
                "Repair or replace the disk.",
            )
        shrunk = self.parts.shrunk_disk()
        if shrunk is not None:
            raise InvalidStateError(
                f"The {what} of {self.name} can't begin: {shrunk.path} has {shrunk.found_size} bytes, and must have "
                f"{shrunk.size}.",
                "Bring it back to its size, restore what it held there, and try again.",
            )
        if not remote:
            return
        if replication.record.problem is not None:
            raise InvalidStateError(
                f"The {what} of {self.name} can't begin: {replication.record.problem.text}",
                replication.record.problem.remedy,
            )
        if not await link.proven(GATE_SECONDS):
            reason = link.last_error or "no answer to a heartbeat came."
            raise InvalidStateError(
                f"The {what} of {self.name} can't begin, since connectivity to {self.parts.address} is not "
                f"healthy: {reason}",
                f"Look at `vmreplica test-connection {self.parts.address}`, and try again.",
            )

    def _not_now(self, what: str, remedy: str) -> InvalidStateError:
        text = f"{self.name} is in state {self._replication.state.title}: {what} is not possible."
        return InvalidStateError(text, remedy or f"`vmreplica status {self.name}` says what to do.")

    async def note_refusal(self, verb: str, error: InvalidStateError) -> None:
        """Put a refused order on record (event 32546)."""
        event = self._replication.event(EventId.INVALID_STATE, f"{verb}: {error.text}", cause="administrator")
        await self._replication.note(event)

    async def set(self, vm: VmRecord, changed: dict[str, Any]) -> None:
        """Take over new settings: durable first, then the tap's configuration, then the running tap."""
        before, tap = self.record, self.parts.tap
        if vm.replica != before.replica and step_of(self._replication.record.planned) in PLANNED_TOKEN:
            raise self._not_now("another replica", f"{before.replica} may be failed over to at any moment.")
        config = with_settings_of(tap.config, vm)
        check_schedule(vm, self.parts.surroundings.resync)
        config.check()
        text = "Settings changed: " + ", ".join(f"{name} = {value}" for name, value in changed.items())
        await self._replication.set_vm(vm, self._replication.event(EventId.SETTINGS, text, data=changed))
        self.parts.surroundings.queue.reconsider()
        self.verifier.reconsider()
        await tap.save(config)
        if tap.connection is not None:
            await tap.connection.client.set(
                interval=config.interval_seconds if vm.interval_seconds != before.interval_seconds else None,
                log_limit=config.log_limit if vm.log_limit_bytes != before.log_limit_bytes else None,
                hot_regions=config.hot_regions if vm.hot_regions != before.hot_regions else None,
            )
        if vm.replica != before.replica:
            self._replication.replan()
        self.parts.link.poke.notify()

    async def events(self, **choice: Unpack[Choice]) -> list[Event]:
        """Those of the VM's events that are as ``choice`` says, oldest first."""
        return await sought_of_vm(self.name, self.uuid, self._replication.store.events, **choice)

    async def dismantle(self) -> None:
        """End its tasks and stop its tap, before the VM is forgotten."""
        await self.stop()
        await self.parts.tap.stop_tap()
