"""Verifies of a VM that lives through all faults: what they say is compared with what the oracle knows of their cut."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from tests.simulation.oracle import Violation

if TYPE_CHECKING:
    from shared.status import VerifyResult
    from tests.simulation.world import World

BLOCK = 65536


class Verifies:
    """Orders verifies, and judges their results: nobody edits the replica's disks, so that nothing may differ."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.equal = 0

    def begin(self) -> None:
        """Order one."""
        if "P" in self.world.agents:
            self.world.count("verify")
            self.world.order(self.world.primary, self._follow)

    async def _follow(self, vm: Any) -> None:
        verifier = vm.verifier
        before = verifier.record.last
        await verifier.order(repair=self.world.rng.random() < 0.3)
        while verifier.status().running:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        result = verifier.record.last
        if result is before or result is None:
            return
        try:
            self._judge(result)
        except Violation as violation:
            self.world.fail(violation)

    def _judge(self, result: VerifyResult) -> None:
        self.world.tell(f"verify: {result.outcome}: {result.text}")
        if result.different_bytes > result.unreadable_bytes:
            raise Violation(f"R46: a verify gave a false alarm: {result.text} {result.different}")
        if result.outcome != "equal":
            return
        assert result.cut is not None
        truth = self.world.oracle.cuts.get((bytes.fromhex(result.cut.epoch), result.cut.segment))
        if truth is None:
            raise Violation(f"R46: a verify was made at cut {result.cut.segment}, which was never made")
        found = {image.disk: image.sha256 for image in result.images}
        wanted = {disk: digest(content) for disk, content in enumerate(truth)}
        if found != wanted:
            raise Violation(f"R46: a verify proved another image than that of cut {result.cut.segment}")
        self.equal += 1


def digest(content: bytes) -> str:
    """As docs/verify.md has it."""
    image = hashlib.sha256()
    for at in range(0, len(content), BLOCK):
        image.update(hashlib.sha256(content[at : at + BLOCK]).digest())
    return image.hexdigest()
