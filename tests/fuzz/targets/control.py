"""Text that people and neighbours give: JSON-RPC lines, the tap's control, configuration files."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec

import shared.admin.codec
import shared.config
import shared.tap_config
import shared.tap_control
from primary_agent.tap_link import TapLink
from replica_agent.promoted_tap import start_error
from shared.admin.codec import (
    DEPTH_MAX,
    SERVER_MESSAGE_MAX,
    Failure,
    Malformed,
    MessageReader,
    Notification,
    Request,
    Result,
    decode,
    encode,
)
from shared.admin.methods import InvalidParamsError, Methods, NoParams, Params
from shared.config_sections import PrimaryConfig, ReplicaConfig
from shared.errors import UsageError, VmreplicaError
from shared.tap_config import ERROR_NAME, MAX_CONFIG_BYTES, TapConfig, TapDisk, decode_config, encode_config
from shared.tap_control import (
    NOTIFICATIONS,
    BeginParams,
    KnowsCutParams,
    LeaseParams,
    LocateParams,
    LogPlace,
    ReasonParams,
    ReleaseParams,
    RelogParams,
    Sealed,
    SetParams,
    TapPosition,
    TapProtocolError,
    TapStatus,
    read_notification,
)
from tests.fuzz.memory_files import MemoryFiles
from tests.fuzz.mutators import tweak
from tests.fuzz.target import Plant, Target
from tests.fuzz.targets.wire import change_value, chunks

# --- JSON-RPC lines ------------------------------------------------------------------------------------------------


def plain_json(line: bytes) -> Any:
    """The line as the standard library reads it. Raises ValueError."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    value = json.loads(line.decode("utf-8"), parse_constant=refuse)
    # Half of a surrogate pair is no text.
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def nesting(value: Any) -> int:
    """How deep a plain value is nested."""
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    return 1 + max(map(nesting, value), default=0) if isinstance(value, list) else 0


