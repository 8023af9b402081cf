"""The replication states of a VM and, for each side, the one table of transitions between them.

The states and their numbers are Hyper-V Replica's ``VMReplicationState``; they never change and are never
reused. A transition that the table does not name is an error (event 32546), never a silent no-op.
``docs/states.md`` is drawn from these tables.
"""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum
from typing import TypeVar

from shared.errors import InvalidStateError


class ReplicationState(IntEnum):
    """What replication of a VM is doing, in Hyper-V Replica's numbering."""

    DISABLED = 0
    READY_FOR_INITIAL_REPLICATION = 1
    INITIAL_REPLICATION_IN_PROGRESS = 2
    WAITING_FOR_INITIAL_REPLICATION = 3
    REPLICATING = 4
    PREPARED_FOR_FAILOVER = 5
    FAILED_OVER_WAITING_COMPLETION = 6
    FAILED_OVER = 7
    SUSPENDED = 8
    ERROR = 9
    WAITING_FOR_START_RESYNCHRONIZE = 10
    RESYNCHRONIZING = 11
    RESYNCHRONIZE_SUSPENDED = 12
    RECOVERY_IN_PROGRESS = 13
    FAILBACK_IN_PROGRESS = 14
    FAILBACK_COMPLETE = 15
    WAITING_FOR_UPDATE_COMPLETION = 16
    UPDATE_ERROR = 17
    WAITING_FOR_REPURPOSE_COMPLETION = 18
    PREPARED_FOR_SYNC_REPLICATION = 19
    PREPARED_FOR_GROUP_REVERSE_REPLICATION = 20
    FIREDRILL_IN_PROGRESS = 21

    @property
    def title(self) -> str:
        """The name as Hyper-V Replica writes it, e.g. ``WaitingForStartResynchronize``."""
        return "".join(word.capitalize() for word in self.name.split("_"))


