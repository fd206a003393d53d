"""What amdsmi says of the GPUs: names and memory in use, without making a context."""

# amdsmi has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SmiGpu:
    """One GPU by amdsmi. Bytes; `arch` as it spells it."""

    name: str
    arch: str
    total_bytes: int
    used_bytes: int


def load_amdsmi() -> Any | None:
    """The module, or None where it is not installed or finds no driver.

    Its import looks for the driver's library and raises KeyError, OSError or AttributeError where there is none.
    """
    try:
        return importlib.import_module("amdsmi")
    except (ImportError, KeyError, OSError, AttributeError):
        return None


def smi_gpus(load: Callable[[], Any | None] = load_amdsmi) -> dict[str, SmiGpu]:
    """GPUs by PCI address; nothing where amdsmi is missing or refuses, as it only adds to what sysfs says."""
    amdsmi = load()
    if amdsmi is None:
        return {}
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException:
        return {}
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        return {str(amdsmi.amdsmi_get_gpu_device_bdf(handle)).lower(): _gpu(amdsmi, handle) for handle in handles}
    except (amdsmi.AmdSmiException, KeyError):
        return {}
    finally:
        amdsmi.amdsmi_shut_down()


def _gpu(amdsmi: Any, handle: Any) -> SmiGpu:
    asic = amdsmi.amdsmi_get_gpu_asic_info(handle)
    memory = amdsmi.amdsmi_get_gpu_vram_usage(handle)
    return SmiGpu(
        name=str(asic["market_name"]),
        arch=str(asic["target_graphics_version"]),
        total_bytes=int(memory["vram_total"]) * _MEGABYTE,
        used_bytes=int(memory["vram_used"]) * _MEGABYTE,
    )