def is_same_json(one: Any, other: Any) -> bool:
    """Equal, but numbers that fit no 64 bits may have become floats on one side."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) or isinstance(other, float):
        return bool(one == other or float(one) == float(other))
    return bool(one == other)


def plain_verdict(line: bytes, limit: int) -> Any:
    """The request that a line is by docs/cli.md: (method, params, id), or None for anything else."""
    try:
        body = plain_json(line)
        if not isinstance(body, dict) or nesting(body) > DEPTH_MAX or body.get("jsonrpc") != "2.0":
            return None
    except (ValueError, RecursionError):
        return None
    method, params, identity = body.get("method"), body.get("params", {}), body.get("id")
    right = isinstance(method, str) and 1 <= len(method) <= 128 and isinstance(params, dict)
    right = right and set(body) <= {"jsonrpc", "id", "method", "params"} and len(line) < limit
    right = right and (identity is None or (isinstance(identity, int | str) and not isinstance(identity, bool)))
    return (method, params, identity) if right else None


def fuzz_admin(data: bytes) -> None:
    """The same messages for any chunking; requests are what the standard library reads; answers can be encoded."""
    if not data:
        return
    limit = (64, 256, SERVER_MESSAGE_MAX)[data[0] % 3]
    content = data[1:]
    messages = MessageReader(limit).feed(content)
    reader, parts, at = MessageReader(limit), [], 0
    for size in chunks(content):
        if at >= len(content):
            break
        parts += reader.feed(content[at : at + size])
        assert len(reader._line) <= limit, "more than one line of the limit is kept"
        at += size
    assert parts == messages
    expected: list[bytes | None] = []
    for line in content.split(b"\n")[: content.count(b"\n")]:
        if len(line) + 1 > limit:
            expected.append(None)
            break
        if line.strip():
            expected.append(line.strip())
    if len(content.rpartition(b"\n")[2]) > limit and None not in expected:
        expected.append(None)
    assert len(messages) == len(expected)
    for message, text in zip(messages, expected, strict=True):
        if text is None:
            assert isinstance(message, Malformed)
            assert message.fatal
        else:
            check_message(message, text, limit)


def check_message(message: Any, line: bytes, limit: int) -> None:
    verdict = plain_verdict(line, limit)
    identity = getattr(message, "id", None)
    assert decode(encode(Failure(identity, 1, "text"))[:-1]) == Failure(identity, 1, "text"), "it can't be answered"
    match message:
        case Request() | Notification():
            body = plain_json(line)
            assert nesting(body) <= DEPTH_MAX
            assert verdict is not None
            assert (message.method, identity) == (verdict[0], verdict[2])
            assert is_same_json(message.params, verdict[1])
        case Result() | Failure():
            assert nesting(plain_json(line)) <= DEPTH_MAX
        case Malformed():
            assert not message.fatal
            assert verdict is None, f"a valid request was refused: {message.text}"
            return
    assert decode(encode(message)[:-1]) == message


def seeds_admin() -> Iterable[bytes]:
    lines = [
        encode(Request(1, "status", {"vm": "web"})),
        encode(Request("a", "enable", {"disks": [{"path": "/a", "size": 1 << 40}], "seconds": 1.5})),
        encode(Notification("progress", {"text": 'a "quoted" [brace {'})),
        encode(Result(1, {"vms": []})),
        encode(Failure(None, -32700, "no JSON", {"code": "usage"})),
        b'[{"jsonrpc": "2.0", "id": 1, "method": "status"}]\n',
        b'{"jsonrpc": "2.0", "id": true, "method": "status"}\n',
        b'{"jsonrpc": "2.0", "id": 18446744073709551616, "method": "status"}\n',
        b'{"jsonrpc": "2.0", "id": 1, "method": "status", "params": ' + b"[" * 20 + b"]" * 20 + b"}\n",
        b'{"jsonrpc": "2.0", "id": 1, "method": "status", "params": {"a":' + b"[" * 14 + b"]" * 14 + b"}}\n",
        b'{"jsonrpc": "2.0", "id": 1, "method": "s", "params": {"a": "\\ud800", "b": "\\"]}"}}\n',
        b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}\n',
        b'{"jsonrpc": "2.0", "id": 1, "method": "s", "params": {"a":' + b"[" * 15 + b"]" * 15 + b"}}\n",
        b'{"jsonrpc": "2.0", "id": 1, "method": "s", "params": {"a": "' + b"[" * 40 + b'"}}\n',
        b"\n \n",
        b"[" * 300 + b"\n",
    ]
    for line in lines:
        yield b"\2" + line
    yield b"\2" + b"".join(lines)
    yield b"\0" + b"x" * 70
    yield b"\1" + lines[0] * 3 + b"x" * 300 + lines[0]


def mutate_admin(data: bytes, random: Random) -> bytes:
    lines = data[1:].split(b"\n")
    at = random.randrange(len(lines))
    try:
        lines[at] = json.dumps(change_value(json.loads(lines[at]), random), default=str).encode()
    except (ValueError, TypeError, RecursionError):
        return tweak(data, random)
    if random.random() < 0.2:
        lines.insert(at, lines[random.randrange(len(lines))])
    return data[:1] + b"\n".join(lines)


def any_depth() -> Any:
    return mock.patch.object(shared.admin.codec, "depth", lambda line: 1)


def any_line() -> Any:
    """The limit holds for each piece, not for the line."""
    feed_ = MessageReader.feed

    def feed(self: MessageReader, data: bytes) -> Any:
        limit, self.limit = self.limit, self.limit + len(self._line)
        try:
            return feed_(self, data)
        finally:
            self.limit = limit

    return mock.patch.object(MessageReader, "feed", feed)


def blind_depth() -> Any:
    """Brackets inside of strings count as well."""
    return mock.patch.object(shared.admin.codec, "_STRING", re.compile(b"(?!)"))


# --- the tap's control ---------------------------------------------------------------------------------------------

PARAMS: tuple[type[Params], ...] = (
    BeginParams,
    ReasonParams,
    SetParams,
    LocateParams,
    LeaseParams,
    ReleaseParams,
    KnowsCutParams,
    NoParams,
    RelogParams,
)
RESULTS: tuple[Any, ...] = (TapStatus, Sealed, LogPlace, dict[str, Any])
HEX = re.compile("[0-9a-f]{32}")


def check_hex(value: Any) -> None:
    """Identifiers and chain hashes are exactly 32 hex digits."""
    if isinstance(value, TapPosition):
        position = value.position()
        assert (position.epoch.hex(), position.chain.hex()) == (value.epoch, value.chain)
    for name in getattr(value, "__struct_fields__", ()):
        field = getattr(value, name)
        if name in ("epoch", "chain", "base_epoch") and field is not None:
            assert HEX.fullmatch(field), f"{name} is {field!r}"
        check_hex(field)
    if isinstance(value, list):
        for each in value:
            check_hex(each)


def call(kind: type[Params], raw: dict[str, Any]) -> Any:
    """What a handler would get of a request's params. Raises InvalidParamsError."""
    methods = Methods()
    got = []

    async def handler(params: Any, _client: Any) -> None:
        got.append(params)

    methods.add("it", kind, handler)
    method: Any = methods["it"](raw, mock.sentinel.client)
    try:
        method.send(None)
    except StopIteration:
        return got[0]
    raise AssertionError("the method waits")


