"""What fails and does not heal by itself: put on record once, and taken off it once it works again."""

from __future__ import annotations

from primary_agent.replication import Replication
from shared.errors import VmreplicaError
from shared.events import EventId
from shared.status import Cause


async def set_problem(replication: Replication, error: VmreplicaError, number: EventId) -> bool:
    """Put a failure on record, with an event of that number; False if it is there already (told once)."""
    problem = replication.record.problem
    if problem is not None and (problem.code, problem.text) == (error.code, error.text):
        return False
    event = replication.event(number, error.text, cause=error.code, data={"remedy": error.remedy})
    found = Cause(code=error.code, text=error.text, remedy=error.remedy, time=event["time"])
    await replication.update(event, problem=found)
    return True


async def clear_problem(replication: Replication) -> None:
    """What failed works again."""
    problem = replication.record.problem
    if problem is not None:
        event = replication.event(EventId.CONNECTED, f"Solved: {problem.text}", cause=problem.code)
        await replication.update(event, problem=None)


async def note_session(replication: Replication) -> None:
    """A session has begun: what failed works again, and the replica is not failed over, or no longer."""
    await clear_problem(replication)
    if replication.record.fenced:
        # From now on the tap takes writes again (primary_agent.fencing).
        await replication.update(fenced="", fence=None)
