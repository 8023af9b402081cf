"""Keeps log files ready ahead of need, and removes those that are too many: in workers, so that no write waits."""

from __future__ import annotations

from primary_agent.tap.log_files import LogFiles, Preparation, prepare
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.tasks import Tasks
from shared.errors import NoSpaceError, StorageError
from shared.ports import FileSystem


class Supply:
    """Serves one tap's log files. Only while ``wanted`` are files made ready."""

    def __init__(self, ports: TapPorts, tasks: Tasks, files: LogFiles) -> None:
        self.wanted = False
        self._ports = ports
        self._tasks = tasks
        self._files = files
        files.changed = self.replenish

    def replenish(self) -> None:
        """Start whatever work there is."""
        while self.wanted and (plan := self._files.plan()) is not None:
            self._tasks.spawn(self._prepare(plan))
        if self._files.superfluous:
            paths, self._files.superfluous = self._files.superfluous, []
            self._tasks.spawn(self._remove(paths))

    async def first(self) -> None:
        """Have at least one file ready, even beyond the limit. Raises NoSpaceError or StorageError."""
        if self._files.ready:
            return
        plan = self._files.plan(needed=True)
        assert plan is not None
        try:
            file = await self._ports.workers.run(prepare, self._ports.files, plan)
        except OSError as error:
            self._files.not_prepared()
            raise no_room(self._files, error) from error
        self._files.prepared(file)

    async def _prepare(self, plan: Preparation) -> None:
        try:
            file = await self._ports.workers.run(prepare, self._ports.files, plan)
        except OSError:
            # Whoever needs the file will find that there is none, try once more, and say why not.
            self._files.not_prepared()
            return
        if self.wanted:
            self._files.prepared(file)
        else:
            self._files.not_prepared()
            file.close()
            await self._remove([file.path])

    async def _remove(self, paths: list[str]) -> None:
        await self._ports.workers.run(_remove_files, self._ports.files, paths)


def no_room(files: LogFiles, error: OSError) -> StorageError:
    """Why no log file could be made, for the administrator."""
    remedy = f"Free at least {files.file_bytes} bytes there, or move the log to another volume."
    return NoSpaceError(f"There is no room for the log in {files.folder}: {error.strerror}.", remedy)


def _remove_files(files: FileSystem, paths: list[str]) -> None:
    for path in paths:
        try:
            files.remove(path)
        except OSError:
            # It stays as a spare file, which the next start finds.
            continue
