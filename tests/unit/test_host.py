"""What probes read of a machine: the PCI bus, versions, what torch was built for."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivetrain_plugins.host import built_for, installed_version, pci_devices, text_of, version_numbers


def add_device(root: Path, name: str, driver: str | None = None, **files: str) -> None:
    folder = root / "sys/bus/pci/devices" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(f"{text}\n")
    if driver is not None:
        (folder / "driver").symlink_to(Path("../../drivers") / driver)


def test_devices_of_a_vendor_are_listed_as_sysfs_has_them(tmp_path: Path) -> None:
    add_device(tmp_path, "0000:01:00.0", "vfio-pci", vendor="0x10de", device="0x2330", **{"class": "0x030200"})
    add_device(tmp_path, "0000:02:00.0", "nvidia", vendor="0x10de", device="unknown", **{"class": "0x030000"})
    add_device(tmp_path, "0000:03:00.0", vendor="0x1002", device="0x74a1", **{"class": "0x120000"})
    add_device(tmp_path, "0000:04:00.0", vendor="0x10de")
    found = list(pci_devices(tmp_path, "0x10de"))
    assert [device.device_id for device in found] == [0x2330, None, None]
    assert [device.kind for device in found] == ["0x030200", "0x030000", ""]
    assert [device.driver for device in found] == ["vfio-pci", "nvidia", None]
    assert [device.kept_for_guests for device in found] == [True, False, False]
    assert [device.device_id for device in pci_devices(tmp_path, "0x1002")] == [0x74A1]


def test_a_machine_without_a_bus_has_no_devices(tmp_path: Path) -> None:
    assert list(pci_devices(tmp_path, "0x10de")) == []
    assert text_of(tmp_path / "nothing") == ""


def test_versions_are_told_without_an_import() -> None:
    assert installed_version("pluggy") is not None
    assert installed_version("no-such-distribution") is None
    assert [version_numbers(text) for text in ("3.6.0+git12", "10.2", "7")] == [(3, 6), (10, 2), (7,)]


@pytest.mark.parametrize(
    ("platform", "line", "expected"),
    [
        ("cuda", "cuda: Optional[str] = '13.0'", "13.0"),
        ("cuda", 'cuda = "12.8"', "12.8"),
        ("cuda", "cuda: Optional[str] = None", None),
        ("cuda", "cuda_archs = '8.0'", None),
        ("hip", "hip: Optional[str] = '7.1.25424-4179531dcd'", "7.1.25424"),
        ("hip", "hip = '6.4.43482'", "6.4.43482"),
        ("hip", "hip: Optional[str] = None", None),
        ("hip", "hipify = '1.0'", None),
    ],
)
def test_what_torch_was_built_for_is_read_from_its_version_file(platform: str, line: str, expected: str | None) -> None:
    other = "hip: Optional[str] = '9.9'" if platform == "cuda" else "cuda: Optional[str] = '9.9'"
    text = f"from typing import Optional\n__version__ = '2.11.0'\n{other}\n{line}\n"
    assert built_for(platform, text) == expected