class Health(IntEnum):
    """Replication health, in Hyper-V Replica's numbering."""

    NOT_APPLICABLE = 0
    NORMAL = 1
    WARNING = 2
    CRITICAL = 3

    @property
    def title(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_"))


class PrimaryEvent(Enum):
    """What can happen to a VM's replication on the side that runs it."""

    ENABLED = "enabled"
    INITIAL_SCHEDULED = "initial replication scheduled"
    INITIAL_STARTED = "initial replication started"
    INITIAL_COMPLETED = "initial replication completed"
    INITIAL_CANCELLED = "initial replication cancelled"
    SUSPENDED = "suspended by the administrator"
    RESUMED = "resumed by the administrator"
    INITIAL_RESUMED = "initial replication resumed by the administrator"
    RESYNC_REQUIRED = "resynchronization is required"
    RESYNC_STARTED = "resynchronization started"
    RESYNC_COMPLETED = "resynchronization completed"
    RESYNC_CANCELLED = "resynchronization cancelled"
    FENCED = "failed over at the replica"
    PREPARED = "the promote token of a planned failover leaves for the replica"
    PREPARATION_ENDED = "the planned failover is off"
    PREPARATION_LOST = "the planned failover is off, and a resynchronization is required"
    RETRIED = "tried again by the administrator after a failover"
    UNFENCED = "resumed after a failover: it was undone, or the administrator asks for it"
    TAKEN_OVER = "taken over from this host's replica agent: the direction was reversed"
    REMOVED = "replication removed"


class ReplicaEvent(Enum):
    """What can happen to a VM's replication on the side that keeps the copy."""

    CREATED = "created for a primary"
    INITIAL_STARTED = "initial replication started"
    INITIAL_COMPLETED = "initial replication completed"
    INITIAL_DROPPED = "initial replication dropped"
    SUSPENDED = "suspended by the administrator"
    RESUMED = "resumed by the administrator"
    RESYNC_REQUIRED = "resynchronization is required"
    RESYNC_STARTED = "resynchronization started"
    RESYNC_COMPLETED = "resynchronization completed"
    RESYNC_DROPPED = "resynchronization dropped"
    RESYNC_CANCELLED = "resynchronization cancelled"
    PROMOTED = "promoted"
    FAILOVER_UNDONE = "failover undone"
    FAILOVER_COMMITTED = "failover committed"
    HANDED_OVER = "handed over to this host's primary agent: the direction was reversed"
    TAKEN_BACK = "the hand-over was taken back"
    TAKEN_OVER = "taken over from this host's primary agent: the direction was reversed"
    GIVEN_UP = "the failover was given up by the administrator"
    REMOVED = "replication removed"


class PlannedStep(StrEnum):
    """How far the preparation of a planned failover has got at the primary. The values are stored and shown."""

    STOPPING = "stopping"
    """The tap is being told to take no writes."""
    SENDING = "sending"
    """No writes are taken, and the replica has to receive and apply the cut behind the last one."""
    PROMISED = "promised"
    """The promote token is on record, and may be at the replica by now (R43)."""
    CONFIRMED = "confirmed"
    """The replica has the token: it may be failed over without loss."""
    TAKING_BACK = "taking back"
    """It is to be aborted, which needs the replica's answer."""
    FORCED = "forced"
    """It was aborted without the replica's answer: writes are taken, and the token may still be there."""
    FAILED_OVER = "failed over"
    """The replica was failed over, and no writes are taken here."""
    GIVEN_UP = "given up"
    """Nothing is prepared, and writes are taken. The replica holds no token."""


class PlannedEvent(Enum):
    """What can happen to the preparation of a planned failover."""

    ORDERED = "ordered"
    STOPPED = "the tap takes no writes, and the cut is sealed"
    DELIVERED = "the replica has received and applied the cut"
    CONFIRMED = "the replica holds the token"
    REFUSED = "the replica does not take the token"
    FAILED = "it can't go on"
    ABORTED = "aborted"
    FORCED = "aborted by force"
    VOIDED = "the replica's answer: the token is gone"
    FENCED = "failed over at the replica"
    ANSWERED = "tried again by the administrator, and the replica is not failed over any more"


_S = ReplicationState
_P = PrimaryEvent
_R = ReplicaEvent

PRIMARY_TRANSITIONS: dict[tuple[ReplicationState, PrimaryEvent], ReplicationState] = {
    (_S.DISABLED, _P.ENABLED): _S.READY_FOR_INITIAL_REPLICATION,
    (_S.DISABLED, _P.TAKEN_OVER): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.READY_FOR_INITIAL_REPLICATION, _P.INITIAL_STARTED): _S.INITIAL_REPLICATION_IN_PROGRESS,
    (_S.READY_FOR_INITIAL_REPLICATION, _P.INITIAL_SCHEDULED): _S.WAITING_FOR_INITIAL_REPLICATION,
    (_S.READY_FOR_INITIAL_REPLICATION, _P.FENCED): _S.FAILED_OVER,
    # Put off to another time, or begun now.
    (_S.WAITING_FOR_INITIAL_REPLICATION, _P.INITIAL_SCHEDULED): _S.WAITING_FOR_INITIAL_REPLICATION,
    (_S.WAITING_FOR_INITIAL_REPLICATION, _P.INITIAL_STARTED): _S.INITIAL_REPLICATION_IN_PROGRESS,
    (_S.WAITING_FOR_INITIAL_REPLICATION, _P.INITIAL_CANCELLED): _S.READY_FOR_INITIAL_REPLICATION,
    (_S.WAITING_FOR_INITIAL_REPLICATION, _P.FENCED): _S.FAILED_OVER,
    (_S.INITIAL_REPLICATION_IN_PROGRESS, _P.INITIAL_COMPLETED): _S.REPLICATING,
    (_S.INITIAL_REPLICATION_IN_PROGRESS, _P.INITIAL_CANCELLED): _S.READY_FOR_INITIAL_REPLICATION,
    (_S.INITIAL_REPLICATION_IN_PROGRESS, _P.SUSPENDED): _S.SUSPENDED,
    (_S.INITIAL_REPLICATION_IN_PROGRESS, _P.FENCED): _S.FAILED_OVER,
    (_S.REPLICATING, _P.SUSPENDED): _S.SUSPENDED,
    (_S.REPLICATING, _P.RESYNC_REQUIRED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.REPLICATING, _P.FENCED): _S.FAILED_OVER,
    (_S.SUSPENDED, _P.INITIAL_CANCELLED): _S.READY_FOR_INITIAL_REPLICATION,
    # A suspended VM stays so, whatever it will need when it is resumed; the causes are recorded beside the
    # state.
    (_S.SUSPENDED, _P.RESYNC_REQUIRED): _S.SUSPENDED,
    (_S.SUSPENDED, _P.RESUMED): _S.REPLICATING,
    (_S.SUSPENDED, _P.INITIAL_RESUMED): _S.INITIAL_REPLICATION_IN_PROGRESS,
    (_S.WAITING_FOR_START_RESYNCHRONIZE, _P.RESYNC_REQUIRED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.WAITING_FOR_START_RESYNCHRONIZE, _P.RESYNC_STARTED): _S.RESYNCHRONIZING,
    (_S.WAITING_FOR_START_RESYNCHRONIZE, _P.SUSPENDED): _S.SUSPENDED,
    (_S.WAITING_FOR_START_RESYNCHRONIZE, _P.FENCED): _S.FAILED_OVER,
    # Tracking lost during a resync: it starts anew under another epoch.
    (_S.RESYNCHRONIZING, _P.RESYNC_REQUIRED): _S.RESYNCHRONIZING,
    (_S.RESYNCHRONIZING, _P.RESYNC_COMPLETED): _S.REPLICATING,
    (_S.RESYNCHRONIZING, _P.RESYNC_CANCELLED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.RESYNCHRONIZING, _P.SUSPENDED): _S.RESYNCHRONIZE_SUSPENDED,
    (_S.RESYNCHRONIZING, _P.FENCED): _S.FAILED_OVER,
    (_S.RESYNCHRONIZE_SUSPENDED, _P.RESYNC_REQUIRED): _S.RESYNCHRONIZE_SUSPENDED,
    (_S.RESYNCHRONIZE_SUSPENDED, _P.RESUMED): _S.RESYNCHRONIZING,
    (_S.RESYNCHRONIZE_SUSPENDED, _P.RESYNC_CANCELLED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.REPLICATING, _P.PREPARED): _S.PREPARED_FOR_FAILOVER,
    (_S.PREPARED_FOR_FAILOVER, _P.PREPARATION_ENDED): _S.REPLICATING,
    (_S.PREPARED_FOR_FAILOVER, _P.PREPARATION_LOST): _S.WAITING_FOR_START_RESYNCHRONIZE,
    # The replica may be failed over at any moment, so that nothing can be begun here; the causes are recorded.
    (_S.PREPARED_FOR_FAILOVER, _P.RESYNC_REQUIRED): _S.PREPARED_FOR_FAILOVER,
    (_S.PREPARED_FOR_FAILOVER, _P.FENCED): _S.FAILED_OVER,
    (_S.FAILED_OVER, _P.RESYNC_REQUIRED): _S.FAILED_OVER,
    (_S.FAILED_OVER, _P.FENCED): _S.FAILED_OVER,
    (_S.FAILED_OVER, _P.RETRIED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    # Whether it was undone the next session tells, also where an administrator believes it: until then nothing is sent.
    (_S.FAILED_OVER, _P.UNFENCED): _S.REPLICATING,
    # Fenced before it had a baseline: its initial replication is begun anew.
    (_S.FAILED_OVER, _P.INITIAL_CANCELLED): _S.READY_FOR_INITIAL_REPLICATION,
} | {(state, _P.REMOVED): _S.DISABLED for state in _S if state is not _S.DISABLED}

REPLICA_TRANSITIONS: dict[tuple[ReplicationState, ReplicaEvent], ReplicationState] = {
    (_S.DISABLED, _R.CREATED): _S.READY_FOR_INITIAL_REPLICATION,
    (_S.READY_FOR_INITIAL_REPLICATION, _R.INITIAL_STARTED): _S.INITIAL_REPLICATION_IN_PROGRESS,
    (_S.INITIAL_REPLICATION_IN_PROGRESS, _R.INITIAL_STARTED): _S.INITIAL_REPLICATION_IN_PROGRESS,
    (_S.INITIAL_REPLICATION_IN_PROGRESS, _R.INITIAL_COMPLETED): _S.REPLICATING,
    (_S.INITIAL_REPLICATION_IN_PROGRESS, _R.INITIAL_DROPPED): _S.READY_FOR_INITIAL_REPLICATION,
    (_S.REPLICATING, _R.SUSPENDED): _S.SUSPENDED,
    (_S.REPLICATING, _R.RESYNC_REQUIRED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.REPLICATING, _R.RESYNC_STARTED): _S.RESYNCHRONIZING,
    (_S.REPLICATING, _R.PROMOTED): _S.FAILED_OVER_WAITING_COMPLETION,
    (_S.SUSPENDED, _R.RESUMED): _S.REPLICATING,
    (_S.SUSPENDED, _R.RESYNC_REQUIRED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.SUSPENDED, _R.PROMOTED): _S.FAILED_OVER_WAITING_COMPLETION,
    (_S.WAITING_FOR_START_RESYNCHRONIZE, _R.RESYNC_REQUIRED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.WAITING_FOR_START_RESYNCHRONIZE, _R.RESYNC_STARTED): _S.RESYNCHRONIZING,
    (_S.WAITING_FOR_START_RESYNCHRONIZE, _R.PROMOTED): _S.FAILED_OVER_WAITING_COMPLETION,
    (_S.RESYNCHRONIZING, _R.RESYNC_STARTED): _S.RESYNCHRONIZING,
    (_S.RESYNCHRONIZING, _R.RESYNC_REQUIRED): _S.RESYNCHRONIZING,
    (_S.RESYNCHRONIZING, _R.RESYNC_COMPLETED): _S.REPLICATING,
    (_S.RESYNCHRONIZING, _R.RESYNC_DROPPED): _S.WAITING_FOR_START_RESYNCHRONIZE,
    # By its primary, and nothing is wrong on this side: what it holds is what it held before.
    (_S.RESYNCHRONIZING, _R.RESYNC_CANCELLED): _S.REPLICATING,
    (_S.RESYNCHRONIZING, _R.PROMOTED): _S.FAILED_OVER_WAITING_COMPLETION,
    # Back to what it was; what else was on record before the failover is told by the events for it.
    (_S.FAILED_OVER_WAITING_COMPLETION, _R.FAILOVER_UNDONE): _S.REPLICATING,
    (_S.FAILED_OVER_WAITING_COMPLETION, _R.FAILOVER_COMMITTED): _S.FAILED_OVER,
    (_S.FAILED_OVER_WAITING_COMPLETION, _R.HANDED_OVER): _S.FAILED_OVER,
    (_S.FAILED_OVER, _R.HANDED_OVER): _S.FAILED_OVER,
    (_S.FAILED_OVER, _R.TAKEN_BACK): _S.FAILED_OVER,
    (_S.DISABLED, _R.TAKEN_OVER): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.READY_FOR_INITIAL_REPLICATION, _R.TAKEN_OVER): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.FAILED_OVER, _R.TAKEN_OVER): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.FAILED_OVER_WAITING_COMPLETION, _R.GIVEN_UP): _S.WAITING_FOR_START_RESYNCHRONIZE,
    (_S.FAILED_OVER, _R.GIVEN_UP): _S.WAITING_FOR_START_RESYNCHRONIZE,
} | {(state, _R.REMOVED): _S.DISABLED for state in _S if state is not _S.DISABLED}

