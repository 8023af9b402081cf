"""What a network thinks of peers that it has accepted: whether it still would, and until when its certificates last.

A link goes on when certificates are loaded anew; whoever serves it asks here whether it may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.errors import ForbiddenError
    from shared.ports import Peer


@dataclass(frozen=True, slots=True)
class Credential:
    """Something that lasts until a day: ``what`` is ``own``, ``peer``, ``ca`` or ``crl``. Seconds since the epoch.

    ``path`` is the file that it was read from, empty for a peer's.
    """

    what: str
    subject: str
    issuer: str
    not_before: float
    not_after: float
    path: str = ""


class Trust:
    """That of a network without certificates: nobody is objected to, and nothing runs out."""

    def objection(self, peer: Peer) -> ForbiddenError | None:
        """Why a peer that was accepted would not be accepted now; None where it still would."""
        return None

    def credentials(self) -> tuple[Credential, ...]:
        """What this host's TLS rests on."""
        return ()

    def complaints(self) -> tuple[tuple[str, str], ...]:
        """What is wrong with it beside dates, as text and remedy."""
        return ()
