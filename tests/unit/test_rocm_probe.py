"""The ROCm probe on machines that are made up: sysfs trees, amdsmi modules, packages and environments."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drivetrain_plugins.spec import ProbeResult
from drivetrain_rocm import smi
from drivetrain_rocm.probe import PROOF, Installed, examine
from drivetrain_rocm.smi import SmiGpu, load_amdsmi, smi_gpus
from drivetrain_rocm.topology import found_gpus
from fakes.fresh_python import printed_by

SOUND = Installed(torch="2.11.0+rocm7.1", torch_hip="7.1.25424", triton="3.6.0")
MI300X, NAVI31, RAPHAEL = 90402, 110000, 100306
GIB = 1 << 30


def add_node(root: Path, number: int, version: int, *, bus: int = 0xC1, minor: int = 128, name: str = "") -> None:
    """A node of the kernel driver's topology; `version` 0 is a processor."""
    node = root / "sys/class/kfd/kfd/topology/nodes" / str(number)
    node.mkdir(parents=True)
    simds, per_unit = (1216, 4) if version == MI300X else (192, 2)
    lines = {
        "cpu_cores_count": 0 if version else 96,
        "simd_count": simds if version else 0,
        "simd_per_cu": per_unit,
        "gfx_target_version": version,
        "vendor_id": 4098,
        "domain": 0,
        "location_id": bus << 8,
        "unique_id": 0x1234_5678_9ABC_DEF0 + number,
        "drm_render_minor": minor if version else 0,
    }
    (node / "properties").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    (node / "name").write_text({MI300X: "aqua_vanjaram\n", NAVI31: "navi31\n"}.get(version, "\n"))
    bank = node / "mem_banks/0"
    bank.mkdir(parents=True)
    bank.joinpath("properties").write_text(f"heap_type 1\nsize_in_bytes {192 * GIB}\n")
    if version:
        card = root / f"sys/class/drm/renderD{minor}/device"
        card.mkdir(parents=True)
        (card / "mem_info_vram_total").write_text(f"{192 * GIB}\n")
        (card / "mem_info_vram_used").write_text(f"{2 * GIB}\n")
        if name:
            (card / "product_name").write_text(name + "\n")


def machine(root: Path, *versions: int, name: str = "") -> Path:
    add_node(root, 0, 0)
    for number, version in enumerate(versions, 1):
        add_node(root, number, version, bus=0xC0 + number, minor=127 + number, name=name)
    (root / "dev").mkdir()
    (root / "dev/kfd").touch()
    return root


def look(
    root: Path,
    packages: Installed = SOUND,
    environment: dict[str, str] | None = None,
    told: dict[str, SmiGpu] | None = None,
) -> ProbeResult:
    return examine(packages, environment or {}, root=root, smi=lambda: told or {})


def test_a_sound_machine_is_ready_and_says_how_far_it_is_proved(tmp_path: Path) -> None:
    result = look(machine(tmp_path, MI300X, MI300X, name="AMD Instinct MI300X"))
    assert result.ready
    first, second = result.devices
    assert (first.index, first.name, first.architecture) == (0, "AMD Instinct MI300X", "gfx942")
    assert (first.memory_bytes, first.free_memory_bytes) == (192 * GIB, 190 * GIB)
    assert first.details == {"uuid": "GPU-123456789abcdef1", "bus": "0000:c1:00.0", "processors": 304}
    assert second.details["bus"] == "0000:c2:00.0"
    assert result.details["proof"] == PROOF
    assert "drivetrain backends --check rocm" in result.next_step and PROOF in result.next_step
    assert "never run on AMD" in PROOF


def test_amdsmi_names_what_sysfs_does_not(tmp_path: Path) -> None:
    told = {"0000:c1:00.0": SmiGpu(name="AMD Instinct MI300X", arch="gfx942", total_bytes=0, used_bytes=0)}
    assert look(machine(tmp_path, MI300X), told=told).devices[0].name == "AMD Instinct MI300X"
    assert found_gpus(tmp_path)[0].name == "aqua_vanjaram"


