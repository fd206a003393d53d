"""The CUDA probe on machines that are made up: a driver, devices, packages and paths, each of them wrong once."""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from drivetrain_cuda.libcuda import ask_driver
from drivetrain_cuda.probe import Installed, driver_version, examine
from drivetrain_plugins.spec import ProbeResult
from fakes.fresh_python import printed_by

PROC_VERSION = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder)
GCC version:  gcc version 12.3.0
"""
SOUND = Installed(torch="2.11.0+cu130", torch_cuda="13.0", triton="3.6.0", bindings="13.0.3")
IDENTITY = uuid.UUID(int=0x0123456789ABCDEF0123456789ABCDEF)


@dataclass
class FakeGpu:
    name: str = "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int] = (9, 0)
    memory: int = 80 << 30


def target(reference: Any) -> Any:
    """What a ctypes `byref` points to."""
    return reference._obj


class FakeLibrary:
    """libcuda's functions with their C signatures, on a list of GPUs."""

    def __init__(self, *gpus: FakeGpu, version: int = 13000, answers: dict[str, int] | None = None) -> None:
        self.gpus = gpus
        self.version = version
        self.answers = answers or {}

    def __getattr__(self, name: str) -> Callable[..., int]:
        code = self.answers.get(name, 0)
        function = getattr(type(self), f"_{name}")
        return lambda *arguments: code or function(self, *arguments) or 0

    def _cuInit(self, flags: int) -> None:
        assert flags == 0

    def _cuDriverGetVersion(self, out: Any) -> None:
        target(out).value = self.version

    def _cuDeviceGetCount(self, out: Any) -> None:
        target(out).value = len(self.gpus)

    def _cuDeviceGet(self, out: Any, ordinal: int) -> None:
        target(out).value = 100 + ordinal  # a handle is no ordinal

    def _gpu(self, device: ctypes.c_int) -> FakeGpu:
        return self.gpus[device.value - 100]

    def _cuDeviceGetName(self, out: Any, size: int, device: ctypes.c_int) -> None:
        assert size == len(out)
        out.value = self._gpu(device).name.encode()

    def _cuDeviceTotalMem_v2(self, out: Any, device: ctypes.c_int) -> None:
        target(out).value = self._gpu(device).memory

    def _cuDeviceGetUuid(self, out: Any, device: ctypes.c_int) -> None:
        out[:] = list(uuid.UUID(int=IDENTITY.int + device.value - 100).bytes)

    def _cuDeviceGetAttribute(self, out: Any, number: int, device: ctypes.c_int) -> None:
        major, minor = self._gpu(device).capability
        target(out).value = {75: major, 76: minor, 16: 132}[number]

    def _cuGetErrorName(self, code: int, out: Any) -> int:
        names = {100: b"CUDA_ERROR_NO_DEVICE", 803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}
        if code not in names:
            return 1
        target(out).value = names[code]
        return 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with NVIDIA's kernel driver."""
    folder = tmp_path / "proc/driver/nvidia"
    folder.mkdir(parents=True)
    (folder / "version").write_text(PROC_VERSION)
    return tmp_path


def look(
    root: Path, library: FakeLibrary | OSError, packages: Installed = SOUND, environment: dict[str, str] | None = None
) -> ProbeResult:
    def load() -> Any:
        if isinstance(library, OSError):
            raise library
        return library

    return examine(load, packages, environment or {}, root=root, free_memory=lambda: {f"GPU-{IDENTITY}": 70 << 30})


def test_a_sound_machine_is_ready_and_says_what_it_has(root: Path) -> None:
    result = look(root, FakeLibrary(FakeGpu(), FakeGpu("NVIDIA A100", (8, 0), 40 << 30)))
    assert result.ready
    first, second = result.devices
    assert (first.index, first.name, first.architecture) == (0, "NVIDIA H100 80GB HBM3", "sm_90")
    assert (first.memory_bytes, first.free_memory_bytes) == (80 << 30, 70 << 30)
    assert first.details == {"uuid": f"GPU-{IDENTITY}", "processors": 132}
    assert (second.index, second.architecture, second.free_memory_bytes) == (1, "sm_80", 40 << 30)
    assert result.details == {
        "torch": "2.11.0+cu130",
        "torch_cuda": "13.0",
        "triton": "3.6.0",
        "driver": "580.159.04",
        "driver_cuda": "13.0",
    }


