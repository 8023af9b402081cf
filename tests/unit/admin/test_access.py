"""Who may call what: default deny."""

from __future__ import annotations

import pytest

from shared.admin import verbs
from shared.admin.access import Access
from shared.errors import ForbiddenError
from shared.ports import Peer

ACCESS = Access(own_uid=990, admin_gid=500, viewer_gid=600, viewer_methods=frozenset({"status"}))


@pytest.mark.parametrize(
    "peer",
    [
        Peer(uid=0, gid=0),
        Peer(uid=990, gid=990),
        Peer(uid=1000, gid=500),
        Peer(uid=1000, gid=1000, groups=(27, 500)),
    ],
)
def test_administrators_may_do_everything(peer: Peer) -> None:
    ACCESS(peer, "vm.remove")


@pytest.mark.parametrize(
    "peer, method",
    [
        (Peer(uid=1000, gid=1000, groups=(27,)), "status"),
        (Peer(uid=1000, gid=600), "vm.remove"),
        (Peer(), "status"),
    ],
    ids=["stranger", "viewer changing", "no credentials"],
)
def test_everybody_else_is_refused(peer: Peer, method: str) -> None:
    with pytest.raises(ForbiddenError):
        ACCESS(peer, method)


def test_viewer_may_read() -> None:
    ACCESS(Peer(uid=1000, gid=1000, groups=(600,)), "status")


@pytest.mark.parametrize("method", [verbs.RESYNC_PLAN, verbs.TEST_CONNECTION, verbs.AUDIT, verbs.VERIFY])
def test_viewer_starts_no_reading_of_disks_and_no_connection(method: str) -> None:
    """What changes nothing may be work all the same: of the disks of both hosts, and of guests that wait for them."""
    access = Access(own_uid=990, admin_gid=500, viewer_gid=600, viewer_methods=verbs.READING)
    with pytest.raises(ForbiddenError):
        access(Peer(uid=1000, gid=600), method)
    access(Peer(uid=1000, gid=500), method)


def test_missing_groups_match_nobody() -> None:
    with pytest.raises(ForbiddenError):
        Access(own_uid=990)(Peer(uid=1000, gid=None), "status")
