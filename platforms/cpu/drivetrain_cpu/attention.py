"""Paged attention with torch's batched products.

Rows of similar size are gathered out of their pages into dense matrices, one a row and key-value head, and multiplied
with the queries of that head's whole group. The gathered copy is bounded, blocks of queries bound the scores.

T tokens, n rows of a group, Q queries a row, L keys a row, H query heads, G key-value heads, g = H / G, K head size,
F rotary pairs.
"""

# Relaxed: torch's stubs leave methods untyped; caches are always this backend's own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import torch

from drivetrain_cpu.allocator import CpuKVCache
from drivetrain_cpu.attention_plan import AttentionPlan, Block, Geometry, Group, read_rows
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention, RotaryTable
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs

FEW_KEYS = 2048
"""Up to so many (row, head, key) triples in 16 bits, torch's fused attention costs less than three separate calls."""


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

    def attention(
        self, qkv_TX: torch.Tensor, layer: AttentionLayer, cache: CpuKVCache, plan: AttentionPlan
    ) -> torch.Tensor:
        spec = layer.spec
        heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.head_dim
        if spec.clip_qkv is not None:
            qkv_TX = qkv_TX.clamp(-spec.clip_qkv, spec.clip_qkv)
        x = qkv_TX.view(-1, heads + 2 * kv_heads, size)
        if layer.q_norm is not None:
            x[:, :heads] = reference.qk_norm(qkv_TX[:, : heads * size], layer.q_norm, heads)
        if layer.k_norm is not None:
            k_TX = qkv_TX[:, heads * size : (heads + kv_heads) * size]
            x[:, heads : heads + kv_heads] = reference.qk_norm(k_TX, layer.k_norm, kv_heads)
        if layer.rotary is not None:
            _rotate_(x[:, : heads + kv_heads], layer.rotary, plan)
        self._store(x[:, heads:], layer, cache, plan)
        return self.attend(x[:, :heads], layer, cache, plan).view(-1, heads * size)

    def write(
        self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: CpuKVCache, plan: AttentionPlan
    ) -> None:
        self._store(torch.cat((k_TGK, v_TGK), dim=1), layer, cache, plan)

    def _store(self, kv_TGK: torch.Tensor, layer: AttentionLayer, cache: CpuKVCache, plan: AttentionPlan) -> None:
        """Store key heads, then value heads, of each token."""
        size = layer.spec.head_dim
        lines = cache.layers[layer.index].view(-1, size)
        index = plan.write_index_of(layer.spec.num_kv_heads)
        lines.index_copy_(0, index, kv_TGK.reshape(-1, size).to(lines.dtype))

    def attend(
        self, q_THK: torch.Tensor, layer: AttentionLayer, cache: CpuKVCache, plan: AttentionPlan
    ) -> torch.Tensor:
        spec = layer.spec
        pages = cache.layers[layer.index]
        geometry = Geometry(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            window=spec.window,
            item_bytes=pages.element_size(),
        )
        groups = plan.groups_of(geometry)
        if len(groups) == 1 and plan.covers_tokens and groups[0].tokens is not None and groups[0].num_queries == 1:
            group = groups[0]
            k_bLK, v_bLK = _gather(pages, group)
            return _mix(q_THK, k_bLK, v_bLK, layer, group, group.blocks[0]).view(q_THK.shape).to(q_THK.dtype)
        out_THK = torch.empty_like(q_THK, memory_format=torch.contiguous_format)
        if not plan.covers_tokens:
            out_THK.zero_()
        for group in groups:
            _attend_group(q_THK, out_THK, pages, layer, group)
        return out_THK


def _rotate_(x_THK: torch.Tensor, table: RotaryTable, plan: AttentionPlan) -> None:
    """Rotate the first elements of each head in place, in fp32."""
    cos_T11F, sin_T1F = plan.angles_of(table)
    pairs = x_THK[..., : table.dim]
    # (T, H, 2, F), the two elements of a pair along the third dimension
    pairs = pairs.unflatten(-1, (-1, 2)).transpose(2, 3) if table.interleaved else pairs.unflatten(-1, (2, -1))
    old = pairs.float()
    new = old * cos_T11F
    a, b = old.unbind(2)
    new_a, new_b = new.unbind(2)
    new_a.addcmul_(b, sin_T1F, value=-1)
    new_b.addcmul_(a, sin_T1F)
    pairs.copy_(new)


