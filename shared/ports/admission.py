"""Which of the connections that arrive are worked on: a cap on those not let in yet, and a rate for each address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Generic, TypeVar

HALF_OPEN_MAX = 64
"""Connections of all listeners that have not finished their TLS handshake, or still hear why it failed."""
FAILURES_PER_MINUTE = 120
"""Connections of one address in a minute that come to nothing."""
SUCCESSES_PER_FAILURE = 10
"""So many connections that are let in count as one that came to nothing: a handshake is work, too."""
ADDRESSES_MAX = 4096
"""Addresses whose rate is remembered; the one that was not heard of for the longest goes first."""

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class AdmissionCounts:
    """What became of the connections since the start."""

    accepted: int = 0
    """Connections that arrived."""
    secured: int = 0
    """Finished their handshake."""
    refused: int = 0
    """Failed it, or did not finish it in time."""
    displaced: int = 0
    """Were ended in the middle of it, to make room for others."""
    over_rate: int = 0
    """Were ended at once, since too many of their address came to nothing."""


class Admission(Generic[K]):
    """Decides for one listening side. Times are monotonic seconds; a ``half_open_max`` of the whole side holds, too.

    A connection costs its address one of ``failures_per_minute`` (0: there is no rate) when it arrives, and gets most
    of that back when it is let in: so an authorized peer may come back with all its sessions at once, while an address
    that only ever fails is heard less and less.
    """

    def __init__(self, half_open_max: int = HALF_OPEN_MAX, failures_per_minute: int = FAILURES_PER_MINUTE) -> None:
        self.counts = AdmissionCounts()
        self._half_open_max = half_open_max
        self._per_minute = failures_per_minute
        self._half_open: dict[K, str] = {}
        """The oldest first, with what counts as its address."""
        self._left: dict[str, tuple[float, float]] = {}
        """What each address may still spend, and when that was true; the ones heard of last stand last."""

    @property
    def half_open(self) -> int:
        """Connections that are not let in yet."""
        return len(self._half_open)

    def may_try(self, host: str, now: float) -> bool:
        """Whether a connection of ``host`` that arrived is worked on at all."""
        self.counts.accepted += 1
        if self._spend(network_of(host), 1.0, now):
            return True
        self.counts.over_rate += 1
        return False

    def begin(self, connection: K, host: str) -> K | None:
        """Take up a connection. The one to be ended for it, where there are too many: the oldest of the host that has
        most, so that a flood hits itself.
        """
        place = network_of(host)
        oldest = None
        if len(self._half_open) >= self._half_open_max:
            busiest, _ = Counter(self._half_open.values()).most_common(1)[0]
            oldest = next(each for each, its in self._half_open.items() if its == busiest)
            del self._half_open[oldest]
            self.counts.displaced += 1
        self._half_open[connection] = place
        return oldest

    def let_in(self, connection: K, now: float) -> None:
        """The connection finished its handshake."""
        place = self._half_open.pop(connection, None)
        self.counts.secured += 1
        if place is not None:
            self._spend(place, 1.0 / SUCCESSES_PER_FAILURE - 1.0, now)

    def end(self, connection: K) -> None:
        """The connection is gone, or said all that was left to say."""
        self._half_open.pop(connection, None)

    def _spend(self, place: str, cost: float, now: float) -> bool:
        if not self._per_minute:
            return True
        left, at = self._left.pop(place, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        enough = left >= cost
        self._left[place] = (min(self._per_minute, left - cost) if enough else left, now)
        if len(self._left) > ADDRESSES_MAX:
            del self._left[next(iter(self._left))]
        return enough


def network_of(host: str) -> str:
    """What counts as one address: of IPv6 the network of 64 bits, all of which one machine may have."""
    if ":" not in host:
        return host
    return IPv6Address(host.partition("%")[0]).packed[:8].hex()
