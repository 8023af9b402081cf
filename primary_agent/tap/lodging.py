"""What a tap of root's believes of a folder that is another user's: that user's own disks, and nothing elsewhere.

So it is with the tap of a VM that was failed over to this host and reversed: its folder stays where the replica agent
made it, below that agent's storage location, and so does its configuration. Whoever has taken over that agent's account
can change what is in there, and must not get more by it than he has (docs/security.md).
"""

from __future__ import annotations

import posixpath

import msgspec

from shared.errors import ForbiddenError
from shared.tap_config import TapConfig

CODE = "tap_config_refused"


def judge(config: TapConfig, folder: str) -> None:
    """Raises ForbiddenError unless log and sockets are the VM's own, by the names of their folders.

    Whose the sockets' folder is tells nothing: after a boot it was made anew, by whichever agent came first.
    """
    sockets = posixpath.dirname(config.control_socket)
    if posixpath.normpath(sockets) != sockets or posixpath.basename(sockets) != config.vm:
        raise _refused(folder, "control_socket", config.control_socket, "that is no socket of this VM")
    wanted = {
        "vm": posixpath.basename(posixpath.dirname(folder)),
        "log_folder": f"{folder}/log",
        "nbd_socket": f"{sockets}/nbd.sock",
        "control_socket": f"{sockets}/control.sock",
        "nbd_tcp": "",
    }
    for field, value in wanted.items():
        if (found := getattr(config, field)) != value:
            raise _refused(folder, field, found, f"it has to be {value!r}")
    if config.undo_layers or any(disk.overlay is not msgspec.UNSET for disk in config.disks):
        raise _refused(folder, "layers", "set", "a VM that was handed over has plain disks")


def _refused(folder: str, field: str, value: object, reason: str) -> ForbiddenError:
    return ForbiddenError(
        f"The tap's configuration in {folder} is refused: its {field} is {value!r}, but {reason}.",
        "The folder belongs to the replica agent's user, and this tap is root's. If nobody changed the file by hand, "
        "look who runs under that account. `systemctl restart vmreplica-primary` writes it anew.",
        code=CODE,
    )
