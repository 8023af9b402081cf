"""A libvirt domain's XML: which disks it has, which of them may go behind a tap, and the XML with them there or back.

Nothing here runs anything. What is not about the disks stays as it is. The XML comes from libvirt, which wrote it from
what it had parsed, and is trusted that far (S314).
"""

from __future__ import annotations

import copy
import io
import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from shared.errors import InvalidStateError, NotFoundError, UsageError

RECONNECT_SECONDS = 30
"""How long QEMU keeps a guest's requests while the tap restarts."""
ERROR_POLICY = "stop"
"""What QEMU does when a request fails: the guest is paused, and resumed the request is made again."""
LEFT_ALONE = ("cdrom", "floppy")
TAP_SOCKET = "nbd.sock"
"""The name of every tap's socket, in a folder named by its VM's UUID."""
_ERROR_ATTRIBUTES = ("error_policy", "rerror_policy")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a disk is served over NBD: the path of a unix socket, and the export's name."""

    socket: str
    export: str


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """One disk as the XML has it."""

    element: ET.Element

    @property
    def target(self) -> str:
        """The name in the domain, e.g. ``vda``."""
        return _attribute(self.element, "target", "dev")

    @property
    def device(self) -> str:
        return self.element.get("device", "disk")

    @property
    def kind(self) -> str:
        """``file``, ``block``, ``network`` or another of libvirt's types."""
        return self.element.get("type", "file")

    @property
    def format(self) -> str:
        """The image's format; libvirt takes one that isn't named for raw."""
        return _attribute(self.element, "driver", "type") or "raw"

    @property
    def path(self) -> str:
        """The path of the image or block device; empty for disks of other types."""
        return _attribute(self.element, "source", {"file": "file", "block": "dev"}.get(self.kind, "")) or ""

    @property
    def chain(self) -> tuple[str, ...]:
        """The paths of the image and of all that it is an overlay of, as far as they are files or block devices."""
        sources = [self.element.find("source"), *self.element.iterfind(".//backingStore/source")]
        paths = ((source.get("file") or source.get("dev") or "") for source in sources if source is not None)
        return tuple(path for path in paths if path)

    @property
    def place(self) -> Place | None:
        """Where the disk comes from, if that is NBD over a unix socket."""
        return _place_of(self.element.find("source")) if self.kind == "network" else None

    @property
    def source_key(self) -> str:
        """Where the disk comes from, in a text to compare: its path, or its place."""
        return self.path or str(self.place)

    @property
    def reconnect_seconds(self) -> int | None:
        """The reconnect delay that the XML has; libvirt 9.0, as of Debian 12, drops it."""
        delay = _attribute(self.element, "source/reconnect", "delay")
        return int(delay) if delay.isdigit() else None

    @property
    def error_policies(self) -> tuple[str, str]:
        """What happens when a write, or a read, fails; empty where nothing is said."""
        driver = self.element.find("driver")
        write, read = ("", "") if driver is None else (driver.get(name, "") for name in _ERROR_ATTRIBUTES)
        return write, read

    @property
    def discard(self) -> str:
        return _attribute(self.element, "driver", "discard")

    @property
    def cache(self) -> str:
        return _attribute(self.element, "driver", "cache")

    @property
    def alias(self) -> str:
        """The device's name in the running QEMU."""
        return _attribute(self.element, "alias", "name")

    @property
    def index(self) -> str:
        """What the names of its nodes have in the running QEMU: ``libvirt-INDEX-format``."""
        return _attribute(self.element, "source", "index")

    @property
    def mirror(self) -> str:
        """Of a block job with a mirror: ``no`` until the copy is ready, ``yes`` then; empty without one."""
        mirror = self.element.find("mirror")
        return "" if mirror is None else mirror.get("ready", "no")

    @property
    def mirror_place(self) -> Place | None:
        """Where a mirror goes, if that is NBD over a unix socket."""
        return _place_of(self.element.find("mirror/source"))

    def obstacle(self, *, live: bool) -> str:
        """Why it can't go behind a tap, in a sentence's end; empty if it can. ``live``: by a copy."""
        element = self.element
        if self.device != "disk":
            return f"is a {self.device} device"
        if self.place is not None:
            return "is served over NBD already"
        if not self.path:
            return f"is of type {self.kind!r}: only files and block devices can"
        for tag, text in (
            ("readonly", "is read-only: nothing of it would ever have to be replicated"),
            ("shareable", "is shared with other domains, whose writes would go past the tap"),
            ("transient", "is transient: its changes are thrown away when the domain ends"),
            ("mirror", "has a block job under way"),
            ("encryption", "is encrypted by libvirt"),
            ("source/encryption", "is encrypted by libvirt"),
            ("source/slices", "is a slice of a file"),
            ("source/reservations", "uses persistent reservations of SCSI"),
        ):
            if element.find(tag) is not None:
                return text
        if not live:
            if self.format != "raw":
                return f"has the format {self.format}: the tap serves raw images and block devices only"
            if element.find("backingStore/source") is not None:
                return "has a backing file"
        return ""


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain's XML, taken apart."""

    root: ET.Element
    name: str
    uuid: str
    disks: tuple[DomainDisk, ...]

    def disk(self, target: str) -> DomainDisk:
        """The disk of this name. Raises NotFoundError."""
        for disk in self.disks:
            if disk.target == target:
                return disk
        names = ", ".join(disk.target for disk in self.disks) or "none"
        raise NotFoundError(f"The domain {self.name} has no disk {target}.", f"It has: {names}.")

    def behind_taps(self) -> tuple[DomainDisk, ...]:
        """The disks that come from a socket as taps have it."""
        return tuple(disk for disk in self.disks if disk.place is not None and is_tap_socket(disk.place.socket))


