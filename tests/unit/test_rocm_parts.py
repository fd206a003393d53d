"""AMD's names, numbers and encodings: architectures, visible devices, and 8-bit floats."""

from __future__ import annotations

import pytest
import torch

from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_rocm.fp8 import kv_dtypes, to_fnuz
from drivetrain_rocm.gaps import kernel_gaps
from drivetrain_rocm.parts import PARTS, SIBLINGS, arch_of, arch_of_target_version, part_of, served_parts
from drivetrain_rocm.visibility import Contradiction, hiding_variable, visible_gpus
from drivetrain_triton.cross_compile import AMD_ARCHS, SHARED_LIMITS

UUIDS = [f"GPU-{number:016x}" for number in (0xA1, 0xB2, 0xC3, 0xD4)]


@pytest.mark.parametrize(
    ("spelled", "arch"),
    [
        ("gfx942", "gfx942"),
        ("gfx942:sramecc+:xnack-", "gfx942"),
        ("gfx90a:sramecc+:xnack+", "gfx90a"),
        ("amdgcn-amd-amdhsa--gfx1100", "gfx1100"),
        ("amdgcn-amd-amdhsa--gfx90a:xnack-", "gfx90a"),
        ("GFX1201", "gfx1201"),
    ],
)
def test_architectures_are_read_as_drivers_spell_them(spelled: str, arch: str) -> None:
    assert arch_of(spelled) == arch


@pytest.mark.parametrize("spelled", ["", "sm_90", "gfx", "gfx9", "NVIDIA H100", "gfx942sramecc"])
def test_what_is_no_architecture_is_refused(spelled: str) -> None:
    with pytest.raises(ValueError, match="names no AMD architecture; expected one such as gfx942"):
        arch_of(spelled)


@pytest.mark.parametrize(
    ("number", "arch"),
    [
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (90500, "gfx950"),
        (110000, "gfx1100"),
        (110003, "gfx1103"),
        (120001, "gfx1201"),
        (100306, "gfx1036"),
        (90012, "gfx90c"),
    ],
)
def test_numbers_of_the_topology_are_architectures(number: int, arch: str) -> None:
    assert arch_of_target_version(number) == arch


@pytest.mark.parametrize("number", [0, 99, 1000 * 10000 // 7 + 99])
def test_numbers_that_are_no_gpu_s(number: int) -> None:
    with pytest.raises(ValueError, match="expected one such as 90402"):
        arch_of_target_version(number)


def test_parts_are_those_that_kernels_are_compiled_for() -> None:
    assert tuple(PARTS) == AMD_ARCHS
    assert {name: part.lds_bytes for name, part in PARTS.items()} == {name: SHARED_LIMITS[name] for name in PARTS}
    assert {name: part.wave_size for name, part in PARTS.items()} == {
        "gfx90a": 64,
        "gfx942": 64,
        "gfx950": 64,
        "gfx1100": 32,
        "gfx1201": 32,
    }
    assert {name: part.fp8 for name, part in PARTS.items()} == {
        "gfx90a": "none",
        "gfx942": "fnuz",
        "gfx950": "ocp",
        "gfx1100": "none",
        "gfx1201": "ocp",
    }
    assert part_of("gfx1101") is PARTS["gfx1100"]
    assert part_of("gfx1030") is None
    assert part_of("gfx906") is None
    assert all(name in served_parts() for name in (*PARTS, *SIBLINGS))


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({}, [0, 1, 2, 3]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": " 1 , 2"}, [1, 2]),
        ({"HIP_VISIBLE_DEVICES": "0,9,1"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "1,1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "3,1"}, [3, 1]),
        ({"ROCR_VISIBLE_DEVICES": UUIDS[2]}, [2]),
        ({"ROCR_VISIBLE_DEVICES": f"{UUIDS[1].upper().replace('GPU', 'GPU')},0"}, [1, 0]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "1,0"}, [3, 2]),
        ({"GPU_DEVICE_ORDINAL": "1"}, [1]),
    ],
    ids=str,
)
def test_the_environment_chooses_as_rocm_s_libraries_do(environment: dict[str, str], visible: list[int]) -> None:
    assert visible_gpus(environment, UUIDS) == visible


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, "unset CUDA_VISIBLE_DEVICES, or set both alike"),
        ({"HIP_VISIBLE_DEVICES": "0", "GPU_DEVICE_ORDINAL": "1"}, "GPU_DEVICE_ORDINAL='1' name different GPUs"),
        (
            {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "0,1,2"},
            "names 3 GPUs, but ROCR_VISIBLE_DEVICES='2,3' leaves 2; HIP_VISIBLE_DEVICES counts from 0",
        ),
    ],
    ids=str,
)
def test_lists_that_contradict_each_other_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(Contradiction) as caught:
        visible_gpus(environment, UUIDS)
    assert message in str(caught.value)


