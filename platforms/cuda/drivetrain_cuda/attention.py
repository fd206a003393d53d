"""Paged attention in Triton: one kernel a layer for steps of single tokens, three for others.

T tokens, X packed projections, R rows, H query heads, G key-value heads, K head size, P rotary positions, F pairs.
"""

# Relaxed: Triton is untyped; caches and plans are always this backend's own.
# pyright: basic, reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from drivetrain_cuda.attention_kernels import (
    UNCHANGED,
    Pages,
    Transform,
    is_fusible,
    launch_cascade,
    launch_decode,
    launch_write,
)
from drivetrain_cuda.attention_plan import (
    AttentionPlan,
    Geometry,
    kinds_of_rows,
    make_decode_work,
    planned_rows,
)
from drivetrain_cuda.kernels.prefill import plan_prefill, prefill_attention
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, PagedAttention, RotaryTable
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import Variant, recording


class PagedCache(Protocol):
    """What attention reads of the backend's cache: per layer (pages, page, G, K) keys and values."""

    @property
    def spec(self) -> KVSpec: ...
    @property
    def k(self) -> Sequence[torch.Tensor]: ...
    @property
    def v(self) -> Sequence[torch.Tensor]: ...


class CudaAttention(PagedAttention):
    """Attention of the CUDA backend.

    Args:
        arch: "sm_90" and so on.
        num_processors: streaming multiprocessors.
        pdl: launch with programmatic dependent launch.
        batch_invariant: a row's result does not depend on the rows beside it, at some cost in speed. Of decoding only:
            prompts are cut at fixed places anyway.
    """

    def __init__(self, *, arch: str, num_processors: int, pdl: bool, batch_invariant: bool = False) -> None:
        self._arch = arch
        self._num_processors = num_processors
        self._pdl = pdl
        self._batch_invariant = batch_invariant

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
        launch_write(changed_THK, k_TGK, v_TGK, self._pages(layer, cache), plan.inputs, transform, pdl=self._pdl)
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
        launch_write(None, k_TGK, v_TGK, self._pages(layer, cache), plan.inputs, UNCHANGED, pdl=self._pdl)

    def attend(
        self, q_THK: torch.Tensor, layer: AttentionLayer, cache: PagedCache, plan: AttentionPlan
    ) -> torch.Tensor:
        out_THK = _empty_like(q_THK)
        if plan.prefills:
            self._prefill(q_THK, out_THK, layer, cache, plan)
        if plan.decodes:
            self._decode(q_THK, None, out_THK, layer, cache, plan, UNCHANGED)
        return out_THK

    def _pages(self, layer: AttentionLayer, cache: PagedCache) -> Pages:
        return Pages.of(cache.k[layer.index], cache.v[layer.index], self._arch)

    def _prefill(
        self,
        q_THK: torch.Tensor,
        out_THK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
    ) -> None:
        """Attend rows with more than one token."""
        group, head_dim, dtype = key = (
            layer.spec.num_heads // layer.spec.num_kv_heads,
            layer.spec.head_dim,
            q_THK.dtype,
        )
        work = plan.prefill.get(key)
        if work is None:
            work = plan.prefill[key] = plan_prefill(
                plan.inputs,
                plan.shape,
                plan.batch,
                group=group,
                head_dim=head_dim,
                dtype=dtype,
                arch=self._arch,
                pdl=self._pdl,
            )
        k_PSGK, v_PSGK = cache.k[layer.index], cache.v[layer.index]
        prefill_attention(
            q_THK, out_THK, layer, k_PSGK, v_PSGK, plan.inputs, work, pdl=self._pdl, arch=self._arch
        )  # fmt: skip

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
        config = pages.config(self._arch, q_THK.itemsize, geometry.rows)
        work = plan.work.get(geometry)
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
            shared_config = pages.config(self._arch, q_THK.itemsize, geometry.shared_rows)
            launch_cascade(q_THK, layer, pages, plan.inputs, work, transform, shared_config, pdl=self._pdl)
        # Not as a dependent launch: measured on an H100, an 8B decodes one stream 8 % slower if it starts early.
        launch_decode(q_THK, new, out_THK, layer, pages, plan.inputs, work, transform, config, pdl=False)


def _empty_like(q_THK: torch.Tensor) -> torch.Tensor:
    return torch.empty(q_THK.shape, dtype=q_THK.dtype, device=q_THK.device)


