"""Orders to a VM at the replica: carried out to their end, and put on record where the state refuses them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from replica_agent.finishing import finish
from replica_agent.vm import ReplicaVm
from shared.errors import InvalidStateError
from shared.events import EventId

T = TypeVar("T")


async def ordered(vm: ReplicaVm, verb: str, order: Coroutine[Any, Any, T]) -> T:
    """What the order came to, whatever is cancelled. One that the state does not allow is event 32546, and raised."""
    try:
        return await finish(order)
    except InvalidStateError as error:
        await vm.ledger.note(EventId.INVALID_STATE, f"{verb} was refused: {error.text}", cause=verb)
        raise
