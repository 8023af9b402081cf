"""Records that TLS refuses because they are not what the peer sent: which failures mean that, and how it is told."""

from __future__ import annotations

from shared.errors import DAMAGED_LINK, UnreachableError

_FAILURES = frozenset({"DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "SSLV3_ALERT_BAD_RECORD_MAC"})
# In a handshake these come from a peer that speaks something else.
_FAILURES_BEHIND_HANDSHAKE = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "BAD_RECORD_TYPE",
        "UNEXPECTED_RECORD",
        "PACKET_LENGTH_TOO_LONG",
        "ENCRYPTED_LENGTH_TOO_LONG",
        "LENGTH_TOO_SHORT",
        "RECORD_LENGTH_MISMATCH",
        "TLSV1_ALERT_RECORD_OVERFLOW",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "SSLV3_ALERT_UNEXPECTED_MESSAGE",
    }
)


def is_damage(reason: str, *, secured: bool) -> bool:
    """Whether OpenSSL's ``reason`` means that bytes were changed; ``secured``: the handshake was over."""
    return reason in _FAILURES or (secured and reason in _FAILURES_BEHIND_HANDSHAKE)


def damaged(address: str, *, noticed_there: bool) -> UnreachableError:
    """The error for it; ``noticed_there``: the peer's alert told us."""
    who = f"{address} received from us" if noticed_there else f"we received from {address}"
    return UnreachableError(
        f"The link was ended because data that {who} was damaged on its way: TLS refused it, and none of it was used.",
        "If this repeats, look for failing hardware, or something that changes the traffic, between the hosts.",
        code=DAMAGED_LINK,
    )
