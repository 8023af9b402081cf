"""What a channel received and nobody took yet, in order and within bounds."""

from __future__ import annotations

from collections import deque

from protocol.bulk import Bulk
from protocol.session import Message
from shared.budget import Budget

MESSAGE_COST = 512
"""A message costs at least this much of the bounds, in bytes, so that many small ones are bounded, too."""


class Inbox:
    """Messages in order: ``full`` says that no more should be read for it, ``low`` that some may be again.

    It may hold ``limit`` bytes of its own, and what ``budget`` has left, which it shares with others.
    """

    def __init__(self, limit: int, budget: Budget | None = None) -> None:
        self._limit = limit
        self._budget = budget or Budget()
        self._messages: deque[tuple[Message, int]] = deque()
        self._held = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        return self._held > self._limit or (self._held > 0 and self._budget.exhausted)

    @property
    def low(self) -> bool:
        return self._held == 0 or (self._held <= self._limit // 2 and not self._budget.exhausted)

    def put(self, message: Message) -> None:
        """Keep a message that arrived."""
        cost = MESSAGE_COST + (len(message.payload) if isinstance(message, Bulk) else 0)
        self._messages.append((message, cost))
        self._held += cost
        if not self._closed:
            self._budget.take(cost)

    def take(self) -> Message:
        """The oldest message; there has to be one."""
        message, cost = self._messages.popleft()
        self._held -= cost
        if not self._closed:
            self._budget.give_back(cost)
        return message

    def close(self) -> None:
        """Nothing more is to come: what is left may still be taken, and no longer counts for others."""
        if not self._closed:
            self._closed = True
            self._budget.give_back(self._held)
