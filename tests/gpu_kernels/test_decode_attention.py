"""Decode attention over pages against float64: steps of single tokens, and rows of one token beside longer ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from decode_case import (
    DTYPES,
    FP8_GATE,
    GATES,
    DecodeCase,
    attention,
    head_norm,
    make_layer,
    relative_l2,
    rotary,
    spec,
)
from drivetrain_cuda.attention import CudaAttention
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import NormSpec, QKNormSpec
from drivetrain_triton.attention import plan as attention_plan


def check(case: DecodeCase, using: CudaAttention | None = None) -> torch.Tensor:
    got = case.run(using or attention())
    truth = case.truth()
    gate = FP8_GATE if case.k.dtype.itemsize == 1 else GATES[case.dtype]
    assert got.dtype == case.dtype
    assert relative_l2(got[: len(truth)], truth) <= gate, f"seed {case.seed}"
    assert got.isfinite().all()
    case.check_cache()
    return got


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Rows of a test's length are split, and the interpreter has little to do."""
    if device.type == "cpu":
        monkeypatch.setattr(attention_plan, "UNIT", 64)
        monkeypatch.setattr(attention_plan, "OVERHEAD", 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page", [16, 64])
def test_lengths_around_pages_and_chunks(device: torch.device, dtype: torch.dtype, page: int) -> None:
    lengths = [1, page - 1, page, page + 1, 64, 65, 66, 130, 1]
    check(
        DecodeCase(layer=make_layer(spec(), device), device=device, dtype=dtype, lengths=lengths, page=page, padding=2)
    )


@pytest.mark.parametrize("page", [32, 128])
def test_other_pages(device: torch.device, page: int) -> None:
    lengths = [2, page, page + 1, 140]
    check(DecodeCase(layer=make_layer(spec(), device), device=device, dtype=torch.bfloat16, lengths=lengths, page=page))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(1, 1, 64), (3, 3, 80), (7, 1, 96), (5, 1, 112), (6, 2, 128), (4, 1, 192), (2, 1, 256)],
)
def test_groups_and_head_sizes(device: torch.device, heads: int, kv_heads: int, size: int) -> None:
    layer = make_layer(spec(heads, kv_heads, size), device, rotary=rotary(size, device))
    check(DecodeCase(layer=layer, device=device, dtype=torch.bfloat16, lengths=[3, 100]))


