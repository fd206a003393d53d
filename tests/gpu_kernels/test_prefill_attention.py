"""Prefill attention against a dense float64 computation, on scrambled pages with NaN in every unused slot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from drivetrain_cuda.kernels.prefill import plan_prefill, prefill_attention
from drivetrain_cuda.tables.prefill import PrefillConfig, prefill_config
from drivetrain_plugins.contract.shapes import StepShape
from gpu_kernels.closeness import GATES, relative_l2
from gpu_kernels.prefill_case import PrefillCase, make_layer

TINY = PrefillConfig(block_m=32, block_n=16, num_warps=4, num_stages=2)
"""Blocks so small that a short prompt has many of each kind."""
AHEAD = replace(TINY, ahead=True)
ROWS = [(5, 1), (0, 33), (15, 2), (31, 18), (16, 1), (0, 2), (64, 17)]


def run(
    case: PrefillCase, *, config: PrefillConfig = TINY, captured: bool = False, arch: str = "sm_90"
) -> torch.Tensor:
    """The kernel's output over NaN."""
    spec = case.layer.spec
    on_gpu = case.device.type == "cuda"
    pdl = on_gpu and torch.cuda.get_device_capability() >= (9, 0)
    plan = plan_prefill(
        case.inputs,
        case.shape,
        None if captured else case.batch,
        group=spec.num_heads // spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=case.dtype,
        arch=arch,
        pdl=pdl,
        config=config,
    )
    out_THK = torch.full(case.q.shape, float("nan"), dtype=case.dtype, device=case.device)
    prefill_attention(case.q, out_THK, case.layer, case.k, case.v, case.inputs, plan, pdl=pdl, arch=arch, config=config)
    return out_THK.cpu()


