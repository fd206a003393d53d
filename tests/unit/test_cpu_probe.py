"""The CPU probe says whether the CPU can serve, and which instruction sets it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivetrain_cpu import probe as cpu
from drivetrain_cpu.plugin import drivetrain_backends
from fakes.fresh_python import printed_by

X86_FLAGS = "fpu sse2 fma avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8"


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
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    assert cpu.instruction_sets(tmp_path) == expected


def test_flags_of_macos_are_read() -> None:
    sysctl = "hw.optional.arm.AdvSIMD: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    assert cpu.flags_of_sysctl(sysctl) == {"asimd", "bf16"}
    assert cpu.flags_of_sysctl("hw.optional.avx2_0: 1\nhw.optional.fma: 1\n") == {"avx2", "fma"}


def test_the_plugin_lists_cpu_below_every_accelerator() -> None:
    (spec,) = drivetrain_backends()
    assert (spec.name, spec.priority, spec.probe) == ("cpu", 0, "drivetrain_cpu.probe:probe")
