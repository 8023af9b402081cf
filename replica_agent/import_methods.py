"""The replica agent's admin methods for a first copy that comes another way than over the link from its primary."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from replica_agent.agent import ReplicaAgent
from replica_agent.authorize import Grant
from replica_agent.finishing import finish
from replica_agent.importing import Plan, export_plan, seed_plan
from replica_agent.record import DiskRecord, VmRecord
from replica_agent.vm import ReplicaVm
from shared.admin import verbs
from shared.admin.methods import Methods
from shared.admin.server import Client
from shared.admin.verbs import ImportParams, ImportSeedParams, VmParams
from shared.courier import Manifest, fits, read_manifest
from shared.errors import InvalidStateError, NoSpaceError, NotFoundError, StorageError, UsageError
from shared.events import EventId
from shared.import_status import ImportStatus
from shared.rates import size_text


class Imports:
    """The methods, for one agent."""

    def __init__(self, agent: ReplicaAgent) -> None:
        self._agent = agent

    def add_to(self, methods: Methods) -> None:
        """Offer them."""
        methods.add(verbs.IMPORT, ImportParams, self.import_)
        methods.add(verbs.IMPORT_SEED, ImportSeedParams, self.import_seed)
        methods.add(verbs.IMPORT_STATUS, VmParams, self.import_status)
        methods.add(verbs.IMPORT_STOP, VmParams, self.import_stop)

    async def import_(self, params: ImportParams, client: Client) -> ImportStatus:
        return await self.start_export(params)

    async def import_seed(self, params: ImportSeedParams, client: Client) -> ImportStatus:
        return await self.start_seed(params)

    async def start_export(self, params: ImportParams) -> ImportStatus:
        """Begin to import the export in a folder. Raises VmreplicaError."""
        ports = self._agent.ports
        manifest, identity = await finish(ports.workers.run(read_manifest, ports.files, params.folder))
        vm = self._agent.vms.get(manifest.vm_id)
        if vm is None:
            vm = await finish(self._make(manifest, params))
        different = fits(vm.ledger.vm.geometry, manifest)
        if different:
            raise StorageError(
                f"The export in {params.folder} does not fit {vm.name}: {different}.",
                f"Export {vm.name} again as it is now, or remove it here first.",
            )
        return await self._start(vm, export_plan(params.folder, manifest, identity))

    async def start_seed(self, params: ImportSeedParams) -> ImportStatus:
        """Begin to import seeds. Raises VmreplicaError."""
        try:
            vm = await self._agent.reopening.standing(params.vm)
        except NotFoundError as error:
            raise NotFoundError(
                error.text,
                f"{error.remedy} A VM is known here once it is enabled at its primary, which then has connected to "
                "this host: what a seed is for, and how large its disks are, is known from then on.",
            ) from None
        indexes = [disk.index for disk in vm.ledger.vm.disks]
        seeds = [(seed.disk, seed.path) for seed in params.seeds]
        return await self._start(vm, seed_plan(indexes, seeds, move=params.move))

    async def import_status(self, params: VmParams, client: Client) -> ImportStatus | None:
        return self._agent.find(params.vm).importer.status

    async def import_stop(self, params: VmParams, client: Client) -> ImportStatus | None:
        vm = await self._agent.reopening.standing(params.vm)
        await finish(vm.importer.stop())
        return vm.importer.status

    async def _start(self, vm: ReplicaVm, plan: Plan) -> ImportStatus:
        if vm.failure is not None:
            raise InvalidStateError(f"{vm.name} is in error: {vm.failure.text}", vm.failure.remedy)
        try:
            return await finish(vm.importer.start(plan, self._admit(vm)))
        except InvalidStateError as error:
            await vm.ledger.note(EventId.INVALID_STATE, f"import was refused: {error.text}", cause="import")
            raise

    def _admit(self, vm: ReplicaVm) -> Callable[[int], Awaitable[None]]:
        async def admit(count: int) -> None:
            left = await self._agent.quota_left(vm.parts.vm)
            if left is not None and count > left:
                raise NoSpaceError(
                    f"The quota that is for {vm.name} leaves too little: {count - left} bytes "
                    f"({size_text(count - left)}) are missing.",
                    "Raise quota_bytes of its [[authorize]] entry in the replica's configuration and reload the agent.",
                )

        return admit

    async def _make(self, manifest: Manifest, params: ImportParams) -> ReplicaVm:
        """The copy of a VM that is not known here: where an entry lets its primary keep it."""
        if manifest.vm_id in self._agent.damaged:
            raise self._agent.damaged[manifest.vm_id].error
        grant = choose(self._agent.sessions.authorization.grants, manifest, params.storage)
        disks = [DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size) for disk in manifest.geometry]
        now = self._agent.ports.clock.wall()
        return await self._agent.make(
            VmRecord(vm=manifest.vm_id, name=manifest.name, disks=disks, created_time=now), grant
        )


def choose(grants: Iterable[Grant], manifest: Manifest, storage: str) -> Grant:
    """The entry by which the VM of an export may be kept here, in ``storage`` if that is named. Raises UsageError."""
    fitting = [grant for grant in grants if grant.allows(manifest.vm_id) and storage in ("", grant.storage)]
    if not fitting:
        where = f" in {storage}" if storage else ""
        raise UsageError(
            f"No entry allows that {manifest.name} ({manifest.identity}) is kept here{where}.",
            "Add an [[authorize]] entry for its primary to the replica's configuration, and reload the agent.",
        )
    places = sorted({grant.storage for grant in fitting})
    if len(places) > 1:
        raise UsageError(
            f"{manifest.name} may be kept in {', '.join(places)}: which is meant can't be told from the export.",
            "Add --storage with the one that the entry of its primary names.",
        )
    return fitting[0]
