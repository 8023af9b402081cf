"""Following long work to its end: a view redrawn in place on a terminal, single lines elsewhere; left with Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from shared.cli.agents import Found, read_status
from shared.cli.connection import Connection, NoAnswerYetError
from shared.cli.console import Console
from shared.cli.exit_codes import SUCCESS
from shared.cli.progress import PlainProgress, is_working, outcome, progress_lines
from shared.errors import NotFoundError, UnreachableError, VmreplicaError
from shared.status import VmStatus

if TYPE_CHECKING:
    from rich.live import Live

WORK_SECONDS = 0.5
"""Between two looks at work under way."""
STATUS_SECONDS = 1.0
"""Between two looks at a status that is kept on the screen."""
LINE_SECONDS = 10.0
"""Between two lines about work, where the screen can't be redrawn."""
ABSENT_SECONDS_MAX = 60.0
"""How long an agent may be away, to be restarted, before following it ends."""

T = TypeVar("T")


class Display(Protocol):
    """Where progress is shown."""

    def show(self, vm: VmStatus) -> None:
        """Show the VM's progress."""

    def say(self, text: str) -> None:
        """Show a remark instead."""


class LiveDisplay:
    """Redraws a block of lines in place."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._width = console.width or 80
        self._palette = console.palette
        rich = RichConsole(file=console.out, width=self._width, no_color=not console.palette.enabled)
        self._live: Live = Live(console=rich, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, vm: VmStatus) -> None:
        self.show_lines(progress_lines(vm, self._width, self._palette))

    def say(self, text: str) -> None:
        self.show_lines([text])

    def show_lines(self, lines: Sequence[str]) -> None:
        """Show these lines; colours in them are kept."""
        from rich.text import Text

        self._live.update(Text.from_ansi("\n".join(lines)), refresh=True)


class PlainDisplay(AbstractContextManager["PlainDisplay"]):
    """Prints a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = PlainProgress()
        self._said = ""

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, vm: VmStatus) -> None:
        self._said = ""
        if line := self._progress.line(vm, time.monotonic()):
            self._console.print(line)

    def say(self, text: str) -> None:
        if text != self._said:
            self._console.print(text)
            self._said = text


def display_for(console: Console) -> LiveDisplay | PlainDisplay:
    """The display that suits the console; a context manager."""
    return LiveDisplay(console) if console.live else PlainDisplay(console)


class Poller:
    """Reads one VM's status again and again, over a connection of its own that may break and be made again."""

    def __init__(self, path: str, vm: VmStatus) -> None:
        self._path = path
        self._vm = vm
        self._connection: Connection | None = None
        self._absent_since: float | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def poll(self) -> VmStatus | None:
        """The status, or None while the agent is away. Raises UnreachableError when it stays away too long."""
        try:
            if self._connection is None:
                self._connection = Connection(self._path)
            agent = read_status(self._connection, self._vm.uuid)
        except UnreachableError:
            self.close()
            now = time.monotonic()
            self._absent_since = self._absent_since or now
            if now - self._absent_since > ABSENT_SECONDS_MAX:
                raise
            return None
        self._absent_since = None
        for vm in agent.status.vms:
            if vm.uuid == self._vm.uuid:
                return vm
        raise NotFoundError(f"The {self._vm.role} agent no longer has the VM {self._vm.name}.")


def follow(found: Found, console: Console, *, rejoin: str) -> int:
    """Show the work on a VM until it ends; the exit code.

    Raises VmreplicaError when it ended badly. Ctrl-C leaves it running and prints ``rejoin``.
    """
    vm = watch_to_end(found, console, rejoin=rejoin)
    end = outcome(vm)
    assert end is not None
    if not end.succeeded:
        raise VmreplicaError(end.text, end.remedy)
    console.print(end.text)
    return SUCCESS


def watch_to_end(
    found: Found, console: Console, *, rejoin: str, working: Callable[[VmStatus], bool] = is_working
) -> VmStatus:
    """Show the work on a VM until it ends; the VM's status then. Ctrl-C leaves it running and prints ``rejoin``."""
    with _View(found, console, rejoin) as view:
        while (vm := view.look()) is None or working(vm):
            time.sleep(WORK_SECONDS)
    return vm


def follow_line(console: Console, look: Callable[[], tuple[T, str]], *, quiet: bool, left: str) -> T | None:
    """Show one line about work until it ends, which ``look`` tells by an empty one; what it told then.

    None where it was left with Ctrl-C, which prints ``left``. ``quiet`` shows nothing. Raises what ``look`` raises.
    """
    live = LiveDisplay(console) if console.live and not quiet else None
    told_at = -LINE_SECONDS
    try:
        with live or nullcontext():
            while True:
                found, line = look()
                if not line:
                    return found
                if live is not None:
                    live.show_lines([line])
                elif not quiet and time.monotonic() - told_at >= LINE_SECONDS:
                    told_at = time.monotonic()
                    console.print(line)
                time.sleep(WORK_SECONDS)
    except KeyboardInterrupt:
        console.print(["", left])
        return None


def call_while_showing(found: Found, method: str, console: Console, *, rejoin: str, **params: Any) -> None:
    """Call a method of the VM that begins or does long work, and show that until it ends, however the method does it.

    Ctrl-C leaves the work running and prints ``rejoin``.
    """
    connection = found.agent.connection
    identity = connection.begin(method, {"vm": found.vm.uuid, **params})
    with _View(found, console, rejoin) as view:
        while True:
            try:
                connection.wait(identity, method, WORK_SECONDS)
                break
            except NoAnswerYetError:
                view.look()
        while (vm := view.look()) is None or is_working(vm):
            time.sleep(WORK_SECONDS)


class _View(AbstractContextManager["_View"]):
    """The work on one VM as it is on the screen; nothing is shown before there is any."""

    def __init__(self, found: Found, console: Console, rejoin: str) -> None:
        self._console = console
        self._rejoin = rejoin
        self._poller = Poller(found.agent.connection.path, found.vm)
        self._exits = ExitStack()
        self._display: Display | None = None

    def look(self) -> VmStatus | None:
        """Read the status and show it if there is work; None while the agent is away."""
        vm = self._poller.poll()
        if vm is None:
            self._shown().say("The agent does not answer; trying again.")
        elif is_working(vm):
            self._shown().show(vm)
        return vm

    def _shown(self) -> Display:
        if self._display is None:
            display = display_for(self._console)
            self._exits.enter_context(display)
            self._display = display
        return self._display

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()
        self._poller.close()
        if kind is KeyboardInterrupt:
            self._console.print(["", f"The work goes on. To see it again: {self._rejoin}"])


def keep_showing(console: Console, lines: Callable[[], list[str]], summary: Callable[[], list[str]]) -> int:
    """Show a status until Ctrl-C: ``lines`` redrawn in place, or elsewhere ``summary`` whenever it changes."""
    try:
        if not console.live:
            said: list[str] = []
            while True:
                fresh = summary()
                if fresh != said:
                    console.print(line for line in fresh if line not in said)
                    said = fresh
                time.sleep(STATUS_SECONDS)
        with LiveDisplay(console) as display:
            while True:
                display.show_lines(lines())
                time.sleep(STATUS_SECONDS)
    except KeyboardInterrupt:
        return SUCCESS
