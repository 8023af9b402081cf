"""A VM's definition as this host has to have it: its disks, networks and files in the place of the primary's.

The definition came from the other host, which may have been taken over: of a libvirt domain only what is known to be
harmless stays (no devices, files or programs of this host but those that are put in here), and XML is read within
bounds and without entities. Nothing here runs anything or touches a file.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.cli.attach import nbd_place
from shared.cli.domain_xml import LEFT_ALONE, Domain, DomainDisk, Place, is_tap_socket, parse, put_behind_taps
from shared.errors import UsageError
from shared.guest_status import DefinitionDiskStatus

TEXT_MAX = 1 << 20
DEPTH_MAX, ELEMENTS_MAX = 64, 20_000
"""Bytes of a definition, how deep its XML is nested, and how many elements it has, at most."""
TEST_SUFFIX = " - Test"
FIRMWARE_FOLDER = "/usr/share/"
"""Where firmware that the distribution brings lies, on any host."""
_KEPT_DEVICES = frozenset(
    """
    audio channel console controller disk graphics hub input interface iommu memballoon panic rng serial sound tpm
    video vsock watchdog
    """.split()
)
_KEPT_ON_CONDITION = frozenset({"audio", "input", "rng", "tpm"})
_NETWORK_KEYS = ("network", "bridge", "dev")
_KEPT_ON_TOP = frozenset(
    """
    blkiotune clock cpu cputune currentMemory description devices features genid iothreadids iothreads keywrap
    launchSecurity maxMemory memory memoryBacking memtune metadata name numatune on_crash on_poweroff on_reboot os perf
    pm sysinfo title uuid vcpu vcpus
    """.split()
)
_KEPT_CHARACTER_TYPES = frozenset({"pty", "spicevmc", "spiceport", "null", "qemu-vdagent"})
"""Of consoles, serial ports and channels; ``unix`` stays without its path, which libvirt then makes."""
_PLACEHOLDER = re.compile(r"\{(name|uuid|disk[0-9]{1,3}|network:[^{}\n]{1,128}|file:[^{}/\n]{1,255})\}")


@dataclass(frozen=True, slots=True)
class HostMapping:
    """What takes whose place: ``disks`` are NBD URIs by the disks' index, ``networks`` names by names, ``files`` paths
    by the primary's paths. ``test``: it becomes a second VM beside the one that runs, ``uuid`` its own.
    """

    disks: Mapping[int, str]
    networks: Mapping[str, str]
    files: Mapping[str, str]
    test: bool = False
    uuid: str = ""
    secrets: bool = False
    """Leave passwords in it."""


@dataclass(slots=True)
class Mapped:
    """The definition for this host, and what was done to it beside that people have to know."""

    text: str
    notes: list[str] = field(default_factory=list)
    is_domain: bool = False
    name: str = ""
    missing_disks: list[int] = field(default_factory=list)
    """Disks that have no address here yet: it can't be started so."""


def read_networks(entries: Sequence[str]) -> dict[str, str]:
    """``THERE=HERE`` entries of the configuration."""
    return {there: here for there, _, here in (entry.partition("=") for entry in entries)}


def mapped(content: bytes, known: Sequence[DefinitionDiskStatus], mapping: HostMapping, name: str) -> Mapped:
    """The definition ``content`` of the VM ``name``, whose disks are ``known``. Raises UsageError."""
    text = _decoded(content)
    if text.lstrip().startswith("<"):
        return _domain(text, known, mapping)
    return _plain(text, known, mapping, name)


