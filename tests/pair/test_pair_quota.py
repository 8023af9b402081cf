"""A quota that is used up while a guest writes: the primary is told what is missing, and goes on when there is more."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shared.events import EventId
from tests.pair.rig import MIB, Pair

pytestmark = pytest.mark.slow


async def test_primary_is_told_what_its_quota_lacks_and_goes_on_by_itself(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await pair.assert_same()

    async def limit(quota: int) -> None:
        config = pair.replica.config
        entries = [msgspec.structs.replace(entry, quota_bytes=quota) for entry in config.authorize]
        await pair.replica.reload(msgspec.structs.replace(config, authorize=entries))

    point = pair.copy.point()
    before = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    await limit(MIB)
    await pair.write(0, "write -P 0x77 1M 2M")
    link = pair.vm.parts.link
    await pair.until("the refusal", lambda: link.last_error_code == "no_space")
    assert "is used up" in link.last_error and "are missing" in link.last_error and "quota_bytes" in link.last_error
    assert link.retryable
    assert pair.copy.point() == point and Path(pair.copy.parts.layout.disk(0)).read_bytes() == before
    await limit(64 * MIB)
    link.poke.notify()
    await pair.assert_same()
    assert await pair.events(EventId.RESYNC_REQUIRED) == []
