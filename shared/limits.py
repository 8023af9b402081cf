"""What a status tells about limits: how near they are, and whom they kept out."""

from __future__ import annotations

import msgspec


class LimitsStatus(msgspec.Struct, kw_only=True):
    """Of a replica agent. Numbers of connections that were refused, or arrived, count from the agent's start."""

    half_open: int = 0
    """Connections that have not finished their TLS handshake."""
    half_open_limit: int = 0
    unopened: int = 0
    """Connections that have, and did not name a VM yet; their limit is the same."""
    sessions: int = 0
    """Connections that finished their handshake."""
    sessions_limit: int = 0
    memory_bytes: int = 0
    """What was received and is not stored yet."""
    memory_highest_bytes: int = 0
    memory_limit_bytes: int = 0
    arrived: int = 0
    secured: int = 0
    refused_handshakes: int = 0
    """Failed their TLS handshake, or did not finish it in time."""
    refused_rate: int = 0
    """Were not heard, since too many of their address came to nothing."""
    displaced: int = 0
    """Made room for others in the middle of their handshake, or before they named a VM."""
    refused_sessions: int = 0
    """Were too many, of their peer or altogether."""
    refused_unauthorized: int = 0
    """Asked for what their certificate may not have."""
    refused_protocol: int = 0
    """Broke the protocol."""