def test_a_cpu_build_of_torch_beside_a_gpu_is_idle_hardware(root: Path) -> None:
    result = look(root, FakeLibrary(FakeGpu()), replace(SOUND, torch="2.13.0+cpu", torch_cuda=None))
    assert not result.ready
    assert result.idle_hardware
    assert result.reason == "the installed PyTorch 2.13.0+cpu is a build without CUDA"
    assert result.next_step.startswith("pip uninstall torch, then pip install 'drivetrain[cuda]'")
    assert [device.name for device in result.devices] == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    ("packages", "version", "reason"),
    [
        (replace(SOUND, torch=None, torch_cuda=None), 13000, "PyTorch is not installed"),
        (SOUND, 12080, "the driver serves CUDA up to 12.8, but PyTorch 2.11.0+cu130 is built for CUDA 13.0"),
        (replace(SOUND, triton=None), 13000, "Triton is not installed"),
        (replace(SOUND, triton="3.5.1"), 13000, "Triton 3.5.1 is too old; 3.6 or later is needed"),
        (replace(SOUND, bindings=None), 13000, "the package cuda-bindings is not installed"),
    ],
)
def test_what_is_missing_is_said_and_leaves_hardware_idle(
    root: Path, packages: Installed, version: int, reason: str
) -> None:
    result = look(root, FakeLibrary(FakeGpu(), version=version), packages)
    assert (result.ready, result.reason, result.idle_hardware) == (False, reason, True)
    assert result.next_step


@pytest.mark.parametrize("version", [13000, 13010, 14000])
def test_a_driver_of_the_same_or_a_later_major_version_serves(root: Path, version: int) -> None:
    assert look(root, FakeLibrary(FakeGpu(), version=version), replace(SOUND, torch_cuda="13.2")).ready


def test_a_gpu_that_is_never_served_is_no_idle_hardware(root: Path) -> None:
    old = FakeGpu("Tesla T4", (7, 5), 16 << 30)
    result = look(root, FakeLibrary(old))
    assert result.reason == "GPU 0, Tesla T4, has compute capability 7.5; 8.0 or later is served"
    assert not result.idle_hardware
    beside = look(root, FakeLibrary(old, FakeGpu()))
    assert beside.idle_hardware
    assert beside.next_step == "name the GPUs to serve on in CUDA_VISIBLE_DEVICES"


def test_a_machine_without_nvidia_is_told_plainly(tmp_path: Path) -> None:
    result = look(tmp_path, OSError("libcuda.so.1: cannot open shared object file"))
    assert not result.idle_hardware
    assert result.reason == (
        "no NVIDIA driver is loaded (looked for /proc/driver/nvidia/version, /dev/nvidiactl, "
        "/usr/lib/wsl/lib/libcuda.so.1)"
    )


def test_a_driver_whose_library_is_missing_is_a_container_without_its_gpus(root: Path) -> None:
    result = look(root, OSError("libcuda.so.1: cannot open shared object file"))
    assert result.idle_hardware
    assert "(/proc/driver/nvidia/version), but its library cannot be: libcuda.so.1: cannot open" in result.reason
    assert "--gpus all" in result.next_step


@pytest.mark.parametrize(("vendor", "kind", "idle"), [
    ("0x10de", "0x030200", True),
    ("0x10de", "0x030000", True),
    ("0x10de", "0x040300", False),
    ("0x1002", "0x030000", False),
])  # fmt: skip
def test_a_gpu_on_the_bus_without_a_driver_is_idle(tmp_path: Path, vendor: str, kind: str, idle: bool) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")
    result = look(tmp_path, OSError("no library"))
    assert (result.ready, result.idle_hardware) == (False, idle)
    assert ("no NVIDIA driver is loaded" in result.reason) and (("NVIDIA GPU in this machine" in result.reason) == idle)