_L = PlannedStep
_E = PlannedEvent

PLANNED_TRANSITIONS: dict[tuple[PlannedStep, PlannedEvent], PlannedStep] = {
    (_L.GIVEN_UP, _E.ORDERED): _L.STOPPING,
    (_L.STOPPING, _E.STOPPED): _L.SENDING,
    (_L.STOPPING, _E.FAILED): _L.GIVEN_UP,
    (_L.STOPPING, _E.ABORTED): _L.GIVEN_UP,
    (_L.STOPPING, _E.FENCED): _L.FAILED_OVER,
    (_L.SENDING, _E.DELIVERED): _L.PROMISED,
    (_L.SENDING, _E.FAILED): _L.GIVEN_UP,
    (_L.SENDING, _E.ABORTED): _L.GIVEN_UP,
    (_L.SENDING, _E.FENCED): _L.FAILED_OVER,
    # From here on only the replica's answer leads back, or force (R43).
    (_L.PROMISED, _E.CONFIRMED): _L.CONFIRMED,
    (_L.PROMISED, _E.REFUSED): _L.GIVEN_UP,
    (_L.PROMISED, _E.ABORTED): _L.TAKING_BACK,
    (_L.PROMISED, _E.FORCED): _L.FORCED,
    (_L.PROMISED, _E.FENCED): _L.FAILED_OVER,
    (_L.CONFIRMED, _E.CONFIRMED): _L.CONFIRMED,
    (_L.CONFIRMED, _E.REFUSED): _L.GIVEN_UP,
    (_L.CONFIRMED, _E.ABORTED): _L.TAKING_BACK,
    (_L.CONFIRMED, _E.FORCED): _L.FORCED,
    (_L.CONFIRMED, _E.FENCED): _L.FAILED_OVER,
    (_L.TAKING_BACK, _E.ABORTED): _L.TAKING_BACK,
    (_L.TAKING_BACK, _E.VOIDED): _L.GIVEN_UP,
    (_L.TAKING_BACK, _E.FORCED): _L.FORCED,
    (_L.TAKING_BACK, _E.FENCED): _L.FAILED_OVER,
    (_L.FORCED, _E.VOIDED): _L.GIVEN_UP,
    (_L.FORCED, _E.FENCED): _L.FAILED_OVER,
    (_L.FAILED_OVER, _E.FENCED): _L.FAILED_OVER,
    (_L.FAILED_OVER, _E.ANSWERED): _L.GIVEN_UP,
}

