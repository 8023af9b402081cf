"""What an agent's program does beside the agent so that it can be watched: its volumes, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from shared.config_sections import MetricsSection, split_listen
from shared.ports import Address, Ports
from shared.status import AgentStatus
from shared.volumes import VolumeWatch

if TYPE_CHECKING:
    from shared.metrics_server import MetricsServer

Ask = Callable[[], Awaitable[AgentStatus]]
"""Asks the agent for its whole status."""


async def metrics_text(ports: Ports, ask: Ask) -> bytes:
    """The agent's metrics in Prometheus' text form."""
    # Who does not want metrics need not load what makes them.
    from shared.metrics import render  # noqa: PLC0415

    return await ports.workers.run(render, await ask())


class Monitoring:
    """Runs beside one agent, from its start to its end."""

    def __init__(self, ports: Ports, section: MetricsSection, volumes: VolumeWatch, ask: Ask) -> None:
        self._ports = ports
        self._listen = split_listen(section.listen)
        self._volumes = volumes
        self._ask = ask
        self._watch: asyncio.Task[None] | None = None
        self._server: MetricsServer | None = None

    async def start(self) -> None:
        """Look at the volumes from now on, and listen where that is configured. Raises what listening raises."""
        if self._listen is not None:
            from shared.metrics import CONTENT_TYPE  # noqa: PLC0415
            from shared.metrics_server import MetricsServer  # noqa: PLC0415

            address = Address(host=self._listen[0], port=self._listen[1])
            self._server = MetricsServer(self._ports.network, address, self._text, CONTENT_TYPE)
            await self._server.start()
        self._watch = asyncio.get_running_loop().create_task(self._volumes.run())

    async def stop(self) -> None:
        """End both."""
        if self._server is not None:
            await self._server.close()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _text(self) -> bytes:
        return await metrics_text(self._ports, self._ask)