@pytest.mark.parametrize(("number", "owner", "idle"), [
    ("0x2330", "nouveau", True),  # H100
    ("0x20b0", None, True),  # A100
    ("0x2204", "nouveau", True),  # RTX 3090
    ("0x2684", "vfio-pci", False),  # RTX 4090 of a virtual machine
    ("0x2184", "nouveau", False),  # GTX 1660
    ("0x1eb8", None, False),  # T4
    ("0x128b", "nouveau", False),  # GT 710
])  # fmt: skip
def test_a_gpu_on_the_bus_that_is_too_old_or_lent_to_a_virtual_machine_is_not_idle(
    tmp_path: Path, number: str, owner: str | None, idle: bool
) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("class", "0x030000"), ("device", number)):
        (device / name).write_text(text + "\n")
    if owner is not None:
        (device / "driver").symlink_to(f"../../../../bus/pci/drivers/{owner}")
    result = look(tmp_path, OSError("no library"))
    assert result.idle_hardware == idle
    assert ("NVIDIA GPU in this machine" in result.reason) == idle


@pytest.mark.parametrize(("name", "value", "idle"), [
    ("CUDA_VISIBLE_DEVICES", "", False),
    ("CUDA_VISIBLE_DEVICES", "-1", False),
    ("CUDA_VISIBLE_DEVICES", "0", True),
    ("NVIDIA_VISIBLE_DEVICES", "void", False),
    ("NVIDIA_VISIBLE_DEVICES", "none", False),
    ("NVIDIA_VISIBLE_DEVICES", "all", True),
])  # fmt: skip
def test_a_container_that_is_meant_to_have_no_gpu_leaves_none_idle(
    root: Path, name: str, value: str, idle: bool
) -> None:
    """It sees the host's /proc, and its library too where the image was made for GPUs."""
    assert look(root, OSError("no library"), environment={name: value}).idle_hardware == idle
    if name == "NVIDIA_VISIBLE_DEVICES":
        refused = look(root, FakeLibrary(answers={"cuInit": 100}), environment={name: value})
        assert refused.idle_hardware == idle


def test_a_driver_that_refuses_is_quoted(root: Path, tmp_path: Path) -> None:
    result = look(root, FakeLibrary(FakeGpu(), answers={"cuInit": 803}))
    assert result.reason == "the NVIDIA driver 580.159.04 answers CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
    assert result.idle_hardware
    unknown = look(root, FakeLibrary(FakeGpu(), answers={"cuDeviceGet": 4711}))
    assert unknown.reason.endswith("answers CUDA error 4711")


def test_a_library_without_hardware_is_what_images_for_gpus_hold_elsewhere(tmp_path: Path) -> None:
    result = look(tmp_path, FakeLibrary(answers={"cuInit": 100}))
    assert result.reason == "the NVIDIA driver library answers CUDA_ERROR_NO_DEVICE"
    assert not result.idle_hardware


@pytest.mark.parametrize("visible", ["", "-1"])
def test_gpus_that_the_user_hides_are_not_idle(root: Path, visible: str) -> None:
    result = look(root, FakeLibrary(answers={"cuInit": 100}), environment={"CUDA_VISIBLE_DEVICES": visible})
    assert result.reason == f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU visible"
    assert not result.idle_hardware


def test_a_driver_with_no_device_at_all_is_asked_once() -> None:
    assert ask_driver(FakeLibrary()).gpus == ()


def test_the_driver_version_is_read_in_both_spellings(root: Path, tmp_path: Path) -> None:
    assert driver_version(root) == "580.159.04"
    (root / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    )
    assert driver_version(root) == "550.54.15"
    assert driver_version(tmp_path / "elsewhere") is None


def test_the_probe_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys; from drivetrain_cuda.probe import probe; probe(); "
        "print(sorted({'torch', 'triton', 'numpy', 'cuda'} & set(sys.modules)))"
    )
    assert printed_by(code) == "[]\n"