def is_tap_socket(path: str) -> bool:
    """Whether a socket's path is like a tap's: ``…/UUID/nbd.sock``."""
    folder, name = posixpath.split(path)
    return name == TAP_SOCKET and len(posixpath.basename(folder)) == 36


def parse(text: str) -> Domain:
    """Take a domain's XML apart. Raises UsageError for what is none."""
    try:
        # The names of namespaces stay as they were: what they stand for would, but people read them.
        for _, (prefix, address) in ET.iterparse(io.StringIO(text), events=["start-ns"]):  # noqa: S314
            with suppress(ValueError):
                ET.register_namespace(prefix, address)
        root = ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise UsageError(f"This is no XML: {error}.") from None
    name = root.findtext("name")
    if root.tag != "domain" or not name:
        raise UsageError("This is not the XML of a libvirt domain.")
    disks = tuple(DomainDisk(element) for element in root.iterfind("devices/disk"))
    return Domain(root, name, root.findtext("uuid") or "", disks)


def choose(
    domain: Domain, wanted: Sequence[str], excluded: Sequence[str], *, live: bool
) -> tuple[list[DomainDisk], list[DomainDisk]]:
    """The disks that go behind the tap and those that are left out, each in the domain's order.

    Without names all disks are wanted. Raises NotFoundError, UsageError or InvalidStateError with the first obstacle.
    """
    if both := sorted(set(wanted) & set(excluded)):
        raise UsageError(f"The disk {both[0]} is both named and excluded.", "Name each once.")
    for target in (*wanted, *excluded):
        domain.disk(target)
    real = [disk for disk in domain.disks if disk.device not in LEFT_ALONE or disk.target in wanted]
    chosen = [disk for disk in real if (disk.target in wanted if wanted else disk.target not in excluded)]
    for disk in chosen:
        if obstacle := disk.obstacle(live=live):
            raise InvalidStateError(f"The disk {disk.target} of {domain.name} {obstacle}.", _remedy(disk, live=live))
    if not chosen:
        raise UsageError(f"No disk of {domain.name} is left to replicate.")
    return chosen, [disk for disk in real if disk not in chosen]


def _remedy(disk: DomainDisk, *, live: bool) -> str:
    leave = f"Leave it out with --exclude {disk.target}"
    if disk.path and not live and disk.obstacle(live=True) == "":
        copy = f"qemu-img convert -O raw {disk.path} NEW.raw"
        return f"Convert it while the domain is off ({copy}), or adopt the running domain with --live. {leave}."
    return f"{leave}."


