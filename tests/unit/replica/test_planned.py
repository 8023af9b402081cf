"""The promote token at the replica: for exactly one cut, durable, and one answer whatever crosses what (R43, I8)."""

from __future__ import annotations

import asyncio

import pytest

from protocol.messages import ErrorCode, FailoverPrepare, FailoverPrepared, FailoverVoid, FailoverVoided, WirePosition
from protocol.position import Position
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import World
from tests.unit.replica.test_failover import failover
from tests.unit.replica.test_sessions import Pair, dialler_of, refusal_of, refused_open, replicating

TOKEN, OTHER = b"t" * 16, b"u" * 16


def prepare(cut: Position, token: bytes = TOKEN) -> FailoverPrepare:
    return FailoverPrepare(token=token, cut=WirePosition.of(cut))


def held(vm: ReplicaVm) -> bytes | None:
    return vm.ledger.prepared.token if vm.ledger.prepared is not None else None


async def ask(pair: Pair, token: bytes = TOKEN) -> FailoverPrepared:
    pair.control.channel.send(prepare(pair.tap.position, token))
    return await pair.control.expect(FailoverPrepared)


async def test_token_is_durable_and_makes_the_failover_a_planned_one(world: World) -> None:
    async with replicating(world) as pair:
        answer = await ask(pair)
        assert (answer.token, answer.cut) == (TOKEN, WirePosition.of(pair.tap.position))
        cut = pair.tap.position
    async with world.agent() as agent:
        vm = agent.vms[VM]
        status = status_of(vm)
        assert status.planned is not None and status.planned.step == "prepared"
        assert status.planned.chain == cut.chain.hex()
        assert not any("behind" in reason or "old" in reason for reason in status.reasons), "nothing is late"
        await failover(vm)
        record = vm.ledger.promotion
        assert record is not None and record.planned is not None
        assert (record.planned.token, record.planned.cut.position) == (TOKEN, cut)
        assert (record.parent, record.parent_segment, record.entry) == (cut.epoch, cut.segment, cut.entry)
        assert held(vm) is None
        told = status_of(vm).planned
        assert told is not None and "nothing is lost" in told.text and cut.chain.hex() in told.text
    async with world.agent() as agent:
        assert agent.vms[VM].ledger.promotion == record or agent.vms[VM].ledger.promotion is not None
        # The answer to a primary that asks again, or wants the token back.
        assert (await refused_open(dialler_of(world, agent))).code == ErrorCode.FENCED


async def test_failover_without_a_token_says_so(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await failover(vm)
        record = vm.ledger.promotion
        assert record is not None and record.planned is None
        (event,) = [e for e in await vm.ledger.store.events(limit=100, after=0) if e["name"] == "promoted"]
        assert "It was not prepared at the primary" in event["text"] and event["data"]["planned"] is False


@pytest.mark.parametrize("other", ["segment", "chain", "epoch"])
async def test_token_for_any_other_cut_is_not_taken(world: World, other: str) -> None:
    """Zero loss is proven by position and chain: nothing near it will do."""
    async with replicating(world) as pair:
        at = pair.tap.position
        wrong = {
            "segment": Position(at.epoch, at.segment + 1, at.entry, at.chain),
            "chain": Position(at.epoch, at.segment, at.entry, b"x" * 16),
            "epoch": Position(b"z" * 16, at.segment, at.entry, at.chain),
        }[other]
        await ask(pair, OTHER)
        pair.control, _ = await pair.dialler.open()
        pair.control.channel.send(prepare(wrong))
        answer = await pair.control.expect(FailoverVoided)
        assert answer.token == TOKEN and str(wrong) in answer.text
        assert held(pair.agent.vms[VM]) is None, "after this answer no token is here at all"


async def test_what_was_received_and_not_applied_is_no_point_yet(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        async with vm.parts.applier.turn:
            await pair.control.send_segment(pair.tap, pair.rng)
            pair.control.channel.send(prepare(pair.tap.position))
            assert "the newest point is" in (await pair.control.expect(FailoverVoided)).text
        await pair.control.until_applied(pair.tap.position)
        await ask(pair)
        assert held(vm) == TOKEN


async def test_asked_again_it_answers_the_same_and_another_token_takes_its_place(world: World) -> None:
    async with replicating(world) as pair:
        for _ in range(2):
            await ask(pair)
            pair.control, _ = await pair.dialler.open()
        await ask(pair, OTHER)
        assert held(pair.agent.vms[VM]) == OTHER
        events = await pair.agent.vms[VM].ledger.store.events(limit=100, after=0)
        assert [e["cause"] for e in events if e["name"] == "planned_failover"] == ["prepared", "void", "prepared"]


async def test_token_that_was_taken_back_makes_no_failover_a_planned_one(world: World) -> None:
    async with replicating(world) as pair:
        await ask(pair)
        pair.control.channel.send(FailoverVoid(token=TOKEN))
        assert (await pair.control.expect(FailoverVoided)).text == ""
        # Where none is: the answer was lost, and the question is repeated.
        pair.control.channel.send(FailoverVoid(token=TOKEN))
        await pair.control.expect(FailoverVoided)
        await failover(pair.agent.vms[VM])
        record = pair.agent.vms[VM].ledger.promotion
        assert record is not None and record.planned is None


async def test_log_of_a_primary_that_goes_on_voids_the_token(world: World) -> None:
    """One that was brought back to before it sent the token, or whose administrator forced it, did not wait."""
    async with replicating(world) as pair:
        await ask(pair)
        pair.control, _ = await pair.dialler.open()
        await pair.control.send_segment(pair.tap, pair.rng)
        assert held(pair.agent.vms[VM]) is None


async def test_failover_and_taking_back_at_once_have_one_outcome(world: World) -> None:
    """I8: the primary hears that the token is gone, or that the VM was failed over, and nothing in between."""
    for first in ("void", "failover"):
        async with replicating(world) as pair:
            await ask(pair)
            vm = pair.agent.vms[VM]
            if first == "void":
                pair.control.channel.send(FailoverVoid(token=TOKEN))
                deciding = asyncio.ensure_future(vm.promotion.decide())
                await asyncio.sleep(0)
            else:
                deciding = asyncio.ensure_future(vm.promotion.decide())
                await asyncio.sleep(0)
                pair.control.channel.send(FailoverVoid(token=TOKEN))
            answered = False
            try:
                await pair.control.expect(FailoverVoided)
                answered = True
            except Exception:
                assert pair.control.channel.closed
            assert await deciding
            record = vm.ledger.promotion
            assert record is not None
            assert not (answered and record.planned is not None), "the primary took writes again"
            assert (await refused_open(pair.dialler)).code == ErrorCode.FENCED
        await world_anew(world)


async def world_anew(world: World) -> None:
    import shutil

    shutil.rmtree(world.folder_of())


async def test_token_is_not_taken_once_the_vm_is_failed_over(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        assert await vm.promotion.decide()
        assert (await refusal_of(pair.control)).code in (ErrorCode.BUSY, ErrorCode.FENCED)
        assert (await refused_open(pair.dialler)).code == ErrorCode.FENCED
        assert held(vm) is None