PLANNED_HOLDS = frozenset({_L.STOPPING, _L.SENDING, _L.PROMISED, _L.CONFIRMED, _L.TAKING_BACK, _L.FAILED_OVER})
"""Steps in which the tap takes no writes."""
PLANNED_TOKEN = frozenset({_L.PROMISED, _L.CONFIRMED, _L.TAKING_BACK})
"""Steps in which the replica may hold the token while nothing is written here."""

E = TypeVar("E", PrimaryEvent, ReplicaEvent)


def _follow(
    table: dict[tuple[ReplicationState, E], ReplicationState], state: ReplicationState, event: E
) -> ReplicationState:
    after = table.get((state, event))
    if after is None:
        raise InvalidStateError(
            f"{event.value!r} is not possible in state {state.title}.",
            "Look at the state with `vmreplica status`.",
        )
    return after


def primary_transition(state: ReplicationState, event: PrimaryEvent) -> ReplicationState:
    """The state after ``event`` at the primary. Raises InvalidStateError where the table has no such
    transition.
    """
    return _follow(PRIMARY_TRANSITIONS, state, event)


def replica_transition(state: ReplicationState, event: ReplicaEvent) -> ReplicationState:
    """The state after ``event`` at the replica. Raises InvalidStateError where the table has no such
    transition.
    """
    return _follow(REPLICA_TRANSITIONS, state, event)


