"""Whether this machine can serve on NVIDIA GPUs, and if not what stands in the way. Imports no torch, makes no context.

What is asked, in this order: the driver's library, the driver, its devices, then the installed torch, Triton and the
CUDA bindings. `root` is the folder that /proc, /sys and /dev are read under.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drivetrain_cuda.libcuda import Driver, DriverRefused, FoundGpu, Library, ask_driver, load_library
from drivetrain_cuda.nvml import memory_in_use
from drivetrain_plugins.host import ROOT, PciDevice, installed_version, pci_devices, torch_built_for, version_numbers
from drivetrain_plugins.spec import DeviceInfo, ProbeResult

OLDEST_CAPABILITY = (8, 0)
OLDEST_TRITON = (3, 6)
NVIDIA_VENDOR = "0x10de"
INSTALL = "pip install 'drivetrain[cuda]'"
SIGNS = ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
"""Paths that exist only where NVIDIA's kernel driver is loaded."""
HIDING = {"CUDA_VISIBLE_DEVICES": ("", "-1", "NoDevFiles"), "NVIDIA_VISIBLE_DEVICES": ("none", "void")}
"""Values by which users and container runtimes say that a process gets no GPU. A container sees the host's /proc and
PCI bus all the same."""
CONTROLLERS = ("0x0300", "0x0302")
OLDEST_SERVED_IDS = ((0x2080, 0x20FF), (0x2200, 0xFFFF))
"""PCI device ids from GA100 on and from GA102 on; in between and before lie Turing and what is older."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The packages that the backend needs, as found without importing them.

    Attributes:
        torch: version, None if it is not installed. torch_cuda: the CUDA that it was built for; None is a CPU build.
        triton: version or None. bindings: version of cuda-bindings or None.
    """

    torch: str | None
    torch_cuda: str | None
    triton: str | None
    bindings: str | None


@dataclass(frozen=True, slots=True)
class _Obstacle:
    reason: str
    next_step: str


def probe() -> ProbeResult:
    """Say whether the CUDA backend can serve here."""
    return examine(load_library, installed(), os.environ, free_memory=free_memory_by_uuid)


def examine(
    load: Callable[[], Library],
    packages: Installed,
    environment: Mapping[str, str],
    *,
    root: Path = ROOT,
    free_memory: Callable[[], Mapping[str, int]] = dict,
) -> ProbeResult:
    """The probe on a given machine.

    Args:
        load: loads the driver's library; raises OSError.
        free_memory: free bytes by UUID, as far as they are known.
    """
    try:
        driver = ask_driver(load())
    except OSError as error:
        return _no_library(error, environment, root)
    except DriverRefused as error:
        return _refused(error, environment, root)
    free = free_memory()
    devices = tuple(_device(gpu, free) for gpu in driver.gpus)
    found = {"torch": packages.torch, "torch_cuda": packages.torch_cuda, "triton": packages.triton}
    details = {name: value for name, value in found.items() if value is not None}
    details |= {"driver": driver_version(root) or "unknown", "driver_cuda": driver.cuda}
    served = [gpu for gpu in driver.gpus if gpu.capability >= OLDEST_CAPABILITY]
    obstacle = _old_gpu(driver.gpus) or _package_obstacle(packages, driver)
    if obstacle is None:
        return ProbeResult(ready=True, devices=devices, details=details)
    return ProbeResult(
        ready=False,
        reason=obstacle.reason,
        next_step=obstacle.next_step,
        devices=devices,
        details=details,
        idle_hardware=bool(served),
    )


def installed() -> Installed:
    """What is installed in this environment."""
    torch = installed_version("torch")
    return Installed(
        torch=torch,
        torch_cuda=torch_built_for("cuda") if torch is not None else None,
        triton=installed_version("triton"),
        bindings=installed_version("cuda-bindings"),
    )


def driver_version(root: Path = ROOT) -> str | None:
    """The kernel driver's version, as 580.159.04."""
    try:
        text = (root / SIGNS[0]).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found.group(1) if found else None


def free_memory_by_uuid() -> dict[str, int]:
    """Free bytes of every GPU, as far as NVML is there to tell."""
    return {uuid: memory.free for uuid, memory in memory_in_use().items()}


def _device(gpu: FoundGpu, free: Mapping[str, int]) -> DeviceInfo:
    return DeviceInfo(
        index=gpu.ordinal,
        name=gpu.name,
        architecture=f"sm_{gpu.capability[0]}{gpu.capability[1]}",
        memory_bytes=gpu.memory_bytes,
        free_memory_bytes=free.get(gpu.uuid, gpu.memory_bytes),
        details={"uuid": gpu.uuid, "processors": gpu.num_processors},
    )


