"""Who else than the server's own user may connect to its unix socket."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

import pytest

from shared.errors import UsageError
from shared.nbd.server import NbdServer


@pytest.fixture
def other_group() -> str:
    if os.geteuid() != 0:
        pytest.skip("only root may give a file to a group that it is not in")
    return grp.getgrgid(1).gr_name


async def test_group_may_connect_and_pass(server: NbdServer, tmp_path: Path, other_group: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    await server.start_unix(folder / "nbd.sock", group=other_group)
    status = (folder / "nbd.sock").lstat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711


async def test_unknown_group_is_named(server: NbdServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no group nobody-has-this"):
        await server.start_unix(tmp_path / "nbd.sock", group="nobody-has-this")
