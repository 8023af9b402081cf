"""The script that libvirt calls for its domains: what is done at each start, and what is refused on a migration."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from shared.errors import StorageError

HOOK = "/etc/libvirt/hooks/qemu.d/vmreplica"

_SCRIPT = r"""#!/bin/sh
# vmreplica's hook of libvirt, made by `vmreplica libvirt-hook`: {hook}
#
#   vmreplica libvirt-hook --install       (and restart libvirtd once, so that it sees it; guests run on)
#
# - A domain with a disk behind a tap was started: have QEMU keep requests while the tap restarts. libvirt 9.0 (of
#   Debian 12) can't be told to; where libvirt does it by itself nothing is left to do.
# - Such a domain comes here by migration: it is refused. The tap is on the host that it comes from, and with it all
#   that is known of its writes.
domain=$1 operation=$2
xml=$(cat)

behind_tap() {{
    printf '%s\n' "$xml" | grep -Eq "<host transport='unix' socket='[^']*/[0-9a-f-]{{36}}/nbd\.sock'"
}}

case $operation in
migrate)
    if behind_tap; then
        echo "vmreplica: $domain can't be migrated: its disks are behind the tap of its host, which would no longer" \
            "see its writes. To move it see docs/adopting.md: fail over, or release, migrate and adopt it again." >&2
        exit 1
    fi
    ;;
started)
    if behind_tap; then
        # libvirt waits for this script and answers nothing about the domain meanwhile: go on without it.
        if [ -d /run/systemd/system ]; then
            systemd-run --quiet --collect --no-block -- {program} adopt "$domain" --check
        else
            (setsid {program} adopt "$domain" --check 2>&1 </dev/null | logger -t vmreplica-hook) >/dev/null 2>&1 &
        fi
    fi
    ;;
esac
exit 0
"""


def hook_script(program: Sequence[str]) -> str:
    """The script; ``program`` is how the command `vmreplica` is run, by an absolute path."""
    return _SCRIPT.format(program=shlex.join(program), hook=HOOK)


def hook_installed() -> bool:
    """Whether the script is where libvirt looks for it, and may be run."""
    return os.access(HOOK, os.X_OK)


def install_hook(program: Sequence[str], path: str = HOOK) -> bool:
    """Put the script there; whether that changed anything. Raises StorageError."""
    target, text = Path(path), hook_script(program)
    try:
        if target.is_file() and target.read_text(encoding="utf-8") == text and os.access(target, os.X_OK):
            return False
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.write_text(text, encoding="utf-8")
        part.chmod(0o755)
        part.replace(target)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}.", "Run it as root.") from None
    return True
