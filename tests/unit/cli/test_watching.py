"""What a watcher tells the agent of all that it saw: nothing that may be a tap of one of its VMs."""

from __future__ import annotations

from dataclasses import replace

from shared.attachment import Attachment
from shared.cli.verbs.watching import suspect
from shared.ports.disk_use import DiskUser, Guest, Usage

WEB = Attachment("web", "1", ("/dev/vg/web",), (), 100, 1)
DB = Attachment("db", "2", ("/dev/vg/db",), (), 200, 0)


def users(before: Attachment, after: Attachment, *pids: int) -> list[int]:
    usage = Usage(users=[DiskUser("/dev/vg/web", pid, "python3", True) for pid in pids])
    return [user.pid for user in suspect(usage, [before, DB], [after, DB]).users]


def test_writers_are_told_and_taps_are_not() -> None:
    assert users(WEB, WEB, 7, 100, 200) == [7]


def test_tap_that_came_or_went_meanwhile_is_not_taken_for_somebody_else() -> None:
    """One that is just started has the disk before the agent knows its process."""
    down = replace(WEB, tap=None)
    assert users(down, replace(WEB, tap=101), 101) == []
    assert users(down, down, 100) == []
    assert users(WEB, replace(WEB, tap=101), 101) == []
    assert users(WEB, down, 7) == []


def test_readers_and_guests_with_their_tap_are_left_out() -> None:
    usage = Usage(
        users=[DiskUser("/dev/vg/web", 7, "dd", False)], guests=[Guest(1, "web", "1"), Guest(2, "db", "2")], unseen=3
    )
    told = suspect(usage, [WEB, DB], [WEB, DB])
    assert (told.users, [guest.name for guest in told.guests], told.unseen) == ([], ["db"], 3)
