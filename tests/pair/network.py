"""A network namespace with a link into it: the replica's host, as far as the network goes."""

from __future__ import annotations

import os
import shutil
import subprocess


def available() -> bool:
    """Whether this machine lets us have one with a rate limit."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        return False
    try:
        network = Network("probe")
    except subprocess.CalledProcessError:
        return False
    try:
        network.limit("10mbit")
    except subprocess.CalledProcessError:
        return False
    finally:
        network.close()
    return True


class Network:
    """A namespace of its own, with one link to this one. Raises CalledProcessError where that can't be made."""

    def __init__(self, name: str = "link") -> None:
        self.name = f"vmr-{name}-{os.getpid()}"
        self.near, self.far = f"vmra{os.getpid()}"[:15], f"vmrb{os.getpid()}"[:15]
        # Each process that tests has addresses of its own.
        subnet = os.getpid() % (1 << 14)
        network, host = f"10.213.{subnet >> 6}", (subnet & 63) * 4
        near, self.address = f"{network}.{host + 1}", f"{network}.{host + 2}"
        self.inside = ["ip", "netns", "exec", self.name]
        run("ip", "netns", "add", self.name)
        try:
            run("ip", "link", "add", "name", self.near, "type", "veth", "peer", "name", self.far, "netns", self.name)
            run("ip", "address", "add", f"{near}/30", "dev", self.near)
            run("ip", "link", "set", self.near, "up")
            for words in (("address", "add", f"{self.address}/30", "dev", self.far), ("link", "set", self.far, "up")):
                run("ip", "-n", self.name, *words)
            run("ip", "-n", self.name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self.close()
            raise

    def limit(self, rate: str) -> None:
        """Let so much pass in each direction, as tc says it: ``10mbit``."""
        options = ("root", "tbf", "rate", rate, "burst", "64k", "latency", "200ms")
        run("tc", "qdisc", "replace", "dev", self.near, *options)
        run("tc", "-n", self.name, "qdisc", "replace", "dev", self.far, *options)

    def unlimit(self) -> None:
        run("tc", "qdisc", "delete", "dev", self.near, "root")
        run("tc", "-n", self.name, "qdisc", "delete", "dev", self.far, "root")

    def down(self) -> None:
        """Pull the cable at the far end: nothing arrives, and nobody is told."""
        run("ip", "-n", self.name, "link", "set", self.far, "down")

    def up(self) -> None:
        run("ip", "-n", self.name, "link", "set", self.far, "up")

    def close(self) -> None:
        # A namespace that is deleted takes its links with it, but not at once.
        for words in (("link", "delete", self.near), ("netns", "delete", self.name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
