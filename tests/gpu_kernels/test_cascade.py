"""Rows that share their first pages: one pass over those for all of them, merged with each row's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from decode_case import DTYPES, GATES, DecodeCase, attention, head_norm, make_layer, relative_l2, rotary, spec
from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.model import QKNormSpec
from drivetrain_triton.attention import plan as attention_plan


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(attention_plan, "UNIT", 64)
        monkeypatch.setattr(attention_plan, "OVERHEAD", 8)
        monkeypatch.setattr(attention_plan, "SHARED_ROWS", 16)


def check(layer: AttentionLayer, device: torch.device, dtype: torch.dtype, **more: object) -> DecodeCase:
    given: dict[str, object] = {
        "lengths": [145, 20, 130, 129, 200, 40, 50, 33, 131],
        "groups": [((4, 0, 3, 8, 2), 128), ((7, 6), 32)],
        **more,
    }
    case = DecodeCase(layer=layer, device=device, dtype=dtype, **given)  # type: ignore[arg-type]
    got, truth = case.run(attention()), case.truth()
    assert relative_l2(got[: len(truth)], truth) <= GATES[dtype], f"seed {case.seed}"
    case.check_cache()
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_match_the_dense_truth(device: torch.device, dtype: torch.dtype) -> None:
    check(make_layer(spec(), device), device, dtype, padding=2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (17, 1), (2, 2)])
def test_rows_are_packed_for_every_group_of_heads(device: torch.device, heads: int, kv_heads: int) -> None:
    check(make_layer(spec(heads, kv_heads), device), device, torch.bfloat16)


@pytest.mark.parametrize("kind", ["soft cap", "sinks", "alibi"])
def test_every_kind(device: torch.device, kind: str) -> None:
    layer = {
        "soft cap": make_layer(spec(soft_cap=1.5), device),
        "sinks": make_layer(spec(sinks=True), device, sinks_H=torch.randn(4) + 1),
        "alibi": make_layer(spec(), device, alibi_H=2.0 ** -torch.arange(1.0, 5.0)),
    }[kind]
    check(layer, device, torch.float32)


def test_queries_are_normed_and_rotated_in_both_passes(device: torch.device) -> None:
    norms = {name: head_norm(64, torch.float32, device) for name in ("q_norm", "k_norm")}
    qk_norm = QKNormSpec(norm=norms["q_norm"].spec)
    layer = make_layer(spec(qk_norm=qk_norm), device, rotary=rotary(64, device, interleaved=True), **norms)
    check(layer, device, torch.float32)


def test_layers_with_a_window_ignore_groups(device: torch.device) -> None:
    check(make_layer(spec(window=70), device), device, torch.float32)


def test_groups_in_steps_with_chunks(device: torch.device) -> None:
    layer = make_layer(spec(), device, rotary=rotary(64, device))
    counts = [1, 20, 1, 1, 1, 3, 1, 1, 1]
    check(layer, device, torch.bfloat16, counts=counts)


def test_shared_pages_are_read_through_one_row_of_each_block(device: torch.device) -> None:
    """Nobody looks at the other rows' page tables there: they may as well lead to NaN."""
    layer = make_layer(spec(), device)
    case = DecodeCase(
        layer=layer, device=device, dtype=torch.float32, lengths=[145, 20, 130, 129], groups=[((2, 0, 3), 128)]
    )
    truth = case.truth()
    table = case.inputs.page_table_SP.clone()
    unused = set(range(1, len(case.k))) - set(table.flatten().tolist())
    for row in (0, 3):
        table[case.slots[row], : 128 // case.page] = unused.pop()
    case.inputs = replace(case.inputs, page_table_SP=table)
    assert relative_l2(case.run(attention()), truth) <= GATES[torch.float32]
