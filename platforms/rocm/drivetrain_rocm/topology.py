"""GPUs as the kernel driver lists them in sysfs: nothing is loaded, opened or initialised.

`root` is the folder that /sys and /dev are read under.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivetrain_plugins.host import ROOT, text_of
from drivetrain_rocm.parts import arch_of_target_version

NODES = "sys/class/kfd/kfd/topology/nodes"
AMD_VENDOR = 0x1002
_VRAM = ("1", "2")
"""Kinds of memory banks that are the GPU's own: private and public."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundGpu:
    """One GPU of the machine, visible or not.

    Attributes:
        index: in the driver's order, which is that of ROCm's libraries. arch: "gfx942" and so on.
        uuid: as `ROCR_VISIBLE_DEVICES` spells it. bus: PCI address, as 0000:c1:00.0.
        used_bytes: in use by anyone, 0 if the driver does not say.
        compute_units: processors.
    """

    index: int
    name: str
    arch: str
    uuid: str
    bus: str
    memory_bytes: int
    used_bytes: int
    compute_units: int


def found_gpus(root: Path = ROOT) -> tuple[FoundGpu, ...]:
    """Every GPU that AMD's kernel driver offers for computing; none where it is not loaded."""
    folder = root / NODES
    if not folder.is_dir():
        return ()
    nodes = sorted((node for node in folder.iterdir() if node.name.isdecimal()), key=lambda node: int(node.name))
    gpus: list[FoundGpu] = []
    for node in nodes:
        properties = read_properties(node / "properties")
        # A control group may hide a GPU from this process: its properties are then empty.
        if properties.get("simd_count", 0) > 0 and properties.get("gfx_target_version", 0) > 0:
            gpus.append(_gpu(len(gpus), node, properties, root))
    return tuple(gpus)


def read_properties(path: Path) -> Mapping[str, int]:
    """Lines of a name and a number; nothing if the file cannot be read."""
    pairs = (line.split() for line in text_of(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _gpu(index: int, node: Path, properties: Mapping[str, int], root: Path) -> FoundGpu:
    arch = arch_of_target_version(properties["gfx_target_version"])
    card = root / f"sys/class/drm/renderD{properties.get('drm_render_minor', 0)}/device"
    simds = properties.get("simd_per_cu", 0) or 4
    return FoundGpu(
        index=index,
        name=text_of(card / "product_name") or text_of(node / "name") or f"AMD GPU ({arch})",
        arch=arch,
        uuid=f"GPU-{properties.get('unique_id', 0):016x}",
        bus=_bus(properties),
        memory_bytes=_number(card / "mem_info_vram_total") or _bank_bytes(node),
        used_bytes=_number(card / "mem_info_vram_used"),
        compute_units=properties["simd_count"] // simds,
    )


def _bus(properties: Mapping[str, int]) -> str:
    location = properties.get("location_id", 0)
    bus, device, function = location >> 8 & 0xFF, location >> 3 & 0x1F, location & 7
    return f"{properties.get('domain', 0):04x}:{bus:02x}:{device:02x}.{function}"


def _bank_bytes(node: Path) -> int:
    banks = (read_properties(bank / "properties") for bank in sorted((node / "mem_banks").glob("*")))
    return sum(bank.get("size_in_bytes", 0) for bank in banks if str(bank.get("heap_type", 0)) in _VRAM)


def _number(path: Path) -> int:
    text = text_of(path)
    return int(text) if text.isdecimal() else 0
