"""Random blocks of what a resync would read, compared with the replica's before anything starts: how much differs.

The replica is asked on a connection of its own for the tags of these places, and changes nothing for it. Of some blocks
that differ the smaller blocks are compared as well, since only those would be sent.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from primary_agent.dialing import dial, expect, open_body
from primary_agent.record import DiskRecord
from primary_agent.replication import Replication
from primary_agent.surroundings import Surroundings
from primary_agent.survey import Survey
from primary_agent.tap_link import Connection
from protocol.errors import ProtocolError
from protocol.messages import (
    BLOCK_SIZE,
    DETAIL_BYTES,
    MAX_SAMPLED,
    ResyncKind,
    Role,
    Sample,
    SamplePlace,
    SampleRequest,
)
from shared.channel import Channel
from shared.disks.hashing import TAG_BYTES, RangeHasher, best_hash_name
from shared.errors import VmreplicaError
from shared.ports import Address, FileSystem, Ports, Random

SAMPLE_SECONDS = 60.0
LOOKED_CLOSER = MAX_SAMPLED // (BLOCK_SIZE // DETAIL_BYTES)
"""So many blocks that differ are compared by smaller blocks."""


Difference = tuple[SamplePlace, bool]
"""A place that differs, and whether one side has nothing but zeroes there: then it is sent wholly."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was found, for a resync of that ``kind``, at ``time`` (monotonic seconds)."""

    kind: ResyncKind
    time: float
    blocks: int
    different: int
    all: bool
    """These are all blocks there are."""
    pieces: int = 0
    """Smaller blocks that were compared in blocks that differ,"""
    different_pieces: int = 0
    """and those of them that differ."""

    @property
    def detail(self) -> float:
        """Which part differs of a block that does."""
        return self.different_pieces / self.pieces if self.pieces else 1.0


def choose(random: Random, found: Survey, disks: Sequence[DiskRecord], wanted: int) -> tuple[list[SamplePlace], bool]:
    """At most ``wanted`` random blocks of what is no hole, each at most once, in order; whether these are all."""
    by_path = {disk.path: disk for disk in disks}
    firsts = [offset // BLOCK_SIZE for _, (offset, _) in found.extents]
    counts = [
        -(-(offset + length) // BLOCK_SIZE) - first
        for (_, (offset, length)), first in zip(found.extents, firsts, strict=True)
    ]
    ends = list(accumulate(counts))
    total = ends[-1] if ends else 0
    everything = total <= wanted
    chosen = range(total) if everything else _distinct(random, total, wanted)
    places: dict[tuple[int, int], SamplePlace] = {}
    for number in chosen:
        at = bisect_right(ends, number)
        disk = by_path[found.extents[at][0]]
        offset = (firsts[at] + number - (ends[at] - counts[at])) * BLOCK_SIZE
        length = min(BLOCK_SIZE, disk.size - offset)
        places[disk.index, offset] = SamplePlace(disk=disk.index, offset=offset, length=length)
    return [places[key] for key in sorted(places)], everything and not found.thinned


def _distinct(random: Random, total: int, wanted: int) -> list[int]:
    """``wanted`` different numbers below ``total``, which is larger."""
    numbers: set[int] = set()
    while len(numbers) < wanted:
        numbers.add(int.from_bytes(random.bytes(8), "little") % total)
    return sorted(numbers)


async def compare_sample(
    surroundings: Surroundings,
    replication: Replication,
    connection: Connection,
    address: Address,
    kind: ResyncKind,
    found: Survey,
    wanted: int,
) -> Sampled:
    """Compare random blocks with the replica. Raises VmreplicaError, ProtocolError, OSError or TimeoutError."""
    ports, disks = surroundings.ports, replication.vm.disks
    places, everything = choose(ports.random, found, disks, wanted)
    now = ports.clock.monotonic()
    if not places:
        return Sampled(kind, now, 0, 0, all=True)
    paths = {disk.index: disk.path for disk in disks}
    hasher = RangeHasher(ports.random.bytes(32), BLOCK_SIZE, best_hash_name())
    async with asyncio.timeout(SAMPLE_SECONDS):
        channel = (await dial(surroundings, address, open_body(replication, connection, role=Role.SAMPLE))).channel
        try:
            different = await _differing(ports, channel, hasher, paths, places)
            looked_at = _spread(different, LOOKED_CLOSER)
            closer = [
                SamplePlace(disk=place.disk, offset=at, length=min(DETAIL_BYTES, place.offset + place.length - at))
                for place, wholly in looked_at
                if not wholly
                for at in range(place.offset, place.offset + place.length, DETAIL_BYTES)
            ]
            pieces = len(await _differing(ports, channel, hasher, paths, closer))
        except BaseException:
            channel.abort("the sample was given up")
            raise
        await channel.close("the sample is taken")
    whole = sum(-(-place.length // DETAIL_BYTES) for place, wholly in looked_at if wholly)
    return Sampled(
        kind,
        now,
        len(places),
        len(different),
        all=everything,
        pieces=whole + len(closer),
        # What is written meanwhile may be equal now: of a block that differed something does.
        different_pieces=whole + max(pieces, sum(not wholly for _, wholly in looked_at)),
    )


def _spread(places: Sequence[Difference], wanted: int) -> list[Difference]:
    """At most ``wanted`` of them, evenly."""
    count = min(wanted, len(places))
    return [places[number * len(places) // count] for number in range(count)]


async def _differing(
    ports: Ports, channel: Channel, hasher: RangeHasher, paths: dict[int, str], places: Sequence[SamplePlace]
) -> list[Difference]:
    """Those places where the replica holds something else. Raises ProtocolError or OSError."""
    different: list[Difference] = []
    zeroes = {length: hasher.tag(bytes(length)) for length in {place.length for place in places}}
    for first in range(0, len(places), MAX_SAMPLED):
        asked = list(places[first : first + MAX_SAMPLED])
        channel.send(SampleRequest(key=hasher.key, hash=hasher.name, places=asked))
        ours = await ports.workers.run(_tags, ports.files, hasher, paths, asked)
        answer = await channel.receive()
        expect(answer, Sample)
        assert isinstance(answer, Sample)
        if len(answer.tags) != TAG_BYTES * len(asked):
            raise ProtocolError(f"SAMPLE with {len(answer.tags)} bytes of tags for {len(asked)} places")
        theirs = [answer.tags[at : at + TAG_BYTES] for at in range(0, len(answer.tags), TAG_BYTES)]
        different += [
            (place, zeroes[place.length] in (one, other))
            for place, one, other in zip(asked, ours, theirs, strict=True)
            if one != other
        ]
    return different


def _tags(files: FileSystem, hasher: RangeHasher, paths: dict[int, str], places: Sequence[SamplePlace]) -> list[bytes]:
    """This side's tags. Blocks. Raises OSError."""
    opened = {index: files.open_disk(paths[index]) for index in {place.disk for place in places}}
    try:
        return [
            hasher.detail(opened[place.disk], [(place.offset, place.length)], place.length).tobytes()
            for place in places
        ]
    finally:
        for file in opened.values():
            file.close()


def why_not(error: Exception) -> str:
    """Why no sample was taken, in words."""
    match error:
        case TimeoutError():
            return f"it did not answer within {SAMPLE_SECONDS:.0f} s"
        case VmreplicaError() | ProtocolError():
            return error.text.rstrip(".")
    return str(error)