def fuzz_tap_control(data: bytes) -> None:
    """Params, results and notifications are refused with a typed error, or are what their types promise."""
    if not data:
        return
    message = decode(b'{"jsonrpc": "2.0", "method": "it", "params": ' + data[1:] + b"}")
    if not isinstance(message, Notification):
        return
    which = data[0] % (len(PARAMS) + len(RESULTS) + len(NOTIFICATIONS))
    try:
        if which < len(PARAMS):
            value = call(PARAMS[which], message.params)
            assert set(message.params) <= set(value.__struct_fields__)
        elif which < len(PARAMS) + len(RESULTS):
            value = shared.tap_control._read(message.params, RESULTS[which - len(PARAMS)], "it")
        else:
            name = sorted(NOTIFICATIONS)[which - len(PARAMS) - len(RESULTS)]
            value = read_notification(name, message.params)
            assert value is not None
    except (InvalidParamsError, TapProtocolError) as error:
        assert error.text
        return
    check_hex(value)
    again = msgspec.json.decode(msgspec.json.encode(value), type=type(value), strict=True)
    assert again == value


EPOCH = "0123456789abcdef" * 2
POSITION = {"epoch": EPOCH, "segment": 3, "entry": 40, "chain": EPOCH}
LOST = {"reason": "log_full", "text": "full", "time": 1.5}
STATUS = {
    "vm": "v", "name": "web", "pid": 1, "version": "0.1.0", "boot_id": "b", "tracking": "on", "lost": LOST,
    "epoch": EPOCH, "position": POSITION, "sealed": POSITION, "first_segment": 1,
    "log": {"used": 1, "limit": 2, "files": 3, "file_bytes": 4, "folder": "/log"},
    "disks": [{"index": 0, "path": "/d", "size": 512, "export": "d", "uri": "nbd:", "clients": 0, "writes": 1,
               "bytes_written": 2}],
    "interval": 30.0, "nbd_uri": "nbd:", "writes": 1, "bytes_written": 2, "last_write_time": None,
    "doubt": {"base_epoch": EPOCH, "base_segment": 1, "end_segment": 2, "complete": True, "catch_up": False,
              "bytes": 65536},
    "hot_bytes": 4096,
}  # fmt: skip
SEALED = {**POSITION, "file": 2, "offset": 4096, "time_ns": 5}
CONTROL_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"epoch": EPOCH},
    {"reason": "resync"},
    {"interval": 30.0, "log_limit": 1 << 30},
    POSITION,
    {"from_file": 3, "seconds": 30.0},
    {"epoch": EPOCH, "segment": 3},
    {"epoch": EPOCH, "segment": 3, "chain": EPOCH},
    {},
    STATUS,
    SEALED,
    {"file": 2, "offset": 4096, "position": POSITION},
    {"anything": 1},
    {"file": 2, "offset": 4096, "epoch": EPOCH, "segment": 3, "entry": 40},
    SEALED,
    {"tracking": "lost", "epoch": EPOCH, "lost": LOST},
)


