"""Answers what a plan of the primary asks: tags of some places of the newest point, read and nothing else.

The disks may be changed by an apply meanwhile: a sample is an estimate, and nothing is ever settled by it.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import ProtocolError
from protocol.messages import ErrorCode, Sample, SamplePlace, SampleRequest
from protocol.position import NO_EPOCH
from replica_agent.finishing import finish
from replica_agent.parts import VmParts
from replica_agent.refusals import Refusal
from shared.channel import Channel
from shared.disks.hashing import HASH_NAMES, KEY_BYTES, TAG_BYTES, RangeHasher

REQUESTS_MAX = 16
"""Questions of one connection."""
PLACES_AT_ONCE = 32
"""Places that are read before whoever else needs the order of the VM's changes gets it."""


async def answer_samples(parts: VmParts, channel: Channel) -> None:
    """Answer until the primary closes; raises that, or ProtocolError or Refusal for what is not to be answered."""
    for _ in range(REQUESTS_MAX):
        request = await channel.receive()
        if not isinstance(request, SampleRequest):
            raise ProtocolError(f"{type(request).__name__} is not expected here", code="state")
        hasher = _judge(parts, request)
        tags = bytearray()
        for first in range(0, len(request.places), PLACES_AT_ONCE):
            places = request.places[first : first + PLACES_AT_ONCE]
            async with parts.order:
                if parts.ledger.promotion is not None:
                    raise Refusal(ErrorCode.FENCED, "The VM was failed over here.")
                tags += await finish(parts.ports.workers.run(_tags, parts, hasher, places))
        channel.send(Sample(tags=bytes(tags)))
        await channel.drain()
    raise ProtocolError(f"more than {REQUESTS_MAX} questions on one connection", code="state")


def _judge(parts: VmParts, request: SampleRequest) -> RangeHasher:
    if parts.ledger.replication.epoch == NO_EPOCH:
        raise Refusal(ErrorCode.STATE, "The replica has no recovery point that a sample could be taken of.")
    if request.hash not in HASH_NAMES:
        raise ProtocolError(f"no hash {request.hash!r}", code="version")
    if len(request.key) != KEY_BYTES:
        raise ProtocolError(f"a key of {len(request.key)} bytes; it must have {KEY_BYTES}")
    for place in request.places:
        size = parts.disks.sizes.get(place.disk)
        if size is None or place.offset + place.length > size:
            raise ProtocolError(f"{place.length} bytes at {place.offset} of disk {place.disk} are not there")
    # A place may be of any length, so the hasher's own block size counts for nothing.
    return RangeHasher(request.key, 512, request.hash)


def _tags(parts: VmParts, hasher: RangeHasher, places: Sequence[SamplePlace]) -> bytes:
    """Blocks. What can't be read, or is not trusted, has a tag that nothing has."""
    parts.disks.open()
    tags = bytearray()
    for place in places:
        try:
            if parts.ledger.replication.reread:
                raise OSError("the disk is not trusted")
            file = parts.disks.file(place.disk)
            tags += hasher.detail(file, [(place.offset, place.length)], place.length).tobytes()
        except OSError:
            tags += parts.ports.random.bytes(TAG_BYTES)
    return bytes(tags)