def _decoded(content: bytes) -> str:
    if len(content) > TEXT_MAX:
        raise UsageError(f"The definition has {len(content)} bytes; at most {TEXT_MAX} are read.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("The definition is no text in UTF-8.", "Look at it with --output DIR --as-it-is.") from None


# --- a text with placeholders -----------------------------------------------------------------------------------------


def _plain(text: str, known: Sequence[DefinitionDiskStatus], mapping: HostMapping, name: str) -> Mapped:
    """A command of QEMU, say: placeholders are filled in, and everything else stays."""
    result = Mapped("", name=name + TEST_SUFFIX if mapping.test else name)

    def fill(match: re.Match[str]) -> str:
        word, _, which = match[1].partition(":")
        if word == "name":
            return result.name
        if word == "uuid":
            return mapping.uuid
        if word == "network":
            if which not in mapping.networks and mapping.test:
                result.notes.append(f"The network {which} has no place in tests: test_networks does not name it.")
                return match[0]
            return mapping.networks.get(which, which)
        if word == "file":
            found = [here for path, here in mapping.files.items() if path.rpartition("/")[2] == which]
            if len(found) != 1:
                result.notes.append(f"No file {which} was written here: give --output DIR.")
                return match[0]
            return found[0]
        index = int(word.removeprefix("disk"))
        if index not in mapping.disks:
            result.missing_disks.append(index)
            return match[0]
        return mapping.disks[index]

    result.text = _PLACEHOLDER.sub(fill, text)
    named = {int(match[1].removeprefix("disk")) for match in _PLACEHOLDER.finditer(text) if match[1].startswith("disk")}
    for disk in known:
        if disk.index not in named:
            result.notes.append(
                f"Disk {disk.index} ({disk.path}) is not named: write {{disk{disk.index}}} for its NBD URI."
            )
    return result


# --- a libvirt domain -------------------------------------------------------------------------------------------------


def _domain(text: str, known: Sequence[DefinitionDiskStatus], mapping: HostMapping) -> Mapped:
    _check_bounds(text)
    result = Mapped("", is_domain=True)
    places: dict[str, Place] = {}
    for disk in parse(text).disks:
        index = _index_of(disk, known)
        if index is not None and disk.target:
            if index in mapping.disks:
                places[disk.target] = Place(*nbd_place(mapping.disks[index]))
            else:
                places[disk.target] = Place(f"{{disk{index}}}", f"disk{index}")
                result.missing_disks.append(index)
    domain = parse(put_behind_taps(text, places))
    root = domain.root
    devices = root.find("devices")
    if devices is not None:
        for element in list(devices):
            _device(devices, element, places, mapping, result)
    for element in list(root):
        if element.tag not in _KEPT_ON_TOP:
            root.remove(element)
            result.notes.append(f"<{_short(element.tag)}> was left out: it may reach anything on this host.")
    _machine(domain, mapping, result)
    _identity(domain, mapping, result)
    if not mapping.secrets:
        for element in root.iterfind("devices/graphics[@passwd]"):
            del element.attrib["passwd"]
            result.notes.append("The password of the graphics was left out: --security-info leaves it in.")
    result.text = ET.tostring(root, encoding="unicode") + "\n"
    return result


def _check_bounds(text: str) -> None:
    """Raises UsageError for XML with entities, or that is deeper or longer than any domain's."""
    if "<!" in re.sub(r"<!--.*?-->|<!\[CDATA\[", "", text, flags=re.DOTALL):
        raise UsageError("The definition declares a document type or entities: it is not read.")
    depth = elements = 0
    try:
        for event, _ in ET.iterparse(io.StringIO(text), events=["start", "end"]):  # noqa: S314 - bounded, no entities
            depth += 1 if event == "start" else -1
            elements += event == "start"
            if depth > DEPTH_MAX or elements > ELEMENTS_MAX:
                raise UsageError(
                    "The definition is nested deeper, or has more parts, than any domain's: it is not read."
                )
    except ET.ParseError as error:
        raise UsageError(f"The definition is no XML: {error}.") from None


def _index_of(disk: DomainDisk, known: Sequence[DefinitionDiskStatus]) -> int | None:
    """Which replicated disk it is: by its export at a tap, or by its path."""
    if disk.device in LEFT_ALONE:
        return None
    for each in known:
        if disk.path == each.path:
            return each.index
        if disk.place is not None and is_tap_socket(disk.place.socket) and disk.place.export == each.export:
            return each.index
    return None


def _device(
    devices: ET.Element, element: ET.Element, places: Mapping[str, Place], mapping: HostMapping, result: Mapped
) -> None:
    match element.tag:
        case "emulator":
            # This host's own is taken by default.
            devices.remove(element)
        case "disk":
            _disk(devices, element, places, mapping, result)
        case "interface":
            _interface(element, mapping, result)
        case "serial" | "console" | "channel":
            _character_device(devices, element, result)
        case "tpm" if element.find("backend[@type='emulator']") is not None:
            result.notes.append(
                "Its TPM's state is a file of swtpm: put it where libvirt looks for it (docs/definition.md)."
            )
        case "rng" if element.find("backend[@model='random']") is not None:
            for backend in element.iterfind("backend"):
                backend.text = "/dev/urandom"
        case "graphics":
            element.attrib.pop("socket", None)
            for gl in element.iterfind("gl"):
                gl.attrib.pop("rendernode", None)
        case "audio" if element.get("type") in ("none", "spice"):
            return
        case "input" if element.find("source") is None:
            return
        case tag if tag in _KEPT_DEVICES and tag not in _KEPT_ON_CONDITION:
            return
        case tag:
            devices.remove(element)
            result.notes.append(f"A device <{_short(tag)}> was left out: it belongs to the primary's host.")


def _disk(
    devices: ET.Element, element: ET.Element, places: Mapping[str, Place], mapping: HostMapping, result: Mapped
) -> None:
    disk = DomainDisk(element)
    if disk.target in places:
        return
    if disk.path in mapping.files:
        source = element.find("source")
        assert source is not None
        source.attrib.clear()
        source.set("file", mapping.files[disk.path])
        element.set("type", "file")
        return
    if disk.device in LEFT_ALONE:
        for child in element.findall("source") + element.findall("backingStore"):
            element.remove(child)
        element.set("type", "file")
        if disk.path:
            result.notes.append(f"The {disk.device} {disk.target} is empty: {disk.path} is not here.")
        return
    devices.remove(element)
    result.notes.append(f"The disk {disk.target} ({disk.path or disk.kind}) was left out: it is not replicated.")


def _interface(element: ET.Element, mapping: HostMapping, result: Mapped) -> None:
    source = element.find("source")
    name = (
        next((source.get(key, "") for key in ("network", "bridge", "dev") if source.get(key)), "")
        if source is not None
        else ""
    )
    for tag in ("target", "script", "downscript", "backend"):
        for child in element.findall(tag):
            element.remove(child)
    if mapping.test:
        for mac in element.findall("mac"):
            element.remove(mac)
    if name in mapping.networks and source is not None:
        for key in _NETWORK_KEYS:
            if source.get(key) == name:
                source.set(key, mapping.networks[name])
        source.attrib.pop("portid", None)
        return
    if mapping.test:
        for tag in ("source", "virtualport", "link", "vlan", "filterref", "bandwidth"):
            for child in element.findall(tag):
                element.remove(child)
        element.set("type", "user")
        element.append(ET.Element("link", {"state": "down"}))
        result.notes.append(
            f"The interface on {name or 'no network'} has its link down: test_networks does not name it."
        )
        return
    if element.get("type") not in ("network", "bridge", "user", "direct"):
        element.set("type", "user")
        for child in element.findall("source"):
            element.remove(child)
        result.notes.append(
            "An interface of another type than network, bridge and direct was given a network of its own."
        )


def _character_device(devices: ET.Element, element: ET.Element, result: Mapped) -> None:
    kind = element.get("type", "")
    if kind == "unix":
        for source in element.findall("source"):
            element.remove(source)
    elif kind not in _KEPT_CHARACTER_TYPES:
        devices.remove(element)
        result.notes.append(f"A {element.tag} of type {kind or 'none'} was left out: it belongs to the primary's host.")
        return
    for log in element.findall("log"):
        element.remove(log)


def _machine(domain: Domain, mapping: HostMapping, result: Mapped) -> None:
    """Firmware, its variables, and what else ``<os>`` names of files."""
    for parent in domain.root.iterfind("os"):
        for element in list(parent):
            path = (element.text or "").strip()
            if element.tag == "nvram":
                element.attrib.pop("template", None)
            if element.tag not in ("loader", "nvram", "kernel", "initrd", "dtb", "shim") or not path:
                continue
            if path in mapping.files:
                element.text = mapping.files[path]
            elif element.tag == "loader" and path.startswith(FIRMWARE_FOLDER) and "/../" not in path:
                continue
            else:
                parent.remove(element)
                why = "it did not come with the definition, or --output DIR is missing"
                result.notes.append(f"<{element.tag}> {path} was left out: {why}.")
    for parent in domain.root.iterfind("memoryBacking"):
        for element in parent.findall("source"):
            parent.remove(element)


def _identity(domain: Domain, mapping: HostMapping, result: Mapped) -> None:
    root = domain.root
    result.name = domain.name
    if not mapping.test:
        return
    result.name = domain.name + TEST_SUFFIX
    for element in root.iterfind("name"):
        element.text = result.name
    for element in root.findall("uuid"):
        element.text = mapping.uuid
    for element in root.findall("genid"):
        root.remove(element)
    for system in root.iterfind("sysinfo/system"):
        for entry in system.findall("entry[@name='uuid']"):
            # It has to be the domain's.
            system.remove(entry)
    for sysinfo in root.findall("sysinfo"):
        for system in [each for each in sysinfo.findall("system") if not len(each)]:
            sysinfo.remove(system)
        if not len(sysinfo):
            root.remove(sysinfo)


def _short(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rpartition("}")[2]