def seeds_tap_control() -> Iterable[bytes]:
    for index, example in enumerate(CONTROL_EXAMPLES):
        yield bytes([index]) + json.dumps(example).encode()
        yield bytes([index]) + json.dumps(example | {"later": 1}).encode()
    yield bytes([0]) + json.dumps({"epoch": EPOCH + "\n"}).encode()


def mutate_json(data: bytes, random: Random) -> bytes:
    """Change a value of the JSON behind the first byte."""
    try:
        return data[:1] + json.dumps(change_value(json.loads(data[1:]), random), default=str).encode()
    except (ValueError, TypeError, RecursionError):
        return tweak(data, random)


def lax_params() -> Any:
    """Unknown parameters are ignored."""
    import shared.admin.methods as module

    def convert(raw: dict[str, Any], kind: Any, **more: Any) -> Any:
        return msgspec.convert({name: raw[name] for name in raw if name in kind.__struct_fields__}, kind, **more)

    fake = mock.Mock(convert=convert, ValidationError=msgspec.ValidationError)
    return mock.patch.object(module, "msgspec", fake)


def raw_results() -> Any:
    """A result that is not readable raises the library's error."""

    def read(plain: Any, kind: Any, method: str) -> Any:
        return msgspec.convert(plain, kind, strict=True)

    return mock.patch.object(shared.tap_control, "_read", read)


# --- the agents' configuration -------------------------------------------------------------------------------------

FOLDER = tempfile.mkdtemp(prefix="vmr-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
TOML = Path(FOLDER) / "agent.toml"
PATHS = re.compile(r"/[^\0]*", re.DOTALL)


def fuzz_config(data: bytes) -> None:
    """A file is refused with one sentence, the file's name and a remedy, or is a configuration without a doubt."""
    if not data:
        return
    kind: Any = ReplicaConfig if data[0] & 1 else PrimaryConfig
    TOML.write_bytes(data[1:])
    try:
        config = shared.config.load_config(str(TOML), kind)
    except UsageError as error:
        assert str(TOML) in error.text
        assert error.remedy
        return
    assert isinstance(config, kind)
    check_paths(config)
    assert 0 < config.heartbeat_seconds * 2 <= config.dead_after_seconds <= 3600
    assert config.host
    assert not config.tap_command or any("%i" in word for word in config.tap_command)
    assert len(config.admin_socket) <= 107
    if isinstance(config, ReplicaConfig):
        check_authorization(config)


def check_paths(section: Any) -> None:
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct):
            check_paths(value)
        elif name in ("ca", "certificate", "key", "crl", "state_dir", "runtime_dir", "admin_socket", "storage"):
            assert PATHS.fullmatch(value) or (name == "crl" and not value), f"{name} = {value!r}"
            assert not {"..", "."} & set(value.split("/")), f"{name} = {value!r}"


def check_authorization(config: ReplicaConfig) -> None:
    storages: dict[str, str] = {}
    for entry in config.authorize:
        check_paths(entry)
        assert entry.fingerprint or entry.name
        assert not entry.fingerprint or re.fullmatch("[0-9a-f]{64}", entry.fingerprint)
        assert entry.vms == ["*"] or all(re.fullmatch("[0-9a-f-]{36}", vm) for vm in entry.vms)
        assert entry.vms
        here = entry.storage.rstrip("/") + "/"
        for folder in (config.state_dir, config.runtime_dir):
            other = folder.rstrip("/") + "/"
            assert not here.startswith(other)
            assert not other.startswith(here)
        for storage, group in storages.items():
            if storage == here:
                assert group == entry.trust_group != ""
            else:
                assert not storage.startswith(here)
                assert not here.startswith(storage)
        storages.setdefault(here, entry.trust_group)


def replica_toml(**more: str) -> str:
    lines = {
        "tls": '[tls]\nca = "/etc/ca.pem"\ncertificate = "/etc/host.pem"\nkey = "/etc/host.key"\n',
        "listen": '[listen]\nhost = "::"\nport = 8443\n',
        "authorize": '[[authorize]]\nfingerprint = "' + "ab" * 32 + '"\nstorage = "/replica/a"\nvms = ["*"]\n',
    }
    return "\n".join((lines | more).values())


