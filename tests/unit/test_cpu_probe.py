"""The CPU probe reads cores, memory and instruction sets as the kernel tells them, within container limits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from drivetrain_cpu import probe as cpu
from drivetrain_cpu.plugin import drivetrain_backends
from fakes.fresh_python import printed_by

GIB = 1 << 30
X86_FLAGS = "fpu sse2 fma avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_ready_and_torch_is_not_imported() -> None:
    program = (
        "import sys; from drivetrain_cpu.probe import probe; result = probe(); device = result.devices[0]; "
        "print(result.ready, 'torch' in sys.modules, device.details['cores'], "
        "0 < device.free_memory_bytes <= device.memory_bytes, result.details['torch'][0])"
    )
    assert printed_by(program) == f"True False {cpu.usable_cores()} True 2\n"


def test_without_torch_the_backend_is_unavailable_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = cpu.probe()
    assert (result.ready, result.reason, result.next_step) == (
        False,
        "PyTorch is not installed",
        "pip install torch",
    )
    assert len(result.devices) == 1


def test_memory_without_a_limit_is_that_of_the_machine(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert cpu.total_memory_bytes(root) == 16 * GIB
    assert cpu.available_memory_bytes(root) == 8 * GIB


def test_a_limit_of_an_outer_control_group_counts_and_its_cache_is_free(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/engine\n",
            "sys/fs/cgroup/pod/engine/memory.max": "max\n",
            "sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
        },
    )
    assert cpu.total_memory_bytes(root) == 4 * GIB
    assert cpu.available_memory_bytes(root) == 3 * GIB


def test_limits_of_the_first_control_group_version_count(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu.total_memory_bytes(root) == 2 * GIB
    assert cpu.available_memory_bytes(root) == GIB
    assert cpu.usable_cores(root) == 1


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)])
def test_cores_are_those_of_the_affinity_cut_down_to_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota}\n"})
    assert cpu.usable_cores(root) == cores


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (f"flags\t\t: {X86_FLAGS}\n", ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")),
        ("flags : fma avx2 avx512f\n", ("avx2",)),
        ("Features\t: fp asimd bf16 i8mm sve\n", ("neon", "bf16", "i8mm", "sve")),
        ("", ()),
    ],
)
def test_instruction_sets_need_all_of_their_flags(tmp_path: Path, cpuinfo: str, expected: tuple[str, ...]) -> None:
    assert cpu.instruction_sets(write(tmp_path, {"proc/cpuinfo": cpuinfo})) == expected


def test_macos_output_is_read() -> None:
    vm_stat = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\nPages active:                            500.\n"
        "Pages inactive:                           20.\nPages speculative:                         3.\n"
        "Pages purgeable:                           1.\n"
    )
    assert cpu.free_memory_of_vm_stat(vm_stat) == 34 * 16384
    sysctl = "hw.optional.arm.AdvSIMD: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    assert cpu.flags_of_sysctl(sysctl) == {"asimd", "bf16"}
    assert cpu.flags_of_sysctl("hw.optional.avx2_0: 1\nhw.optional.fma: 1\n") == {"avx2", "fma"}


def test_the_plugin_lists_cpu_below_every_accelerator() -> None:
    (spec,) = drivetrain_backends()
    assert (spec.name, spec.priority, spec.probe) == ("cpu", 0, "drivetrain_cpu.probe:probe")