def check(case: PrefillCase, out_THK: torch.Tensor) -> None:
    """Rows with several tokens are right, rows with one untouched, padding is zero."""
    gate = 5e-3 if case.kv_dtype is not None else GATES[case.dtype]
    first = 0
    for row, (_, count) in enumerate(case.rows):
        got = out_THK[first : first + count]
        first += count
        if count == 1:
            assert got.isnan().all(), f"row {row} has one token and belongs to the decode kernel"
            continue
        truth = case.truth(row)
        error = relative_l2(got, truth)
        assert error < gate, f"row {row} {case.rows[row]}: relative error {error:.2e}"
        plain = relative_l2(case.truth(row, rounding=case.dtype).to(case.dtype), truth)
        assert error <= 2 * plain + 1e-6, f"row {row}: {error:.2e}, plain torch {plain:.2e}"
    if case.padding > 1:
        assert (out_THK[first:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("page", "config"), [(16, TINY), (32, AHEAD)])
def test_types_and_pages(device: torch.device, dtype: torch.dtype, page: int, config: PrefillConfig) -> None:
    case = PrefillCase(layer=make_layer(device=device), rows=ROWS, device=device, dtype=dtype, page=page, padding=3)
    check(case, run(case, config=config))


@pytest.mark.parametrize(("captured", "ahead"), [(False, False), (True, True)])
def test_block_wider_than_page(device: torch.device, captured: bool, ahead: bool) -> None:
    config = PrefillConfig(block_m=32, block_n=64, num_warps=4, num_stages=2, ahead=ahead)
    case = PrefillCase(layer=make_layer(device=device), rows=ROWS, device=device, page=16, padding=5)
    check(case, run(case, config=config, captured=captured))


@pytest.mark.parametrize("head_dim", [80, 96, 112, 128, 192, 256])
def test_head_sizes(device: torch.device, head_dim: int) -> None:
    layer = make_layer(device=device, head_dim=head_dim, group=2)
    case = PrefillCase(layer=layer, rows=[(0, 33), (15, 2)], device=device, page=16)
    check(case, run(case))


@pytest.mark.parametrize(("group", "kv_heads"), [(1, 2), (3, 1), (6, 1), (7, 2), (32, 1), (71, 1)])
def test_groups(device: torch.device, group: int, kv_heads: int) -> None:
    layer = make_layer(device=device, group=group, kv_heads=kv_heads)
    case = PrefillCase(layer=layer, rows=[(17, 9), (0, 2)], device=device, page=16)
    check(case, run(case))


@pytest.mark.parametrize(
    "features",
    [
        {"window": 1},
        {"window": 7},
        {"window": 16},
        {"window": 40},
        {"soft_cap": 2.0},
        {"sinks": True},
        {"alibi": True},
        {"window": 20, "sinks": True, "soft_cap": 3.0},
        {"alibi": True, "soft_cap": 3.0, "sinks": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [TINY, AHEAD], ids=["here", "ahead"])
def test_features(device: torch.device, features: dict[str, object], config: PrefillConfig) -> None:
    layer = make_layer(device=device, group=3, **features)  # type: ignore[arg-type]
    rows = [(5, 1), (0, 33), (31, 18)]
    case = PrefillCase(layer=layer, rows=rows, device=device, page=16, dtype=torch.float32, padding=2)
    check(case, run(case, config=config))


@pytest.mark.parametrize(
    ("kv_dtype", "arch"),
    [(torch.float8_e4m3fn, "sm_90"), (torch.float8_e5m2, "sm_90"), (torch.float8_e4m3fn, "sm_80")],
)
def test_fp8_cache(device: torch.device, kv_dtype: torch.dtype, arch: str) -> None:
    case = PrefillCase(layer=make_layer(device=device), rows=ROWS, device=device, page=32, kv_dtype=kv_dtype)
    check(case, run(case, arch=arch))


def test_head_major_pages(device: torch.device) -> None:
    case = PrefillCase(layer=make_layer(device=device), rows=ROWS, device=device, page=32, head_major=True)
    check(case, run(case))


@pytest.mark.parametrize(("page", "ahead"), [(16, False), (16, True), (32, True)])
def test_tensor_maps(device: torch.device, page: int, ahead: bool) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("tensor maps need sm_90")
    config = PrefillConfig(block_m=64, block_n=16, num_warps=4, num_stages=2, mapped=True, ahead=ahead)
    case = PrefillCase(layer=make_layer(device=device), rows=ROWS, device=device, page=page, padding=3)
    check(case, run(case, config=config))


@pytest.mark.parametrize(("head_dim", "dtype"), [(64, torch.bfloat16), (128, torch.bfloat16), (128, torch.float16)])
def test_configuration_of_the_table(device: torch.device, interpreted: bool, head_dim: int, dtype: torch.dtype) -> None:
    name = "sm_90" if interpreted else "sm_{}{}".format(*torch.cuda.get_device_capability())
    rows = [(0, 70), (130, 33)] if interpreted else [(0, 1500), (1, 1), (130, 333), (4000, 64), (63, 2), (5, 700)]
    layer = make_layer(device=device, head_dim=head_dim, kv_heads=1 if interpreted else 4)
    case = PrefillCase(layer=layer, rows=rows, device=device, page=64, dtype=dtype, padding=2)
    check(case, run(case, config=prefill_config(name, head_dim, 2)))


def test_plan_lists_every_block_longest_context_first(device: torch.device) -> None:
    rows = [(int(start), int(count)) for start, count in torch.randint(1, 90, (70, 2))]
    rows[3] = (4, 1)
    layer = make_layer(device=device, group=8, kv_heads=1)
    case = PrefillCase(layer=layer, rows=rows, device=device, padding=9)
    tokens = case.inputs.query_start_R1.tolist()
    slots = case.inputs.row_slot_R.tolist()
    wanted = [
        [tokens[row] + first, min(4, count - first), start + first, start + min(first + 4, count), slots[row]]
        for row, (start, count) in enumerate(rows)
        if count > 1
        for first in range(0, count, 4)
    ]
    wanted.sort(key=lambda item: (-item[3], item[0]))
    exact = wanted + [[tokens[-2] + first, min(4, 9 - first), 0, 0, slots[-1]] for first in (8, 4, 0)]
    options = {"group": 8, "head_dim": 64, "dtype": torch.bfloat16, "arch": "sm_90", "pdl": False, "config": TINY}
    plan = plan_prefill(case.inputs, case.shape, case.batch, **options)  # type: ignore[arg-type]
    assert plan.work_W8[:, :5].tolist() == exact
    bound = plan_prefill(case.inputs, case.shape, None, **options)  # type: ignore[arg-type]
    assert bound.num_items == case.num_tokens // 4 + len(rows) + 1
    assert bound.work_W8[: len(exact), :5].tolist() == exact
    assert (bound.work_W8[len(exact) :, 1] == 0).all()
    decode = StepShape(rows=71, tokens=71, pages=1, decode_only=True)
    assert plan_prefill(case.inputs, decode, None, **options).num_items == 0  # type: ignore[arg-type]


def test_a_plan_for_other_blocks_is_refused(device: torch.device) -> None:
    case = PrefillCase(layer=make_layer(device=device), rows=[(0, 3)], device=device)
    options = {"head_dim": 64, "dtype": torch.bfloat16, "arch": "sm_90", "pdl": False, "config": TINY}
    plan = plan_prefill(case.inputs, case.shape, case.batch, group=2, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="blocks of 16 tokens met a layer that needs 8"):
        prefill_attention(
            case.q, case.q, case.layer, case.k, case.v, case.inputs, plan, pdl=False, arch="sm_90", config=TINY
        )
