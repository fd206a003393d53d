"""The CPU device: what it promises, how it counts memory, how it moves pages, and what its ops compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drivetrain_cpu.allocator import CpuAllocator, CpuKVCache
from drivetrain_cpu.backend import CpuBackend, preferred_dtypes
from drivetrain_cpu.ops import CpuOps
from drivetrain_cpu.runtime import CpuRuntime
from drivetrain_cpu.threads import threads_for, warn_if_busy
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.contract.model import MlpSpec, NormSpec
from drivetrain_plugins.contract.ops import LinearWeight, Ops
from drivetrain_plugins.errors import BackendError, OutOfMemory

KV = KVSpec(
    layers=(KVLayerSpec(num_kv_heads=2, head_dim=8), KVLayerSpec(num_kv_heads=1, head_dim=16)),
    dtype="float32",
    page_size=16,
)
PAGE_BYTES = 2 * (2 * 8 + 1 * 16) * 4 * 16


def reserved(num_pages: int) -> tuple[CpuAllocator, CpuKVCache]:
    allocator = CpuAllocator(0.5)
    cache = allocator.reserve(KV, MemoryLimits(kv_bytes=num_pages * PAGE_BYTES))
    allocator.commit(cache, num_pages)
    return allocator, cache


def test_exactly_the_pages_that_fit_the_limit_are_planned_and_counted() -> None:
    limits = MemoryLimits(kv_bytes=10 * PAGE_BYTES + PAGE_BYTES // 2)
    allocator = CpuAllocator(0.5)
    cache = allocator.reserve(KV, limits)
    plan = allocator.plan(cache, limits)
    assert (plan.num_pages, plan.kv_bytes) == (10, 10 * PAGE_BYTES)
    allocator.commit(cache, plan.num_pages)
    assert cache.num_pages == 10
    assert allocator.use().kv == 10 * PAGE_BYTES
    allocator.release(cache)
    assert allocator.use().kv == 0
    assert not cache.layers


def test_a_limit_below_two_pages_says_the_numbers() -> None:
    with pytest.raises(OutOfMemory, match=rf"a page takes {PAGE_BYTES:,} bytes, {PAGE_BYTES:,} are allowed"):
        CpuAllocator(0.5).reserve(KV, MemoryLimits(kv_bytes=PAGE_BYTES))


def test_more_pages_than_reserved_cannot_be_committed() -> None:
    allocator, cache = reserved(4)
    with pytest.raises(OutOfMemory, match="cannot commit 5 pages: expected 2 to 4"):
        allocator.commit(cache, 5)


def test_without_a_limit_pages_stay_within_share_and_maximum() -> None:
    allocator = CpuAllocator(1e-6)
    free = allocator.use().details[0][1]
    cache = allocator.reserve(KV, MemoryLimits())
    assert 2 <= cache.reserved_pages <= 1.5e-6 * free / PAGE_BYTES + 2
    assert CpuAllocator(0.5).reserve(KV, MemoryLimits(max_pages=7)).reserved_pages == 7


def test_copied_and_moved_pages_are_equal_in_every_layer_and_others_untouched() -> None:
    allocator, cache = reserved(8)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape))
    before = [layer.clone() for layer in cache.layers]
    allocator.copy_pages(cache, [1, 2], [5, 6])
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer[[5, 6]], old[[1, 2]])
        assert torch.equal(layer[[0, 1, 2, 3, 4, 7]], old[[0, 1, 2, 3, 4, 7]])
    content = allocator.export_pages(cache, [3, 7])
    for layer in cache.layers:
        layer.zero_()
    allocator.import_pages(cache, [2, 4], content)
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer[[2, 4]], old[[3, 7]])
        assert not layer[[0, 1, 3, 5, 6, 7]].any()


def test_fetched_results_survive_what_is_written_later() -> None:
    runtime = CpuRuntime()
    buffer = torch.zeros(4, dtype=torch.int32)
    runtime.stage(np.array([1, 2, 3], np.int32), buffer)
    fetched = runtime.fetch({"ids": buffer})
    buffer.zero_()
    assert fetched.ready()
    assert fetched.wait()["ids"].tolist() == [1, 2, 3, 0]


def test_bfloat16_comes_first_only_where_the_processor_multiplies_it() -> None:
    assert preferred_dtypes(("avx2", "avx512", "avx512_bf16"))[0] == "bfloat16"
    assert preferred_dtypes(("avx2", "avx512", "amx_bf16"))[0] == "bfloat16"
    assert preferred_dtypes(("neon", "bf16"))[0] == "bfloat16"
    assert preferred_dtypes(("avx2", "avx512", "avx512_vnni")) == ("float32", "bfloat16")


def test_ranks_share_cores_and_a_set_number_wins() -> None:
    assert [threads_for(0, world, cores=6) for world in (1, 2, 4, 8)] == [6, 3, 1, 1]
    assert threads_for(3, 8, cores=2) == 3


@pytest.mark.parametrize(
    ("load", "cores", "threads", "warned"),
    [("1.30", 2, 2, True), ("0.90", 2, 2, False), ("9.00", 2, 1, False), ("20.00", 64, 64, False), ("", 2, 2, False)],
)
def test_a_start_on_busy_cores_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, load: str, cores: int, threads: int, warned: bool
) -> None:
    if load:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/loadavg").write_text(f"{load} 0.10 0.10 1/100 4242\n")
    warn_if_busy(threads, root=tmp_path, cores=cores)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == (
        [f"other programs keep about 1.3 of {cores} cores busy"] if warned else []
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thread": 2}, "thread"),
        ({"threads": -1}, "threads: got -1, expected 0"),
        ({"kv_share": 0.0}, "kv_share: got 0.0"),
        ({"threads": "two"}, "threads"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        CpuBackend().open(RankInfo(), options)


GATES = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


def distance(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.parametrize("dtype", GATES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("kind", ["llama", "gemma", "bias", "bare", "layer"])
def test_norms_match_the_reference_in_float64(dtype: torch.dtype, tokens: int, kind: str) -> None:
    spec = NormSpec(kind="rms", eps=1e-5)
    weight, bias = torch.randn(96).to(dtype), torch.randn(96).to(dtype)
    weights = {
        "llama": NormWeights(spec=spec, weight=weight, bias=None),
        "gemma": NormWeights(spec=replace(spec, weight_offset=1.0, late_weight=False), weight=weight, bias=None),
        "bias": NormWeights(spec=replace(spec, bias=True), weight=weight, bias=bias),
        "bare": NormWeights(spec=replace(spec, weight=False), weight=None, bias=None),
        "layer": NormWeights(spec=replace(spec, kind="layer", bias=True), weight=weight, bias=bias),
    }[kind]
    x = (torch.randn(tokens, 96) * 0.02 + 0.01).to(dtype)
    x[0] *= 1e-3  # where the epsilon decides
    before = x.clone()
    y = x.double()
    if kind == "layer":
        y = y - y.mean(dim=-1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + spec.eps)
    y = y if weights.weight is None else y * (weight.double() + weights.spec.weight_offset)
    y = y if weights.bias is None else y + bias.double()
    got = CpuOps().norm(x, weights)
    assert got.dtype == dtype
    assert distance(got, y) <= GATES[dtype]
    assert torch.equal(x, before), "a norm must leave its input alone"


@pytest.mark.parametrize("dtype", GATES, ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2"])
@pytest.mark.parametrize("gated", [True, False])
def test_mlps_match_plain_torch(dtype: torch.dtype, tokens: int, activation: str, gated: bool) -> None:
    spec = MlpSpec(inner_size=48, activation=activation, gated=gated, up_bias=True)  # type: ignore[arg-type]
    up = LinearWeight(weight=torch.randn(96 if gated else 48, 32) / 6, bias=torch.randn(96 if gated else 48))
    down = LinearWeight(weight=torch.randn(32, 48) / 7)
    x = torch.randn(tokens, 32)
    truth = Ops().mlp(
        x.to(dtype).float(), spec, _rounded(up, dtype, torch.float32), _rounded(down, dtype, torch.float32)
    )
    ops = CpuOps()
    handles = [ops.prepare_linear(_rounded(weight, dtype, dtype)) for weight in (up, down)]
    for _ in range(2):  # the first run of a gated layer splits it
        got = ops.mlp(x.to(dtype), spec, *handles)
        assert distance(got, truth) <= 2 * GATES[dtype]
    whole = ops.linear(x.to(dtype), handles[0])
    expected = x.to(dtype).float() @ up.weight.to(dtype).float().T + up.bias.to(dtype).float()
    assert distance(whole, expected) <= GATES[dtype]


def _rounded(weight: LinearWeight, through: torch.dtype, to: torch.dtype) -> LinearWeight:
    bias = None if weight.bias is None else weight.bias.to(through).to(to)
    return LinearWeight(weight=weight.weight.to(through).to(to), bias=bias)
