"""A primary that was dead during the failover and comes back: it is told, and nothing it does reaches the new side."""

from __future__ import annotations

import signal
import subprocess

import pytest

from primary_agent.record import SPLIT_TEXT, UNMOVED_TEXT
from scripts.agent_pair import PairError, signal_process
from tests.pair.hosts import MIB, VM, Hosts, patience

pytestmark = pytest.mark.slow


def qemu_io(uri: str, *commands: str) -> None:
    """A guest that writes with QEMU's block layer."""
    words = [word for command in (*commands, "flush") for word in ("-c", command)]
    result = subprocess.run(["qemu-io", "-f", "raw", *words, uri], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("wrote_more", [False, True], ids=["wrote nothing more", "wrote more"])
def test_stale_primary_is_fenced_for_good(hosts: Hosts, wrote_more: bool) -> None:
    """I8: told at the first connection, remembered without one, and split brain has a name."""
    hosts.replicate(8 * MIB, 2 * MIB)
    assert hosts.link is not None
    writer = hosts.start_writer(71)
    writer.go()
    hosts.wait("writes", "primary", lambda vm: vm["tap"]["writes"] > 100)
    writer.finish()
    cut = hosts.caught_up()["applied_cut"]["segment"]
    hosts.wait("the acknowledgement", "primary", lambda vm: (vm["acked_cut"] or {"segment": 0})["segment"] >= cut)
    hosts.link.cut()
    tap = hosts.tap_pid()
    if wrote_more:
        hosts.kill("primary")
    else:
        # An orderly stop writes down what was acknowledged; who does not know that tells of split brain.
        agent = hosts.agents.pop("primary")
        agent.terminate()
        assert agent.wait() == 0
    signal_process(tap, signal.SIGKILL)

    hosts.call("replica", "vm.failover", vm=VM)
    failed_over = hosts.wait("the disks", "replica", lambda vm: vm["uris"])
    assert [hosts.copy(index).read_bytes() for index in range(2)] == [path.read_bytes() for path in writer.shadows]
    qemu_io(failed_over["uris"][0], "write -P 0x61 1M 128k")
    qemu_io(failed_over["uris"][1], "write -P 0x62 0 64k")
    kept = [hosts.copy(index).read_bytes() for index in range(2)]

    hosts.start("primary")
    if wrote_more:
        # Somebody starts the guest there before the link is back.
        qemu_io(hosts.uris[0], "write -P 0x71 1M 64k")
    hosts.link.restore()

    def fenced(vm: dict[str, object]) -> bool:
        if vm["state"] != "FailedOver":
            try:
                hosts.call("primary", "vm.resume", vm=VM)
            except PairError:
                # It was fenced since we asked.
                assert hosts.status("primary")["state"] == "FailedOver"
        return vm["state"] == "FailedOver"

    status = hosts.wait("the fence", "primary", fenced)
    assert "failed over to beta" in status["fenced"]
    assert (SPLIT_TEXT if wrote_more else UNMOVED_TEXT) in status["fenced"]
    assert status["health"] == "Critical"
    assert "Do not run the VM here" in status["remedy"]

    # Durably: without a link, and although it was killed.
    hosts.link.cut()
    hosts.kill("primary")
    signal_process(tap, signal.SIGKILL)
    hosts.start("primary")
    assert hosts.status("primary")["state"] == "FailedOver"
    hosts.link.restore()
    # Whether it was undone only the replica can say: it is asked, and the fence stays.
    hosts.call("primary", "vm.resume", vm=VM)
    hosts.wait_state("FailedOver")

    # Nobody can start the guest there by mistake.
    uri = hosts.uris[0]
    with pytest.raises(AssertionError, match="Permission denied"):
        qemu_io(uri, "write -P 0x72 0 4M")
    # Whatever is written there nevertheless, as by a guest that was connected before, stays there, also when an
    # administrator insists.
    for _ in patience("a write past the fence", {}):
        hosts.tap("set", fenced="")
        try:
            qemu_io(uri, "write -P 0x72 0 4M")
            break
        except AssertionError as error:
            # The agent fences it anew, now and then.
            if "Permission denied" not in str(error):
                raise
    hosts.tap("cut", reason="test")
    hosts.wait("split brain", "primary", lambda vm: SPLIT_TEXT in vm["fenced"])
    hosts.call("primary", "vm.resume", vm=VM, resynchronize=True)
    hosts.wait_state("FailedOver")
    assert not hosts.status("primary")["link"]["connected"]
    assert [hosts.copy(index).read_bytes() for index in range(2)] == kept
    qemu_io(failed_over["uris"][0], "read -P 0x61 1M 128k")