def _gather(pages: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (n G, L, K) of a group's rows."""
    size = pages.shape[4]
    kv = pages.view(-1, pages.shape[3] * size).index_select(0, group.gather)
    if group.blank is not None:
        # What lies beyond a row's last token may be NaN, and 0 * NaN is NaN.
        kv.view(-1, size).index_fill_(0, group.blank, 0.0)
    k_bLK, v_bLK = kv.view(2, -1, group.num_keys, size).unbind(0)
    return k_bLK, v_bLK


def _attend_group(
    q_THK: torch.Tensor, out_THK: torch.Tensor, pages: torch.Tensor, layer: AttentionLayer, group: Group
) -> None:
    """Attend the rows of a group and write their part of `out_THK`."""
    spec = layer.spec
    num_kv_heads, size = spec.num_kv_heads, spec.head_dim
    shape = (group.num_rows, group.num_queries, num_kv_heads, spec.num_heads // num_kv_heads, size)
    k_bLK, v_bLK = _gather(pages, group)
    picked = q_THK[group.tokens] if group.tokens is not None else q_THK.index_select(0, group.token_index)
    q = picked.reshape(shape).transpose(1, 2)
    if group.tokens is not None:
        mixed = out_THK[group.tokens].view(shape)
    else:
        mixed = torch.empty(shape, dtype=out_THK.dtype)
    for block in group.blocks:
        part = _mix(q[:, :, block.first : block.last], k_bLK, v_bLK, layer, group, block)
        part = part.view(group.num_rows, num_kv_heads, -1, shape[3], size)
        mixed[:, block.first : block.last] = part.transpose(1, 2)
    if group.tokens is not None:
        return
    mixed = mixed.view(-1, spec.num_heads, size)
    if group.real is None:
        out_THK.index_copy_(0, group.token_index, mixed)
    else:
        out_THK.index_copy_(0, group.token_index[group.real], mixed.index_select(0, group.real))


def _mix(
    q: torch.Tensor,
    k_bLK: torch.Tensor,
    v_bLK: torch.Tensor,
    layer: AttentionLayer,
    group: Group,
    block: Block,
) -> torch.Tensor:
    """Values mixed for one block of queries: (n G, queries g, K).

    Args:
        q: (n, G, queries, g, K), or (T, H, K) if each row has one query.
    """
    spec = layer.spec
    if not block.whole:
        k_bLK, v_bLK = k_bLK[:, block.low : block.high].contiguous(), v_bLK[:, block.low : block.high].contiguous()
    q_bMK = q.reshape(k_bLK.shape[0], -1, spec.head_dim).to(k_bLK.dtype)
    k_bKL = k_bLK.transpose(1, 2)
    if spec.soft_cap is not None or layer.alibi_H is not None or layer.sinks_H is not None:
        p_bML = _special_weights(q_bMK, k_bKL, layer, group, block)
    elif block.row_mask is not None and k_bLK.dtype is torch.bfloat16 and k_bLK.shape[0] * k_bLK.shape[1] <= FEW_KEYS:
        return _fused(q_bMK, k_bLK, v_bLK, block.row_mask, spec)
    elif block.row_mask is not None:
        p_bML = torch.baddbmm(block.row_mask, q_bMK, k_bKL, alpha=spec.scale).softmax(dim=-1)
    else:
        s_bML = torch.baddbmm(q_bMK.new_empty(1, 1, 1), q_bMK, k_bKL, beta=0, alpha=spec.scale)
        if block.mask is not None:
            s = s_bML.view(group.num_rows, spec.num_kv_heads, block.last - block.first, -1, s_bML.shape[2])
            s[..., block.clear - block.low :] += block.mask
        p_bML = s_bML.softmax(dim=-1)
    return torch.bmm(p_bML, v_bLK)


def _fused(
    q_bMK: torch.Tensor, k_bLK: torch.Tensor, v_bLK: torch.Tensor, mask_b1L: torch.Tensor, spec: AttentionSpec
) -> torch.Tensor:
    """All of it in one call."""
    heads = spec.num_kv_heads
    q, k, v, mask = (x.view(-1, heads, *x.shape[1:]) for x in (q_bMK, k_bLK, v_bLK, mask_b1L))
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed, _ = attend(q, k, v, 0.0, False, attn_mask=mask, scale=spec.scale)
    return mixed.reshape(q_bMK.shape)


def _special_weights(
    q_bMK: torch.Tensor, k_bKL: torch.Tensor, layer: AttentionLayer, group: Group, block: Block
) -> torch.Tensor:
    """Softmax of scores that are capped, biased by distance or joined by a sink, in fp32."""
    spec = layer.spec
    s_bML = torch.baddbmm(q_bMK.new_empty(1, 1, 1), q_bMK, k_bKL, beta=0, alpha=spec.scale)
    s = s_bML.float().view(group.num_rows, spec.num_kv_heads, block.last - block.first, -1, s_bML.shape[2])
    if spec.soft_cap is not None:
        s = torch.tanh(s / spec.soft_cap).mul_(spec.soft_cap)
    if layer.alibi_H is not None:
        s = s + layer.alibi_H.view(1, spec.num_kv_heads, 1, -1, 1) * block.distance
    if block.mask is not None:
        s[..., block.clear - block.low :] += block.mask
    if layer.sinks_H is None:
        p = s.softmax(dim=-1)
    else:
        sinks = layer.sinks_H.float().view(1, spec.num_kv_heads, 1, -1, 1).expand(*s.shape[:-1], 1)
        p = torch.cat((s, sinks), dim=-1).softmax(dim=-1)[..., :-1]
    return p.reshape(s_bML.shape).to(q_bMK.dtype)