def seeds_config() -> Iterable[bytes]:
    tls = '[tls]\nca = "/etc/ca.pem"\ncertificate = "/etc/host.pem"\nkey = "/etc/host.key"\n'
    yield b"\0" + tls.encode()
    yield b"\0" + ('host = "a"\nheartbeat_seconds = 5\ntap_command = ["x", "%i"]\nlog_format = "json"\n' + tls).encode()
    yield b"\1" + replica_toml().encode()
    two = '[[authorize]]\nname = "b"\nstorage = "/replica/a/b"\nvms = ["00000000-0000-0000-0000-000000000001"]\n'
    yield b"\1" + replica_toml(two=two).encode()
    yield b"\1" + replica_toml(two=two.replace("/replica/a/b", "/replica/b")).encode()
    yield b"\1" + replica_toml(two=two.replace("/replica/a/b", "/var/lib/vmreplica")).encode()
    same = 'trust_group = "t"\n'
    yield b"\1" + (replica_toml() + same + two.replace("/a/b", "/a") + same).encode()
    for bad in (
        'state_dir = "/a\\u0000"\n', 'state_dir = "/a/../b"\n', "heartbeat_seconds = nan\n", "worker_threads = 1e3\n",
        f"worker_threads = {'9' * 5000}\n", f"host = {'[' * 1500}\n", f"host = {'{a=' * 1500}\n", 'hots = "a"\n',
        "dead_after_seconds = inf\n", 'host = "\\ud800"\n', "host = 2020-01-01\n", "[tls.key]\na = 1\n", "tls.ca = 1\n",
        "admin_socket = '/" + "a" * 107 + "'\n", "'' = 1\n", "'a.b' = 1\n",
    ):  # fmt: skip
        yield b"\0" + (bad + tls).encode()
    yield b"\0\xff\xfe"


LINES = (
    b'host = "x"', b"heartbeat_seconds = 7", b"dead_after_seconds = 1", b"[listen]", b"[storage]", b"vms = 1",
    b"[[authorize]]", b'vms = ["*"]', b"vms = []", b'storage = "/a"', b'name = "B.example"', b'trust_group = "t"',
    b"[tls]", b'crl = ""', b'crl = "x"', b"port = 65536", b'fingerprint = "sha256:AB"', b"a = {b = [1, {c = 2}]}",
)  # fmt: skip


def mutate_config(data: bytes, random: Random) -> bytes:
    lines = data[1:].split(b"\n")
    at = random.randrange(len(lines))
    match random.randrange(5):
        case 0:
            lines.insert(at, random.choice(LINES))
        case 1:
            lines.insert(at, lines[random.randrange(len(lines))])
        case 2:
            del lines[at]
        case 3:
            key, equals, _value = lines[at].partition(b"=")
            lines[at] = (
                key + equals + b" " + random.choice((b"1", b'""', b'"/"', b"[]", b"-1", b"1.5", b"true", b'"//a"'))
            )
        case _:
            lines[at] = tweak(lines[at], random)
    return data[:1] + b"\n".join(lines)


def any_path() -> Any:
    return mock.patch.object(shared.config, "_check_paths", lambda *_arguments: None)


def any_storage() -> Any:
    return mock.patch.object(shared.config, "_check_storages", lambda *_arguments: None)


def only_toml() -> Any:
    """Only the library's own error counts as a mistake in the file."""
    import tomllib

    def loads(text: str) -> Any:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise KeyError(error) from None

    return mock.patch.object(shared.config, "tomllib", mock.Mock(loads=loads, TOMLDecodeError=tomllib.TOMLDecodeError))


# --- the tap's configuration ---------------------------------------------------------------------------------------

EXPORT = re.compile("[A-Za-z0-9._-]{1,255}")


