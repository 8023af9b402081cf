"""The part of a session with the replica that is about a planned failover: delivery of the cut, token, taking back.

The token crosses at the beginning of a session, in which no log is sent then. So there is one way for it, however often
the link breaks or either side dies: every session asks again until it is answered.
"""

from __future__ import annotations

import asyncio

from primary_agent.conclusions import Refused, Replan
from primary_agent.dialing import Dialled, expect
from primary_agent.parts import Parts
from primary_agent.planned import advance, fail, let_writes
from primary_agent.planned_steps import step_of
from primary_agent.record import PlannedRecord
from primary_agent.replication import Acked
from primary_agent.streaming import LogSender
from protocol.messages import (
    Applied,
    Body,
    FailoverPrepare,
    FailoverPrepared,
    FailoverVoid,
    FailoverVoided,
    Received,
    WirePosition,
)
from protocol.position import Position
from shared.errors import InvalidStateError
from shared.sides import ReplicaView
from shared.states import PlannedEvent, PlannedStep
from shared.tasks import Signal, first_of


class PlannedSession:
    """For one session; ``answers`` are the replica's answers to what is asked."""

    def __init__(self, parts: Parts, dialled: Dialled, replica: ReplicaView, answers: asyncio.Queue[Body]) -> None:
        self._parts = parts
        self._replication = parts.replication
        self._dialled = dialled
        self._answers = answers
        self._received = replica.cut
        self._applied = replica.applied
        self._heard = Signal()

    def hear(self, message: object) -> None:
        """Something came from the replica."""
        match message:
            case Received():
                self._received = message.position.position()
            case Applied():
                self._applied = message.position.position()
        self._heard.notify()

    async def settle(self) -> None:
        """What has to be settled about a token before anything else: returns where there is none.

        Raises Replan when it is settled, and Refused where the replica can't understand it.
        """
        planned = self._replication.record.planned
        match step_of(planned):
            case PlannedStep.PROMISED | PlannedStep.CONFIRMED:
                assert planned is not None
                await self._promise(planned)
            case PlannedStep.TAKING_BACK | PlannedStep.FORCED:
                assert planned is not None
                await self._take_back(planned)
            case PlannedStep.FAILED_OVER:
                # An administrator has it tried again, and the replica does not refuse it: it was removed there.
                await self._step(PlannedEvent.ANSWERED, f"{self._dialled.welcome.host} is not failed over any more.")
                await let_writes(self._parts)

    async def _promise(self, planned: PlannedRecord) -> None:
        assert planned.cut is not None
        assert planned.token is not None
        self._check_version()
        cut, host = planned.cut.position, self._dialled.welcome.host
        self._dialled.channel.send(FailoverPrepare(token=planned.token, cut=WirePosition.of(cut)))
        answer = await self._answers.get()
        if isinstance(answer, FailoverVoided):
            text = f"The planned failover is given up, since {host} does not take the token: {answer.text}"
            await self._step(PlannedEvent.REFUSED, text)
            await let_writes(self._parts)
            raise Replan("the token was not taken")
        expect(answer, FailoverPrepared)
        if planned.step is PlannedStep.PROMISED:
            await self._step(PlannedEvent.CONFIRMED, f"{host} holds the token for cut {cut}.")
        # Until the replica is failed over, which ends the connection, or an order comes, which plans anew.
        while self._replication.record.planned is not None:
            await self._replication.changed.wait()

    async def _take_back(self, planned: PlannedRecord) -> None:
        assert planned.token is not None
        if planned.step is PlannedStep.FORCED and not self._dialled.channel.session.plans:
            # It was told what is risked, and such a replica does not know what a token is.
            return
        self._check_version()
        self._dialled.channel.send(FailoverVoid(token=planned.token))
        expect(await self._answers.get(), FailoverVoided)
        host = self._dialled.welcome.host
        await self._step(PlannedEvent.VOIDED, f"{host} holds no token any more.")
        await let_writes(self._parts)
        raise Replan("the token was taken back")

    def _check_version(self) -> None:
        if not self._dialled.channel.session.plans:
            raise Refused(
                "The replica runs a version that knows no planned failovers, and may hold the token of one.",
                "Upgrade it again.",
                code="version",
            )

    async def deliver(self, sender: LogSender) -> None:
        """While the log is streamed: once writes are stopped, nothing behind their cut is sent, and when the replica
        has applied it the token is put on record. Raises Replan then.
        """
        while True:
            news, heard = self._replication.changed.upcoming(), self._heard.upcoming()
            planned = self._replication.record.planned
            cut = planned.cut.position if planned is not None and planned.cut is not None else None
            if step_of(planned) is not PlannedStep.SENDING or cut is None:
                sender.go_on()
                await news.wait()
                continue
            sender.hold_after(cut.segment)
            if not self._dialled.channel.session.plans:
                # Its program was replaced since the order was given, and could not take the token.
                await fail(self._parts, f"{self._dialled.welcome.host} runs a version that knows no planned failovers.")
                continue
            if self._received == cut == self._applied:
                await self._mint(cut)
            if self._is_past(cut):
                await fail(self._parts, f"The replica stands at {self._received}, which is past the cut {cut}.")
                continue
            await first_of(news.wait(), heard.wait())

    def _is_past(self, cut: Position) -> bool:
        received = self._received
        return received is not None and received.epoch == cut.epoch and received.segment > cut.segment

    async def _mint(self, cut: Position) -> None:
        """The token is durable, and with it that the cut was acknowledged, before it can be sent (R43)."""
        ports, acked = self._parts.surroundings.ports, self._replication.acked
        if acked is None or acked.position != cut:
            # Acknowledged in an earlier session, before this agent was started; nothing was written since.
            self._replication.acked = Acked(cut, int(ports.clock.wall() * 1e9))
        await self._replication.store_progress()
        await self._step(PlannedEvent.DELIVERED, f"The replica stands at cut {cut}.", token=ports.random.bytes(16))
        raise Replan("the promote token is sent")

    async def _step(self, event: PlannedEvent, text: str, *, token: bytes | None = None) -> None:
        """Take a step. Raises Replan where an order came in between."""
        try:
            await advance(self._parts, event, text, token=token)
        except InvalidStateError as error:
            raise Replan("the planned failover was taken back") from error
