"""How a session with the replica ends when it is over for a reason of its own, not because a link or a tap failed."""

from __future__ import annotations

from shared.errors import UnreachableError, VmreplicaError
from shared.planning import AwaitReverse, Decision, Fenced, GeometryMismatch, SplitBrain, Unrelated


class Replan(Exception):
    """The session's work no longer fits; plan anew at once."""


class Refused(VmreplicaError):
    """The two sides don't fit together; that does not heal by itself."""


class FencedOff(VmreplicaError):
    """The VM was failed over at the replica (I8). ``split`` where this side may have moved on as well."""

    code = "fenced"

    def __init__(self, text: str, *, split: bool) -> None:
        super().__init__(text)
        self.split = split


class NotReversedError(UnreachableError):
    """The former primary's host is not the replica yet: tried again, like a host that does not answer."""

    code = "not_reversed"


def conclude(decision: Decision, name: str) -> None:
    """Raises FencedOff, NotReversedError or Refused where nothing may be sent of the VM ``name``."""
    match decision:
        case Fenced(text=text):
            raise FencedOff(text, split=False)
        case SplitBrain(text=text):
            raise FencedOff(text, split=True)
        case AwaitReverse():
            raise NotReversedError(
                f"The host that was the primary of {name} does not keep its copy yet.",
                f"Run `vmreplica reverse {name}` there. Where it is gone for good, `vmreplica resume {name} "
                "--resynchronize` here makes the first copy on the replica that is set.",
            )
        case Unrelated(text=text):
            raise Refused(text, "Remove the VM at the replica, or replicate to another one.", code="unrelated")
        case GeometryMismatch(text=text):
            remedy = (
                "Bring the disks to the same sizes, or remove the VM at the replica and start anew. What was made "
                f"larger here, `vmreplica resize {name}` takes over."
            )
            raise Refused(f"The disks differ: {text}.", remedy, code="geometry")