def fuzz_tap_config(data: bytes) -> None:
    """tap.json is refused with a UsageError, or is one that a tap can start with; tap.error is read or ignored."""
    check_start_error(data)
    try:
        config = decode_config(data, "tap.json")
    except UsageError as error:
        assert error.text
        return
    encoded = encode_config(config)
    assert decode_config(encoded, "tap.json") == config
    assert config.vm_id.hex() == config.vm.replace("-", "")
    assert config.log_file_size >= 4 << 20
    assert config.log_file_size % 4096 == 0
    assert 2 * config.log_file_size <= config.log_limit
    assert 1 << config.hot_region_bits == config.hot_region_bytes
    for disk in config.disks:
        assert disk.geometry.uuid.hex() == disk.uuid, f"{disk.uuid!r} is no UUID"
        assert EXPORT.fullmatch(disk.export), f"{disk.export!r} is no name of an export"
        assert PATHS.fullmatch(disk.path)
    for field in ("index", "uuid", "path", "export"):
        assert len({getattr(disk, field) for disk in config.disks}) == len(config.disks)


def check_start_error(data: bytes) -> None:
    files: Any = MemoryFiles({f"/tap/{ERROR_NAME}": data})
    told = start_error(files, "/tap")
    link: Any = SimpleNamespace(folder="/tap", _ports=SimpleNamespace(files=files))
    other = TapLink._start_error(link)
    assert (told is None) is (other is None)
    assert told is None or isinstance(told, VmreplicaError)


def a_tap_config() -> TapConfig:
    return TapConfig(
        vm="00000000-0000-0000-0000-000000000001",
        name="web",
        disks=[
            TapDisk(index=0, uuid="0" * 32, path="/disks/a.raw", size=1 << 30, export="a"),
            TapDisk(index=3, uuid="1" * 32, path="/disks/b.raw", size=512, export="b"),
        ],
        nbd_socket="/run/nbd.sock",
        control_socket="/run/tap.sock",
        log_folder="/var/log",
    )


def seeds_tap_config() -> Iterable[bytes]:
    plain = msgspec.json.decode(encode_config(a_tap_config()))
    yield encode_config(a_tap_config())
    for change in (
        {"hot_region_bytes": 3 << 20}, {"hot_regions": 1}, {"log_file_bytes": 5000}, {"log_limit_bytes": 1}, {"x": 1},
        {"vm": "0" * 36}, {"vm": "{" + "0" * 32 + "--}"}, {"name": "\xe9" * 128},
        {"disks": plain["disks"][:1] * 2}, {"disks": [plain["disks"][0] | {"export": "a\n"}]},
        {"disks": [plain["disks"][0] | {"uuid": "0" * 32 + "\n"}]}, {"disks": [plain["disks"][0] | {"path": "/a\0"}]},
    ):  # fmt: skip
        yield json.dumps(plain | change).encode()
    yield b'{"text": "\xff"}'
    yield b'{"text": "no room", "remedy": "make some", "code": "no_space"}'
    yield b"[" * 3000


def mutate_tap_config(data: bytes, random: Random) -> bytes:
    return mutate_json(b"\0" + data, random)[1:][:MAX_CONFIG_BYTES]


def unchecked() -> Any:
    return mock.patch.object(TapConfig, "check", lambda self: None)


def only_msgspec() -> Any:
    """Only the library's own error counts as a mistake in the file."""

    def decode_(data: bytes, path: str) -> TapConfig:
        try:
            config = msgspec.json.decode(data, type=TapConfig, strict=True)
        except msgspec.DecodeError as error:
            raise UsageError(str(error)) from None
        config.check()
        return config

    return mock.patch.dict(globals(), decode_config=decode_)


TARGETS = {
    "admin": Target(
        fuzz_admin,
        seeds_admin,
        mutate_admin,
        (Plant("any_depth", any_depth), Plant("any_line", any_line), Plant("blind_depth", blind_depth)),
        max_bytes=4096,
    ),
    "tap_control": Target(
        fuzz_tap_control,
        seeds_tap_control,
        mutate_json,
        (Plant("lax_params", lax_params), Plant("raw_results", raw_results)),
        max_bytes=4096,
    ),
    "config": Target(
        fuzz_config,
        seeds_config,
        mutate_config,
        (Plant("any_path", any_path), Plant("any_storage", any_storage), Plant("only_toml", only_toml)),
        max_bytes=8192,
    ),
    "tap_config": Target(
        fuzz_tap_config,
        seeds_tap_config,
        mutate_tap_config,
        (Plant("unchecked", unchecked), Plant("only_msgspec", only_msgspec)),
        max_bytes=4096,
    ),
}
