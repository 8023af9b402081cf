"""What takes the steps of some work back, the last first, when a later one fails."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from shared.errors import VmreplicaError


class Undo:
    """A context manager: an exception that leaves it runs what was given to ``add`` and not kept by ``keep``.

    What can't be taken back either is told in the remedy of the error that leaves.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Any]]] = []

    def add(self, what: str, step: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Take a step back by this call; ``what`` says it in words, as an order to somebody who has to do it."""
        self._steps.append((what, lambda: step(*arguments, **options)))

    def keep(self) -> None:
        """What was done so far stays, whatever comes."""
        self._steps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        left = []
        while self._steps:
            what, step = self._steps.pop()
            try:
                step()
            except (VmreplicaError, OSError) as failure:
                left.append(f"{what} ({getattr(failure, 'text', failure)})")
        if left and isinstance(error, VmreplicaError):
            error.remedy = f"{error.remedy} Not everything could be taken back; left to do: {'; '.join(left)}.".strip()
