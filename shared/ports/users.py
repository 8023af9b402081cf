"""Users and groups of this host by number and by name; the system's databases may have to ask another host."""

from __future__ import annotations

import grp
import pwd


def user_name(uid: int) -> str:
    """The name of a user, empty where there is none. Blocks."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def group_id(name: str) -> int | None:
    """The number of a group, or None where there is no such group. Blocks."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
