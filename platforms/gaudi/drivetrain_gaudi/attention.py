"""Paged attention on Gaudi: which algorithm serves a step, and what all of its layers share.

T tokens, R rows, H query heads, G key-value heads, K head size, L keys.
"""

# Relaxed: torch's stubs leave methods untyped; caches and plans are always this backend's own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from drivetrain_gaudi import flat_attention
from drivetrain_gaudi.cache import own
from drivetrain_gaudi.flat_attention import HIDDEN, Shaping
from drivetrain_gaudi.habana import Applied
from drivetrain_gaudi.ledger import ShapeLedger
from drivetrain_gaudi.page_list import PageList, list_pages, seen_by_rows, seen_by_tokens
from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs

_LARGEST_HIDDEN = {torch.bfloat16: HIDDEN, torch.float32: HIDDEN, torch.float16: -6e4}


@dataclass(slots=True, kw_only=True)
class GaudiPlan:
    """One step. What depends on a layer's window is made when the first such layer asks.

    Attributes:
        decodes: every row has one query, in order.
        seen: (seen, distance) by window, see `page_list`.
        bias: the additive mask (1, 1, T, L) of the fused kernel, by window.
    """

    inputs: StepInputs
    pages: PageList
    decodes: bool
    seen: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict[int | None, tuple[torch.Tensor, torch.Tensor]]
    )
    bias: dict[int | None, torch.Tensor] = field(default_factory=dict[int | None, torch.Tensor])

    def seen_in(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What queries see within a window, and their distances."""
        if window not in self.seen:
            inputs = self.inputs
            if self.decodes:
                self.seen[window] = seen_by_rows(self.pages, inputs.row_start_R, window)
            else:
                self.seen[window] = seen_by_tokens(self.pages, inputs.positions_T, inputs.token_row_T, window)
        return self.seen[window]

    def bias_in(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """The same as an additive mask."""
        if window not in self.bias:
            seen_TL, _ = self.seen_in(window)
            hidden = torch.full((), _LARGEST_HIDDEN[dtype], dtype=dtype, device=seen_TL.device)
            self.bias[window] = torch.where(seen_TL, torch.zeros_like(hidden), hidden)[None, None]
        return self.bias[window]


class GaudiAttention(PagedAttention):
    """Flat paged attention for decode steps, one masked product for steps with prompts.

    Args:
        fused_sdpa: Habana's fused kernel, or None.
        ledger: told of every plan, that is of every step that is no replay.
    """

    def __init__(self, fused_sdpa: Applied | None, ledger: ShapeLedger) -> None:
        self._fused_sdpa = fused_sdpa
        self._ledger = ledger

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> GaudiPlan:
        self._ledger.planned(shape)
        page_size = cache.spec.page_size
        num_pages = shape.total_pages or _pages_of(batch, page_size) or shape.rows * shape.pages
        return GaudiPlan(
            inputs=inputs,
            pages=list_pages(inputs, num_pages, page_size),
            decodes=shape.decode_only,
        )

    def write(
        self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: GaudiPlan
    ) -> None:
        own(cache).write(layer.index, k_TGK, v_TGK, plan.inputs.kv_slots_T)

    def attend(self, q_THK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: GaudiPlan) -> torch.Tensor:
        spec, pages = layer.spec, plan.pages
        k_NPGK, v_NPGK = own(cache).read(layer.index, pages.page_N, pages.filled_NP, q_THK.dtype)
        shaping = Shaping(
            scale=spec.scale,
            soft_cap=spec.soft_cap,
            alibi_H=layer.alibi_H,
            sinks_H=layer.sinks_H if spec.sinks else None,
        )
        seen, distance = plan.seen_in(spec.window)
        if plan.decodes:
            return flat_attention.decode(q_THK, k_NPGK, v_NPGK, pages, seen, distance, shaping)
        k_LGK, v_LGK = k_NPGK.flatten(0, 1), v_NPGK.flatten(0, 1)
        if self._fused_sdpa is None or not shaping.plain:
            return flat_attention.prefill(q_THK, k_LGK, v_LGK, seen, distance, shaping)
        bias_11TL = plan.bias_in(spec.window, q_THK.dtype)
        q_1HTK, k_1GLK, v_1GLK = (x.transpose(0, 1)[None] for x in (q_THK, k_LGK, v_LGK))
        # attn_mask, dropout_p, is_causal, scale, softmax_mode, recompute_mode
        out_1HTK = self._fused_sdpa.apply(q_1HTK, k_1GLK, v_1GLK, bias_11TL, 0.0, False, spec.scale, "None", True)
        return out_1HTK[0].transpose(0, 1)


def _pages_of(batch: StepBatch | None, page_size: int) -> int:
    """Pages that the rows of a batch read together, from the host's view of it."""
    if batch is None:
        return 0
    rows = batch.num_rows
    starts, queries = batch.section("row_start")[:rows], batch.section("query_start")[: rows + 1]
    lengths = starts + queries[1:] - queries[:-1]
    return max(1, int((-(-lengths // page_size)).sum()))
