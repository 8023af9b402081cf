"""How fast a VM's disks may be read beside its guest: slower when the guest's requests take longer than usual.

No input and no output: samples go in, the allowed rate comes out. What a request takes while nothing is compared is
the usual; the rate is what keeps requests near it. It falls by a share of itself at once, and rises in small steps
while the guest feels nothing, or fast while it asks for nothing. A guest's habits change, so that the usual is measured
anew in short pauses, in which nothing is read: where requests take long in them as well, it was not us.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from shared.tap_control import GuestLatency

MIB = 1 << 20
FLOOR = 4 * MIB
"""Bytes per second that are always allowed: a compare goes on beside the busiest guest."""
START = 64 * MIB
"""Where it begins beside a guest that is at work."""
CEILING = 16 << 30
"""A rate that has risen to this is none any more."""
BEARABLE = 1.25
"""Requests may take so many times the usual, no more."""
UNNOTICED = 1.12
"""Up to so many times the usual the guest counts as undisturbed, and the rate rises."""
FALL_MOST = 0.5
"""One sample brings the rate down to this share of itself at most."""
RISE = 1.15
RISE_FAST = 1.5
"""So much at each good sample: once it was too fast, and before that."""
RISE_IDLE = 2.0
NOT_BINDING = 4.0
"""A rate so many times higher than what is read is none any more."""
REQUESTS_MIN = 16
SAMPLES = 3
"""So many samples are judged together: one alone says little on a busy host."""
SAMPLE_SECONDS_MAX = 1.0
"""A sample is judged when it has so many requests, or has lasted so long."""
IDLE = 0.002
"""A guest waits for its disks for less than this share of the time: it counts as idle."""
PAUSE_EVERY = 20.0
PAUSE_SOON = 3.0
"""Seconds between pauses; the shorter ones while nothing is known, or requests take long."""
PAUSE_SETTLE = 0.1
"""Seconds in which what is being read when a pause begins comes to its end."""
PAUSE_MIN = 0.2
PAUSE_MAX = 1.0
"""What is measured in a pause: at least, and at most if there are few requests."""
PAUSE_WEIGHT = 0.75
"""How far one pause moves what is usual towards what it measured."""
QUIET_MEMORY = 60.0
"""Seconds in which what was usual counts for less by half, while nothing is compared."""
KINDS = ("read", "write", "flush", "processor")


@dataclass(frozen=True, slots=True)
class Load:
    """What a guest asked for in some time: for each kind how many, and how many seconds they took together.

    The kind ``processor`` is what all of them waited for one.
    """

    counts: dict[str, int]
    seconds: dict[str, float]

    @classmethod
    def between(cls, before: GuestLatency, after: GuestLatency) -> Load | None:
        """What came between two moments of one run of a tap; None where they are not of the same."""
        counts = {
            "read": after.reads - before.reads,
            "write": after.writes - before.writes,
            "flush": after.flushes - before.flushes,
        }
        seconds = {
            "read": after.read_seconds - before.read_seconds,
            "write": after.write_seconds - before.write_seconds,
            "flush": after.flush_seconds - before.flush_seconds,
        }
        passes = after.passes - before.passes
        starved = after.starved_seconds - before.starved_seconds
        if passes < 0 or starved < 0 or min(counts.values()) < 0:
            return None
        counts["processor"] = requests = sum(counts.values())
        seconds["processor"] = starved * requests / passes if passes else 0.0
        return cls(counts, seconds)

    def __add__(self, other: Load) -> Load:
        return Load(
            {kind: self.counts[kind] + other.counts[kind] for kind in KINDS},
            {kind: self.seconds[kind] + other.seconds[kind] for kind in KINDS},
        )

    @property
    def requests(self) -> int:
        return self.counts["processor"]

    @property
    def waited(self) -> float:
        """Seconds that all requests took together."""
        return sum(self.seconds.values())


NOTHING = Load(dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0))


@dataclass(slots=True)
class Usual:
    """What a request of each kind takes while nothing is compared, in seconds."""

    latency: dict[str, float] = field(default_factory=dict)

    def learn(self, load: Load, weight: float) -> None:
        """Move towards what was measured: ``weight`` 1 takes it as it is. A kind that was not known is taken so."""
        for kind in KINDS:
            if load.counts[kind]:
                found = load.seconds[kind] / load.counts[kind]
                known = self.latency.get(kind, found)
                self.latency[kind] = known + weight * (found - known)

    def lower(self, load: Load, weight: float) -> None:
        """Requests beside a compare take no less than without it: what is faster than usual corrects the usual."""
        stretch = self.stretch(load)
        if stretch is not None and stretch < 1:
            self.learn(load, weight)

    def stretch(self, load: Load) -> float | None:
        """How many times longer than usual these requests took; None where that can't be told."""
        expected = self.expected(load)
        return load.waited / expected if expected is not None and expected > 0 and load.waited > 0 else None

    def expected(self, load: Load) -> float | None:
        """Seconds that these requests would usually take; None where most of them are of a kind that is not known."""
        known = sum(load.counts[kind] for kind in KINDS[:-1] if kind in self.latency)
        if 2 * known < load.requests:
            return None
        # Kinds that are not known yet count as if they took what they take.
        return sum(
            load.counts[kind] * self.latency[kind] if kind in self.latency else load.seconds[kind] for kind in KINDS
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """The last sample: what a request took and usually takes, in seconds."""

    latency: float
    usual: float


class BackOff:
    """The allowed rate for one VM's disks. Times are monotonic seconds, in order; bytes are totals that only grow."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """Bytes per second, None for no limit."""
        self.pausing = False
        """Nothing is to be read now."""
        self.judgement: Judgement | None = None
        """None where the guest is idle, or nothing can be said yet."""
        self.usual = Usual()
        self._quiet: tuple[float, GuestLatency] | None = None
        self._idle = True
        """The guest asked for nothing, as far as is known."""
        self._mark: tuple[float, GuestLatency, int] | None = None
        """Where the sample that is being taken began."""
        self._loads: deque[Load] = deque(maxlen=SAMPLES)
        """The last samples at the present rate, which are judged together."""
        self._beside: deque[Load] = deque(maxlen=SAMPLES)
        """The last samples before a pause, at whatever rate."""
        self._reading = 0.0
        """Bytes per second in the last sample."""
        self._paused_at = 0.0
        """When the last pause began, or ended, or the compare began."""
        self._exceeded = False
        """It was too fast since it began."""
        self._fell_from: tuple[float | None] | None = None
        """The rate before it fell, where it fell since the last pause."""

    # --- while nothing is compared ---

    def quiet(self, latency: GuestLatency, now: float) -> None:
        """Nothing was compared since the last call of this, if that is known, or since :meth:`end`."""
        before, self._quiet = self._quiet, (now, latency)
        load = Load.between(before[1], latency) if before is not None else None
        if before is None or load is None or now <= before[0]:
            return
        seconds = now - before[0]
        self._idle = _is_idle(load, seconds)
        if load.requests >= REQUESTS_MIN:
            self.usual.learn(load, 1 - math.pow(0.5, seconds / QUIET_MEMORY))

    def disturbed(self) -> None:
        """Something is compared: what comes until the next :meth:`quiet` says nothing."""
        self._quiet = None

    # --- a compare ---

    def begin(self, now: float) -> None:
        """Reading begins: slowly beside a guest that is at work."""
        self.rate = None if self._idle else max(self.rate or START, START)
        self._begin(now)

    def lift(self, now: float) -> None:
        """Nothing holds reading back, until the next sample."""
        self.rate = None
        self._begin(now)

    def _begin(self, now: float) -> None:
        self.pausing, self.judgement, self._exceeded = False, None, False
        self._quiet = self._mark = self._fell_from = None
        self._loads.clear()
        self._beside.clear()
        self._reading = 0.0
        self._paused_at = now

    def end(self) -> None:
        """Reading has ended; the rate is remembered."""
        self.pausing, self.judgement = False, None
        self._mark = None

    def silent(self) -> None:
        """The tap does not answer: its guest fares no better. A pause ends, for reading goes on at some rate always."""
        self.pausing = False
        self._mark = None
        self._fall(FALL_MOST)

    def sample(self, latency: GuestLatency, read: int, now: float) -> None:
        """``read`` bytes were allowed until now, and so stand the guest's requests."""
        mark = self._mark
        load = Load.between(mark[1], latency) if mark is not None else None
        if mark is None or load is None:
            self._mark = now, latency, read
            return
        seconds = now - mark[0]
        if seconds <= 0:
            return
        if self.pausing:
            if self._measured(load, mark[0], seconds, now):
                self._mark = now, latency, read
        elif load.requests == 0 or load.requests >= REQUESTS_MIN or seconds >= SAMPLE_SECONDS_MAX:
            self._mark = now, latency, read
            self._reading = (read - mark[2]) / seconds
            self._judge(load, seconds, now)

    def _judge(self, load: Load, seconds: float, now: float) -> None:
        self._idle = _is_idle(load, seconds)
        if self._idle:
            self.judgement = None
            self._loads.clear()
            self._rise(RISE_IDLE)
            return
        self._loads.append(load)
        self._beside.append(load)
        since = now - self._paused_at
        together = sum(self._loads, NOTHING)
        stretch = self.usual.stretch(together)
        if stretch is None:
            # Until something is known, nobody says that it is too fast; a short compare is over before.
            if since >= PAUSE_SOON:
                self._pause(now)
            return
        self.judgement = Judgement(together.waited / together.requests, together.waited / stretch / together.requests)
        if stretch > BEARABLE:
            self._fall(max(FALL_MOST, BEARABLE / stretch))
            # It takes effect before it is judged again.
            self._loads.clear()
        elif stretch < UNNOTICED:
            self._rise(RISE if self._exceeded else RISE_FAST)
            self.usual.lower(load, 0.25)
        if since >= (PAUSE_EVERY if self._fell_from is None else PAUSE_SOON):
            self._pause(now)

    def _fall(self, share: float) -> None:
        # Where nothing is read just now, it is not reading that disturbs.
        rate = self.rate if self.rate is not None else self._reading
        if rate <= 0:
            return
        self._exceeded = True
        if self._fell_from is None:
            self._fell_from = (self.rate,)
        self.rate = max(FLOOR, rate * share)

    def _rise(self, times: float) -> None:
        if self.rate is not None:
            self.rate *= times
            if self.rate > CEILING or 0 < NOT_BINDING * self._reading < self.rate:
                self.rate = None

    # --- pauses ---

    def _pause(self, now: float) -> None:
        self.pausing = True
        self._paused_at = now

    def _measured(self, load: Load, begun: float, seconds: float, now: float) -> bool:
        """Whether another sample begins now: what is measured, when nothing is being read any more, or the next."""
        if begun < self._paused_at + PAUSE_SETTLE:
            return now >= self._paused_at + PAUSE_SETTLE
        enough = load.requests >= REQUESTS_MIN or load.requests == 0
        if seconds < (PAUSE_MIN if enough else PAUSE_MAX):
            return False
        self.usual.learn(load, 1.0 if self.usual.stretch(load) is None else PAUSE_WEIGHT)
        now_usual = Usual()
        now_usual.learn(load, 1.0)
        stretch = now_usual.stretch(sum(self._beside, NOTHING))
        if self._fell_from is not None and stretch is not None and stretch < UNNOTICED:
            # Requests take as long without us: that it fell was for nothing.
            (self.rate,) = self._fell_from
        self._fell_from = None
        self._loads.clear()
        self._beside.clear()
        self.pausing, self._paused_at = False, now
        return True


def _is_idle(load: Load, seconds: float) -> bool:
    return load.requests == 0 or load.waited < IDLE * seconds
