"""What a backend's probe asks of a machine without importing a framework or opening a device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
"""The folder that /proc, /sys and /dev are read under; tests give another one."""
_DRIVERS_FOR_GUESTS = frozenset({"vfio-pci", "pci-stub"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """A device on the PCI bus, as sysfs lists it.

    Attributes:
        vendor, kind: as sysfs writes them, e.g. "0x10de" and the class "0x030200".
        device_id: None where the bus does not say.
        driver: the kernel driver that holds it, or None.
    """

    vendor: str
    kind: str
    device_id: int | None
    driver: str | None

    @property
    def kept_for_guests(self) -> bool:
        """Whether it is set aside for virtual machines, so that this system cannot use it."""
        return self.driver in _DRIVERS_FOR_GUESTS


def pci_devices(root: Path, vendor: str) -> Iterator[PciDevice]:
    """The devices of a vendor, e.g. "0x10de"."""
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        if text_of(folder / "vendor") != vendor:
            continue
        driver = folder / "driver"
        try:
            device_id = int(text_of(folder / "device"), 16)
        except ValueError:
            device_id = None
        yield PciDevice(
            vendor=vendor,
            kind=text_of(folder / "class"),
            device_id=device_id,
            driver=driver.readlink().name if driver.is_symlink() else None,
        )


def text_of(path: Path) -> str:
    """A small file's text without blanks at its ends; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_numbers(version: str) -> tuple[int, ...]:
    """Major and minor number: (3, 6) of "3.6.0+git"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def torch_built_for(platform: str) -> str | None:
    """Which version of a platform the installed torch was built for; None if for another one. Torch's `version.py`,
    which is read and not imported, has a variable of the platform's name."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return built_for(platform, (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))


def built_for(platform: str, version_file: str) -> str | None:
    """The same, of the text of a `version.py`."""
    found = re.search(rf"^{platform}\b[^=\n]*=\s*['\"](\d+(?:\.\d+)*)[^'\"]*['\"]", version_file, re.MULTILINE)
    return found.group(1) if found else None
