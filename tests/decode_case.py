"""Random steps for the CUDA attention on NaN-poisoned pages, and the float64 truth beside them.

T tokens, X packed projections, R rows, H query heads, G key-value heads, K head size, L keys of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import torch

from drivetrain_cuda.attention import CudaAttention
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, RotaryTable
from drivetrain_plugins.contract.model import AttentionSpec, NormSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs

GATES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
FP8_GATE = 5e-3
DTYPES = list(GATES)


def spec(heads: int = 4, kv_heads: int = 2, size: int = 64, **more: object) -> AttentionSpec:
    """An attention of small heads."""
    return AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=size, scale=size**-0.5, **more)  # type: ignore[arg-type]


def attention(processors: int = 8, **options: object) -> CudaAttention:
    """The attention for this machine's device, or for the interpreter's stand-in."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        arch, pdl = f"sm_{major}{minor}", major >= 9
    else:
        arch, pdl = "sm_90", False
    return CudaAttention(arch=arch, num_processors=processors, pdl=pdl, **options)  # type: ignore[arg-type]


def relative_l2(got: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over norm of the truth."""
    return float((got.double().cpu() - truth).norm() / truth.norm())


def make_layer(spec: AttentionSpec, device: torch.device, **parts: object) -> AttentionLayer:
    """A layer, index 1, with the given parts and nothing else."""
    given = {"rotary": None, "q_norm": None, "k_norm": None, "sinks_H": None, "alibi_H": None, **parts}
    given = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in given.items()}
    return AttentionLayer(index=1, spec=spec, **given)  # type: ignore[arg-type]


def rotary(dim: int, device: torch.device, *, interleaved: bool = False) -> RotaryTable:
    """Angles of 512 positions."""
    angle = torch.arange(512)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    return RotaryTable(cos_PF=angle.cos().to(device), sin_PF=angle.sin().to(device), interleaved=interleaved)


def head_norm(size: int, dtype: torch.dtype, device: torch.device, **spec: object) -> NormWeights:
    """A root-mean-square norm of heads with random weights."""
    norm = NormSpec(**{"kind": "rms", "eps": 1e-6, **spec})  # type: ignore[arg-type]
    return NormWeights(spec=norm, weight=torch.randn(size).to(device, dtype), bias=None)


@dataclass(kw_only=True)
class DecodeCase:
    """Rows of given lengths on scrambled pages.

    Attributes:
        lengths: tokens of each row, this step's included.
        counts: this step's tokens of each row; one each if empty.
        groups: (rows, shared tokens) of rows whose first pages are the same.
        padding: rows of padding behind the others.
    """

    layer: AttentionLayer
    device: torch.device
    dtype: torch.dtype
    lengths: Sequence[int]
    counts: Sequence[int] = ()
    groups: Sequence[tuple[Sequence[int], int]] = ()
    padding: int = 0
    page: int = 16
    kv_dtype: torch.dtype | None = None
    seed: int = field(default_factory=lambda: int(torch.randint(2**31, ())))
    spare_pages: int = 5

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        random = np.random.default_rng(self.seed)
        spec = self.layer.spec
        stored = self.kv_dtype or self.dtype
        counts = [*(self.counts or [1] * len(self.lengths)), *[1] * self.padding]
        lengths = [*self.lengths, *[1] * self.padding]
        rows, columns = len(lengths), max(-(-length // self.page) for length in lengths) + 1
        table = torch.zeros(rows + 1, columns, dtype=torch.int32)
        needed = sum(-(-length // self.page) for length in self.lengths)
        num_pages = 1 + needed + self.spare_pages
        free = list(1 + random.permutation(num_pages - 1))
        slots = [*random.permutation(rows)[: len(self.lengths)], *[rows] * self.padding]
        for row, length in enumerate(self.lengths):
            for column in range(-(-length // self.page)):
                table[slots[row], column] = int(free.pop())
        for members, tokens in self.groups:
            table[[slots[row] for row in members], : tokens // self.page] = table[
                slots[members[0]], : tokens // self.page
            ].clone()
        shape = (num_pages, self.page, spec.num_kv_heads, spec.head_dim)
        self.k, self.v = (torch.full(shape, float("nan")).to(stored) for _ in range(2))
        self.k[0], self.v[0] = 0.0, 0.0
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=False)):
            past = torch.arange(length - count)
            pages, places = table[slots[row]].long()[past // self.page], past % self.page
            for pages_PSGK in (self.k, self.v):
                # Written again by each row of a group: rows must find the last one's numbers.
                past_LGK = torch.randn(len(past), *shape[2:], generator=generator).to(self.dtype)
                pages_PSGK[pages, places] = past_LGK.to(stored)
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self.qkv_TX = torch.randn(sum(counts), width, generator=generator).to(self.dtype)
        self.table, self.slots, self.counts_R, self.lengths_R = table, slots, counts, lengths
        self.inputs = self._inputs()

    def _inputs(self) -> StepInputs:
        counts, lengths = torch.tensor(self.counts_R), torch.tensor(self.lengths_R)
        start_R1 = torch.tensor([0, *accumulate(self.counts_R)])
        row_T = torch.repeat_interleave(torch.arange(len(counts)), counts)
        position_T = (lengths - counts)[row_T] + torch.arange(len(row_T)) - start_R1[row_T]
        slot_R = torch.tensor(self.slots)
        page_T = self.table[slot_R[row_T], position_T // self.page].long()
        shared: dict[str, torch.Tensor | None] = {}
        if self.groups:
            order = [row for members, _ in self.groups for row in members]
            ends = list(accumulate(len(members) for members, _ in self.groups))
            entries = [
                (end - len(members), end, tokens) for end, (members, tokens) in zip(ends, self.groups, strict=True)
            ]
            order += [row for row in range(len(counts)) if row not in order]
            shared["shared_rows_R"] = torch.tensor(order, dtype=torch.int32)
            shared["shared_groups_G3"] = torch.tensor([*entries, (0, 0, 0)], dtype=torch.int32)
        none_K = torch.zeros(0, dtype=torch.int64)
        values = {
            "ids_T": torch.zeros_like(position_T),
            "positions_T": position_T,
            "kv_slots_T": page_T * self.page + position_T % self.page,
            "token_row_T": row_T,
            "row_slot_R": slot_R,
            "row_start_R": lengths - counts,
            "kv_len_R": lengths,
            "query_start_R1": start_R1,
            "sample_token_K": none_K,
            "sample_slot_K": none_K,
            "sample_position_K": none_K,
            "biases_N4": torch.zeros(0, 4, dtype=torch.int32),
            "page_table_SP": self.table,
            **shared,
        }
        return StepInputs(**{name: value.to(self.device) for name, value in values.items()})  # type: ignore[arg-type]

    def shape(self) -> StepShape:
        """The step's shape."""
        return StepShape(
            rows=len(self.counts_R),
            tokens=len(self.qkv_TX),
            pages=self.table.shape[1],
            decode_only=max(self.counts_R) == 1,
            shared_groups=len(self.groups),
        )

    def run(self, attention: CudaAttention) -> torch.Tensor:
        """Outputs (T, H K) on the host; the caches that the step leaves are then `written_k`, `written_v`."""
        k, v = self.k.to(self.device, copy=True), self.v.to(self.device, copy=True)
        other = torch.full_like(k.float(), float("nan")).to(k.dtype)
        cache = SimpleNamespace(spec=SimpleNamespace(page_size=self.page), k=[other, k], v=[other, v])
        plan = attention.plan(self.inputs, self.shape(), None, cache)  # type: ignore[arg-type]
        qkv_TX = self.qkv_TX.to(self.device, copy=True)
        got = attention.attention(qkv_TX, self.layer, cache, plan)  # type: ignore[arg-type]
        for work in plan.work.values():
            assert int(work.arrivals_WN.abs().max()) == 0
        self.written_k, self.written_v = k.cpu(), v.cpu()
        return got.cpu()

    def transformed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """This step's queries, keys and values as attention takes them, by the reference."""
        spec = self.layer.spec
        sizes = [count * spec.head_dim for count in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        q_TX, k_TX, v_TX = self.qkv_TX.to(self.device).split(sizes, dim=1)
        if spec.clip_qkv is not None:
            q_TX, k_TX, v_TX = (x.clamp(-spec.clip_qkv, spec.clip_qkv) for x in (q_TX, k_TX, v_TX))
        q_norm, k_norm = self.layer.q_norm, self.layer.k_norm
        q_THK, k_TGK, v_TGK = (x.reshape(len(x), -1, spec.head_dim) for x in (q_TX, k_TX, v_TX))
        if q_norm is not None and k_norm is not None:
            q_THK = reference.qk_norm(q_TX, q_norm, spec.num_heads)
            k_TGK = reference.qk_norm(k_TX, k_norm, spec.num_kv_heads)
        if self.layer.rotary is not None:
            q_THK, k_TGK = reference.rotate(q_THK, k_TGK, self.inputs.positions_T, self.layer.rotary)
        return q_THK.cpu(), k_TGK.cpu(), v_TGK.cpu()

    def truth(self) -> torch.Tensor:
        """Outputs of real rows, float64 (tokens, H K), from the numbers that the cache stores."""
        q_THK, k_TGK, v_TGK = self.transformed()
        stored = self.k.dtype
        k_TGK, v_TGK = (_saturated(x, stored) for x in (k_TGK, v_TGK))
        outputs: list[torch.Tensor] = []
        token = 0
        for row, length in enumerate(self.lengths):
            count = self.counts_R[row]
            now = slice(token, token + count)
            past = torch.arange(length - count)
            pages, places = self.table[self.slots[row]].long()[past // self.page], past % self.page
            k_LGK, v_LGK = (
                torch.cat((pages_PSGK[pages, places].double(), new[now].double()))
                for pages_PSGK, new in ((self.k, k_TGK), (self.v, v_TGK))
            )
            outputs.append(_dense(q_THK[now].double(), k_LGK, v_LGK, self.layer))
            token += count
        return torch.cat(outputs)

    def check_cache(self) -> None:
        """This step's keys and values are in their places, and nothing else changed."""
        _, k_TGK, v_TGK = self.transformed()
        slots_T = self.inputs.kv_slots_T.cpu()
        slots_T = slots_T[slots_T >= self.page]
        for before, after, new, gate in (
            (self.k, self.written_k, k_TGK, GATES[self.dtype]),
            (self.v, self.written_v, v_TGK, 0.0),
        ):
            lines = after.view(-1, *after.shape[2:])
            expected = _saturated(new, after.dtype)[: len(slots_T)].double()
            if after.dtype.itemsize == 1 and gate:
                gate = 2e-2
            assert relative_l2(lines[slots_T], expected) <= gate
            bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[after.dtype.itemsize]
            changed = (before.view(bits) != after.view(bits)).flatten(2).any(dim=2).flatten()
            changed[: self.page] = False
            changed[slots_T] = False
            assert not changed.any()


def _saturated(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype.itemsize > 1:
        return x.to(dtype)
    limit = torch.finfo(dtype).max
    return x.float().clamp(-limit, limit).to(dtype)


def _dense(q_THK: torch.Tensor, k_LGK: torch.Tensor, v_LGK: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
    """Causal attention of the last T of L positions, float64 (T, H K)."""
    spec = layer.spec
    queries, length = len(q_THK), len(k_LGK)
    repeat = spec.num_heads // spec.num_kv_heads
    k, v = k_LGK.repeat_interleave(repeat, dim=1), v_LGK.repeat_interleave(repeat, dim=1)
    s_HTL = torch.einsum("thk,lhk->htl", q_THK, k) * spec.scale
    if spec.soft_cap is not None:
        s_HTL = torch.tanh(s_HTL / spec.soft_cap) * spec.soft_cap
    distance_TL = torch.arange(length) - torch.arange(length - queries, length)[:, None]
    if layer.alibi_H is not None:
        s_HTL = s_HTL + layer.alibi_H.cpu().double()[:, None, None] * distance_TL
    hidden_TL = distance_TL > 0
    if spec.window is not None:
        hidden_TL |= distance_TL <= -spec.window
    s_HTL = s_HTL.masked_fill(hidden_TL, float("-inf"))
    if layer.sinks_H is not None:
        sinks_HT1 = layer.sinks_H.cpu().double()[:, None, None].expand(-1, queries, 1)
        s_HTL = torch.cat((s_HTL, sinks_HT1), dim=-1)
    p_HTL = s_HTL.softmax(dim=-1)[..., :length]
    return torch.einsum("htl,lhk->thk", p_HTL, v).flatten(1)
