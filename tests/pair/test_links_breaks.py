"""The link breaks in ways that are noticed at once: cut in a frame, damaged, refused, again and again."""

from __future__ import annotations

import random

import pytest

from primary_agent import session_loop
from primary_agent.session_loop import JITTER, SessionLoop
from shared.events import EventId
from tests.pair.links import LinkedPair
from tests.pair.rig import MIB
from tests.pair.watching import Watch

FLAPS = 40


async def test_cut_in_the_middle_of_a_frame(linked: LinkedPair) -> None:
    """N1: wherever it is cut, nothing partial is exposed, and what follows goes on from the last whole cut."""
    await linked.replicate(6 * MIB)
    rng = random.Random(1)
    epoch = linked.vm.parts.replication.record.epoch
    await linked.write(0, "write -s /dev/urandom 0 4M")
    await linked.cut()
    async with Watch() as watch:
        for number, at in enumerate((1, 20, 33, 5000, 1 << 16, rng.randrange(200_000), rng.randrange(1_500_000))):
            before, accepted = linked.copy.point(), linked.proxy.accepted
            linked.proxy.up.cut_after = at
            await linked.write(0, f"write -s /dev/urandom {(number % 2) * 2}M 2M")
            await linked.until("the cut", lambda: linked.proxy.up.cut_after is None)
            await linked.broken(accepted)
            point = linked.copy.point()
            # While cuts are applied there is none.
            assert before is None or point is None or point.segment >= before.segment
            await linked.up()
        await linked.ends_well()
        await linked.gave_back(watch)
    watch.assert_flat(memory=96 * MIB)
    # A cut cable is no reason for a compare.
    assert linked.vm.parts.replication.record.epoch == epoch
    assert all("broke" in text or "was cut" in text for text in await linked.retries())


async def test_link_that_flaps(linked: LinkedPair) -> None:
    """N5: whatever was held for a link is given back, however often it goes."""
    await linked.replicate(4 * MIB)
    loop, reached = linked.vm.parts.link, linked.proxy.accepted
    async with Watch() as watch:
        for number in range(FLAPS):
            await linked.until("a link", lambda: loop.dialled is not None)
            if number % 5 == 0:
                await linked.write(0, f"write -P {number + 1} {number % 4}M 64k")
            linked.proxy.reset()
            await linked.until("its end", lambda: loop.dialled is None)
            loop.poke.notify()
        await linked.ends_well()
        await linked.gave_back(watch)
    watch.assert_flat(memory=24 * MIB)
    assert linked.proxy.accepted - reached >= FLAPS
    # One event for each outage, none for each attempt.
    assert len(await linked.retries()) <= FLAPS + 1


async def test_attempts_back_off_with_jitter_and_are_shown(linked: LinkedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """N5: each wait is about twice the one before up to a limit, no two hosts wait alike, and an order ends it."""
    monkeypatch.setattr(session_loop, "BACKOFF_LAST_SECONDS", 1.0)
    waits: list[float] = []
    draw = SessionLoop._next_delay

    def noted(loop: SessionLoop) -> float:
        waits.append(draw(loop))
        return waits[-1]

    monkeypatch.setattr(SessionLoop, "_next_delay", noted)
    await linked.replicate(2 * MIB)
    waits.clear()
    linked.proxy.refusing = True
    linked.proxy.reset()
    await linked.until("attempts", lambda: len(waits) > 6)
    text = await linked.shown()
    assert "down" in text and any(word in text for word in ("can't be reached", "ended", "broke")), text
    assert "next attempt in" in text
    status = (await linked.vm.status()).link
    assert status.attempts > 5 and status.since_time is not None and not status.connected
    nominal = [min(0.1 * 2**at, 1.0) for at in range(len(waits))]
    for wait, most in zip(waits, nominal, strict=True):
        assert (1 - JITTER) * most <= wait <= most
    assert len({wait / most for wait, most in zip(waits, nominal, strict=True)}) > 3
    # The outage is told once, however many attempts it takes.
    told = len(await linked.retries())
    await linked.until("more attempts", lambda: len(waits) > 9)
    assert len(await linked.retries()) == told
    linked.proxy.refusing = False
    await linked.ends_well()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_bit_that_flips_on_the_way(linked: LinkedPair, way: str) -> None:
    """N9: TLS notices it, the link is made anew, and it is told and counted."""
    await linked.replicate(4 * MIB)
    getattr(linked.proxy, way).flip_after = 40
    await linked.write(0, "write -s /dev/urandom 1M 1M")
    await linked.until("the damage", lambda: linked.vm.parts.link.damaged == 1)
    await linked.ends_well()
    (text,) = [text for text in await linked.retries() if "damaged" in text]
    assert "on its way" in text
    (event,) = [event for event in await linked.events(EventId.WILL_RETRY) if event["cause"] == "damaged"]
    assert event["text"] == text
    assert (await linked.vm.status()).link.damaged == 1
    assert "damaged" in await linked.shown()


async def test_bytes_that_come_one_at_a_time(linked: LinkedPair) -> None:
    """N10: handshake, greeting, log and answers, all in single bytes."""
    await linked.replicate(2 * MIB)
    linked.proxy.up.piece = linked.proxy.down.piece = 1
    linked.proxy.reset()
    await linked.down()
    await linked.write(0, "write -s /dev/urandom 64k 12k", "write -z 1M 64k", "discard 128k 64k")
    await linked.ends_well()
    assert linked.proxy.up.piece == 1
