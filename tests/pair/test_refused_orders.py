"""Orders that a VM's state does not allow: each is refused, and on record as event 32546, by whichever way it came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primary_agent import admin as primary_admin
from replica_agent import admin as replica_admin
from shared.errors import InvalidStateError
from shared.events import EventId
from tests.connected import Connected
from tests.pair.hosts import MIB
from tests.pair.rig import Pair

ORDERS = [
    ("primary", "vm.initial", {}, "initial", "administrator"),
    ("primary", "vm.hand_over", {}, "reverse", "administrator"),
    ("replica", "vm.resume", {}, "resume", "resume"),
    ("replica", "vm.import_seed", {"seeds": [{"disk": 0, "path": "/nowhere"}]}, "import", "import"),
]
"""Role, method and what goes with it, the verb in the event's text, and its cause: one for each way."""


async def test_order_that_the_state_does_not_allow_is_on_record(pair: Pair, tmp_path: Path) -> None:
    await pair.replicate(4 * MIB)
    tables = {
        "primary": primary_admin.AdminMethods(pair.primary).table(),
        "replica": replica_admin.AdminMethods(pair.replica).table(),
    }
    administrator: Any = Connected()

    async def on_record(role: str) -> list[dict[str, Any]]:
        asked = {"vm": "web", "limit": 1000, "events": [int(EventId.INVALID_STATE)]}
        return list((await tables[role]["events"](asked, administrator)).events)

    for role, method, params, verb, cause in ORDERS:
        before = await on_record(role)
        with pytest.raises(InvalidStateError) as refused:
            await tables[role][method]({"vm": "web", **params}, administrator)
        (event,) = [each for each in await on_record(role) if each not in before]
        assert refused.value.code == "invalid_state", method
        assert verb in event["text"] and refused.value.text in event["text"], method
        assert (event["event"], event["level"], event["cause"]) == (32546, "warning", cause), method
    assert (await pair.vm.status()).state == "Replicating", "nothing was changed"
