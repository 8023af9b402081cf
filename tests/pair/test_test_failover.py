"""A test failover between two real hosts, by the command alone: what clients write goes with it, and only there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.agent_pair import PairError
from tests.pair.hosts import DEBIAN_PYTHON, MIB, VM, Hosts
from tests.pair.test_exports_stay import RECONNECT_SECONDS

SIZE = 8 * MIB


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def order(hosts: Hosts, *arguments: str) -> Any:
    """What a verb tells in JSON."""
    done = hosts.command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def image(uri: str, folder: Path) -> bytes:
    """The whole content of an export, by nbdcopy."""
    target = folder / "copy.raw"
    run("nbdcopy", uri, str(target))
    return target.read_bytes()


class Client:
    """``qemu-io`` on an export, as a guest that stays: it reconnects, and requests wait meanwhile."""

    def __init__(self, uri: str) -> None:
        socket = uri.partition("socket=")[2]
        options = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={socket},file.export=disk0"
        self.process = subprocess.Popen(
            ["qemu-io", "--image-opts", f"{options},file.reconnect-delay={RECONNECT_SECONDS}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def say(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def end(self) -> str:
        output, _ = self.process.communicate("quit\n", timeout=RECONNECT_SECONDS)
        return output


@pytest.mark.slow
def test_test_failover_of_a_pinned_point(hosts: Hosts, tmp_path: Path) -> None:
    """R22, R37: replication goes on; what was written outlasts a SIGKILL of the agent, and is gone at the end."""
    hosts.replicate(SIZE)
    run("qemu-io", "-f", "raw", "-c", "write -P 0x41 1M 1M", "-c", "flush", hosts.uris[0])
    hosts.caught_up()
    proven = hosts.command("verify", VM)
    assert proven.returncode == 0, proven.stderr
    listed = hosts.call("replica", "vm.points", vm=VM)["points"]
    point = next(each for each in listed if each["proven_time"] is not None)
    order(hosts, "point", VM, "--point", point["point"], "--name", "before-upgrade", "--pin")
    truth = hosts.copy(0).read_bytes()
    run("qemu-io", "-f", "raw", "-c", "write -P 0x42 1M 1M", "-c", "flush", hosts.uris[0])
    hosts.caught_up()
    found = order(hosts, "prove", VM, "--point", "before-upgrade")
    assert found["outcome"] == "proven", found
    told = order(hosts, "points", VM, "--at", "0s")
    assert told["nearest"] == told["points"][0]["point"]

    test = order(hosts, "failover", VM, "--test", "--point", "before-upgrade")
    assert test["name"] == f"{VM} - Test"
    assert test["cut"]["segment"] == point["cut"]["segment"]
    (uri,) = test["uris"]
    expected = bytearray(truth)
    assert image(uri, tmp_path) == expected
    client = Client(uri)
    try:
        client.say("write -P 0x51 3M 64k")
        client.say("write -P 0x52 3100k 1k")
        hosts.wait("the client", "replica", lambda vm: vm["exports"] and vm["exports"][0]["written_bytes"] >= 65536)
        hosts.kill("replica")
        client.say("write -P 0x53 4M 4k")
        hosts.start("replica")
        client.say("flush")
        client.say("read -P 0x51 3M 28k")
        client.say("read -P 0x41 1M 1M")
        said = client.end()
    finally:
        client.process.kill()
        client.process.wait()
    assert said.count("wrote ") == 3 and said.count("read ") >= 2, said
    assert "verification failed" not in said and "failed:" not in said, said
    for offset, length, byte in ((3 * MIB, 65536, 0x51), (3100 << 10, 1024, 0x52), (4 * MIB, 4096, 0x53)):
        expected[offset : offset + length] = bytes([byte]) * length
    assert image(uri, tmp_path) == expected

    # Zeroes, FUA, trims and holes by libnbd; verified random writes by fio, which no point and no replica sees.
    check = (
        "h.zero(65536, 5 << 20, nbd.CMD_FLAG_FUA); h.trim(65536, 6 << 20); h.pwrite(b'z' * 512, 7 << 20, 1)\n"
        "h.flush(); assert h.pread(512, 7 << 20) == b'z' * 512; assert not h.is_read_only() and h.can_fua()\n"
        "found = []\n"
        "h.block_status(65536, 6 << 20, lambda context, at, entries, error: found.extend(entries) or 0)\n"
        "assert found[1] & 3 == 3, found"
    )
    options = "import nbd; h = nbd.NBD(); h.add_meta_context('base:allocation')"
    run(DEBIAN_PYTHON, "-c", f"{options}; h.connect_uri({uri!r})\n{check}")
    if shutil.which("fio") is not None:
        run(
            "fio", "--name=test", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", "--size=2M",
            "--iodepth=8", "--verify=crc32c", f"--directory={tmp_path}",
        )  # fmt: skip
    hosts.connect()
    run("qemu-io", "-f", "raw", "-c", "write -P 0x43 2M 64k", "-c", "flush", hosts.uris[0])
    hosts.assert_same()
    vm = hosts.status("replica")
    assert vm["test_failover"]["export"] == test["export"] and vm["test_failover"]["error"] == ""
    assert hosts.call("replica", "vm.measure", vm=VM)["last_test_failover_time"] is not None
    with pytest.raises(PairError, match="already"):
        hosts.call("replica", "vm.test_failover", vm=VM)
    start(test["command"])

    ended = hosts.command("failover", VM, "--test", "--stop")
    assert ended.returncode == 0, ended.stderr
    assert hosts.status("replica")["test_failover"] is None
    assert not list(hosts.storage.glob("*/overlays/*"))
    hosts.call("replica", "vm.prove", vm=VM, point="before-upgrade")
    hosts.wait("the proof", "replica", lambda _vm: proof_of(hosts)["outcome"] == "proven")
    assert {60081, 60082, 60083} <= {event["event"] for event in hosts.events("replica")}


def proof_of(hosts: Hosts) -> Any:
    return hosts.call("replica", "vm.points", vm=VM)["proof"]


def start(command: str) -> None:
    """The line that starts the test, as it is told, and ended before the machine runs."""
    if shutil.which("qemu-system-x86_64") is not None:
        done = subprocess.run(
            f"{command} -m 64M -S -display none -monitor stdio -serial none",
            shell=True, input="info block\nquit\n", capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "replicated0" in done.stdout, done.stdout
