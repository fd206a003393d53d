"""What this machine offers to the CPU backend: cores, memory, instruction sets, and PyTorch, which is not imported.

`root` is the folder that /proc is read under.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from pathlib import Path

from drivetrain_plugins.host import ROOT, installed_version, text_of
from drivetrain_plugins.resources import available_memory_bytes, output_of, total_memory_bytes, usable_cores
from drivetrain_plugins.spec import DeviceInfo, ProbeResult

INSTRUCTION_SETS: dict[str, frozenset[str]] = {
    "avx2": frozenset({"avx2", "fma"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx512_vnni": frozenset({"avx512_vnni"}),
    "avx512_bf16": frozenset({"avx512_bf16"}),
    "avx512_fp16": frozenset({"avx512_fp16"}),
    "amx_int8": frozenset({"amx_tile", "amx_int8"}),
    "amx_bf16": frozenset({"amx_tile", "amx_bf16"}),
    "neon": frozenset({"asimd"}),
    "bf16": frozenset({"bf16"}),
    "i8mm": frozenset({"i8mm"}),
    "sve": frozenset({"sve"}),
}
"""Name of an instruction set that matters to inference -> the processor flags that it takes, as Linux spells them."""

MACOS_FLAGS = {
    "advsimd": "asimd",
    "neon": "asimd",
    "feat_bf16": "bf16",
    "feat_i8mm": "i8mm",
    "avx2_0": "avx2",
}
"""Flags that `sysctl hw.optional` spells differently."""


def probe() -> ProbeResult:
    """Say whether the CPU backend can serve here. Takes milliseconds and imports no torch."""
    device = DeviceInfo(
        index=0,
        name=processor_name(),
        architecture=platform.machine(),
        memory_bytes=total_memory_bytes(),
        free_memory_bytes=available_memory_bytes(),
        details={"cores": usable_cores(), "instruction_sets": instruction_sets()},
    )
    if importlib.util.find_spec("torch") is None:
        return ProbeResult(
            ready=False, reason="PyTorch is not installed", next_step="pip install torch", devices=(device,)
        )
    torch_version = installed_version("torch") or "unknown"  # a build on the path without metadata works all the same
    return ProbeResult(ready=True, devices=(device,), details={"torch": torch_version})


def instruction_sets(root: Path = ROOT) -> tuple[str, ...]:
    """Those names of `INSTRUCTION_SETS` that the processor has all flags of."""
    if sys.platform == "darwin" and root == ROOT:
        flags = flags_of_sysctl(output_of("sysctl", "hw.optional"))
    else:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(root), re.MULTILINE)
        flags = frozenset(found.group(1).split()) if found else frozenset[str]()
    return tuple(name for name, needed in INSTRUCTION_SETS.items() if needed <= flags)


def processor_name(root: Path = ROOT) -> str:
    """The processor's product name, or its architecture where the system does not tell."""
    if sys.platform == "darwin" and root == ROOT:
        return output_of("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(root), re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def flags_of_sysctl(text: str) -> frozenset[str]:
    """Processor flags in the output of macOS's `sysctl hw.optional`, as Linux spells them."""
    names: list[str] = re.findall(r"^hw\.optional\.(?:\w+\.)*(\w+): 1$", text, re.MULTILINE)
    return frozenset(MACOS_FLAGS.get(name.lower(), name.lower()) for name in names)


def _cpuinfo(root: Path) -> str:
    return text_of(root / "proc/cpuinfo")
