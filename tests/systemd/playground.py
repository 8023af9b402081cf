"""A shell on one of two hosts that are installed and set up; both are gone when it ends."""

from __future__ import annotations

import subprocess
import sys

from tests.systemd.conftest import PACKAGE, set_up
from tests.systemd.host import absent
from tests.systemd.package import package
from tests.systemd.pair import Pair


def main() -> int:
    """Boot, set up, and open the shell at the host that the argument names; the exit code is the shell's."""
    if lacking := absent():
        print(f"two-hosts: this needs {lacking}", file=sys.stderr)
        return 1
    with Pair() as pair:
        for host in pair.hosts.values():
            host.put(package(), PACKAGE)
        set_up(pair)
        chosen = pair.hosts[sys.argv[1]]
        other = next(name for name in pair.hosts if name != chosen.name)
        print(f"This is {chosen.name}; {other} is its replica or primary. Both end with this shell.")
        return subprocess.run([*chosen.command("bash", "--norc", "-i")], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
