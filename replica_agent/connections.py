"""The connections of primaries to one VM: one control connection at a time, and those that belong to it (R13)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from protocol.messages import (
    DISK_SETS,
    MAX_CAUSE_TEXT,
    MAX_CAUSES,
    REVERSE,
    SEED,
    ErrorCode,
    Open,
    Opened,
    WireCause,
    WireDisk,
    WirePosition,
    read_lineage,
    wire_lineage,
)
from replica_agent.baseline import BEGIN_BYTES, Baseline
from replica_agent.bulk import BulkConnection
from replica_agent.companions import Companions
from replica_agent.control import Control
from replica_agent.disk_sets import number_of
from replica_agent.finishing import finish
from replica_agent.growing import require_growth
from replica_agent.intake import Admit
from replica_agent.ledger import LedgerError
from replica_agent.parts import VmParts
from replica_agent.record import ReplicationRecord
from replica_agent.refusals import Refusal
from replica_agent.reversal import common_of
from replica_agent.sampling import answer_samples
from replica_agent.verify import VerifyConnection
from shared.channel import Channel
from shared.errors import NoSpaceError
from shared.stats import ReplicationStatistics
from shared.status import Cause


class Connections:
    """Serves them in turn.

    ``judge`` raises what an OPEN is refused with at the moment; ``fail`` is told where the state could not be written.
    """

    def __init__(
        self,
        parts: VmParts,
        baseline: Baseline,
        statistics: ReplicationStatistics,
        judge: Callable[[Open], None],
        fail: Callable[[Exception], Awaitable[None]],
        companions: Companions,
    ) -> None:
        self.control: Control | None = None
        """The newest control connection."""
        self.bulk: BulkConnection | None = None
        self.verify: VerifyConnection | None = None
        self.opened_time: float | None = None
        """When the present control connection was opened, seconds since the Unix epoch."""
        self.left_time: float | None = None
        """Since when there is no control connection, where there was one since the agent started."""
        self.left_reason = ""
        self.trouble: Cause | None = None
        """Why the last one ended, where only an administrator, or time, can help; None once one goes well."""
        self._parts = parts
        self._baseline = baseline
        self._statistics = statistics
        self._judge = judge
        self._fail = fail
        self._companions = companions
        self._serving: dict[Control, asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        """Control connections that are served, or are waiting for an older one to end."""
        return len(self._serving)

    # --- control ---------------------------------------------------------------------------------------------------

    async def serve_control(self, channel: Channel, body: Open, admit: Admit) -> None:
        """Serve a control connection: the one before is ended, and nothing of it runs any more, before."""
        self._judge(body)
        self._judge_peer(channel)
        disks = [disk.geometry() for disk in body.disks]
        lineage = read_lineage(body.lineage)
        control = Control(
            self._parts,
            self._baseline,
            channel,
            self._statistics,
            disks,
            number_of(body),
            admit,
            self._companions,
            lineage,
        )
        before = list(self._serving)
        self.control = control
        task = asyncio.current_task()
        assert task is not None
        self._serving[control] = task
        try:
            await self._end_all(before, Refusal(ErrorCode.STALE, "A newer connection of the same VM took over."))
            # Much may have happened while the older connections ended.
            self._judge(body)
            await self._meet(channel, body)
            channel.send(self.opened(channel))
            self.trouble = None
            self.opened_time = self._parts.ports.clock.wall()
            self._parts.changed.notify()
            await control.run()
        except LedgerError as error:
            await self._fail(error)
            raise
        except NoSpaceError as error:
            await finish(self._parts.history.give_way(error.text))
            raise
        finally:
            await finish(self._left(control))

    def _judge_peer(self, channel: Channel) -> None:
        """Two primaries of one VM: the second is refused while the first is well."""
        former = self.control.channel if self.control is not None else None
        if former is not None and former.peer.fingerprint != channel.peer.fingerprint and former.healthy():
            raise Refusal(
                ErrorCode.BUSY,
                f"{self._parts.ledger.vm.name} is being replicated by another primary, {former.peer.address}.",
                "Only one host may run the VM: stop it on the other one.",
            )

    async def _meet(self, channel: Channel, body: Open) -> None:
        """Remember what the primary calls itself and the VM."""
        hello, ledger = channel.session.peer, self._parts.ledger
        host = hello.host if hello is not None else ""
        record = ledger.replication
        if (record.peer_host, record.interval_seconds, ledger.vm.name) != (host, body.interval_seconds, body.name):
            async with ledger.transaction() as draft:
                draft.vm.name = body.name
                draft.replication.peer_host = host
                draft.replication.interval_seconds = body.interval_seconds

    async def _left(self, control: Control) -> None:
        """Everything that belongs to the connection has to end before the next one is served."""
        for other in (self.bulk, self.verify):
            if other is not None and other.belongs_to(control):
                other.channel.abort("its control connection ended")
                await other.ended.wait()
        control.ended.set()
        del self._serving[control]
        if self.control is control:
            self.control = None
            self.left_time = self._parts.ports.clock.wall()
            self.left_reason = control.channel.reason
        self._parts.changed.notify()

    def opened(self, channel: Channel | None = None) -> Opened:
        """What the primary at the other end is told of this VM, which of the younger fields by its capabilities."""
        capabilities = channel.session.capabilities if channel is not None else ()
        knows_reversals, knows_sets = REVERSE in capabilities, DISK_SETS in capabilities
        knows_seeds = SEED in capabilities
        ledger, resync, spool = self._parts.ledger, self._parts.resync, self._parts.applier.spool
        record = ledger.replication
        received = spool.position if spool is not None else None
        if resync is not None and resync.tracked.position.segment > 0:
            received = resync.tracked.position
        applied = record.applied.position if record.applied is not None else None
        # A resync that brings other disks is about these.
        brings = resync is not None and resync.record.disks is not None
        geometry = resync.geometry if resync is not None else ledger.vm.geometry
        number = resync.record.disk_set if resync is not None and brings else ledger.vm.disk_set
        return Opened(
            state=record.state.title,
            promoted=False,
            epoch=record.epoch,
            lineage=wire_lineage(record.ancestors),
            disks=[WireDisk.of(disk) for disk in geometry],
            disk_set=number if knows_sets else msgspec.UNSET,
            received=WirePosition.of(received) if received is not None else None,
            # Disks that are not trusted prove no cut, whatever state a resync has brought them to: a bounded compare
            # over them would miss what is wrong outside its bounds.
            cut=WirePosition.of(spool.received) if spool is not None and _is_trusted(record) else None,
            applied=WirePosition.of(applied) if applied is not None else None,
            resync=resync.state if resync is not None else None,
            causes=[WireCause(code=each.code, text=each.text[:MAX_CAUSE_TEXT]) for each in record.causes[-MAX_CAUSES:]],
            common=common_of(record) if knows_reversals else msgspec.UNSET,
            seeded=True if knows_seeds and record.seeded else msgspec.UNSET,
        )

    def _control_of(self, channel: Channel, body: Open) -> Control:
        """The control connection that another one says that it belongs to."""
        self._judge(body)
        control = self.control
        if (
            control is None
            or control.channel.closed
            or body.control_token != control.token
            or channel.peer.fingerprint != control.channel.peer.fingerprint
        ):
            raise Refusal(ErrorCode.STALE, "The control connection that this one belongs to has ended.")
        return control

    # --- bulk ------------------------------------------------------------------------------------------------------

    async def serve_bulk(self, channel: Channel, body: Open, admit: Admit) -> None:
        """Serve the bulk connection of the present control connection."""
        control = self._control_of(channel, body)
        before = self.bulk
        bulk = self.bulk = BulkConnection(self._parts, self._baseline, control, channel, admit)
        try:
            if before is not None:
                before.channel.refuse(ErrorCode.STALE, "A newer bulk connection took over.")
                await before.ended.wait()
            channel.send(self.opened(channel))
            await bulk.run()
        except LedgerError as error:
            await self._fail(error)
            raise
        except NoSpaceError as error:
            await finish(self._parts.history.give_way(error.text))
            raise
        finally:
            bulk.ended.set()
            if self.bulk is bulk:
                self.bulk = None

    # --- samples ---------------------------------------------------------------------------------------------------

    async def serve_sample(self, channel: Channel, body: Open) -> None:
        """Answer questions about places of the newest point; nothing is changed, and nothing else held up by it.

        Where the primary's disks are larger it asks whether they could be here: refused where they could not.
        """
        self._judge(body)
        await require_growth(self._parts, [disk.geometry() for disk in body.disks], BEGIN_BYTES)
        channel.send(self.opened(channel))
        await answer_samples(self._parts, channel)

    # --- verify ----------------------------------------------------------------------------------------------------

    async def serve_verify(self, channel: Channel, body: Open) -> None:
        """Serve the verify connection of the present control connection."""
        control = self._control_of(channel, body)
        before = self.verify
        verify = self.verify = VerifyConnection(self._parts, control, channel)
        try:
            if before is not None:
                before.channel.refuse(ErrorCode.STALE, "A newer verify connection took over.")
                await before.ended.wait()
            channel.send(self.opened(channel))
            await verify.run()
        except LedgerError as error:
            await self._fail(error)
            raise
        finally:
            verify.ended.set()
            if self.verify is verify:
                self.verify = None

    # --- the end ---------------------------------------------------------------------------------------------------

    async def end(self, reason: Refusal) -> None:
        """End all connections with this answer; returns when nothing of them runs any more."""
        await self._end_all(list(self._serving), reason)

    async def _end_all(self, controls: list[Control], reason: Refusal) -> None:
        for control in controls:
            control.channel.refuse(reason.code, reason.text, reason.remedy, reason.fence)
            self._serving[control].cancel()
        for control in controls:
            await control.ended.wait()

    def note_trouble(self, told: Refusal) -> None:
        """One ended for a reason that a reconnect alone does not heal: shown until one goes well."""
        quiet = (ErrorCode.BUSY, ErrorCode.STALE, ErrorCode.SHUTDOWN, ErrorCode.FENCED)
        if told.code not in quiet:
            now = self._parts.ports.clock.wall()
            self.trouble = Cause(code=told.code, text=told.text, time=now, remedy=told.remedy)
            self._statistics.failed(now)
            self._parts.changed.notify()


def _is_trusted(record: ReplicationRecord) -> bool:
    """Whether the disks with what was received are what the newest cut says."""
    return record.suspect is None and not record.reread and not record.causes
