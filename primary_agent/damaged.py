"""A VM whose database can't be read: listed with its remedy, while its tap goes on serving the guest (I14)."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from dataclasses import dataclass

import structlog

from primary_agent.rebuilding import Remains
from primary_agent.record import TapPlace
from primary_agent.tap_link import TapLink
from shared.errors import VmreplicaError
from shared.ports import FileSystem, Ports
from shared.tap_config import TapConfig, load_config

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class DamagedVm:
    """One of them. ``identity`` is its UUID, ``name`` its name where anything tells it."""

    identity: str
    name: str
    folder: str
    error: VmreplicaError
    tap: TapLink | None = None
    tap_place: TapPlace | None = None
    """Where the tap is, if not in the VM's own folder."""
    _task: asyncio.Task[None] | None = None
    _config: TapConfig | None = None
    """The tap's, as far as it is believed."""

    def is_named(self, name: str) -> bool:
        return name in (self.name, self.identity)

    async def serve(self, remains: Remains, ports: Ports) -> None:
        """Keep its tap running, where its configuration can be read: the guest needs nothing else."""
        self.tap_place, self._config = remains.tap_place, remains.config
        if remains.config is None:
            return
        with contextlib.suppress(OSError, VmreplicaError):
            await ports.workers.run(_make_sockets_folder, ports.files, remains.config)
            self.tap = TapLink(self._tap_folder, remains.config, ports, self.folder)
            self._task = asyncio.get_running_loop().create_task(self._run(self.tap), name=f"tap of {self.identity}")

    async def _run(self, tap: TapLink) -> None:
        try:
            await tap.run()
        except Exception:
            log.exception("the tap of a damaged VM is not watched any more", vm=self.identity)

    async def leave(self) -> None:
        """Let go of the tap, which goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def stop_tap(self, ports: Ports) -> None:
        """Stop the tap, where its configuration can still be read."""
        config = self._config
        try:
            if self.tap_place is None:
                config = await ports.workers.run(load_config, ports.files, self._tap_folder)
        except VmreplicaError:
            return
        if config is not None:
            await TapLink(self._tap_folder, config, ports, self.folder).stop_tap()

    @property
    def _tap_folder(self) -> str:
        return self.tap_place.folder if self.tap_place is not None else f"{self.folder}/tap"


def _make_sockets_folder(files: FileSystem, config: TapConfig) -> None:
    """Folders of sockets are gone after a boot. Blocks."""
    files.make_folder(posixpath.dirname(config.control_socket), inherited=True)
