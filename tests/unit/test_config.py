"""Tests of the agents' configuration: what is accepted, each mistake with file, line and remedy, and the page on it."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from shared.config import find_mistakes, load_config
from shared.config_sections import PrimaryConfig, ReplicaConfig, Section, split_listen
from shared.errors import UsageError

DOC = Path(__file__).parents[2] / "docs" / "config.md"
TLS = '[tls]\nca = "/etc/ca.pem"\ncertificate = "/etc/cert.pem"\nkey = "/etc/key.pem"\n'
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
ENTRY = '[[authorize]]\nname = "Alpha.example"\nvms = ["*"]\nstorage = "/srv/a"\n'


def load(folder: Path, text: str, kind: Any = ReplicaConfig) -> Any:
    path = folder / "agent.toml"
    path.write_text(text)
    return load_config(str(path), kind)


def test_certificates_are_all_a_primary_needs(tmp_path: Path) -> None:
    loaded = load(tmp_path, TLS, PrimaryConfig)
    assert loaded == PrimaryConfig(tls=loaded.tls, host=os.uname().nodename)
    assert loaded.tls.key == "/etc/key.pem"


def test_nobody_is_authorized_by_default(tmp_path: Path) -> None:
    """I19: default deny."""
    assert load(tmp_path, TLS).authorize == []


def test_all_keys_are_read(tmp_path: Path) -> None:
    text = (
        'host = "beta"\nstate_dir = "/s"\nruntime_dir = "/r"\nadmin_socket = "/a.sock"\nadmin_group = "ops"\n'
        'worker_threads = 3\ntap_command = ["start", "tap@%i"]\nheartbeat_seconds = 2\ndead_after_seconds = 7.5\n'
        'log_format = "json"\n'
        + TLS
        + 'crl = "/etc/crl.pem"\n[listen]\nhost = "::1"\nport = 99\n[storage]\nreserve_bytes = 5\n'
        + f'[[authorize]]\nfingerprint = "SHA256:{"AB:" * 31}AB"\nvms = ["{UUID.upper()}"]\nstorage = "/x"\n'
        'trust_group = "t"\n[[authorize]]\nname = "B.Example"\nvms = ["*"]\nstorage = "/x"\ntrust_group = "t"\n'
    )
    loaded = load(tmp_path, text)
    assert (loaded.host, loaded.state_dir, loaded.runtime_dir, loaded.admin_socket) == ("beta", "/s", "/r", "/a.sock")
    assert (loaded.admin_group, loaded.worker_threads, loaded.log_format) == ("ops", 3, "json")
    assert (loaded.heartbeat_seconds, loaded.dead_after_seconds) == (2, 7.5)
    assert (loaded.listen.host, loaded.listen.port, loaded.storage.reserve_bytes) == ("::1", 99, 5)
    first, second = loaded.authorize
    assert (first.fingerprint, first.vms, first.trust_group) == ("ab" * 32, [UUID], "t")
    assert (second.name, second.vms, second.storage) == ("b.example", ["*"], "/x")


@pytest.mark.parametrize(
    ("text", "address"),
    [("", None), ("127.0.0.1:9441", ("127.0.0.1", 9441)), ("[::1]:1", ("::1", 1)), ("beta:65535", ("beta", 65535))],
)
def test_where_metrics_are_offered(tmp_path: Path, text: str, address: tuple[str, int] | None) -> None:
    loaded = load(tmp_path, f'monitoring_seconds = 3600\n{TLS}[metrics]\nlisten = "{text}"\n', PrimaryConfig)
    assert (split_listen(loaded.metrics.listen), loaded.monitoring_seconds) == (address, 3600)


MISTAKES = {
    "unknown key": ("hots = 'x'\n" + TLS, ":1: hots is no known key", "Did you mean host?"),
    "unknown key in a table": (TLS + "crll = '/x'\n", ":5: tls.crll is no known key", "Did you mean crl?"),
    "key in the wrong place": ("port = 99\n" + TLS, ":1: port is no known key", "Did you mean listen.port?"),
    "unknown key in an entry": (
        TLS + ENTRY + ENTRY.replace("/srv/a", "/srv/b") + "quota = 5\n",
        ":13: authorize entry 2.quota is no known key",
        "Did you mean quota_bytes?",
    ),
    "unknown table": (TLS + "[lisen]\n", "lisen is no known key", "Did you mean listen?"),
    "missing table": ("host = 'x'\n", "tls is missing", "docs/config.md"),
    "missing key": (TLS.replace("key =", "crl ="), "tls.key is missing", "docs/config.md"),
    "text for a number": (TLS + "[listen]\nport = '8443'\n", ":6: listen.port: Expected `int`", "docs/config.md"),
    "number for text": ("host = 5\n" + TLS, ":1: host: Expected `str`", "docs/config.md"),
    "out of range": ("worker_threads = 0\n" + TLS, ":1: worker_threads: Expected `int` >= 1", "docs/config.md"),
    "time of zero": ("heartbeat_seconds = 0\n" + TLS, ":1: heartbeat_seconds", "docs/config.md"),
    "wrong word": ("log_format = 'xml'\n" + TLS, ":1: log_format: Invalid enum value 'xml'", "docs/config.md"),
    "relative path": ("state_dir = 'var'\n" + TLS, ":1: state_dir", "docs/config.md"),
    "monitoring interval too short": (
        "monitoring_seconds = 60\n" + TLS,
        ":1: monitoring_seconds: Expected `float` >= 3600",
        "docs/config.md",
    ),
    "no port for metrics": (
        TLS + "[metrics]\nlisten = '127.0.0.1'\n",
        "'127.0.0.1' is no address and port",
        "docs/config.md",
    ),
    "port out of range": (TLS + "[metrics]\nlisten = '[::1]:65536'\n", "65536 is no TCP port", "docs/config.md"),
    "IPv6 without brackets": (
        TLS + "[metrics]\nlisten = '::1:9441'\n",
        "Write 127.0.0.1:9441 or [::1]:9441.",
        "docs/config.md",
    ),
    "relative path of the list": (TLS + "crl = 'x'\n", ":5: tls.crl", "docs/config.md"),
    "credential elsewhere": (TLS + "crl = 'credential:../x'\n", ":5: tls.crl", "docs/config.md"),
    "path that is not plain": ("state_dir = '/a/../b'\n" + TLS, ":1: state_dir: '/a/../b' is not", "Leave out"),
    "long socket": (f"admin_socket = '/{'x' * 107}'\n" + TLS, ":1: admin_socket", "docs/config.md"),
    "value in a list": ("tap_command = ['a', 5]\n" + TLS, ":1: tap_command entry 2: Expected `str`", "docs/config.md"),
    "command without a folder": ("tap_command = ['tap']\n" + TLS, ":1: tap_command", "vmreplica-tap@%i"),
    "too few heartbeats": ("heartbeat_seconds = 8\n" + TLS, "two heartbeats of 8 s", "three heartbeats"),
    "path with a zero byte": ('state_dir = "/a\\u0000"\n' + TLS, ":1: state_dir: '/a\\x00' is not", "Leave out"),
    "line break for no list": (TLS + 'crl = "\\n"\n', ":5: tls.crl", "docs/config.md"),
    "number without an end": (f"worker_threads = {'9' * 5000}\n" + TLS, "not valid TOML", "Mend"),
    "nested without an end": (f"host = {'[' * 2000}\n" + TLS, "not valid TOML", "Mend"),
    "no TOML": ("host = \n" + TLS, "not valid TOML", "Mend"),
    "entry for nobody": (
        TLS + ENTRY.replace('name = "Alpha.example"\n', ""),
        ":5: authorize entry 1 names nobody",
        "fingerprint",
    ),
    "short fingerprint": (
        TLS + ENTRY + 'fingerprint = "abc"\n',
        ":9: authorize entry 1.fingerprint",
        "vmreplica pki show",
    ),
    "no VM": (TLS + ENTRY.replace('["*"]', "[]"), ":7: authorize entry 1.vms: Expected `array`", "docs/config.md"),
    "no UUID": (TLS + ENTRY.replace('["*"]', '["*", "x"]'), ":7: authorize entry 1.vms: '*' is no UUID", "UUIDs"),
    "same storage": (TLS + ENTRY + ENTRY, ":12: authorize entry 2.storage: /srv/a is another", "trust_group"),
    "storage of another trust group": (
        TLS + ENTRY + "trust_group = 'a'\n" + ENTRY + "trust_group = 'b'\n",
        "/srv/a is another",
        "trust_group",
    ),
    "storage inside another": (TLS + ENTRY + ENTRY.replace("/srv/a", "/srv/a/b"), "/srv/a/b and /srv/a", "apart"),
    "storage around another": (TLS + ENTRY + ENTRY.replace("/srv/a", "/srv"), "/srv and /srv/a", "apart"),
    "storage inside the state": (
        "state_dir = '/srv'\n" + TLS + ENTRY,
        ":9: authorize entry 1.storage: /srv/a and state_dir = /srv overlap",
        "folder of their own",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    text, complaint, remedy = MISTAKES[name]
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert complaint in caught.value.text
    assert str(tmp_path / "agent.toml") in caught.value.text
    assert remedy in caught.value.remedy


def test_names_that_only_begin_alike_do_not_overlap(tmp_path: Path) -> None:
    loaded = load(tmp_path, TLS + ENTRY + ENTRY.replace("/srv/a", "/srv/ab"))
    assert [entry.storage for entry in loaded.authorize] == ["/srv/a", "/srv/ab"]


@pytest.mark.parametrize("key", ["listen", "storage", "authorize"])
def test_primary_does_not_take_a_replicas_tables(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=f"{key} is no known key"):
        load(tmp_path, f"{key} = []\n" + TLS, PrimaryConfig)


def test_missing_and_undecodable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read: No such file"):
        load_config(str(tmp_path / "missing.toml"), PrimaryConfig)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_config(str(tmp_path / "binary.toml"), PrimaryConfig)


def tables_of_the_page() -> dict[str, dict[str, tuple[str, str]]]:
    """Section to key to (type, default), as docs/config.md has them; the keys of both agents are in section ``""``."""
    tables: dict[str, dict[str, tuple[str, str]]] = {}
    section = None
    for line in DOC.read_text().splitlines():
        if line.startswith("## "):
            found = re.match(r"## `\[+(\w+)\]+`", line)
            section = found[1] if found else "" if line == "## Both agents" else None
        elif section is not None and (row := re.match(r"\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", line)):
            tables.setdefault(section, {})[row[1]] = (row[2], row[3])
    return tables


def test_page_has_every_key_with_its_default() -> None:
    """An option without help, or help without an option, fails."""
    sections: dict[str, tuple[Any, ...]] = {"": (PrimaryConfig, ReplicaConfig)}
    for kind in sections[""]:
        for key, annotation in get_type_hints(kind).items():
            inner = (*get_args(annotation), annotation)[0]
            if isinstance(inner, type) and issubclass(inner, Section):
                sections[key] = (inner,)
    tables = tables_of_the_page()
    assert set(tables) == set(sections)
    for section, kinds in sections.items():
        fields = [{f.name: f for f in msgspec.structs.fields(kind)} for kind in kinds]
        keys = {name for each in fields for name in each}
        if section == "":
            keys -= set(sections)
        assert set(tables[section]) == keys
        for key in keys:
            shown = tables[section][key][1]
            for each in (each for each in fields if key in each):
                assert shows_default(shown, each[key]), (section, key, shown, each[key].default)


def shows_default(shown: str, field: msgspec.structs.FieldInfo) -> bool:
    if field.required:
        return shown == "required"
    if field.name == "host" and field.default == "":
        return shown == "the system's host name"
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    plain = re.findall(r"`([^`]*)`", shown)
    if isinstance(default, list):
        return json.dumps(default) in plain
    if isinstance(default, bool):
        return str(default).lower() in plain
    return str(default) in plain or f'"{default}"' in plain or (isinstance(default, float) and f"{default:g}" in plain)


def test_examples_of_the_page_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(examples) == 2
    for text, kind in zip(examples, (PrimaryConfig, ReplicaConfig), strict=True):
        assert tomllib.loads(text)["tls"]
        load(tmp_path, text, kind)


# --- all mistakes of a file at once


def mistakes(folder: Path, text: str, kind: Any = ReplicaConfig) -> list[str]:
    path = folder / "agent.toml"
    path.write_text(text)
    return [mistake.text.removeprefix(str(path)) for mistake in find_mistakes(str(path), kind)]


def test_all_mistakes_are_found_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "hots = 'x'\nworker_threads = 0\nheartbeat_seconds = 10\n[tls]\nca = 'ca.pem'\ncertificate = '/c'\nkey = '/k'\n"
        "crll = '/x'\n[listen]\nport = 'x'\n[[authorize]]\nvms = ['*']\nstorage = '/srv/a'\n"
        "[[authorize]]\nname = 'b'\nvms = ['nonsense']\nstorage = '/srv/../b'\n"
    )
    found = mistakes(tmp_path, text)
    expected = [":1: hots", ":2: worker_threads", ":5: tls.ca", ":8: tls.crll", ":10: listen.port", ":11: authorize",
                ":16: authorize entry 2.vms", ":17: authorize entry 2.storage"]  # fmt: skip
    for start in expected:
        assert any(each.startswith(start) for each in found), (start, found)
    assert any("less than two heartbeats" in each for each in found)
    assert len(found) == len(expected) + 1


def test_every_missing_key_is_found(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "[tls]\n[[authorize]]\nname = 'a'\n")
    assert sorted(each.partition(": ")[2] for each in found) == [
        "authorize entry 1.storage is missing.", "authorize entry 1.vms is missing.", "tls.ca is missing.",
        "tls.certificate is missing.", "tls.key is missing.",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_each_single_mistake_is_found_by_the_search_too(name: str, tmp_path: Path) -> None:
    """What stops the agent is what the search tells first or among others; a file without any has none."""
    text, told, _ = MISTAKES[name]
    assert any(told in each for each in mistakes(tmp_path, text))


def test_sound_file_has_no_mistakes(tmp_path: Path) -> None:
    assert mistakes(tmp_path, TLS + ENTRY) == []


ALARM = TLS + "[[alarms]]\nname = 'a'\n"


@pytest.mark.parametrize(
    "text, told",
    [
        (ALARM, "either command or webhook"),
        (ALARM + "command = ['/x']\nwebhook = 'https://x'\n", "either command or webhook"),
        (ALARM + "command = ['mail']\n", "no absolute path"),
        (ALARM + "webhook = 'http://example.com/x'\n", "by https only"),
        (ALARM + "webhook = 'ftp://example.com/x'\n", "alarms entry 1.webhook"),
        (ALARM + "command = ['/x']\n[[alarms]]\nname = 'a'\ncommand = ['/y']\n", "another alarm's name"),
    ],
)
def test_alarm_that_leads_nowhere_is_refused(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        load(tmp_path, text)