def test_memory_comes_from_the_banks_where_the_graphics_driver_says_nothing(tmp_path: Path) -> None:
    machine(tmp_path, NAVI31)
    (tmp_path / "sys/class/drm/renderD128/device/mem_info_vram_total").unlink()
    (gpu,) = found_gpus(tmp_path)
    assert (gpu.memory_bytes, gpu.arch, gpu.compute_units) == (192 * GIB, "gfx1100", 96)


def test_a_gpu_that_a_control_group_hides_is_not_counted(tmp_path: Path) -> None:
    machine(tmp_path, MI300X, MI300X)
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties").write_text("")
    assert [gpu.bus for gpu in found_gpus(tmp_path)] == ["0000:c2:00.0"]


@pytest.mark.parametrize(
    ("packages", "reason", "step"),
    [
        (replace(SOUND, torch=None, torch_hip=None), "PyTorch is not installed", "install a PyTorch that is built for"),
        (
            replace(SOUND, torch="2.13.0+cpu", torch_hip=None),
            "the installed PyTorch 2.13.0+cpu is a build without ROCm",
            "pip uninstall torch, then install a PyTorch that is built for ROCm",
        ),
        (replace(SOUND, triton=None), "Triton is not installed", "pip install 'triton>=3.6'"),
        (replace(SOUND, triton="3.5.1"), "Triton 3.5.1 is too old; 3.6 or later is needed", "pip install"),
    ],
)
def test_what_is_missing_is_said_and_leaves_hardware_idle(
    tmp_path: Path, packages: Installed, reason: str, step: str
) -> None:
    result = look(machine(tmp_path, MI300X), packages)
    assert (result.ready, result.reason, result.idle_hardware) == (False, reason, True)
    assert result.next_step.startswith(step)


def test_a_part_that_is_not_served_is_named_with_those_that_are(tmp_path: Path) -> None:
    result = look(machine(tmp_path, RAPHAEL))
    assert result.reason.startswith(
        "GPU 0, AMD GPU (gfx1036), is a gfx1036; served are gfx90a, gfx942, gfx950, gfx1100"
    )
    assert not result.idle_hardware
    assert result.next_step == ""


def test_a_small_gpu_beside_a_large_one_is_to_be_hidden(tmp_path: Path) -> None:
    machine(tmp_path, NAVI31, RAPHAEL)
    result = look(tmp_path)
    assert result.idle_hardware
    assert result.next_step == "name the GPUs to serve on in HIP_VISIBLE_DEVICES"
    assert look(tmp_path, environment={"HIP_VISIBLE_DEVICES": "0"}).ready


def test_a_device_file_that_is_missing_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, MI300X)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    closed = look(tmp_path)
    assert closed.reason == "/dev/kfd may not be opened by this user"
    assert "render" in closed.next_step
    (tmp_path / "dev/kfd").unlink()
    missing = look(tmp_path)
    assert missing.reason == "the amdgpu driver lists GPUs, but /dev/kfd is not there"
    assert "--device /dev/kfd" in missing.next_step
    assert closed.idle_hardware and missing.idle_hardware


