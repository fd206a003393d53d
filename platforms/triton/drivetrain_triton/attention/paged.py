"""Paged attention in Triton: one kernel a layer for steps of single tokens, three for others.

T tokens, X packed projections, R rows, H query heads, G key-value heads, K head size, P rotary positions, F pairs.
"""

# Relaxed: Triton is untyped; caches and plans are always this backend's own.
# pyright: basic, reportIncompatibleMethodOverride=false

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.memory import KVSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.attention.config import DecodeConfig
from drivetrain_triton.attention.launches import (
    UNCHANGED,
    Pages,
    Transform,
    is_fusible,
    launch_cascade,
    launch_decode,
    launch_write,
)
from drivetrain_triton.attention.plan import (
    AttentionPlan,
    Geometry,
    kinds_of_rows,
    make_decode_work,
)

EARLY_ROWS = range(3, 129)
"""Rows of a step whose decode attention is a dependent launch, in all layers but the one that plans.

Measured on an H100: with 8 rows it gains 2 % of an 8B's step and 5 % of a 0.6B's; with one row it costs 2 to 9 %:
programs that start while products run lie several to a processor.
"""


class PagedCache(Protocol):
    """What attention reads of the backend's cache: per layer (pages, page, G, K) keys and values."""

    @property
    def spec(self) -> KVSpec: ...
    @property
    def k(self) -> Sequence[torch.Tensor]: ...
    @property
    def v(self) -> Sequence[torch.Tensor]: ...


class TritonAttention(PagedAttention):
    """Attention of a backend with Triton. What differs between vendors is a subclass's.

    Args:
        arch: "sm_90", "gfx942" and so on.
        num_processors: streaming multiprocessors or compute units.
        pdl: launch with programmatic dependent launch.
        batch_invariant: a row's result does not depend on the rows beside it, at some cost in speed. Of decoding only:
            prompts are cut at fixed places anyway.

    Attributes:
        write_warps: of the kernel that writes keys and values of many tokens.
    """

    write_warps = 4

    def __init__(self, *, arch: str, num_processors: int, pdl: bool, batch_invariant: bool = False) -> None:
        self._arch = arch
        self._num_processors = num_processors
        self._pdl = pdl
        self._batch_invariant = batch_invariant

    @abstractmethod
    def decode_config(self, head_dim: int, kv_bytes: int, query_bytes: int, rows: int) -> DecodeConfig:
        """How to attend with so many query rows a program, for element sizes of pages and queries.

        Raises:
            ValueError: the part's table has no such entry.
        """

    @abstractmethod
    def is_soft_fp8(self, pages: torch.Tensor) -> bool:
        """Whether the part does not know the type of pages, so that kernels read and write e4m3 as bytes."""

    @abstractmethod
    def prefill(
        self,
        q_THK: torch.Tensor,
        out_THK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
    ) -> None:
        """Attend rows with more than one token; others of `out_THK` are left as they are."""

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: PagedCache) -> AttentionPlan:
        decodes, prefills = kinds_of_rows(shape, batch)
        return AttentionPlan(
            inputs=inputs,
            shape=shape,
            batch=batch,
            max_tokens=inputs.page_table_SP.shape[1] * cache.spec.page_size,
            decodes=decodes,
            prefills=prefills,
        )

    def attention(
        self, qkv_TX: torch.Tensor, layer: AttentionLayer, cache: PagedCache, plan: AttentionPlan
    ) -> torch.Tensor:
        if not is_fusible(layer):
            return super().attention(qkv_TX, layer, cache, plan)  # pyright: ignore[reportArgumentType]
        spec = layer.spec
        heads_TNK = qkv_TX.view(-1, spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        q_THK, k_TGK, v_TGK = heads_TNK.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), dim=1)
        transform = Transform.of(layer)
        if not plan.prefills:
            out_THK = _empty_like(q_THK)
            self._decode(q_THK, (k_TGK, v_TGK), out_THK, layer, cache, plan, transform)
            return out_THK.flatten(1)
        changed_THK = q_THK if transform.changes else None
        pages = self._pages(layer, cache)
        launch_write(
            changed_THK, k_TGK, v_TGK, pages, plan.inputs, transform, num_warps=self.write_warps, pdl=self._pdl
        )
        return self.attend(q_THK, layer, cache, plan).flatten(1)

    def write(
        self,
        k_TGK: torch.Tensor,
        v_TGK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
    ) -> None:
        k_TGK, v_TGK = k_TGK.contiguous(), v_TGK.contiguous()
        pages = self._pages(layer, cache)
        launch_write(None, k_TGK, v_TGK, pages, plan.inputs, UNCHANGED, num_warps=self.write_warps, pdl=self._pdl)

    def attend(
        self, q_THK: torch.Tensor, layer: AttentionLayer, cache: PagedCache, plan: AttentionPlan
    ) -> torch.Tensor:
        out_THK = _empty_like(q_THK)
        if plan.prefills:
            self.prefill(q_THK, out_THK, layer, cache, plan)
        if plan.decodes:
            self._decode(q_THK, None, out_THK, layer, cache, plan, UNCHANGED)
        return out_THK

    def _pages(self, layer: AttentionLayer, cache: PagedCache) -> Pages:
        k_PSGK, v_PSGK = cache.k[layer.index], cache.v[layer.index]
        return Pages.of(k_PSGK, v_PSGK, soft_fp8=self.is_soft_fp8(k_PSGK))

    def _decode(
        self,
        q_THK: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor] | None,
        out_THK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
        transform: Transform,
    ) -> None:
        """Attend rows with one token; `new` keys and values are stored on the way."""
        geometry = Geometry.of(layer.spec, q_THK.dtype)
        pages = self._pages(layer, cache)
        config = self._config(pages, q_THK, geometry.rows)
        work = plan.work.get(geometry)
        early = self._pdl and work is not None and plan.shape.rows in EARLY_ROWS
        if work is None:
            work = plan.work[geometry] = make_decode_work(
                plan.inputs,
                geometry=geometry,
                config=config,
                max_tokens=plan.max_tokens,
                num_processors=self._num_processors,
                batch_invariant=self._batch_invariant,
                pdl=self._pdl,
            )
        if work.shared_work_VC is not None:
            shared_config = self._config(pages, q_THK, geometry.shared_rows)
            launch_cascade(q_THK, layer, pages, plan.inputs, work, transform, shared_config, pdl=self._pdl)
        launch_decode(q_THK, new, out_THK, layer, pages, plan.inputs, work, transform, config, pdl=early)

    def _config(self, pages: Pages, q_THK: torch.Tensor, rows: int) -> DecodeConfig:
        return self.decode_config(pages.k_PSGK.shape[3], pages.k_PSGK.itemsize, q_THK.itemsize, rows)


def _empty_like(q_THK: torch.Tensor) -> torch.Tensor:
    return torch.empty(q_THK.shape, dtype=q_THK.dtype, device=q_THK.device)
