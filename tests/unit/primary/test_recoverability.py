"""Every error that a replica may tell is classed: tried again by itself, or left to an administrator."""

from __future__ import annotations

from pathlib import Path

import pytest

from primary_agent.recoverability import RECOVERY, Recovery, recovery_of
from primary_agent.session_loop import (
    _JOIN_BROKEN,
    BACKOFF_FIRST_SECONDS,
    BACKOFF_LAST_SECONDS,
    QUEUED_SECONDS,
    SLOW_RETRY_SECONDS,
    _heals,
)
from protocol.messages import RETRYABLE, ErrorCode
from shared.channel import ChannelClosed
from shared.refusing import describe

PAGE = Path(__file__).parents[3] / "docs" / "monitoring.md"


def test_every_code_is_classed_and_no_other() -> None:
    assert set(RECOVERY) == set(ErrorCode)
    assert recovery_of("busy") is Recovery.RETRIED
    assert recovery_of("block_unreadable") is None


@pytest.mark.parametrize("code", ErrorCode)
def test_the_table_is_what_the_session_loop_does(code: ErrorCode) -> None:
    """A session that ended with the replica's ERROR of that code."""
    told = describe(code, "It is so.", "Do something.")
    heals = _heals(ChannelClosed(told.text, told.remedy, code=told.code, retryable=told.retryable, problem=told))
    recovery = RECOVERY[code]
    assert (code in _JOIN_BROKEN) == (recovery is Recovery.COMPARED)
    assert (code == ErrorCode.QUEUED) == (recovery is Recovery.QUEUED)
    assert (code == ErrorCode.FENCED) == (recovery is Recovery.FENCED)
    assert heals == (code in RETRYABLE) == (recovery in (Recovery.RETRIED, Recovery.QUEUED))
    assert recovery.recoverable == (heals or code in _JOIN_BROKEN)


def test_the_words_are_true() -> None:
    assert (BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS, QUEUED_SECONDS, SLOW_RETRY_SECONDS) == (1, 30, 5, 300)


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for code, recovery in RECOVERY.items():
        yes = "yes" if recovery.recoverable else "no"
        assert f"| `{code}` | {yes} | {recovery.value} |" in text
