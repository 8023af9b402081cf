"""The format pages say what the code does: their tables, layouts and numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocol.bulk import MAX_BLOCK_BYTES
from protocol.compression import MAX_WINDOW_BYTES, MIN_RAW_BYTES
from protocol.errors import LogError
from protocol.frames import MAX_FRAME_PAYLOAD, MAX_MANIFEST_BLOCKS
from protocol.hrl import MAX_DISKS, MAX_ENTRIES, MAX_PAYLOAD, MAX_RECORD
from protocol.messages import MAX_HELLO_BODY, MessageType
from protocol.session import TRANSITIONS, SessionState, Side
from shared import channel
from tests.vectors.tables import EVERYWHERE, PAGES, TABLES, names_in, rendered

PROTOCOL, HRL = (page.read_text(encoding="utf-8") for page in PAGES)
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_tables_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert rendered(text) == text, "run scripts/make-vectors"


def test_every_table_is_on_a_page_once() -> None:
    assert sorted(names_in(PROTOCOL) + names_in(HRL)) == sorted(TABLES)


def test_a_changed_table_is_found() -> None:
    changed = PROTOCOL.replace("RESYNC_CANCEL → `cancelling`", "RESYNC_CANCEL → `open`")
    assert changed != PROTOCOL
    assert rendered(changed) == PROTOCOL


def test_what_the_state_table_leaves_out_is_as_the_text_says() -> None:
    """ERROR everywhere but in closed; HEARTBEAT and CLOSE from ready on; from either side."""
    early = (SessionState.NEW, SessionState.HELLO)
    expected = {}
    for side in Side:
        for state in SessionState:
            if state is SessionState.CLOSED:
                continue
            expected[state, side, MessageType.ERROR] = SessionState.CLOSED
            if state not in early:
                expected[state, side, MessageType.CLOSE] = SessionState.CLOSED
                expected[state, side, MessageType.HEARTBEAT] = state
    assert {key: after for key, after in TRANSITIONS.items() if key[2] in EVERYWHERE} == expected


@pytest.mark.parametrize(
    "page, number",
    [
        (PROTOCOL, MAX_FRAME_PAYLOAD),
        (PROTOCOL, MAX_RECORD),
        (PROTOCOL, MAX_HELLO_BODY),
        (PROTOCOL, MAX_BLOCK_BYTES),
        (PROTOCOL, MAX_MANIFEST_BLOCKS),
        (PROTOCOL, MIN_RAW_BYTES),
        (PROTOCOL, MAX_PAYLOAD),
        (HRL, MAX_PAYLOAD),
        (HRL, MAX_ENTRIES),
        (HRL, MAX_DISKS),
    ],
)
def test_limits_are_named(page: str, number: int) -> None:
    assert re.search(rf"\b{number}\b", page)


def test_deadlines_are_those_of_the_channel() -> None:
    section = PROTOCOL.partition("## 5. Deadlines")[2].partition("## 6.")[0]
    for seconds in (
        channel.HANDSHAKE_SECONDS,
        channel.HEARTBEAT_SECONDS,
        channel.DEAD_AFTER_SECONDS,
        channel.UNREAD_SECONDS,
        channel.PROGRESS_SECONDS,
        channel.CLOSING_SECONDS,
    ):
        assert f"{seconds:g} s" in section
    assert str(channel.PROGRESS_BYTES) in section
    assert f"{channel.QUEUE_BYTES >> 20} MiB" in section
    assert f"window must not exceed {MAX_WINDOW_BYTES >> 20} MiB" in PROTOCOL


def test_every_reason_of_a_log_error_is_on_the_page() -> None:
    """All words that the readers of the log give as reasons, found where they are raised."""
    reasons: set[str] = set()
    for name in ("protocol/hrl.py", "protocol/entries.py", "protocol/chain.py", "shared/hrl_report.py"):
        source = (ROOT / name).read_text(encoding="utf-8")
        reasons |= set(re.findall(rf'{LogError.__name__}\(\s*[\w +]+,\s*"([a-z-]+)"', source))
    assert {"end", "chain", "entry-range", "seal", "file-magic"} <= reasons
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in HRL] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_anchors_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in titles
    for name in re.findall(r"`((?:tests|protocol|shared|scripts)/[\w/.-]*)`", text):
        assert (ROOT / name).exists(), name
