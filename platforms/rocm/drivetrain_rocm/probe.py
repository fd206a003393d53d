"""Whether this machine can serve on AMD GPUs, and if not what stands in the way. Imports no torch, makes no context.

What is asked, in this order: the kernel driver's list in sysfs, the environment, the parts, /dev/kfd, then the
installed torch and Triton. amdsmi adds names and memory where it is installed. `root` is the folder that /sys and /dev
are read under.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drivetrain_plugins.host import ROOT, PciDevice, installed_version, pci_devices, torch_built_for, version_numbers
from drivetrain_plugins.spec import DeviceInfo, ProbeResult
from drivetrain_rocm.parts import part_of, served_parts
from drivetrain_rocm.smi import SmiGpu, smi_gpus
from drivetrain_rocm.topology import FoundGpu, found_gpus
from drivetrain_rocm.visibility import Contradiction, hiding_variable, naming_variable, visible_gpus

OLDEST_TRITON = (3, 6)
DEVICE = "dev/kfd"
DRIVER = "sys/module/amdgpu"
AMD_VENDOR = "0x1002"
INSTALL_TRITON = "pip install 'triton>=3.6'"
INSTALL_TORCH = "install a PyTorch that is built for ROCm, from the index that has it; it brings Triton"
PROOF = "compiled for this part, run in the interpreter and on an NVIDIA GPU, never run on AMD"
"""How far the backend is proved."""
PROVE = f"prove it with `drivetrain backends --check rocm` before you rely on it: it was {PROOF}"
"""Said beside the GPUs wherever backends are listed."""
CONTROLLERS = ("0x0300", "0x0302", "0x0380", "0x1200")
SERVED_IDS = (
    (0x7408, 0x7410),  # gfx90a
    (0x74A0, 0x74BD),  # gfx942
    (0x75A0, 0x75B8),  # gfx950
    (0x7440, 0x749F),  # gfx1100 to gfx1102
    (0x7550, 0x755F),  # gfx1201
    (0x7590, 0x759F),  # gfx1200
)
"""PCI device ids of the parts that are served. Most machines with a Ryzen have a small GPU that is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The packages that the backend needs, as found without importing them.

    Attributes:
        torch: version, None if it is not installed. torch_hip: the HIP that it was built for; None is another build.
        triton: version or None; a ROCm build of torch may bring it under another name.
    """

    torch: str | None
    torch_hip: str | None
    triton: str | None


@dataclass(frozen=True, slots=True)
class _Obstacle:
    reason: str
    next_step: str


def probe() -> ProbeResult:
    """Say whether the ROCm backend can serve here."""
    return examine(installed(), os.environ, smi=smi_gpus)


def examine(
    packages: Installed,
    environment: Mapping[str, str],
    *,
    root: Path = ROOT,
    smi: Callable[[], Mapping[str, SmiGpu]] = dict,
) -> ProbeResult:
    """The probe on a given machine."""
    gpus = found_gpus(root)
    if not gpus:
        return _no_gpus(environment, root)
    details = {"torch": packages.torch, "torch_hip": packages.torch_hip, "triton": packages.triton}
    details = {name: value for name, value in details.items() if value is not None}
    try:
        chosen = visible_gpus(environment, [gpu.uuid for gpu in gpus])
    except Contradiction as error:
        return ProbeResult(ready=False, reason=str(error), idle_hardware=_any_served(gpus), details=details)
    if not chosen:
        return _hidden(environment, gpus)
    more = smi()
    devices = tuple(_device(order, gpus[index], more) for order, index in enumerate(chosen))
    visible = [gpus[index] for index in chosen]
    obstacle = _old_part(visible) or _closed_device(root) or _package_obstacle(packages)
    if obstacle is None:
        details["proof"] = PROOF
        return ProbeResult(ready=True, next_step=PROVE, devices=devices, details=details)
    return ProbeResult(
        ready=False,
        reason=obstacle.reason,
        next_step=obstacle.next_step,
        devices=devices,
        details=details,
        idle_hardware=_any_served(visible),
    )


def installed() -> Installed:
    """What is installed in this environment."""
    torch = installed_version("torch")
    names = ("triton", "pytorch-triton-rocm", "triton-rocm")
    return Installed(
        torch=torch,
        torch_hip=torch_built_for("hip") if torch is not None else None,
        triton=next((version for version in map(installed_version, names) if version is not None), None),
    )


def _device(order: int, gpu: FoundGpu, more: Mapping[str, SmiGpu]) -> DeviceInfo:
    told = more.get(gpu.bus)
    memory = gpu.memory_bytes or (told.total_bytes if told else 0)
    used = gpu.used_bytes or (told.used_bytes if told else 0)
    return DeviceInfo(
        index=order,
        name=told.name if told else gpu.name,
        architecture=gpu.arch,
        memory_bytes=memory,
        free_memory_bytes=max(0, memory - used),
        details={"uuid": gpu.uuid, "bus": gpu.bus, "processors": gpu.compute_units},
    )


def _any_served(gpus: Sequence[FoundGpu]) -> bool:
    return any(part_of(gpu.arch) is not None for gpu in gpus)


def _old_part(gpus: Sequence[FoundGpu]) -> _Obstacle | None:
    for order, gpu in enumerate(gpus):
        if part_of(gpu.arch) is None:
            return _Obstacle(
                f"GPU {order}, {gpu.name}, is a {gpu.arch}; served are {served_parts()}",
                "name the GPUs to serve on in HIP_VISIBLE_DEVICES" if _any_served(gpus) else "",
            )
    return None


def _closed_device(root: Path) -> _Obstacle | None:
    device = root / DEVICE
    if not device.exists():
        return _Obstacle(
            f"the amdgpu driver lists GPUs, but /{DEVICE} is not there",
            "in a container, start it with its GPUs (docker run --device /dev/kfd --device /dev/dri)",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return _Obstacle(
            f"/{DEVICE} may not be opened by this user",
            "add the user to the group that owns it (usually `render`: usermod -aG render,video USER) and log in anew",
        )
    return None


def _package_obstacle(packages: Installed) -> _Obstacle | None:
    if packages.torch is None:
        return _Obstacle("PyTorch is not installed", INSTALL_TORCH)
    if packages.torch_hip is None:
        return _Obstacle(
            f"the installed PyTorch {packages.torch} is a build without ROCm",
            f"pip uninstall torch, then {INSTALL_TORCH}",
        )
    if packages.triton is None:
        return _Obstacle("Triton is not installed", INSTALL_TRITON)
    if version_numbers(packages.triton) < OLDEST_TRITON:
        return _Obstacle(f"Triton {packages.triton} is too old; 3.6 or later is needed", INSTALL_TRITON)
    return None


def _hidden(environment: Mapping[str, str], gpus: Sequence[FoundGpu]) -> ProbeResult:
    name = hiding_variable(environment) or naming_variable(environment) or ""
    return ProbeResult(
        ready=False,
        reason=f"{name}={environment.get(name, '')!r} leaves none of {len(gpus)} AMD GPUs visible",
        next_step="unset it, or name the GPUs to serve on",
    )


def _no_gpus(environment: Mapping[str, str], root: Path) -> ProbeResult:
    hidden = hiding_variable(environment) is not None
    on_bus = any(_is_served(device) for device in pci_devices(root, AMD_VENDOR))
    if (root / DRIVER).exists() and on_bus:
        return ProbeResult(
            ready=False,
            reason="the amdgpu driver is loaded for an AMD GPU in this machine, but it offers none for computing",
            next_step="in a container, start it with its GPUs (docker run --device /dev/kfd --device /dev/dri); "
            "else the kernel log (amdgpu, kfd) tells why",
            idle_hardware=not hidden,
        )
    if on_bus:
        return ProbeResult(
            ready=False,
            reason="there is an AMD GPU in this machine, but no amdgpu driver is loaded",
            next_step="install or load the amdgpu driver; `rocminfo` then lists the GPU",
            idle_hardware=not hidden,
        )
    return ProbeResult(
        ready=False, reason=f"no AMD GPU for computing is here (looked for /{DEVICE} and on the PCI bus)"
    )


def _is_served(device: PciDevice) -> bool:
    """Whether a controller is a part that could be served on by this system."""
    if device.kept_for_guests or not device.kind.startswith(CONTROLLERS) or device.device_id is None:
        return False
    return any(first <= device.device_id <= last for first, last in SERVED_IDS)
