"""Checks the house: imports point down, modules tell their one job, only ports touch the outside world."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("house")
"""Every module is parsed once, in one process."""

ROOT = Path(__file__).parents[2]
PACKAGES = ("primary_agent", "replica_agent", "shared", "protocol")

# What a package may import of ours.
MAY_IMPORT = {
    "protocol": {"protocol"},
    "shared": {"protocol", "shared"},
    "primary_agent": {"protocol", "shared", "primary_agent"},
    "replica_agent": {"protocol", "shared", "replica_agent"},
}

# protocol/ turns bytes into messages and back, and nothing else.
NOT_IN_PROTOCOL = set(
    """
    asyncio concurrent fcntl mmap multiprocessing os random secrets select selectors shutil signal socket
    sqlite3 ssl subprocess tempfile threading time uvloop
    """.split()
)

MODULE_LINES_MAX = 400
# Modules that are longer, each with the reason.
LONG_MODULES: dict[str, str] = {
    "protocol/messages.py": "every message's body, and nothing else: whoever looks for one looks here",
    "shared/tap_control.py": "every method and notification of the tap's socket, and nothing else",
    "shared/admin/verbs.py": "every method of the agents' sockets and its parameters, and nothing else",
    "replica_agent/record.py": "every record of the store, and nothing else",
    "primary_agent/record.py": "every record of the store, and nothing else",
    "shared/config_sections.py": "every key of the configuration with its page's text, and nothing else",
    "primary_agent/tap/tracker.py": "one state, on, off or lost, and every way in and out of it: parted, each half "
    "would have to reach into the other's fields",
}

EMPTY_NAME = re.compile(r"(.*_)?(utils?|helpers?|managers?|misc|common)|(new|old)_.*|.*_(new|old)|.*_?v\d+")

# Who may touch clock, network, disk, randomness and threads directly; every main.py may, too.
OUTSIDE = ("shared/ports/", "shared/cli/", "shared/nbd/", "shared/pki.py", "shared/log.py")
# Single modules that may as well, each with the reason.
ALSO_OUTSIDE: dict[str, str] = {
    "shared/service.py": "what all main programs of agents have in common: signals, process settings, systemd's socket",
    "primary_agent/program.py": "the rest of the primary agent's main program, which imports it with the collector off",
    "replica_agent/program.py": "the same of the replica agent's",
    "primary_agent/tap/program.py": "the same of the tap's",
}

# Modules of which only a port may use anything, and names that only a port may use.
PORT_MODULES = tuple(
    f"{module}."
    for module in """
    concurrent.futures fcntl mmap multiprocessing numpy.random random secrets select selectors shutil signal
    socket sqlite3 ssl subprocess tempfile threading
    """.split()
)
PORT_NAMES = {"open", "io.open"} | {
    f"{module}.{name}"
    for module, names in {
        "asyncio": """create_subprocess_exec create_subprocess_shell open_connection open_unix_connection
            start_server start_unix_server to_thread""",
        "datetime.date": "today",
        "datetime.datetime": "now today utcnow",
        "os": """close copy_file_range fdatasync fork fstat fsync ftruncate getrandom kill link listdir lseek
            lstat makedirs mkdir open posix_fadvise posix_fallocate pread preadv pwrite pwritev read remove
            rename replace rmdir scandir sendfile stat statvfs symlink sync system truncate unlink urandom
            walk write writev""",
        "time": "monotonic monotonic_ns perf_counter perf_counter_ns sleep time time_ns",
        "uuid": "uuid1 uuid4",
    }.items()
    for name in names.split()
}


def modules(*folders: str) -> list[str]:
    """Paths of all Python files in the folders, from the root of the checkout."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


