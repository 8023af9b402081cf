"""What a seed stands for: the sizes, rates and faults of one run, drawn at random and printed when it fails."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from datetime import timedelta, timezone, tzinfo
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """All that is drawn from a seed before the run begins. Times in virtual seconds, rates per second.

    A fault with the rate 0 does not happen in that run: runs with few kinds of faults reach states that runs with all
    of them never stay in for long enough (swarm testing).
    """

    seed: int
    seconds: float
    """Length of the safety phase: load and faults."""
    calm_start: bool
    """Faults begin only after the initial replication."""
    pages: int
    """Size of each disk in pages of 4 KiB."""
    interval: float
    write_rate: float
    in_flight: int
    largest: int
    """Sectors of the longest write."""
    zeroes: float
    """Share of the writes that are zeroes and discards."""
    resets: float
    partitions: float
    kill_tap: float
    kill_primary: float
    kill_replica: float
    power_primary: float
    power_replica: float
    aimed: float
    """Deaths at a given operation of a process instead of at a given time, share of all kills."""
    crash_at_sync: float
    """Probability that a process, or its host, dies within milliseconds of a sync's beginning."""
    stalls: float
    """Probability that an operation in a worker or store takes seconds."""
    hiccups: float
    slow: float
    cold: float
    log_errors: float
    """One failure of a call on the tap's log: EIO or ENOSPC."""
    replica_errors: float
    """One EIO of a call on any file of the replica."""
    full_replica: float
    log_limit: int
    """Bytes of the tap's log; 0 for its default."""
    foreign_edits: float
    """Probability that a disk is edited behind our back while its tap is dead."""
    suspends: float
    resyncs: float
    exports: float
    promote_at: float | None
    agent_restarts: float
    """Orderly restarts of an agent."""
    tap_restarts: float
    """Orderly stops of the tap."""
    newest: int
    """Newest cuts that the replica keeps as recovery points."""
    hourly: int
    """Hourly recovery points that it keeps; its hours are short."""
    stops: float = 0.0
    """Orders to cancel the resync or initial replication that runs, if one does."""
    verifies: float = 0.0
    """Orders to verify."""
    windows: float = 0.0
    """Changes of how and when a required resync starts: mode, window, and what happens past its end."""
    put_off: float = 0.0
    """Orders to resynchronize a few seconds later; some of them are taken back."""
    overlays: float = 0.0
    """Writable exports that clients write to and read."""
    marks: float = 0.0
    """Points that are pinned, or no longer."""
    daily: int = 0
    """Daily recovery points that the replica keeps; its days are short."""
    prepares: float = 0.0
    """Orders to prepare a planned failover; each is taken back after a while, some by force."""
    older: float = 0.0
    """Share of the failovers that are to another point than the newest cut."""
    ends: float = 0.0
    """How soon a failover is undone or committed, while a guest writes to the promoted disks; 0 for never."""
    undone: float = 0.0
    """Share of these that are undone; what follows may be another failover."""
    reversals: float = 0.0
    """How often something dies while the direction is reversed after a failover; 0 for no reversal."""
    stale: float = 0.4
    """Share of the failovers before reversals after which the old primary's guest goes on."""
    kept: float = 0.3
    """Share of those failovers that are given up for what the old primary has."""
    again: float = 0.3
    """Share of the reversals after which the VM is failed over once more, back to where it was."""
    minute: float = 7.0
    """The local clocks show a full minute so many seconds after the run began."""

    @property
    def zone(self) -> tzinfo:
        """The time zone of both hosts. The world begins 20 s after a full minute."""
        return timezone(timedelta(seconds=round(40 - self.minute)))

    def __str__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            shown.append(f"{field.name}={value:.4g}" if isinstance(value, float) else f"{field.name}={value}")
        return " ".join(shown)


