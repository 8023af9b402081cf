"""Sockets and groups where the service may not do what root may: as the replica agent's user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
USER = 65534

PROGRAM = f"""
import asyncio, grp, os, sys
from shared.errors import UsageError
from shared.nbd.server import _bind_unix
from shared.ports import Address
from shared.ports.unix_sockets import bind_unix
from pathlib import Path

os.setgroups([])
os.setgid(int(sys.argv[2])); os.setuid({USER})
own = grp.getgrgid(os.getgid()).gr_name
folder = Path(sys.argv[1])


async def admin(group):
    return await bind_unix(Address(unix_path=str(folder / f"{{group}}.sock"), mode=0o660, group=group))


def told(make):
    try:
        make().close()
    except UsageError as error:
        return f"{{error.text}} {{error.remedy}}"
    return "made"


print(told(lambda: asyncio.run(admin(own))))
print(told(lambda: asyncio.run(admin("root"))))
print(told(lambda: _bind_unix(folder / "nbd-own.sock", 0o600, own)))
print(told(lambda: _bind_unix(folder / "nbd.sock", 0o600, "root")))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_group_that_the_service_is_not_in_is_told_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o711)
    os.chown(folder, USER, -1)
    for above in tmp_path.parents:
        if above != Path("/"):
            above.chmod(above.stat().st_mode | 0o011)
    tmp_path.chmod(0o711)
    words = [sys.executable, "-c", PROGRAM, str(folder), str(USER)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own, foreign, nbd_own, nbd = done.stdout.splitlines()
    assert own == nbd_own == "made"
    assert "may not give the socket" in foreign and "set Group=root in [Service]" in foreign
    assert "may not give the socket" in nbd and "SupplementaryGroups=root" in nbd
