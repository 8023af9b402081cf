"""An export outlasts a SIGKILL of its agent: a client that reconnects reads on, and the cut stays the same."""

from __future__ import annotations

import subprocess

import pytest

from tests.pair.hosts import MIB, VM, Hosts

RECONNECT_SECONDS = 60
QUOTA = 64 * MIB


class Reader:
    """``qemu-io`` on an export, as a long-lived client: it reconnects, and requests wait meanwhile."""

    def __init__(self, socket: str) -> None:
        options = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={socket},file.export=disk0"
        self.process = subprocess.Popen(
            ["qemu-io", "--image-opts", "-r", f"{options},file.reconnect-delay={RECONNECT_SECONDS}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ask(self, pattern: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"read -P {pattern} 1M 1M\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """All that it said; it has read everything by then."""
        output, _ = self.process.communicate("quit\n", timeout=RECONNECT_SECONDS)
        return output


def guest(hosts: Hosts, pattern: int) -> None:
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", f"write -P {pattern} 1M 1M", "-c", "flush", hosts.uris[0]],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    hosts.caught_up()


@pytest.mark.slow
def test_client_of_an_export_reads_on_after_the_agent_was_killed(hosts: Hosts) -> None:
    hosts.replicate(4 * MIB)
    guest(hosts, 17)
    hosts.call("replica", "vm.set", vm=VM, settings={"points_newest": 1, "points_hourly": 0})
    export = hosts.call("replica", "vm.export", vm=VM)
    reader = Reader(export["uris"][0].partition("socket=")[2])
    try:
        reader.ask(17)
        hosts.wait("the client", "replica", lambda vm: vm["exports"][0]["clients"] == 1)
        guest(hosts, 34)
        hosts.kill("replica")
        with (hosts.folder / "replica.toml").open("a") as entry:
            entry.write(f"quota_bytes = {QUOTA}\n")
        reader.ask(17)
        hosts.start("replica")
        again = hosts.wait("the client again", "replica", lambda vm: vm["exports"] and vm["exports"][0]["clients"] == 1)
        assert again["exports"][0] == {**export, "clients": 1, "held_bytes": again["exports"][0]["held_bytes"]}
        # The agent looks at its quotas by itself.
        limited = hosts.wait("figures of the quota", "replica", lambda vm: vm["quota_used_bytes"])
        assert limited["quota_limit_bytes"] == QUOTA > limited["quota_used_bytes"]
        hosts.connect()
        guest(hosts, 51)
        reader.ask(17)
        said = reader.end()
    finally:
        reader.process.kill()
        reader.process.wait()
    assert said.count("read 1048576/1048576 bytes at offset 1048576") == 3, said
    assert "verification failed" not in said and "failed:" not in said, said
    hosts.call("replica", "vm.unexport", vm=VM, id=export["id"])
    assert hosts.status("replica")["exports"] == []
    assert any("is served again" in event["text"] for event in hosts.events("replica"))
