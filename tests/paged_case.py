"""Random ragged steps for a paged attention, and the dense float64 truth beside them.

T tokens, X packed projections, H query heads, G key-value heads, K head size, L keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.batch import BatchLayout
from drivetrain_plugins.contract.memory import Allocator, KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.reference import prepare
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import SlotState, StepInputs


def dense_attention(
    qkv_LX: torch.Tensor, num_queries: int, layer: AttentionLayer, *, rounding: torch.dtype = torch.float64
) -> torch.Tensor:
    """Outputs (T, H K) of the last queries of one sequence, in float64; `rounding` rounds scores and weights."""
    spec = layer.spec
    length = qkv_LX.shape[0]
    x = qkv_LX.double().view(length, -1, spec.head_dim)
    q, k, v = x.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), dim=1)
    if layer.rotary is not None:
        q, k = _turn(q, layer), _turn(k, layer)
    q = q[length - num_queries :]
    repeat = spec.num_heads // spec.num_kv_heads
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    s = (torch.einsum("thk,lhk->htl", q, k) * spec.scale).to(rounding).double()
    if spec.soft_cap is not None:
        s = torch.tanh(s / spec.soft_cap) * spec.soft_cap
    distance = torch.arange(length) - torch.arange(length - num_queries, length)[:, None]
    if layer.alibi_H is not None:
        s = s + layer.alibi_H.double()[:, None, None] * distance
    hidden = distance > 0
    if spec.window is not None:
        hidden |= distance <= -spec.window
    s = s.masked_fill(hidden, float("-inf"))
    if layer.sinks_H is not None:
        s = torch.cat((s, layer.sinks_H.double()[:, None, None].expand(-1, num_queries, 1)), dim=-1)
    p = s.softmax(dim=-1)[..., :length].to(rounding).double()
    return torch.einsum("htl,lhk->thk", p, v).flatten(1)


def _turn(x_LHK: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
    assert layer.rotary is not None
    length, dim = x_LHK.shape[0], layer.rotary.dim
    cos, sin = (table[:length, None].double() for table in (layer.rotary.cos_PF, layer.rotary.sin_PF))
    turned, rest = x_LHK[..., :dim], x_LHK[..., dim:]
    if layer.rotary.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned, rest), dim=-1)


@dataclass(kw_only=True)
class PagedCase:
    """Sequences on scrambled pages of a cache whose every unused slot is NaN."""

    attention: PagedAttention
    allocator: Allocator
    layer: AttentionLayer
    dtype: torch.dtype
    page_size: int
    seed: int
    num_slots: int = 12
    num_pages: int = 96
    history: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        spec = self.layer.spec
        names = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
        kv = KVLayerSpec(num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim)
        kv_spec = KVSpec(layers=(kv, kv), dtype=names[self.dtype], page_size=self.page_size)
        limits = MemoryLimits(kv_bytes=self.num_pages * kv_spec.page_bytes)
        self.cache = self.allocator.reserve(kv_spec, limits)
        self.allocator.commit(self.cache, self.num_pages)
        for tensor in self.cache.layers:
            tensor.fill_(float("nan"))
        self.free = list(1 + self.random.permutation(self.num_pages - 1))
        self.slots = SlotState(num_slots=self.num_slots, max_pages=64, vocab_size=4, device=torch.device("cpu"))
        self.pages: dict[int, list[int]] = {}

    def inputs(self, step: list[tuple[int, int]]) -> StepInputs:
        """Prepared inputs of a step that gives each slot so many tokens."""
        rows, tokens = len(step), sum(count for _, count in step)
        start = [len(self.history.get(slot, ())) for slot, _ in step]
        for (slot, count), begin in zip(step, start, strict=True):
            pages = self.pages.setdefault(slot, [])
            while len(pages) * self.page_size < begin + count:
                self.slots.page_table_SP[slot, len(pages)] = int(self.free[0])
                pages.append(self.free.pop(0))
        counts = [count for _, count in step]
        layout = BatchLayout(rows=rows, tokens=tokens, samples=rows, page_updates=0)
        packed = np.concatenate(
            [
                [slot for slot, _ in step],
                start,
                np.cumsum([0, *counts]),
                np.zeros(tokens),
                np.repeat(np.arange(rows), counts),
                np.arange(rows),
            ]
        ).astype(np.int32)
        return prepare(torch.from_numpy(packed), layout, self.slots, self.page_size)

    def step(self, step: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(what the attention returns, the truth, the truth with scores and weights rounded) for random projections."""
        spec = self.layer.spec
        inputs = self.inputs(step)
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        qkv_TX = torch.randn(inputs.ids_T.shape[0], width, generator=self.generator).to(self.dtype)
        shape = StepShape(rows=len(step), tokens=qkv_TX.shape[0], pages=64)
        plan = self.attention.plan(inputs, shape, None, self.cache)
        got = self.attention.attention(qkv_TX.clone(), self.layer, self.cache, plan)
        truth: list[torch.Tensor] = []
        plain: list[torch.Tensor] = []
        begin = 0
        for slot, count in step:
            past = self.history.get(slot, qkv_TX[:0])
            self.history[slot] = torch.cat((past, qkv_TX[begin : begin + count]))
            truth.append(dense_attention(self.history[slot], count, self.layer))
            plain.append(dense_attention(self.history[slot], count, self.layer, rounding=self.dtype))
            begin += count
        return got, torch.cat(truth), torch.cat(plain)

    def drop(self, slot: int) -> None:
        """End a sequence; its pages, contents and all, are used again first."""
        self.free = self.pages.pop(slot) + self.free
        self.history.pop(slot)


def attention_layer(spec: AttentionSpec, **parts: object) -> AttentionLayer:
    """A layer, index 1, with the given parts and nothing else."""
    given = {"rotary": None, "q_norm": None, "k_norm": None, "sinks_H": None, "alibi_H": None, **parts}
    return AttentionLayer(index=1, spec=spec, **given)  # type: ignore[arg-type]


def relative_l2(got: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over norm of the truth."""
    return float((got.double() - truth).norm() / truth.norm())
