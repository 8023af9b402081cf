"""QEMU's block layer as the tap's client, with a reconnect delay: what a virtual machine's disk is in production."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.pair.hosts import MIB, Hosts, patience
from tests.pair.tap_rig import needs

KILLS = 5


@contextmanager
def storage_daemon(uri: str, folder: Path) -> Iterator[str]:
    """QEMU's storage daemon between the tap and its clients, as QEMU is between the tap and a guest."""
    export, socket = urlsplit(uri).path.strip("/"), parse_qs(urlsplit(uri).query)["socket"][0]
    served = folder / "qsd.sock"
    node = {
        "driver": "nbd", "node-name": "tap", "export": export, "reconnect-delay": 60,
        "server": {"type": "unix", "path": socket},
    }  # fmt: skip
    with (folder / "qsd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "qemu-storage-daemon", "--blockdev", json.dumps(node),
                "--nbd-server", f"addr.type=unix,addr.path={served}",
                "--export", "type=nbd,id=guest,node-name=tap,name=guest,writable=on",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        for _ in patience("QEMU's storage daemon", {"log": (folder / "qsd.log").read_text()}):
            assert process.poll() is None, (folder / "qsd.log").read_text()
            if served.exists():
                break
        yield f"nbd+unix:///guest?socket={served}"
    finally:
        process.terminate()
        process.wait()


@needs("qemu-storage-daemon", "fio")
@pytest.mark.slow
def test_guest_does_not_notice_that_its_tap_is_killed(hosts: Hosts) -> None:
    """I3, I14: fio verifies through QEMU what it wrote, while the tap dies again and again and the agent revives it."""
    hosts.replicate(48 * MIB)
    epoch = hosts.status("primary")["epoch"]
    output = hosts.folder / "fio.txt"
    with storage_daemon(hosts.uris[0], hosts.folder) as uri, output.open("wb") as file:
        fio = subprocess.Popen(
            [
                "fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=16k", "--iodepth=16",
                "--size=48m", "--rate_iops=300", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
                "--randseed=8", "--verify_state_save=0",
            ],
            stdout=file, stderr=file,
        )  # fmt: skip
        try:
            killed = None
            for _ in range(KILLS):
                before = killed
                tap = hosts.wait(
                    "writes to this tap",
                    "primary",
                    lambda vm: vm["tap"] and vm["tap"]["pid"] not in (None, before) and vm["tap"]["writes"] > 50,  # noqa: B023
                )["tap"]
                assert fio.poll() is None, "it was over before the tap was killed"
                killed = tap["pid"]
                hosts.kill_tap()
            assert fio.wait() == 0, output.read_text()
        finally:
            if fio.poll() is None:
                fio.kill()
                fio.wait()
    assert "err= 0" in output.read_text()
    hosts.assert_same()
    status = hosts.status("primary")
    assert (status["epoch"], status["state"], status["causes"]) == (epoch, "Replicating", [])
