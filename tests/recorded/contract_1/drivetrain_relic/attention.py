"""Paged attention, one row after the other, in plain torch.

T tokens, Q queries of a row, L keys of a row, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_relic.memory import own


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One sequence of a step.

    Attributes:
        first, last: its tokens in the step.
        keys_L: where its keys lie, this step's included, by position.
    """

    first: int
    last: int
    keys_L: torch.Tensor


@dataclass(frozen=True, slots=True)
class RelicPlan:
    """What all layers of a step share."""

    inputs: StepInputs
    rows: tuple[RowPlan, ...]


class RelicAttention(PagedAttention):
    """Yours: `plan` decides splits for a kernel, `write` and `attend` launch it, or `attention` fuses all of it."""

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> RelicPlan:
        assert batch is not None, "nothing is captured: `Capabilities.graphs` is False"
        ends = itertools.pairwise(int(start) for start in batch.section("query_start")[: batch.num_rows + 1])
        rows: list[RowPlan] = []
        for row, (first, last) in enumerate(ends):
            length = int(batch.section("row_start")[row]) + last - first
            position_L = torch.arange(length, device=inputs.ids_T.device)
            pages_P = inputs.page_table_SP[inputs.row_slot_R[row]].long()
            size = cache.spec.page_size
            rows.append(RowPlan(first, last, pages_P[position_L // size] * size + position_L % size))
        return RelicPlan(inputs, tuple(rows))

    def write(
        self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: RelicPlan
    ) -> None:
        k, v = own(cache).k[layer.index], own(cache).v[layer.index]
        k.index_copy_(0, plan.inputs.kv_slots_T, k_TGK.to(k.dtype))
        v.index_copy_(0, plan.inputs.kv_slots_T, v_TGK.to(v.dtype))

    def attend(self, q_THK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: RelicPlan) -> torch.Tensor:
        k, v = own(cache).k[layer.index], own(cache).v[layer.index]
        out_THK = torch.zeros_like(q_THK)  # padding rows must come back finite
        for row in plan.rows:
            queries, length = row.last - row.first, len(row.keys_L)
            visible_QL = torch.ones(queries, length, dtype=torch.bool, device=q_THK.device).tril(length - queries)
            if layer.spec.window is not None:
                visible_QL &= ~visible_QL.tril(length - queries - layer.spec.window)
            out_HQK = F.scaled_dot_product_attention(
                q_THK[row.first : row.last].transpose(0, 1)[None],
                k[row.keys_L].to(q_THK.dtype).transpose(0, 1)[None],
                v[row.keys_L].to(q_THK.dtype).transpose(0, 1)[None],
                attn_mask=visible_QL,
                scale=layer.spec.scale,
                enable_gqa=True,
            )[0]
            out_THK[row.first : row.last] = out_HQK.transpose(0, 1)
        return out_THK
