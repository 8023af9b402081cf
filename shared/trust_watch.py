"""Watches that what was accepted may go on: a changed revocation list is loaded, and live sessions are judged again.

So a certificate that is revoked, whose CA a reload removed, or that has run out, ends its sessions within seconds. New
connections need no watch: each goes through a handshake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from shared.errors import VmreplicaError
from shared.ports import Workers
from shared.ports.network import RealNetwork

LOOK_SECONDS = 2.0
"""Between two looks: revocation and expiry end a session within so long."""

_log = structlog.get_logger(__name__)


async def keep_trust(network: RealNetwork, workers: Workers, reexamine: Callable[[], None]) -> None:
    """Look every LOOK_SECONDS, until cancelled. ``reexamine`` ends the sessions that are objected to by now.

    A list that can't be used leaves everything as it was, and is tried again; it is told once.
    """
    told = ""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            if await workers.run(network.has_other_crl):
                network.reload_tls()
                _log.info("the revocation list was loaded anew")
            told = ""
        except VmreplicaError as error:
            if str(error) != told:
                told = str(error)
                _log.error("the revocation list has changed and can't be loaded", reason=told)
        except Exception:
            _log.exception("the revocation list could not be looked at")
        try:
            reexamine()
        except Exception:
            # A mistake of ours must not end this watch.
            _log.exception("the sessions could not be examined")
