"""The real ports together, as an agent's main program hands them out."""

from __future__ import annotations

from collections.abc import Sequence

from shared.config_sections import LimitsSection
from shared.ports import Ports
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.launcher import DetachedLauncher
from shared.ports.network import RealNetwork
from shared.ports.rng import SystemRandom
from shared.ports.store import SqliteStores
from shared.ports.tls import TlsIdentity
from shared.ports.workers import ThreadWorkers


class RealPorts:
    """Makes an agent's ports and closes what has to be closed. ``network`` reloads certificates when asked."""

    def __init__(
        self,
        tls: TlsIdentity | None,
        *,
        threads: int,
        tap_command: Sequence[str] = (),
        limits: LimitsSection | None = None,
    ) -> None:
        """``limits`` are those of connections that arrive.

        Raises UsageError where the identity's files can't be used.
        """
        limits = limits or LimitsSection()
        self.network = RealNetwork(
            tls,
            half_open_max=limits.half_open,
            handshake_seconds=limits.handshake_seconds,
            failures_per_minute=limits.failures_per_minute,
        )
        self._workers = ThreadWorkers(threads)
        self._background = ThreadWorkers(threads, background=True)
        clock = RealClock()
        self._stores = SqliteStores(clock)
        self.ports = Ports(
            clock=clock,
            random=SystemRandom(),
            workers=self._workers,
            background=self._background,
            files=RealFileSystem(),
            network=self.network,
            stores=self._stores,
            taps=DetachedLauncher(tap_command),
        )

    async def close(self) -> None:
        """End the threads after what they still have to do, and close the stores."""
        await self._background.close()
        await self._workers.close()
        await self._stores.close()