@pytest.mark.parametrize("name", ["HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
@pytest.mark.parametrize("value", ["", "-1"])
def test_gpus_that_the_user_hides_are_not_idle(tmp_path: Path, name: str, value: str) -> None:
    result = look(machine(tmp_path, MI300X), environment={name: value})
    assert result.reason == f"{name}={value!r} leaves none of 1 AMD GPUs visible"
    assert not result.idle_hardware


def test_two_lists_that_differ_are_refused_with_both(tmp_path: Path) -> None:
    environment = {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}
    result = look(machine(tmp_path, MI300X, MI300X), environment=environment)
    assert result.reason == (
        "HIP_VISIBLE_DEVICES='1' and CUDA_VISIBLE_DEVICES='0' name different GPUs; unset CUDA_VISIBLE_DEVICES, or set "
        "both alike"
    )
    assert result.idle_hardware


def test_a_machine_without_amd_is_told_plainly(tmp_path: Path) -> None:
    result = look(tmp_path)
    assert result.reason == "no AMD GPU for computing is here (looked for /dev/kfd and on the PCI bus)"
    assert not result.idle_hardware


@pytest.mark.parametrize(("kind", "number", "owner", "idle"), [
    ("0x120000", "0x74a1", None, True),  # MI300X
    ("0x038000", "0x740c", "amdgpu", True),  # MI250X
    ("0x030000", "0x744c", None, True),  # RX 7900 XTX
    ("0x030000", "0x7550", "vfio-pci", False),  # RX 9070 of a virtual machine
    ("0x030000", "0x164e", "amdgpu", False),  # in a Ryzen
    ("0x040300", "0xab30", None, False),  # its sound
])  # fmt: skip
def test_a_gpu_on_the_bus_without_a_driver(
    tmp_path: Path, kind: str, number: str, owner: str | None, idle: bool
) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for name, text in (("vendor", "0x1002"), ("class", kind), ("device", number)):
        (device / name).write_text(text + "\n")
    if owner is not None:
        (device / "driver").symlink_to(f"../../../../bus/pci/drivers/{owner}")
    result = look(tmp_path)
    assert result.idle_hardware == idle
    assert ("no amdgpu driver is loaded" in result.reason) == idle
    assert not look(tmp_path, environment={"HIP_VISIBLE_DEVICES": ""}).idle_hardware
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    assert ("offers none for computing" in look(tmp_path).reason) == idle


class FakeAmdsmi:
    """The calls that are made of amdsmi, with its shapes of answers."""

    class AmdSmiException(Exception):
        pass

    def __init__(self, failing: str = "") -> None:
        self.failing, self.open = failing, 0

    def __getattr__(self, name: str) -> Any:
        if name == self.failing:
            raise self.AmdSmiException(name)
        raise AttributeError(name)

    def amdsmi_init(self) -> None:
        if self.failing == "init":
            raise self.AmdSmiException("no driver")
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def amdsmi_get_processor_handles(self) -> list[int]:
        if self.failing == "handles":
            raise self.AmdSmiException("no permission")
        return [7]

    def amdsmi_get_gpu_device_bdf(self, handle: int) -> str:
        return "0000:C1:00.0"

    def amdsmi_get_gpu_asic_info(self, handle: int) -> dict[str, str]:
        return {"market_name": "AMD Instinct MI300X", "target_graphics_version": "gfx942"}

    def amdsmi_get_gpu_vram_usage(self, handle: int) -> dict[str, int]:
        return {"vram_total": 196592, "vram_used": 283}


@pytest.mark.parametrize("failing", ["", "init", "handles"])
def test_amdsmi_is_asked_and_shut_down(failing: str) -> None:
    module = FakeAmdsmi(failing)
    found = smi_gpus(lambda: module)
    assert module.open == 0
    if failing:
        assert found == {}
    else:
        assert found == {
            "0000:c1:00.0": SmiGpu(
                name="AMD Instinct MI300X", arch="gfx942", total_bytes=196592 << 20, used_bytes=283 << 20
            )
        }


@pytest.mark.parametrize("error", [KeyError("ROCM_PATH"), OSError("libamd_smi.so"), ImportError("amdsmi")], ids=repr)
def test_an_amdsmi_that_cannot_be_imported_without_a_driver_is_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(name: str) -> Any:
        raise error

    monkeypatch.setattr(smi, "importlib", SimpleNamespace(import_module=fails))
    assert load_amdsmi() is None
    assert smi_gpus() == {}


def test_the_probe_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys; from drivetrain_rocm.probe import probe; probe(); "
        "print(sorted({'torch', 'triton', 'numpy'} & set(sys.modules)))"
    )
    assert printed_by(code) == "[]\n"
