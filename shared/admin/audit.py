"""Puts every order that changes something on record: who, from where, what, before, after, and what came of it.

An order is carried out whether or not it can be put on record: where a disk is full, administrators must be able to
fail over. The record then goes to the log, and the status tells of it until one can be written again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
import structlog

from shared.admin import verbs
from shared.admin.audit_log import AuditLog, problem_of
from shared.admin.codec import Request
from shared.admin.methods import Method, Methods
from shared.admin.server import Client
from shared.admin.verbs import AuditAnswer, AuditParams
from shared.errors import ForbiddenError, VmreplicaError
from shared.log import blot_secrets
from shared.ports import Clock, Peer, Workers
from shared.rates import Ration
from shared.status import AgentStatus, FailoverStatus, VmStatus, to_plain

TEXT_MAX = 1000
"""Characters of an error's text, and of a name, that are put on record."""
PARAMS_MAX = 100 << 10
REFUSED_AT_ONCE, REFUSED_PER_SECOND = 10, 0.1
"""Refused orders of one user that get a line of their own."""
USERS_MAX = 1000
DESCRIBE_SECONDS, WRITE_SECONDS = 5.0, 10.0
"""No order waits longer for what its record needs: a tap or a disk that hangs must not hold it up."""
FIELDS = (
    "state", "suspended", "epoch", "fenced", "resync_start_time", "excluded_disks", "handed_over", "split_brain",
    "export_folder", "seeded", "points_pinned",
)  # fmt: skip
"""Of a VM's status, what is compared beside its settings, exports and disks."""

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Auditor:
    """The records of one agent; ``user_name`` tells a user's name by number, and may block."""

    def __init__(
        self, audit: AuditLog, role: str, workers: Workers, clock: Clock, user_name: Callable[[int], str]
    ) -> None:
        self.problem = ""
        """Why the last record could not be written; empty while all is well."""
        self._log = audit
        self._role = role
        self._workers = workers
        self._clock = clock
        self._user_name = user_name
        self._methods: Mapping[str, Method] = {}
        self._late: set[asyncio.Future[Any]] = set()
        """What is going on, though perhaps nobody waits for it any more."""
        self._rations: OrderedDict[int | None, tuple[Ration, int]] = OrderedDict()

    def around(self, methods: Mapping[str, Method]) -> dict[str, Method]:
        """The methods with each order put on record, a status that tells of trouble with that, and the log's own."""
        self._methods = methods
        wrapped: dict[str, Method] = {}
        for name, method in methods.items():
            if name in (verbs.STATUS, verbs.GET):
                wrapped[name] = self._telling(method)
            elif name in verbs.READING | verbs.UNRECORDED:
                wrapped[name] = method
            else:
                wrapped[name] = self._recording(name, method)
        own = Methods()
        own.add(verbs.AUDIT, AuditParams, self._audit)
        return {**wrapped, **own}

    async def note(self, verb: str, **params: Any) -> None:
        """Put on record what the agent did without anybody at the socket."""
        await self._write(verb, {"params": params, "result": "ok"})

    async def note_refusal(self, request: Request, peer: Peer, error: ForbiddenError) -> None:
        """Put on record that somebody may not do what he asked for; of one user only so many a minute."""
        now = self._clock.monotonic()
        fresh = (Ration(REFUSED_AT_ONCE, REFUSED_PER_SECOND, now), 0)
        ration, left_out = self._rations.pop(peer.uid, fresh)
        passes = ration.take(now)
        self._rations[peer.uid] = (ration, 0 if passes else left_out + 1)
        if len(self._rations) > USERS_MAX:
            self._rations.popitem(last=False)
        if passes:
            target = str(request.params.get("vm") or request.params.get("name") or "")[:256]
            fields = {"vm": target, "result": error.code, "text": error.text[:TEXT_MAX], "left_out": left_out}
            await self._write(request.method, {**await self._who(peer), **fields})

    async def note_peer(self, peer: Peer, code: str, text: str, left_out: int) -> None:
        """Put on record that a peer was refused; ``left_out``: refusals before this one that have no line."""
        params = {"fingerprint": peer.fingerprint, "names": list(peer.names)} if peer.fingerprint else {}
        fields = {"source": peer.address, "params": params, "result": code, "text": text[:TEXT_MAX]}
        await self._write("peer.refused", {**fields, "left_out": left_out})

    # --- wrapped methods ---------------------------------------------------------------------------------------------

    def _telling(self, method: Method) -> Method:
        async def told(params: dict[str, Any], client: Client) -> Any:
            status = await method(params, client)
            if self.problem and isinstance(status, AgentStatus):
                status.problems = [*status.problems, self.problem]
            return status

        return told

    def _recording(self, name: str, method: Method) -> Method:
        async def recorded(params: dict[str, Any], client: Client) -> Any:
            target = str(params.get("vm") or params.get("name") or "")[:256]
            before = await self._describe(target, client)
            result, text = "ok", ""
            try:
                return await method(params, client)
            except VmreplicaError as error:
                result, text = str(error.code), error.text[:TEXT_MAX]
                raise
            except asyncio.CancelledError:
                result, text = "cancelled", "The agent ended before the order did."
                raise
            except BaseException as error:
                result, text = "internal", type(error).__name__
                raise
            finally:
                await self._ended(name, target, params, client, before, result, text)

        return recorded

    async def _ended(
        self,
        verb: str,
        target: str,
        params: dict[str, Any],
        client: Client,
        before: dict[str, Any],
        result: str,
        text: str,
    ) -> None:
        # By its UUID: the order may have changed the name.
        after = await self._describe(before.get("uuid", target), client)
        known = after or before
        was, now = changes(before, after)
        fields = {
            "vm": known.get("name", target),
            "uuid": known.get("uuid", ""),
            "params": _recorded_params(params),
            "before": was,
            "after": now,
            "result": result,
            "text": text,
        }
        await self._write(verb, {**await self._who(client.peer), **fields})

    async def _audit(self, params: AuditParams, client: Client) -> AuditAnswer:
        if params.check:
            return AuditAnswer(folder=self._log.folder, report=await self._log.check())
        found = await self._log.find(limit=params.limit, since=params.since, vm=params.vm)
        return AuditAnswer(folder=self._log.folder, entries=found)

    # --- parts -------------------------------------------------------------------------------------------------------

    async def _describe(self, target: str, client: Client) -> dict[str, Any]:
        """What the VM is like now; empty where it is not known, or can't be told."""
        method = self._methods.get(verbs.GET)
        if not target or method is None:
            return {}
        try:
            status = await self._within(DESCRIBE_SECONDS, method({"vm": target}, client))
        except (VmreplicaError, OSError):
            return {}
        except Exception:
            log.exception("a VM can't be described for the audit log")
            return {}
        return describe(status.vms[0]) if isinstance(status, AgentStatus) and len(status.vms) == 1 else {}

    async def _who(self, peer: Peer) -> dict[str, Any]:
        user = ""
        if peer.uid is not None:
            # Where a directory of users does not answer, the number has to do.
            with contextlib.suppress(TimeoutError):
                user = await self._within(DESCRIBE_SECONDS, self._workers.run(self._user_name, peer.uid))
        return {"uid": peer.uid, "user": user, "pid": peer.pid, "source": peer.address}

    async def _within(self, seconds: float, work: Awaitable[T]) -> T:
        """The outcome of ``work``; after so many seconds it goes on alone. Raises TimeoutError then."""
        task = asyncio.ensure_future(work)
        self._late.add(task)
        task.add_done_callback(self._forget)
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError
        return task.result()

    def _forget(self, task: asyncio.Future[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            # Nobody may be waiting for it any more.
            task.exception()

    async def _write(self, verb: str, fields: dict[str, Any]) -> None:
        try:
            entry, digest = await self._within(WRITE_SECONDS, self._log.append(self._role, verb, **fields))
        except (VmreplicaError, OSError) as error:
            self.problem = problem_of(error, self._log.folder)
            log.error("an order could not be put on record", verb=verb, reason=self.problem, **_flat(fields))
            return
        self.problem = ""
        # With the digest in another place nobody can change the file unseen, not even its end.
        tell = log.info if entry.result == "ok" else log.warning
        tell("order", verb=verb, seq=entry.seq, digest=digest, **_flat(fields))


def describe(vm: VmStatus) -> dict[str, Any]:
    """What of a VM's status orders change, as plain values."""
    plain = to_plain(vm)
    told = {name: plain[name] for name in FIELDS}
    told["exports"] = sorted(str(export["id"]) for export in plain["exports"])
    planned, failover, test = vm.planned, vm.failover, vm.test_failover
    told["planned"] = planned.step if planned is not None else ""
    told["failover"] = _failover(failover) if failover is not None else ""
    told["test_failover"] = test.point if test is not None else ""
    told["disks"] = [disk.get("size_bytes") for disk in plain["disks"]]
    return {"name": vm.name, "uuid": vm.uuid, **told, **plain["settings"]}


def _failover(failover: FailoverStatus) -> str:
    """How a failover stands, in a word."""
    if failover.undoing:
        return "being undone"
    return "undoable" if failover.undoable else "committed"


def changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of two descriptions the state, and whatever differs."""
    differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} | {"state"}
    was = {name: value for name, value in before.items() if name in differing}
    return was, {name: value for name, value in after.items() if name in differing}


def _recorded_params(params: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = dict(blot_secrets(None, "", {str(name): value for name, value in params.items()}))
    size = len(msgspec.json.encode(kept))
    return kept if size <= PARAMS_MAX else {"left_out": f"{size} bytes of parameters"}


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields for a line of the log, those that say nothing left out."""
    return {name: value for name, value in fields.items() if value not in ("", None, {}, 0) or name == "uid"}