def _old_gpu(gpus: tuple[FoundGpu, ...]) -> _Obstacle | None:
    for gpu in gpus:
        if gpu.capability < OLDEST_CAPABILITY:
            return _Obstacle(
                f"GPU {gpu.ordinal}, {gpu.name}, has compute capability {_dotted(gpu.capability)}; "
                f"{_dotted(OLDEST_CAPABILITY)} or later is served",
                "name the GPUs to serve on in CUDA_VISIBLE_DEVICES" if len(gpus) > 1 else "",
            )
    return None


def _package_obstacle(packages: Installed, driver: Driver) -> _Obstacle | None:
    if packages.torch is None:
        return _Obstacle("PyTorch is not installed", INSTALL)
    if packages.torch_cuda is None:
        return _Obstacle(
            f"the installed PyTorch {packages.torch} is a build without CUDA",
            f"pip uninstall torch, then {INSTALL} from an index whose torch is built for CUDA (on Linux PyPI's is)",
        )
    # Within a major version any driver serves any build.
    if int(driver.cuda.split(".")[0]) < int(packages.torch_cuda.split(".")[0]):
        return _Obstacle(
            f"the driver serves CUDA up to {driver.cuda}, but PyTorch {packages.torch} is built for CUDA "
            f"{packages.torch_cuda}",
            "update the NVIDIA driver, or install a PyTorch that is built for the driver's CUDA",
        )
    if packages.triton is None:
        return _Obstacle("Triton is not installed", INSTALL)
    if version_numbers(packages.triton) < OLDEST_TRITON:
        return _Obstacle(
            f"Triton {packages.triton} is too old; {_dotted(OLDEST_TRITON)} or later is needed",
            f"pip install 'triton>={_dotted(OLDEST_TRITON)}'",
        )
    if packages.bindings is None:
        return _Obstacle("the package cuda-bindings is not installed", INSTALL)
    return None


def _no_library(error: OSError, environment: Mapping[str, str], root: Path) -> ProbeResult:
    hidden = _hidden(environment)
    sign = next((sign for sign in SIGNS if (root / sign).exists()), None)
    if sign is not None:
        return ProbeResult(
            ready=False,
            reason=f"NVIDIA's driver is loaded (/{sign}), but its library cannot be: {error}",
            next_step="in a container, start it with its GPUs (docker run --gpus all); else install the libraries "
            "that belong to the driver",
            idle_hardware=hidden is None,
        )
    if _on_the_bus(root):
        return ProbeResult(
            ready=False,
            reason="there is an NVIDIA GPU in this machine, but no NVIDIA driver is loaded",
            next_step="install or load the NVIDIA driver; `nvidia-smi` then lists the GPU",
            idle_hardware=hidden is None,
        )
    looked_for = ", ".join(f"/{sign}" for sign in SIGNS)
    return ProbeResult(ready=False, reason=f"no NVIDIA driver is loaded (looked for {looked_for})")


def _refused(error: DriverRefused, environment: Mapping[str, str], root: Path) -> ProbeResult:
    hidden = _hidden(environment)
    if hidden is None and "CUDA_VISIBLE_DEVICES" in environment:
        hidden = "CUDA_VISIBLE_DEVICES"
    if error.name == "CUDA_ERROR_NO_DEVICE" and hidden is not None:
        return ProbeResult(
            ready=False,
            reason=f"{hidden}={environment[hidden]!r} leaves no GPU visible",
            next_step="unset it, or name the GPUs to serve on",
        )
    # A library without a driver or a GPU is what images made for GPUs hold on other machines.
    present = any((root / sign).exists() for sign in SIGNS) or _on_the_bus(root)
    more = "`nvidia-smi` and the kernel log (Xid, NVRM) tell more; after an update of the driver, restart the machine"
    return ProbeResult(
        ready=False,
        reason=f"the NVIDIA driver {driver_version(root) or 'library'} answers {error.name}",
        next_step=more if present else "",
        idle_hardware=present,
    )


def _hidden(environment: Mapping[str, str]) -> str | None:
    """The variable that says that this process gets no GPU at all."""
    return next((name for name, values in HIDING.items() if environment.get(name) in values), None)


def _on_the_bus(root: Path) -> bool:
    """Whether a display or 3D controller of NVIDIA's on the PCI bus could be served on by this system."""
    return any(_is_served(device) for device in pci_devices(root, NVIDIA_VENDOR))


def _is_served(device: PciDevice) -> bool:
    if device.kept_for_guests or not device.kind.startswith(CONTROLLERS):
        return False
    if device.device_id is None:
        return True  # the bus does not say what it is
    return any(first <= device.device_id <= last for first, last in OLDEST_SERVED_IDS)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
