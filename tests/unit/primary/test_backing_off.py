"""How reading backs off for a guest, against a model of a disk whose latency rises with what is read beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from primary_agent.backing_off import BEARABLE, FLOOR, START, BackOff, Load, Usual
from shared.tap_control import GuestLatency

MIB = 1 << 20
STEP = 0.25
FASTEST = 1024 * MIB
"""What a compare reads when nothing holds it back, in bytes a second."""


@dataclass
class Host:
    """A guest with so many requests under way, and a disk: a request takes ``alone`` seconds, and as much again for
    each ``share`` bytes a second that are read beside it.
    """

    alone: float = 0.0005
    share: float = 100.0 * MIB
    depth: int = 4
    now: float = 1000.0
    read: float = 0.0
    latency: GuestLatency = field(default_factory=GuestLatency)
    control: BackOff = field(default_factory=BackOff)
    rates: list[float] = field(default_factory=list)
    stretches: list[float] = field(default_factory=list)

    def _pass(self, seconds: float, rate: float) -> None:
        stretch = 1 + rate / self.share
        self.now += seconds
        self.read += rate * seconds
        self.rates.append(rate)
        self.stretches.append(stretch)
        took = self.alone * stretch
        requests = int(self.depth * seconds / took)
        before = self.latency
        self.latency = GuestLatency(
            reads=before.reads + requests, read_seconds=before.read_seconds + requests * took, passes=before.passes + 1
        )

    def rest(self, seconds: float) -> None:
        """Nothing is compared."""
        for _ in range(int(seconds / 5)):
            self._pass(5, 0)
            self.control.quiet(self.latency, self.now)

    def compare(self, seconds: float) -> None:
        """It is read as fast as it is allowed to be; :meth:`BackOff.begin` was called."""
        control = self.control
        for _ in range(int(seconds / STEP)):
            rate = 0.0 if control.pausing else min(FASTEST, FASTEST if control.rate is None else control.rate)
            self._pass(STEP, rate)
            control.sample(self.latency, int(self.read), self.now)
            assert control.rate is None or control.rate >= FLOOR

    def begin(self) -> None:
        self.control.begin(self.now)

    def mean(self, seconds: float) -> tuple[float, float]:
        """Of the last seconds: bytes read a second, and how many times longer requests took than alone."""
        count = int(seconds / STEP)
        return sum(self.rates[-count:]) / count, sum(self.stretches[-count:]) / count


def test_rate_settles_where_the_guest_can_bear_it() -> None:
    host = Host()
    host.rest(60)
    host.begin()
    assert host.control.rate == START
    host.compare(60)
    rate, stretch = host.mean(40)
    assert stretch < 1.1 * BEARABLE
    assert 8 * MIB < rate < 40 * MIB
    told = host.control.judgement
    assert told is not None
    assert 0.9 * host.alone < told.usual < 1.1 * host.alone
    assert told.usual < told.latency < 2 * host.alone


def test_rate_never_falls_below_its_floor_and_reading_goes_on() -> None:
    host = Host(share=MIB)
    host.rest(60)
    host.begin()
    host.compare(120)
    rate, _ = host.mean(100)
    assert 0.7 * FLOOR < rate < 2 * FLOOR


def test_disk_that_is_fast_enough_for_both_is_read_without_limit() -> None:
    host = Host(share=100 * FASTEST)
    host.rest(60)
    host.begin()
    host.compare(10)
    assert host.control.rate is None
    assert host.control._fell_from is None


def test_idle_guest_holds_nothing_back() -> None:
    host = Host(depth=0)
    host.rest(60)
    host.begin()
    host.compare(30)
    assert set(host.rates[-100:]) == {FASTEST}
    assert host.control.judgement is None


def test_guest_that_falls_asleep_and_wakes_up() -> None:
    host = Host()
    host.rest(60)
    host.begin()
    host.compare(30)
    assert host.control.rate is not None
    host.depth = 0
    host.compare(3)
    assert host.control.rate is None
    host.depth = 4
    host.compare(30)
    assert host.mean(20)[1] < 1.1 * BEARABLE
    assert host.control.rate is not None


def test_what_is_usual_is_measured_without_the_compare_even_if_nothing_was_known_before() -> None:
    host = Host()
    host.begin()
    assert host.control.rate is None
    host.compare(90)
    assert abs(host.control.usual.latency["read"] - host.alone) < 0.1 * host.alone
    assert host.mean(60)[1] < 1.1 * BEARABLE


def test_compare_does_not_become_the_usual() -> None:
    host = Host()
    host.rest(300)
    host.begin()
    host.compare(300)
    assert abs(host.control.usual.latency["read"] - host.alone) < 0.1 * host.alone
    host.control.end()
    host.rest(300)
    assert abs(host.control.usual.latency["read"] - host.alone) < 0.1 * host.alone


def test_time_beside_another_compare_is_not_taken_for_the_usual() -> None:
    host = Host()
    host.rest(60)
    for _ in range(10):
        host._pass(5, FASTEST)
        host.control.disturbed()
    host.rest(10)
    assert abs(host.control.usual.latency["read"] - host.alone) < 0.1 * host.alone


def test_guest_that_became_slow_by_itself_is_not_blamed_on_reading() -> None:
    host = Host(share=100 * FASTEST)
    host.rest(60)
    host.begin()
    host.compare(10)
    host.alone *= 10
    host.compare(30)
    assert host.control.rate is None
    assert abs(host.control.usual.latency["read"] - host.alone) < 0.2 * host.alone


def test_usual_follows_a_guest_that_became_faster() -> None:
    host = Host()
    host.rest(60)
    host.begin()
    host.compare(30)
    host.alone /= 10
    host.compare(60)
    assert host.mean(30)[1] < 1.15 * BEARABLE


def test_falls_that_did_not_help_are_taken_back() -> None:
    host = Host(share=100 * FASTEST)
    host.rest(60)
    host.begin()
    host.compare(10)
    control = host.control
    host.alone *= 4
    host.compare(0.5)
    assert control.rate is not None
    host.compare(4)
    assert control.rate is None or control.rate >= FASTEST


def test_tap_that_does_not_answer_halves_the_rate_down_to_the_floor() -> None:
    host = Host()
    host.begin()
    host.control.silent()
    assert host.control.rate is None, "nothing was read yet"
    host.compare(1)
    before = host.rates[-1]
    host.control.silent()
    assert host.control.rate == before / 2
    for _ in range(20):
        host.control.silent()
    assert host.control.rate == FLOOR


def test_tap_that_falls_silent_in_a_pause_does_not_stop_reading() -> None:
    host = Host()
    host.begin()
    while not host.control.pausing:
        host.compare(STEP)
    host.control.silent()
    assert not host.control.pausing
    host.compare(30)
    assert host.mean(20)[1] < 1.1 * BEARABLE


def test_another_run_of_the_tap_begins_another_sample() -> None:
    host = Host()
    host.rest(60)
    host.begin()
    host.compare(10)
    rate = host.control.rate
    host.latency = GuestLatency()
    host.control.sample(host.latency, int(host.read), host.now)
    assert host.control.rate == rate
    host.compare(20)
    assert host.mean(10)[1] < 1.1 * BEARABLE


def test_lifted_at_once_by_order_and_remembered_from_compare_to_compare() -> None:
    host = Host()
    host.rest(60)
    host.begin()
    host.compare(10)
    host.control.lift(host.now)
    assert host.control.rate is None
    assert not host.control.pausing
    host.control.rate = 300.0 * MIB
    host.control.end()
    host.rest(20)
    host.begin()
    assert host.control.rate == 300 * MIB


def test_kinds_are_compared_with_their_own() -> None:
    """More writes than before are no reason to back off where each takes as long as ever."""
    usual = Usual()
    first = GuestLatency(reads=1000, read_seconds=0.01, writes=10, write_seconds=0.1, passes=100)
    load = Load.between(GuestLatency(), first)
    assert load is not None
    usual.learn(load, 1.0)
    second = GuestLatency(reads=1010, read_seconds=0.0101, writes=1010, write_seconds=10.1, passes=200)
    more = Load.between(first, second)
    assert more is not None
    expected = usual.expected(more)
    assert expected is not None
    assert abs(more.waited / expected - 1) < 0.01
    flushes = Load.between(second, GuestLatency(reads=1010, read_seconds=0.0101, writes=1010, write_seconds=10.1,
                                                flushes=50, flush_seconds=1.0, passes=250))  # fmt: skip
    assert flushes is not None
    assert usual.expected(flushes) is None


def test_waiting_for_a_processor_counts_for_all_requests_that_came_together() -> None:
    load = Load.between(GuestLatency(), GuestLatency(writes=320, write_seconds=0.1, passes=10, starved_seconds=0.02))
    assert load is not None
    assert abs(load.waited - (0.1 + 0.02 * 32)) < 1e-9