def test_a_variable_hides_all_gpus_only_where_it_names_none() -> None:
    assert hiding_variable({}) is None
    assert hiding_variable({"HIP_VISIBLE_DEVICES": "0"}) is None
    assert hiding_variable({"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": ""}) == "ROCR_VISIBLE_DEVICES"
    assert hiding_variable({"CUDA_VISIBLE_DEVICES": "-1"}) == "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_ocp_number_is_the_same_as_fnuz_with_twice_the_scale(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = every.float().isfinite()
    made, scale = to_fnuz(every, torch.tensor(0.75))
    assert scale.item() == 1.5
    assert torch.equal(made.float()[finite] * scale, every.float()[finite] * 0.75)
    assert made.float()[~finite].isnan().all()
    assert made.view(torch.uint8)[0x80] == 0, "the bits of a negative zero are NaN there"
    assert torch.tensor([0x80], dtype=torch.uint8).view(made.dtype).float().isnan().all()


def test_only_ocp_numbers_are_converted() -> None:
    with pytest.raises(TypeError, match="no fnuz encoding of torch.bfloat16; expected torch.float8_e4m3fn"):
        to_fnuz(torch.zeros(2, dtype=torch.bfloat16), torch.ones(()))


def test_pages_are_stored_in_the_encoding_of_the_part() -> None:
    assert kv_dtypes(PARTS["gfx942"])["fp8_e4m3"] is torch.float8_e4m3fnuz
    assert kv_dtypes(PARTS["gfx942"])["fp8_e5m2"] is torch.float8_e5m2fnuz
    assert kv_dtypes(PARTS["gfx942"])["bfloat16"] is torch.bfloat16
    for name in ("gfx90a", "gfx950", "gfx1100", "gfx1201"):
        assert kv_dtypes(PARTS[name])["fp8_e4m3"] is torch.float8_e4m3fn


def limits(rows: int = 512, **more: str) -> ExecutorLimits:
    given = {"dtype": "bfloat16", "kv_dtype": "bfloat16", **more}
    return ExecutorLimits(
        max_num_rows=rows,
        max_step_tokens=8192,
        max_model_len=8192,
        page_size=64,
        memory=MemoryLimits(),
        **given,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("part", PARTS)
def test_every_part_serves_the_heads_that_it_claims(part: str) -> None:
    sizes = frozenset(size for size in (64, 80, 96, 128, 192, 256) if size <= PARTS[part].max_head_dim)
    for kv_dtype in ("bfloat16", "fp8_e4m3", "fp8_e5m2"):
        assert kernel_gaps(limits(kv_dtype=kv_dtype), part, sizes, batch_invariant=True) == []


def test_what_the_tables_lack_is_said_by_size_and_type() -> None:
    first, second = kernel_gaps(limits(32_001), "gfx1100", frozenset({256}), batch_invariant=False)
    assert "32001 sequences" in first
    assert "no decode configuration for gfx1100, head size 256, 2 bytes" in second
    (gap,) = kernel_gaps(limits(), "gfx1030", frozenset({128}), batch_invariant=False)
    assert "gfx1030" in gap and "gfx942" in gap
