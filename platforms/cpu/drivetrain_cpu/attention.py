"""Paged attention with torch's batched products.

Rows of similar size are gathered out of their pages into dense matrices, a (row, key-value head) pair each, and multiplied
with the queries of that head's whole group. The gathered copy is bounded, blocks of queries bound the scores.

T tokens, n rows of a group, Q queries a row, L keys a row, H query heads, G key-value heads, g = H / G, K head size,
F rotary pairs.
"""

from __future__ import annotations

import torch

from drivetrain_cpu.allocator import CpuKVCache
from drivetrain_cpu.attention_plan import AttentionPlan, Block, Geometry, Group, read_rows
from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs


class CpuAttention(PagedAttention):
    """Attention of the CPU backend."""

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: CpuKVCache) -> AttentionPlan:
        # Everything is on the host already, so the inputs say all that the batch could.
        return AttentionPlan(
            inputs=inputs,
            page_size=cache.spec.page_size,
            dtype=cache.dtype,
            covers_tokens=int(inputs.query_start_R1[-1]) == inputs.ids_T.shape[0],
            rows=read_rows(inputs),
        )

    def write(
        self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: CpuKVCache, plan: AttentionPlan
    ) -> None:
        heads, size = layer.spec.num_kv_heads, layer.spec.head_dim
        kv = torch.cat((k_TGK, v_TGK), dim=1).view(-1, size)
        lines = cache.layers[layer.index].view(-1, size)
        lines.index_copy_(0, plan.write_index_of(heads), kv.to(lines.dtype))

    def attend(
        self, q_THK: torch.Tensor, layer: AttentionLayer, cache: CpuKVCache, plan: AttentionPlan
    ) -> torch.Tensor:
        spec = layer.spec
        out_THK = torch.empty_like(q_THK, memory_format=torch.contiguous_format)
        if not plan.covers_tokens:
            out_THK.zero_()
        pages = cache.layers[layer.index]
        geometry = Geometry(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            window=spec.window,
            item_bytes=pages.element_size(),
        )
        for group in plan.groups_of(geometry):
            _attend_group(q_THK, out_THK, pages, layer, group)
        return out_THK


def _attend_group(
    q_THK: torch.Tensor, out_THK: torch.Tensor, pages: torch.Tensor, layer: AttentionLayer, group: Group
) -> None:
    """Attend the rows of a group and write their part of `out_THK`."""
    spec = layer.spec
    num_heads, num_kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.head_dim
    share = num_heads // num_kv_heads
    rows, queries, keys = group.num_rows, group.num_queries, group.num_keys
    kv = pages.view(-1, pages.shape[3] * size).index_select(0, group.gather)
    if group.blank is not None:
        # What lies beyond a row's last token may be NaN, and 0 * NaN is NaN.
        kv.view(-1, size).index_fill_(0, group.blank, 0.0)
    kv = kv.view(2, rows * num_kv_heads, keys, size)
    k_bLK, v_bLK = kv[0], kv[1]
    picked = q_THK[group.tokens] if group.tokens is not None else q_THK.index_select(0, group.token_index)
    q = picked.reshape(rows, queries, num_kv_heads, share, size).transpose(1, 2).to(pages.dtype)
    mixed = torch.empty(rows, num_kv_heads, queries, share, size, dtype=pages.dtype)
    for block in group.blocks:
        q_bMK = q[:, :, block.first : block.last].reshape(rows * num_kv_heads, -1, size)
        p_bML = _weights(q_bMK, k_bLK[:, block.low : block.high], layer, group, block)
        part = torch.bmm(p_bML, v_bLK[:, block.low : block.high])
        mixed[:, :, block.first : block.last] = part.view(rows, num_kv_heads, -1, share, size)
    mixed = mixed.transpose(1, 2).reshape(rows * queries, num_heads, size).to(out_THK.dtype)
    if group.tokens is not None:
        out_THK[group.tokens] = mixed
    elif group.real is None:
        out_THK.index_copy_(0, group.token_index, mixed)
    else:
        out_THK.index_copy_(0, group.token_index[group.real], mixed.index_select(0, group.real))


def _weights(
    q_bMK: torch.Tensor, k_bLK: torch.Tensor, layer: AttentionLayer, group: Group, block: Block
) -> torch.Tensor:
    """Softmax of the scores of one block, (n G, queries g, L)."""
    spec = layer.spec
    shape = (group.num_rows, spec.num_kv_heads, block.last - block.first, spec.num_heads // spec.num_kv_heads, -1)
    nothing = q_bMK.new_empty(1, 1, 1)
    s_bML = torch.baddbmm(nothing, q_bMK, k_bLK.transpose(1, 2), beta=0, alpha=spec.scale)
    plain = spec.soft_cap is None and layer.alibi_H is None and layer.sinks_H is None
    s = (s_bML if plain else s_bML.float()).view(shape)
    if spec.soft_cap is not None:
        s = torch.tanh(s / spec.soft_cap) * spec.soft_cap
    if layer.alibi_H is not None:
        s = s + layer.alibi_H.view(1, spec.num_kv_heads, 1, -1, 1) * block.distance
    if block.mask is not None:
        s[..., block.clear - block.low :] += block.mask
    if layer.sinks_H is not None:
        sinks = layer.sinks_H.float().view(1, spec.num_kv_heads, 1, -1, 1).expand(*s.shape[:-1], 1)
        p = torch.cat((s, sinks), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        p = s.softmax(dim=-1)
    return p.to(q_bMK.dtype).reshape(s_bML.shape)