@pytest.mark.parametrize(("heads", "kv_heads"), [(17, 1), (71, 1)])
def test_large_groups(device: torch.device, heads: int, kv_heads: int) -> None:
    layer = make_layer(spec(heads, kv_heads), device)
    check(DecodeCase(layer=layer, device=device, dtype=torch.float16, lengths=[1, 150]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["window", "tiny window", "soft cap", "sinks", "alibi", "all"])
def test_every_kind(device: torch.device, dtype: torch.dtype, kind: str) -> None:
    slopes, sinks = 2.0 ** -torch.arange(1.0, 5.0), torch.randn(4) + 1
    layer = {
        "window": make_layer(spec(window=70), device),
        "tiny window": make_layer(spec(window=1), device),
        "soft cap": make_layer(spec(soft_cap=1.5), device),
        "sinks": make_layer(spec(sinks=True), device, sinks_H=sinks),
        "alibi": make_layer(spec(), device, alibi_H=slopes),
        "all": make_layer(spec(window=90, soft_cap=5.0, sinks=True), device, sinks_H=sinks, alibi_H=slopes),
    }[kind]
    check(DecodeCase(layer=layer, device=device, dtype=dtype, lengths=[1, 65, 70, 71, 200]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "interleaved"), [(64, False), (64, True), (32, False), (16, True)])
def test_norm_and_rotary_are_fused(device: torch.device, dtype: torch.dtype, dim: int, interleaved: bool) -> None:
    norms = {name: head_norm(64, dtype, device) for name in ("q_norm", "k_norm")}
    qk_norm = QKNormSpec(norm=norms["q_norm"].spec)
    layer = make_layer(spec(qk_norm=qk_norm), device, rotary=rotary(dim, device, interleaved=interleaved), **norms)
    check(DecodeCase(layer=layer, device=device, dtype=dtype, lengths=[1, 40, 129], padding=1))


@pytest.mark.parametrize("norm", [{"late_weight": False, "weight_offset": 1.0}, {"weight": False}], ids=str)
def test_kinds_of_norm(device: torch.device, norm: dict[str, object]) -> None:
    q_norm, k_norm = (head_norm(64, torch.bfloat16, device, **norm) for _ in range(2))
    if norm.get("weight") is False:
        q_norm, k_norm = (replace(each, weight=None) for each in (q_norm, k_norm))
    layer = make_layer(spec(qk_norm=QKNormSpec(norm=q_norm.spec)), device, q_norm=q_norm, k_norm=k_norm)
    check(DecodeCase(layer=layer, device=device, dtype=torch.bfloat16, lengths=[5, 33]))


@pytest.mark.parametrize("kind", ["clip", "full span", "layer norm"])
def test_what_is_not_fused_is_composed(device: torch.device, kind: str) -> None:
    norms = {}
    shape = (4 * 64, 2 * 64) if kind == "full span" else (64, 64)
    if kind != "clip":
        norm = NormSpec(kind="layer" if kind == "layer norm" else "rms", eps=1e-5)
        for name, size in zip(("q_norm", "k_norm"), shape, strict=True):
            norms[name] = NormWeights(spec=norm, weight=torch.randn(size).to(device), bias=None)
    layer = make_layer(spec(clip_qkv=0.5 if kind == "clip" else None), device, rotary=rotary(64, device), **norms)
    check(DecodeCase(layer=layer, device=device, dtype=torch.float32, lengths=[5, 70]))


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_fp8_pages(device: torch.device, kv_dtype: torch.dtype, dtype: torch.dtype) -> None:
    layer = make_layer(spec(), device, rotary=rotary(64, device))
    case = DecodeCase(layer=layer, device=device, dtype=dtype, kv_dtype=kv_dtype, lengths=[1, 17, 140])
    case.qkv_TX[0, -1] = 1e6  # saturates
    check(case)


@pytest.mark.skipif(torch.cuda.is_available(), reason="parts before sm_89 are stood in for by the interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_parts_without_e4m3_code_it_by_hand(device: torch.device, dtype: torch.dtype) -> None:
    layer = make_layer(spec(), device)
    case = DecodeCase(layer=layer, device=device, dtype=dtype, kv_dtype=torch.float8_e4m3fn, lengths=[1, 17, 140])
    case.qkv_TX[0, -4:] = torch.tensor([1e6, -1e6, 2.0**-9, -0.0011])
    check(case, CudaAttention(arch="sm_80", num_processors=8, pdl=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_tokens_beside_chunks(device: torch.device, dtype: torch.dtype) -> None:
    norms = {name: head_norm(64, dtype, device) for name in ("q_norm", "k_norm")}
    layer = make_layer(spec(qk_norm=QKNormSpec(norm=norms["q_norm"].spec)), device, rotary=rotary(64, device), **norms)
    check(DecodeCase(layer=layer, device=device, dtype=dtype, lengths=[1, 130, 20, 17, 40], counts=[1, 1, 1, 3, 40]))


def test_a_row_does_not_depend_on_others_when_asked(device: torch.device) -> None:
    layer = make_layer(spec(), device, rotary=rotary(64, device))
    using = attention(batch_invariant=True)
    many = DecodeCase(layer=layer, device=device, dtype=torch.bfloat16, lengths=[150, 3, 77, 100], seed=5)
    together = check(many, using)
    alone = DecodeCase(layer=layer, device=device, dtype=torch.bfloat16, lengths=[150], seed=5)
    alone.qkv_TX = many.qkv_TX[:1]
    alone.k, alone.v = (torch.full_like(x.float(), float("nan")).to(x.dtype) for x in (many.k, many.v))
    alone.table = torch.zeros(2, many.table.shape[1], dtype=torch.int32)
    pages = many.table[many.slots[0]]
    alone.table[alone.slots[0]] = pages
    alone.k[pages.long()], alone.v[pages.long()] = many.k[pages.long()], many.v[pages.long()]
    alone.inputs = alone._inputs()
    assert torch.equal(alone.run(using)[0], together[0])