def planned_transition(step: PlannedStep, event: PlannedEvent) -> PlannedStep:
    """The step after ``event``. Raises InvalidStateError where the table has no such transition."""
    after = PLANNED_TRANSITIONS.get((step, event))
    if after is None:
        raise InvalidStateError(
            f"{event.value!r} is not possible where the preparation of a planned failover is {step.value!r}.",
            "Look at the state with `vmreplica status`.",
        )
    return after


def tables_page() -> str:
    """The page ``docs/states.md``: states, numbers and both tables, in Markdown."""
    reached = set(PRIMARY_TRANSITIONS.values()) | set(REPLICA_TRANSITIONS.values())
    lines = [
        "# States of replication",
        "",
        "Drawn from `shared/states.py` by `scripts/draw-states`; a test keeps the two equal. Names and numbers are",
        "Hyper-V Replica's and never change. States marked – have their number, but nothing leads to them yet.",
        "",
        "| number | state | reached |",
        "|---|---|---|",
        *(f"| {state.value} | {state.title} | {'yes' if state in reached else '–'} |" for state in ReplicationState),
        "",
        "A transition that a table does not name is refused with event 32546 and changes nothing. `replication",
        "removed` leads from every state to Disabled and is left out below.",
        "",
        "## At the primary",
        "",
        *_table_lines(PRIMARY_TRANSITIONS),
        "",
        "## At the replica",
        "",
        *_table_lines(REPLICA_TRANSITIONS),
        "",
        "## Of a planned failover",
        "",
        "How far its preparation has got at the primary, beside the state; what each step promises tells",
        "[planned-failover.md](planned-failover.md). Tap takes writes: in `forced` and `given up` only.",
        "",
        "| step | event | step after |",
        "|---|---|---|",
        *(
            f"| {before.value} | {event.value} | {after.value} |"
            for (before, event), after in PLANNED_TRANSITIONS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _table_lines(table: dict[tuple[ReplicationState, E], ReplicationState]) -> list[str]:
    rows: list[str] = [
        f"| {before.title} | {event.value} | {after.title} |"
        for (before, event), after in sorted(table.items(), key=lambda item: item[0][0])
        if event.name != "REMOVED"
    ]
    return ["| state | event | state after |", "|---|---|---|", *rows]