def decode_variants(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Every specialisation that the model's decoding and cache writes launch. Prefill's are listed elsewhere."""
    attention = _DecodeOnly(arch=arch.name, num_processors=arch.num_processors, pdl=arch.pdl)
    dtype = getattr(torch, limits.dtype)
    with recording() as variants:
        for mixer in dict.fromkeys(layer.mixer for layer in spec.layers):
            layer, cache = _meta_layer(mixer, dtype), _MetaCache.of(mixer, limits)
            for shape in _shapes(limits.max_num_rows):
                inputs = _meta_inputs(shape, limits.max_pages)
                plan = attention.plan(inputs, shape, None, cache)
                width = (mixer.num_heads + 2 * mixer.num_kv_heads) * mixer.head_dim
                attention.attention(_meta(shape.tokens, width, dtype=dtype), layer, cache, plan)
    return list({variant.key: variant for variant in variants}.values())


class _DecodeOnly(CudaAttention):
    def _prefill(self, *args: object, **options: object) -> None:
        """Not here."""


def _shapes(max_rows: int) -> Iterator[StepShape]:
    """A step for each size of the planning kernel, with and without prefill and shared prefixes."""
    # One row more than may run belongs to padding.
    for rows in sorted({planned_rows(rows) for rows in range(1, max_rows + 2)}):
        decode = StepShape(rows=rows, tokens=rows, pages=1, decode_only=True)
        mixed = StepShape(rows=rows, tokens=rows, pages=1)
        for shape in (decode, mixed):
            yield shape
            yield replace(shape, shared_groups=1)


def _meta(*size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _meta_inputs(shape: StepShape, columns: int) -> StepInputs:
    tokens, rows, int32 = _meta(shape.tokens), _meta(shape.rows), torch.int32
    shared = shape.shared_groups > 0
    return StepInputs(
        ids_T=tokens,
        positions_T=tokens,
        kv_slots_T=tokens,
        token_row_T=tokens,
        row_slot_R=rows,
        row_start_R=rows,
        kv_len_R=rows,
        query_start_R1=_meta(shape.rows + 1),
        sample_token_K=rows,
        sample_slot_K=rows,
        sample_position_K=rows,
        biases_N4=_meta(0, 4, dtype=int32),
        page_table_SP=_meta(2, columns, dtype=int32),
        shared_rows_R=_meta(shape.rows, dtype=int32) if shared else None,
        shared_groups_G3=_meta(shape.shared_groups, 3, dtype=int32) if shared else None,
    )


def _meta_layer(mixer: AttentionSpec, dtype: torch.dtype) -> AttentionLayer:
    def norm(heads: int) -> NormWeights | None:
        if mixer.qk_norm is None:
            return None
        size = {"head": (mixer.head_dim,), "heads": (heads, mixer.head_dim), "full": (heads * mixer.head_dim,)}
        weights = _meta(*size[mixer.qk_norm.span], dtype=dtype)
        norm_spec = mixer.qk_norm.norm
        return NormWeights(
            spec=norm_spec, weight=weights if norm_spec.weight else None, bias=weights if norm_spec.bias else None
        )

    rotary = None
    if mixer.rotary is not None:
        angles_PF = _meta(1, mixer.rotary.dim // 2, dtype=torch.float32)
        rotary = RotaryTable(cos_PF=angles_PF, sin_PF=angles_PF, interleaved=mixer.rotary.style == "interleaved")
    per_head = _meta(mixer.num_heads, dtype=torch.float32)
    return AttentionLayer(
        index=0,
        spec=mixer,
        rotary=rotary,
        q_norm=norm(mixer.num_heads),
        k_norm=norm(mixer.num_kv_heads),
        sinks_H=per_head if mixer.sinks else None,
        alibi_H=per_head if mixer.alibi_slopes else None,
    )


@dataclass(frozen=True, slots=True)
class _MetaCache:
    spec: KVSpec
    k: list[torch.Tensor]
    v: list[torch.Tensor]

    @staticmethod
    def of(mixer: AttentionSpec, limits: ExecutorLimits) -> _MetaCache:
        layer = KVLayerSpec(num_kv_heads=mixer.num_kv_heads, head_dim=mixer.head_dim, window=mixer.window)
        spec = KVSpec(layers=(layer,), dtype=limits.kv_dtype, page_size=limits.page_size)
        names = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
        dtype = names.get(limits.kv_dtype) or getattr(torch, limits.kv_dtype)
        pages = _meta(2, limits.page_size, mixer.num_kv_heads, mixer.head_dim, dtype=dtype)
        return _MetaCache(spec, [pages], [pages])