def put_behind_taps(text: str, places: Mapping[str, Place]) -> str:
    """The domain with these disks (by target) at these places.

    Kept are target, address, serial, boot order and what the driver does; the error policies become ``stop``.
    """
    domain = parse(text)
    for target, place in places.items():
        disk = domain.disk(target)
        _replace_source(disk.element, "network", _nbd_source(place))
        driver = _driver(disk.element)
        driver.set("type", "raw")
        for name in _ERROR_ATTRIBUTES:
            driver.set(name, ERROR_POLICY)
        # How a file is read and written; NBD has no such choice, and libvirt refuses or ignores it.
        driver.attrib.pop("io", None)
        if driver.get("cache") == "unsafe":
            # It would drop the guest's flushes on the way to the tap.
            del driver.attrib["cache"]
    return _text(domain.root)


def put_back(text: str, paths: Mapping[str, tuple[str, str]], before: Domain | None) -> str:
    """The domain with these disks (by target) on a ``file`` or ``block`` and its path, without their taps.

    ``before`` is the domain as it was adopted: the driver's settings are taken from there.
    """
    domain = parse(text)
    for target, (kind, path) in paths.items():
        disk = domain.disk(target)
        former = next((each for each in before.disks if each.target == target), None) if before is not None else None
        _put_source(disk.element, kind, path, former)
        driver = _driver(disk.element)
        known = former.element.find("driver") if former is not None else None
        for name in _ERROR_ATTRIBUTES if former is None else (*_ERROR_ATTRIBUTES, "io", "cache"):
            driver.attrib.pop(name, None)
            if known is not None and (value := known.get(name)):
                driver.set(name, value)
        driver.set("type", "raw")
    return _text(domain.root)


def nbd_disk(place: Place, disk: DomainDisk) -> str:
    """The destination of a copy of ``disk`` onto a tap, as `virsh blockcopy --xml` takes it."""
    root = ET.Element("disk", {"type": "network", "device": "disk"})
    root.append(_copy_driver(disk))
    root.append(_nbd_source(place))
    return ET.tostring(root, encoding="unicode")


def plain_disk(kind: str, path: str, disk: DomainDisk) -> str:
    """The destination of a copy of ``disk`` into a raw file or a block device."""
    root = ET.Element("disk", {"type": kind, "device": "disk"})
    root.append(_copy_driver(disk))
    root.append(ET.Element("source", {"file" if kind == "file" else "dev": path}))
    return ET.tostring(root, encoding="unicode")


def _copy_driver(disk: DomainDisk) -> ET.Element:
    discard = {"discard": disk.discard} if disk.discard else {}
    return ET.Element("driver", {"name": "qemu", "type": "raw", **discard})


def _nbd_source(place: Place) -> ET.Element:
    source = ET.Element("source", {"protocol": "nbd", "name": place.export})
    ET.SubElement(source, "host", {"transport": "unix", "socket": place.socket})
    ET.SubElement(source, "reconnect", {"delay": str(RECONNECT_SECONDS)})
    return source


def _put_source(element: ET.Element, kind: str, path: str, former: DomainDisk | None) -> None:
    """Put an image or device in the place of the disk's source: as it was, if it is the one that was there."""
    source = former.element.find("source") if former is not None and former.path == path else None
    if former is None or source is None:
        _replace_source(element, kind, ET.Element("source", {"file" if kind == "file" else "dev": path}))
        return
    source = copy.deepcopy(source)
    _replace_source(element, former.kind, source)
    if (backing := former.element.find("backingStore")) is not None:
        element.insert(list(element).index(source) + 1, copy.deepcopy(backing))


def _replace_source(element: ET.Element, kind: str, source: ET.Element) -> None:
    """Put another source in the place of the disk's; what described the former one goes."""
    at = 0
    for child in list(element):
        if child.tag == "source":
            at = list(element).index(child)
            source.tail = child.tail
        if child.tag in ("source", "backingStore", "mirror"):
            element.remove(child)
    element.set("type", kind)
    element.insert(at, source)


def _driver(element: ET.Element) -> ET.Element:
    driver = element.find("driver")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        element.insert(0, driver)
    return driver


def _place_of(source: ET.Element | None) -> Place | None:
    if source is None or source.get("protocol") != "nbd":
        return None
    host = source.find("host")
    if host is None or host.get("transport") != "unix":
        return None
    return Place(host.get("socket", ""), source.get("name", ""))


def _attribute(element: ET.Element, path: str, name: str) -> str:
    child = element.find(path)
    return "" if child is None else child.get(name, "")


def _text(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode") + "\n"