def draw(seed: int) -> Options:
    """The options of a seed."""
    rng = random.Random(seed * 2654435761 + 1)

    def swarm(share: float, *choices: float) -> float:
        """One of the rates, in that share of the seeds."""
        return rng.choice(choices) if rng.random() < share else 0.0

    seconds = rng.choice([6.0, 10.0, 14.0])
    return Options(
        seed=seed,
        seconds=seconds,
        calm_start=rng.random() < 0.6,
        pages=rng.choice([32, 64, 128]),
        interval=rng.choice([1.0, 1.0, 2.0]),
        write_rate=rng.choice([4.0, 15.0, 40.0]),
        in_flight=rng.choice([1, 4, 12]),
        largest=rng.choice([8, 64, 128]),
        zeroes=rng.choice([0.05, 0.2, 0.5]),
        resets=swarm(0.5, 0.1, 0.5, 2.0),
        partitions=swarm(0.3, 0.1, 0.3),
        kill_tap=swarm(0.4, 0.1, 0.4, 1.0),
        kill_primary=swarm(0.4, 0.1, 0.4, 1.0),
        kill_replica=swarm(0.4, 0.1, 0.4, 1.0),
        power_primary=swarm(0.35, 0.05, 0.2, 0.5),
        power_replica=swarm(0.4, 0.1, 0.3, 0.8),
        aimed=rng.choice([0.0, 0.5, 1.0]),
        crash_at_sync=swarm(0.35, 0.002, 0.02),
        stalls=swarm(0.3, 0.001, 0.005),
        hiccups=swarm(0.3, 0.002, 0.01),
        slow=rng.choice([0.005, 0.02, 0.1]),
        cold=rng.choice([0.0, 0.2]),
        log_errors=swarm(0.2, 0.05, 0.2),
        replica_errors=swarm(0.15, 0.05, 0.3),
        full_replica=swarm(0.15, 0.1, 0.3),
        log_limit=rng.choice([0, 0, 0, 8 << 20]),
        foreign_edits=swarm(0.15, 0.3),
        suspends=swarm(0.2, 0.1, 0.4),
        resyncs=swarm(0.35, 0.1, 0.5),
        exports=swarm(0.4, 0.2),
        promote_at=rng.uniform(1.0, seconds) if rng.random() < 0.3 else None,
        agent_restarts=swarm(0.2, 0.1, 0.3),
        tap_restarts=swarm(0.2, 0.1, 0.3),
        newest=rng.choice([1, 2, 2, 4]),
        hourly=rng.choice([0, 0, 2, 5]),
        stops=swarm(0.25, 0.2, 0.6),
        windows=swarm(0.25, 0.2, 0.6),
        put_off=swarm(0.2, 0.1, 0.3),
        minute=rng.uniform(2.0, seconds),
        verifies=swarm(0.3, 0.3, 1.0),
        overlays=swarm(0.3, 0.2),
        marks=swarm(0.3, 0.3, 1.0),
        daily=rng.choice([0, 0, 3]),
        # By a generator of their own: what older seeds stand for stays.
        older=random.Random(f"{seed}/older").choice((0.0, 0.0, 0.5)),
        ends=random.Random(f"{seed}/ends").choice((0.0, 0.0, 1.0, 2.0)),
        undone=random.Random(f"{seed}/undone").choice((0.2, 0.7)),
        prepares=random.Random(f"{seed}/prepares").choice((0.0, 0.0, 0.0, 0.0, 0.2, 1.0)),
        reversals=random.Random(f"{seed}/reversed").choice((0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.4, 1.0)),
    )


FAULTS = """
    resets partitions kill_tap kill_primary kill_replica power_primary power_replica aimed crash_at_sync stalls hiccups
    log_errors replica_errors full_replica foreign_edits suspends resyncs stops windows put_off exports agent_restarts
    tap_restarts verifies overlays marks daily prepares older ends undone reversals
""".split()


def calm(seed: int, **weather: Any) -> Options:
    """The options of a seed without any fault but those in ``weather``."""
    chosen: dict[str, Any] = {**dict.fromkeys(FAULTS, 0.0), "promote_at": None, "log_limit": 0, **weather}
    return dataclasses.replace(draw(seed), **chosen)
