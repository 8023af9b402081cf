"""Steps that are taken back: all, the last first, unless they are kept; what can't be is told."""

from __future__ import annotations

import pytest

from shared.cli.undoing import Undo
from shared.errors import InvalidStateError, StorageError


def test_the_last_first() -> None:
    done: list[int] = []
    with pytest.raises(InvalidStateError) as caught, Undo() as undo:
        undo.add("one", done.append, 1)
        undo.add("two", done.append, 2)
        raise InvalidStateError("no", "Do this.")
    assert (done, caught.value.remedy) == ([2, 1], "Do this.")


def test_nothing_without_an_error_or_once_kept() -> None:
    done: list[int] = []
    with Undo() as undo:
        undo.add("one", done.append, 1)
    with pytest.raises(KeyboardInterrupt), Undo() as undo:
        undo.add("two", done.append, 2)
        undo.keep()
        undo.add("three", done.append, 3)
        raise KeyboardInterrupt
    assert done == [3]


def test_what_is_left_is_told_and_the_others_are_taken_back() -> None:
    done: list[int] = []

    def fail() -> None:
        raise StorageError("it is stuck")

    with pytest.raises(InvalidStateError, match="no") as caught, Undo() as undo:
        undo.add("one", done.append, 1)
        undo.add("rm this", fail)
        raise InvalidStateError("no", "Do this.")
    assert done == [1]
    assert caught.value.remedy == "Do this. Not everything could be taken back; left to do: rm this (it is stuck)."