PRODUCT = modules(*PACKAGES)
EVERYTHING = sorted([*PRODUCT, *modules("tests", "scripts")])


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def imported(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported: at the top, in functions, for types, and by name."""
    package = Path(path).parent.parts
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else ()
                base = ".".join([*above, *([module] if module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def upward_imports(tree: ast.Module, path: str) -> list[str]:
    """Imports that the module's package may not make."""
    package = Path(path).parts[0]
    wrong = []
    for line, name in imported(tree, path):
        top = name.split(".")[0]
        if top in {*PACKAGES, "tests", "scripts"} and top not in MAY_IMPORT[package]:
            wrong.append(f"{path}:{line}: {package} may not import {name}")
        elif package == "protocol" and top in NOT_IN_PROTOCOL:
            wrong.append(f"{path}:{line}: protocol does no I/O and may not import {name}")
    return wrong


def names_of_imports(tree: ast.Module) -> dict[str, str]:
    """Local name to full dotted name, for everything imported anywhere in the module."""
    found = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    top = alias.name.split(".")[0]
                    found[alias.asname or top] = alias.name if alias.asname else top
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    found[alias.asname or alias.name] = f"{module}.{alias.name}"
    return found


def dotted(node: ast.expr) -> list[str]:
    """The parts of ``a.b.c``; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=value, attr=attr):
            parts = dotted(value)
            return [*parts, attr] if parts else []
    return []


def direct_uses(tree: ast.Module, path: str) -> list[str]:
    """Places where the module reaches clock, network, disk, randomness or threads without a port."""
    known = {"open": "open", **names_of_imports(tree)}
    wrong = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        first, *rest = dotted(node) or [""]
        name = ".".join([known.get(first, ""), *rest])
        if isinstance(node, ast.Attribute) and node.attr == "run_in_executor":
            wrong.append(f"{path}:{node.lineno}: threads are reached through their port, not run_in_executor")
        elif name in PORT_NAMES or name.startswith(PORT_MODULES):
            wrong.append(f"{path}:{node.lineno}: the outside world is reached through ports, not {name}")
    return wrong


def may_touch_the_world(path: str) -> bool:
    return path.startswith(OUTSIDE) or path.endswith("/main.py") or path in ALSO_OUTSIDE


def test_imports_point_down() -> None:
    for path in PRODUCT:
        assert not upward_imports(parsed(path), path), path


def test_first_docstring_says_the_job() -> None:
    for path in EVERYTHING:
        docstring = ast.get_docstring(parsed(path))
        assert docstring, f"{path} has no docstring"
        assert docstring.splitlines()[0].rstrip().endswith((".", ":")), f"{path}: the first line is a sentence"


def test_module_is_short_or_has_a_reason() -> None:
    for path in PRODUCT:
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        if path in LONG_MODULES:
            assert lines > MODULE_LINES_MAX, f"{path} has {lines} lines: take it off LONG_MODULES"
        else:
            assert lines <= MODULE_LINES_MAX, f"{path} has {lines} lines; split it by jobs, or give the reason"


def test_name_says_something() -> None:
    for path in EVERYTHING:
        for part in Path(path).with_suffix("").parts:
            assert not EMPTY_NAME.fullmatch(part), f"{path}: {part!r} names no job"


def test_only_ports_touch_the_world() -> None:
    for path in (path for path in PRODUCT if not may_touch_the_world(path)):
        assert not direct_uses(parsed(path), path), path


def test_exceptions_name_modules_that_exist() -> None:
    assert [path for path in (*LONG_MODULES, *ALSO_OUTSIDE) if path not in PRODUCT] == []


def test_every_package_is_checked() -> None:
    assert {path.split("/")[0] for path in PRODUCT} == set(PACKAGES)


@pytest.mark.parametrize(
    "path, source",
    [
        ("protocol/frames.py", "import shared.errors"),
        ("protocol/frames.py", "import os.path"),
        ("protocol/frames.py", "def f():\n    from time import time"),
        ("shared/config.py", "import primary_agent"),
        ("shared/cli/main.py", "import importlib\nimportlib.import_module('replica_agent.main')"),
        ("primary_agent/sender.py", "from replica_agent import spool"),
        ("replica_agent/spool.py", "from primary_agent.tap.log import Log"),
        ("replica_agent/spool.py", "if TYPE_CHECKING:\n    import primary_agent.tap"),
        ("shared/admin/server.py", "import tests.simulation"),
    ],
)
def test_upward_import_is_found(path: str, source: str) -> None:
    assert len(upward_imports(ast.parse(source), path)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("protocol/frames.py", "import struct\nfrom protocol.errors import ProtocolError"),
        ("shared/nbd/server.py", "from protocol import hrl\nfrom shared.ports import Ports\nimport os"),
        ("replica_agent/spool.py", "from .store import Store\nfrom shared import errors"),
        ("primary_agent/tap/log.py", "from primary_agent.tap import gate"),
    ],
)
def test_downward_import_is_allowed(path: str, source: str) -> None:
    assert upward_imports(ast.parse(source), path) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.monotonic()",
        "from time import monotonic as now\nnow()",
        "import time as clock\nclock.time()",
        "import random\nrandom.uniform(0, 1)",
        "import os\nos.open('x', 0)",
        "import os as system\nsystem.pwritev(3, [], 0)",
        "import socket\nsocket.socket()",
        "import threading\nthreading.Thread()",
        "from threading import Lock\nLock()",
        "from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor()",
        "import concurrent.futures\nconcurrent.futures.ThreadPoolExecutor()",
        "from datetime import datetime\ndatetime.now()",
        "import uuid\nuuid.uuid4()",
        "import asyncio\nasyncio.to_thread(print)",
        "loop.run_in_executor(None, print)",
        "with open('x') as file: pass",
    ],
)
def test_direct_use_is_found(source: str) -> None:
    assert len(direct_uses(ast.parse(source), "shared/config.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.path.join('a', 'b')\nos.fspath('x')",
        "def jitter(random: Random) -> float:\n    return random.uniform(0, 1)",
        "import time\ntime.gmtime(0.0)",
        "files.open('x')",
        "import asyncio\nasyncio.sleep(1)",
        "import uuid\nuuid.UUID(bytes=b'')",
    ],
)
def test_use_of_ports_is_allowed(source: str) -> None:
    assert direct_uses(ast.parse(source), "shared/config.py") == []


@pytest.mark.parametrize("name", ["utils", "disk_utils", "helpers", "manager", "hrl_v2", "new_tap"])
def test_empty_name_is_found(name: str) -> None:
    assert EMPTY_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["hrl", "manifest", "newest_cut", "commons", "view", "__init__"])
def test_telling_name_is_allowed(name: str) -> None:
    assert not EMPTY_NAME.fullmatch(name)
