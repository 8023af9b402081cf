"""What an agent's program does beside the agent so that it can be watched: its volumes, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from shared.config_sections import MetricsSection, split_listen
from shared.errors import VmreplicaError
from shared.ports import Address, Ports
from shared.status import AgentStatus
from shared.volumes import VolumeWatch

if TYPE_CHECKING:
    from shared.metrics_server import MetricsServer

LISTEN_AGAIN_SECONDS = 30.0
"""An address that could not be listened on is tried again after so long."""

log = structlog.get_logger(__name__)

Ask = Callable[[], Awaitable[AgentStatus]]
"""Asks the agent for its whole status."""


async def metrics_text(ports: Ports, ask: Ask) -> bytes:
    """The agent's metrics in Prometheus' text form."""
    # Who does not want metrics need not load what makes them.
    from shared.metrics_text import render  # noqa: PLC0415

    return await ports.workers.run(render, await ask())


class Monitoring:
    """Runs beside one agent, from start to end. An address that is taken never keeps the agent from its work."""

    def __init__(self, ports: Ports, section: MetricsSection, volumes: VolumeWatch, ask: Ask) -> None:
        self._ports = ports
        self._listen = split_listen(section.listen)
        self._volumes = volumes
        self._ask = ask
        self._tasks: list[asyncio.Task[None]] = []
        self._server: MetricsServer | None = None
        self._problem = ""

    def problems(self) -> list[str]:
        """What does not work, for the agent's status."""
        return [self._problem] if self._problem else []

    async def start(self) -> None:
        """Look at the volumes from now on, and listen where that is configured."""
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._volumes.run()))
        if self._listen is not None and not await self._serve(*self._listen):
            self._tasks.append(loop.create_task(self._serve_later(*self._listen)))

    async def stop(self) -> None:
        """End both."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.close()

    async def _serve(self, host: str, port: int) -> bool:
        """Listen; where that fails it is told once, and shown until it works."""
        from shared.metrics_server import MetricsServer  # noqa: PLC0415
        from shared.metrics_text import CONTENT_TYPE  # noqa: PLC0415

        server = MetricsServer(self._ports.network, Address(host=host, port=port), self._text, CONTENT_TYPE)
        try:
            await server.start()
        except VmreplicaError as error:
            if not self._problem:
                log.error("metrics are not offered", reason=str(error))
            self._problem = f"Metrics are not offered: {error}"
            return False
        self._server, self._problem = server, ""
        return True

    async def _serve_later(self, host: str, port: int) -> None:
        while True:
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)
            if await self._serve(host, port):
                return

    async def _text(self) -> bytes:
        return await metrics_text(self._ports, self._ask)
