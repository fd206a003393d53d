"""Random steps for prefill attention on scrambled pages whose unused slots are NaN, and the dense float64 truth.

T tokens, R rows, H query heads, G key-value heads, K head size, L keys of a row, P pages, S slots of a page.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields

import numpy as np
import torch

from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.batch import BatchLayout, StepBatch
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs

REQUIRED = [part.name for part in fields(StepInputs) if part.default is MISSING]


def make_layer(
    *,
    group: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: bool = False,
    alibi: bool = False,
    device: torch.device,
) -> AttentionLayer:
    """A layer with the given parts; the scale makes soft caps and sinks matter."""
    heads = group * kv_heads
    spec = AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=1.3 * head_dim**-0.5,
        window=window,
        soft_cap=soft_cap,
        sinks=sinks,
    )
    return AttentionLayer(
        index=0,
        spec=spec,
        rotary=None,
        q_norm=None,
        k_norm=None,
        sinks_H=torch.randn(heads).to(device) if sinks else None,
        alibi_H=(torch.rand(heads) / 8).to(device) if alibi else None,
    )


@dataclass(kw_only=True)
class PrefillCase:
    """One step. `rows` are (keys already in pages, query tokens); the last `padding` tokens belong to a padding row."""

    layer: AttentionLayer
    rows: list[tuple[int, int]]
    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype | None = None
    page: int = 16
    padding: int = 0
    head_major: bool = False
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec, kv_dtype = self.layer.spec, self.kv_dtype or self.dtype
        lengths = [start + count for start, count in self.rows]
        pages = [-(-length // self.page) for length in lengths]
        num_pages = 1 + sum(pages)
        heads, size = spec.num_kv_heads, spec.head_dim
        shape = (num_pages, heads, self.page, size) if self.head_major else (num_pages, self.page, heads, size)
        self.k, self.v = (torch.full(shape, float("nan")).to(kv_dtype) for _ in range(2))
        if self.head_major:
            self.k, self.v = self.k.transpose(1, 2), self.v.transpose(1, 2)
        columns = max(pages) + 1
        num_slots = len(self.rows) + 2
        self.slots = torch.randperm(num_slots)[: len(self.rows)]
        table = torch.randint(0, num_pages, (num_slots + 1, columns), dtype=torch.int32)
        free = (1 + torch.randperm(num_pages - 1)).tolist()
        for slot, length, count in zip(self.slots.tolist(), lengths, pages, strict=True):
            mine = [free.pop() for _ in range(count)]
            table[slot, :count] = torch.tensor(mine, dtype=torch.int32)
            for cache, truth in ((self.k, self.keys), (self.v, self.values)):
                x_LGK = torch.randn(length, heads, size).to(kv_dtype)
                truth.append(x_LGK.double())
                for i, page in enumerate(mine):
                    part = x_LGK[i * self.page : (i + 1) * self.page]
                    cache[page, : part.shape[0]] = part
        counts = [count for _, count in self.rows]
        starts = [start for start, _ in self.rows]
        row_slot = self.slots.tolist()
        if self.padding:
            counts.append(self.padding)
            starts.append(0)
            row_slot.append(num_slots)
        self.counts, self.num_tokens = counts, sum(counts)
        width = (spec.num_heads + 2 * heads) * size
        qkv_TX = torch.randn(self.num_tokens, width).to(self.dtype).to(self.device)
        self.q = qkv_TX[:, : spec.num_heads * size].view(-1, spec.num_heads, size)
        self.k, self.v = self.k.to(self.device), self.v.to(self.device)
        self.inputs = self._inputs(row_slot, starts, table)
        self.shape = StepShape(rows=len(counts), tokens=self.num_tokens, pages=columns)

    def _inputs(self, row_slot: list[int], starts: list[int], table: torch.Tensor) -> StepInputs:
        unused = torch.zeros(0, dtype=torch.int64)
        values = dict.fromkeys(REQUIRED, unused)
        values |= {
            "row_slot_R": torch.tensor(row_slot),
            "row_start_R": torch.tensor(starts),
            "query_start_R1": torch.tensor([0, *np.cumsum(self.counts).tolist()]),
            "page_table_SP": table,
        }
        return StepInputs(**{name: value.to(self.device) for name, value in values.items()})

    @property
    def batch(self) -> StepBatch:
        """What the host knows of the step, as far as planning asks."""
        layout = BatchLayout(rows=len(self.counts), tokens=self.num_tokens, samples=1, page_updates=0)
        batch = StepBatch(
            step_id=0,
            layout=layout,
            packed=np.zeros(layout.size, np.int32),
            num_rows=len(self.rows),
            num_tokens=self.num_tokens - self.padding,
            num_decode_rows=0,
            num_samples=1,
            max_query=max(self.counts),
            max_kv=max(sum(row) for row in self.rows),
            max_pages=1,
        )
        batch.section("query_start")[:] = self.inputs.query_start_R1.cpu().numpy()
        return batch

    def truth(self, row: int, *, rounding: torch.dtype = torch.float64) -> torch.Tensor:
        """(Q, H, K) float64 outputs of a row; `rounding` rounds scores and weights."""
        spec = self.layer.spec
        start, count = self.rows[row]
        first = sum(self.counts[:row])
        q = self.q[first : first + count].double().cpu()
        group = spec.num_heads // spec.num_kv_heads
        k, v = (x[row].repeat_interleave(group, dim=1) for x in (self.keys, self.values))
        s = (torch.einsum("qhk,lhk->hql", q, k) * spec.scale).to(rounding).double()
        if spec.soft_cap is not None:
            s = torch.tanh(s / spec.soft_cap) * spec.soft_cap
        distance = torch.arange(start + count) - torch.arange(start, start + count)[:, None]
        if self.layer.alibi_H is not None:
            s = s + self.layer.alibi_H.double().cpu()[:, None, None] * distance
        hidden = distance > 0
        if spec.window is not None:
            hidden |= distance <= -spec.window
        s = s.masked_fill(hidden, float("-inf"))
        if self.layer.sinks_H is not None:
            s = torch.cat((s, self.layer.sinks_H.double().cpu()[:, None, None].expand(-1, count, 1)), dim=-1)
        p = s.softmax(dim=-1)[..., : start + count].to(rounding).double()
        return torch.einsum("hql,lhk->qhk", p, v)
