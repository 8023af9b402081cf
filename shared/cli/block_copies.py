"""Copies of a running domain's disks by libvirt's block jobs, and switching the domain over to them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from shared.cli.console import Console
from shared.cli.domain_xml import DomainDisk
from shared.cli.undoing import Undo
from shared.cli.virsh import Virsh
from shared.errors import InvalidStateError, NoSpaceError, StorageError, UsageError, VmreplicaError
from shared.rates import size_text

POLL_SECONDS = 0.25
TOLD_PERCENT = 10
"""Between two lines about a copy."""


class BlockCopy:
    """The copies of some disks of one running domain. All are ready before the first is switched over to."""

    def __init__(self, virsh: Virsh, domain: str, console: Console) -> None:
        self._virsh = virsh
        self._domain = domain
        self._console = console
        self._targets: list[str] = []
        self._before: dict[str, str] = {}

    def begin(self, destinations: Mapping[str, str], undo: Undo) -> None:
        """Begin one for each disk (target: XML of the destination); ``undo`` gets how they are given up."""
        _, domain = self._virsh.domain(self._domain)
        self._before = {target: domain.disk(target).source_key for target in destinations}
        for target, destination in destinations.items():
            undo.add(f"virsh blockjob {self._domain} {target} --abort", self._abort, target)
            self._virsh.copy(self._domain, target, destination)
            self._targets.append(target)

    def wait(self) -> None:
        """Wait until each has everything, from then on with every write. Raises InvalidStateError when one ends."""
        told = dict.fromkeys(self._targets, -1)
        waiting = list(self._targets)
        while waiting:
            _, domain = self._virsh.domain(self._domain)
            for target in list(waiting):
                mirror = domain.disk(target).mirror
                if not mirror:
                    raise InvalidStateError(
                        f"QEMU gave up the copy of the disk {target} of {self._domain}.",
                        "Its log (/var/log/libvirt/qemu/DOMAIN.log) and the tap's tell why: often a full volume.",
                    )
                if mirror not in ("yes", "no"):
                    raise InvalidStateError(f"The copy of {target} of {self._domain} is being ended by somebody else.")
                percent = 100 if mirror == "yes" else self._percent(target)
                if percent == 100 or percent >= told[target] + TOLD_PERCENT:
                    told[target] = percent
                    self._tell(f"{target}: {percent} % copied")
                if mirror == "yes":
                    waiting.remove(target)
            if waiting:
                time.sleep(POLL_SECONDS)

    def switch_first(self, undo: Undo) -> None:
        """Switch the domain over to the copy of the first disk; ``undo`` keeps everything from then on.

        When this fails and it is not certain that nothing was switched, everything is kept, too: an image that may be
        the guest's disk is not taken away.
        """
        target = self._targets[0]
        try:
            self._switch(target)
        except BaseException:
            if not self._is_as_before(target):
                undo.keep()
            raise
        undo.keep()

    def switch_others(self) -> None:
        """Switch over to the other copies. Raises InvalidStateError naming what was not switched."""
        for at, target in enumerate(self._targets[1:], 1):
            try:
                self._switch(target)
            except VmreplicaError as error:
                left = ", ".join(self._targets[at:])
                raise InvalidStateError(
                    f"The domain {self._domain} was switched over for {', '.join(self._targets[:at])} and not for "
                    f"{left}: {error.text}",
                    f"Do it by hand for each of these: virsh blockjob {self._domain} TARGET --pivot. Nothing was "
                    "lost: until then their writes go to both.",
                ) from error

    def _switch(self, target: str) -> None:
        self._virsh.run("blockjob", self._domain, target, "--pivot")
        _, domain = self._virsh.domain(self._domain)
        if domain.disk(target).mirror:
            raise InvalidStateError(f"The disk {target} of {self._domain} did not switch over to its copy.")

    def _is_as_before(self, target: str) -> bool:
        """Whether the domain certainly still has its former disk, and no switch to the copy is under way."""
        try:
            _, domain = self._virsh.domain(self._domain)
            disk = domain.disk(target)
        except VmreplicaError:
            return False
        return disk.mirror in ("yes", "no", "abort") or (not disk.mirror and disk.source_key == self._before[target])

    def _abort(self, target: str) -> None:
        _, domain = self._virsh.domain(self._domain)
        # There was no mirror before: one that is there is ours. Any other block job is somebody else's.
        if domain.disk(target).mirror:
            self._virsh.run("blockjob", self._domain, target, "--abort")

    def _percent(self, target: str) -> int:
        """How far it is; below 100 until libvirt says that it is ready."""
        facts = dict(
            line.strip().split("=", 1)
            for line in self._virsh.run("blockjob", self._domain, target, "--raw").splitlines()
            if "=" in line
        )
        done, whole = (int(facts[key]) if facts.get(key, "").isdigit() else 0 for key in ("cur", "end"))
        return min(99, 100 * done // whole) if whole else 0

    def _tell(self, line: str) -> None:
        # What a verb prints may be JSON.
        self._console.err.write(line + "\n")
        self._console.err.flush()


def new_image(disk: DomainDisk, size: int, folder: str, word: str, undo: Undo, *, path: str = "") -> str:
    """Make a sparse raw image of ``size`` bytes for a copy of the disk: ``NAME.word.raw`` beside it, or in ``folder``.

    ``path`` is where the disk is, if the XML does not tell. Raises UsageError, NoSpaceError or StorageError; ``undo``
    gets its removal.
    """
    chain = (path,) if path else disk.chain
    block = path_is_block(chain[0])
    if block and not folder:
        raise UsageError(
            f"The disk {disk.target} is the block device {chain[0]}: beside it there is no place for a copy.",
            "Say where it may lie: --copy-to FOLDER.",
        )
    stem = Path(chain[0]).stem.removesuffix(".vmr").removesuffix(".released")
    image = Path(folder or Path(chain[0]).parent, f"{stem}.{word}.raw")
    try:
        state = os.statvfs(image.parent)
        free, needed = state.f_bavail * state.f_frsize, size if block else min(size, _allocated(chain))
        if free < needed:
            raise NoSpaceError(
                f"The copy of {disk.target} takes {size_text(needed)}; the volume of {image.parent} has "
                f"{size_text(free)} free, {needed - free} bytes too few.",
                "Make room there, or say where else: --copy-to FOLDER.",
            )
        descriptor = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        undo.add(f"rm {image}", image.unlink, missing_ok=True)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileExistsError:
        raise UsageError(
            f"{image} is there already.", "Move it away or delete it if nothing needs it, or give --copy-to FOLDER."
        ) from None
    except OSError as error:
        raise StorageError(f"{image} can't be made: {error.strerror or error}.") from None
    return str(image)


def path_is_block(path: str) -> bool:
    """Whether a block device is there."""
    return Path(path).is_block_device()


def _allocated(paths: tuple[str, ...]) -> int:
    """What images take on their volumes, in bytes."""
    return sum(os.stat(path).st_blocks * 512 for path in paths)
