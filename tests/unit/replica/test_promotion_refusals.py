"""Who is told that a VM was failed over to here, and who only that its host is not the replica yet (I8, R41)."""

from __future__ import annotations

import pytest

from protocol.messages import ErrorCode, Open, Role, WireAncestor
from replica_agent.promotion import refused_after_failover
from replica_agent.record import PromotionRecord

BEFORE, PROMOTED, LATER, NEWEST = (bytes([number]) * 16 for number in range(1, 5))


def step(epoch: bytes, parent: bytes) -> WireAncestor:
    return WireAncestor(epoch=epoch, parent=parent, parent_segment=3)


@pytest.mark.parametrize(
    ("epoch", "lineage", "code"),
    [
        (BEFORE, [], ErrorCode.FENCED),
        (LATER, [step(LATER, BEFORE)], ErrorCode.FENCED),
        (PROMOTED, [], ErrorCode.BUSY),
        (NEWEST, [step(PROMOTED, BEFORE), step(LATER, PROMOTED), step(NEWEST, LATER)], ErrorCode.BUSY),
        # After a compare of whole disks a copy does not know how its first baseline's parent came about.
        (NEWEST, [step(LATER, PROMOTED), step(NEWEST, LATER)], ErrorCode.BUSY),
    ],
    ids=["before", "beside it", "of it", "after it", "after a whole compare"],
)
def test_whose_history_goes_on_from_the_failover_is_not_fenced(
    epoch: bytes, lineage: list[WireAncestor], code: ErrorCode
) -> None:
    record = PromotionRecord(epoch=PROMOTED, parent=BEFORE, parent_segment=3, entry=7, time=1.0, host="beta")
    body = Open(role=Role.CONTROL, vm=bytes(16), name="web", disks=[], epoch=epoch, lineage=lineage)
    assert refused_after_failover(record, "web", body, written=True).code == code.value
