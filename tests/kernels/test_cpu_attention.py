"""The CPU backend's paged attention against dense float64, over ragged steps on scrambled, NaN-poisoned pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from drivetrain_cpu import attention_plan
from drivetrain_cpu.allocator import CpuAllocator
from drivetrain_cpu.attention import CpuAttention
from drivetrain_plugins.contract.attention import AttentionLayer, RotaryTable
from drivetrain_plugins.contract.model import AttentionSpec
from paged_case import PagedCase, attention_layer, relative_l2

GATES = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


def spec(heads: int = 6, kv_heads: int = 2, size: int = 32) -> AttentionSpec:
    return AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=size, scale=size**-0.5)


def case(layer: AttentionLayer, dtype: torch.dtype, page_size: int = 16) -> PagedCase:
    return PagedCase(
        attention=CpuAttention(),
        allocator=CpuAllocator(1.0),
        layer=layer,
        dtype=dtype,
        page_size=page_size,
        seed=int(torch.randint(2**31, ())),
    )


def rotary(dim: int, *, interleaved: bool = False) -> RotaryTable:
    angle = torch.arange(1024)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    return RotaryTable(cos_PF=angle.cos(), sin_PF=angle.sin(), interleaved=interleaved)


def live(paged: PagedCase) -> None:
    """Prefill at page borders, decode, chunks mixed with decode, reuse of dropped pages."""
    page = paged.page_size
    steps = [
        [(0, 1), (1, page - 1), (2, page), (3, page + 1), (4, 3 * page + 5)],
        [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)],
        [(4, 1), (2, 1), (0, page), (5, 2 * page), (3, 2)],
        [(6, 7), (7, 7), (8, 6), (9, 5)],
        [(slot, 1) for slot in (9, 0, 2, 3, 5, 6, 7)],
    ]
    for number, step in enumerate(steps):
        if number == 3:
            paged.drop(4)
            paged.drop(1)
        got, truth, plain = paged.step(step)
        assert got.dtype == paged.dtype
        gate = max(GATES[paged.dtype], 2 * relative_l2(plain, truth) if paged.dtype != torch.float32 else 0.0)
        assert relative_l2(got, truth) <= gate, f"seed {paged.seed}, step {number}"


@pytest.mark.parametrize("dtype", GATES, ids=str)
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
def test_every_page_size_matches_the_dense_truth(dtype: torch.dtype, page_size: int) -> None:
    live(case(attention_layer(spec()), dtype, page_size))


@pytest.mark.parametrize("dtype", GATES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1), (9, 3)])
def test_every_group_size_matches_the_dense_truth(dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    live(case(attention_layer(spec(heads, kv_heads)), dtype))


@pytest.mark.parametrize("size", [8, 80, 96, 160])
def test_odd_head_sizes_match_the_dense_truth(size: int) -> None:
    live(case(attention_layer(spec(size=size)), torch.float32))


@pytest.mark.parametrize("dtype", GATES, ids=str)
@pytest.mark.parametrize("kind", ["window", "tiny window", "soft cap", "sinks", "alibi", "all"])
def test_every_kind_matches_the_dense_truth(dtype: torch.dtype, kind: str) -> None:
    base = spec()
    layer = {
        "window": attention_layer(replace(base, window=19)),
        "tiny window": attention_layer(replace(base, window=1)),
        "soft cap": attention_layer(replace(base, soft_cap=1.5)),
        "sinks": attention_layer(replace(base, sinks=True), sinks_H=torch.randn(6)),
        "alibi": attention_layer(base, alibi_H=2.0 ** -torch.arange(1.0, 7.0)),
        "all": attention_layer(
            replace(base, window=33, soft_cap=5.0, sinks=True),
            sinks_H=torch.randn(6),
            alibi_H=2.0 ** -torch.arange(1.0, 7.0),
        ),
    }[kind]
    live(case(layer, dtype))


@pytest.mark.parametrize("dtype", GATES, ids=str)
@pytest.mark.parametrize(("dim", "interleaved"), [(32, False), (32, True), (16, False), (16, True)])
def test_rotary_is_applied_before_keys_are_stored(dtype: torch.dtype, dim: int, interleaved: bool) -> None:
    live(case(attention_layer(spec(), rotary=rotary(dim, interleaved=interleaved)), dtype))


def test_groups_split_by_bytes_and_blocks_by_scores_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "GATHERED_BYTES", 40_000)
    monkeypatch.setattr(attention_plan, "BLOCK_SCORES", 600)
    for window in (None, 19):
        live(case(attention_layer(replace(spec(), window=window)), torch.float32))


def test_rows_of_one_shape_do_not_see_each_other() -> None:
    paged = case(attention_layer(spec()), torch.float32)
    got, truth, _ = paged.step([(slot, 20) for slot in range(6)])
    assert relative_l2(got, truth) <= 1e-5
    order = [3, 0, 5, 1, 4, 2]
    got, truth, _ = paged.step([(slot, 1) for slot in order])
    assert relative_l2(got, truth) <= 1e-5


def test_one_long_row_does_not_pad_short_ones() -> None:
    paged = case(attention_layer(spec()), torch.float32)
    paged.step([(0, 800), (1, 3), (2, 3)])
    inputs = paged.inputs([(0, 1), (1, 1), (2, 1)])
    plan = paged.attention.plan(inputs, None, None, paged.cache)
    geometry = attention_plan.Geometry(num_heads=6, num_kv_heads=2, head_dim=32, window=None, item_bytes=4)
    assert sorted((group.num_rows, group.num_keys) for group in plan.groups_of(geometry)) == [(1, 816), (2, 16)]


def test_a_window_reads_only_its_own_pages() -> None:
    paged = case(attention_layer(replace(spec(), window=16)), torch.float32)
    paged.step([(0, 800)])
    plan = paged.attention.plan(paged.inputs([(0, 1)]), None, None, paged.cache)
    geometry = attention_plan.Geometry(num_heads=6, num_kv_heads=2, head_dim=32, window=16, item_bytes=4)
    (group,) = plan.groups_of(geometry)
    assert group.num_keys == 32
