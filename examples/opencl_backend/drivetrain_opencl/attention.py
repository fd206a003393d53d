"""Paged attention in OpenCL C.

T tokens, R rows, H query heads, G key-value heads, K head size, X packed projections.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyopencl as cl
import torch

from drivetrain_opencl.memory import OpenclCache, own
from drivetrain_opencl.queue import LANES, DeviceQueue, Matrix
from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenclPlan:
    """What all layers of a step share, on the device.

    Attributes:
        num_tokens: without padding.
        positions_T, places_T, token_row_T: int32; a place is where a token's keys and values go.
        tables_RP: int32, the pages of each row.
        table_width: P.
    """

    inputs: StepInputs
    num_tokens: int
    positions_T: cl.Buffer
    places_T: cl.Buffer
    token_row_T: cl.Buffer
    tables_RP: cl.Buffer
    table_width: int


class OpenclAttention(PagedAttention):
    """Keys and values never leave the device; queries come and mixed values go once a layer."""

    def __init__(self, queue: DeviceQueue) -> None:
        self._queue = queue

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> OpenclPlan:
        assert batch is not None, "nothing is captured: `Capabilities.graphs` is False"
        tables_RP = inputs.page_table_SP[inputs.row_slot_R, : batch.max_pages]
        positions_T, places_T, token_row_T = (
            self._queue.put(x.int()) for x in (inputs.positions_T, inputs.kv_slots_T, inputs.token_row_T)
        )
        return OpenclPlan(
            inputs=inputs,
            num_tokens=batch.num_tokens,
            positions_T=positions_T,
            places_T=places_T,
            token_row_T=token_row_T,
            tables_RP=self._queue.put(tables_RP),
            table_width=tables_RP.shape[1],
        )

    def attention(self, qkv_TX: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: OpenclPlan) -> torch.Tensor:
        if not self.mixes(layer):
            return super().attention(qkv_TX, layer, cache, plan)
        return self._queue.get(self.mix(self._queue.put_matrix(qkv_TX), layer, own(cache), plan))

    def mixes(self, layer: AttentionLayer) -> bool:
        """Whether `mix` does all that this layer's attention needs."""
        return layer.q_norm is None and layer.k_norm is None and layer.spec.clip_qkv is None

    def mix(self, qkv_TX: Matrix, layer: AttentionLayer, cache: OpenclCache, plan: OpenclPlan) -> Matrix:
        """Rotate, store and attend, from projections on the device to (T, H K) on the device."""
        spec, rotary = layer.spec, layer.rotary
        heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.head_dim
        if rotary is not None:
            self._queue.run(
                self._kernel("rotate_heads", cache),
                (heads + kv_heads, qkv_TX.rows),
                qkv_TX.data,
                qkv_TX.width,
                size,
                self._queue.keep(rotary.cos_PF),
                self._queue.keep(rotary.sin_PF),
                rotary.dim // 2,
                int(rotary.interleaved),
                plan.positions_T,
            )
        k_offset, v_offset = heads * size, (heads + kv_heads) * size
        self._store(qkv_TX, qkv_TX, (k_offset, v_offset), layer, cache, plan)
        return self._attend(qkv_TX, layer, cache, plan)

    def write(
        self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: OpenclPlan
    ) -> None:
        k, v = (self._queue.put_matrix(x.flatten(1)) for x in (k_TGK, v_TGK))
        self._store(k, v, (0, 0), layer, own(cache), plan)

    def attend(self, q_THK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: OpenclPlan) -> torch.Tensor:
        mixed = self._attend(self._queue.put_matrix(q_THK.flatten(1)), layer, own(cache), plan)
        return self._queue.get(mixed).view(q_THK.shape)

    def _store(
        self,
        k: Matrix,
        v: Matrix,
        offsets: tuple[int, int],
        layer: AttentionLayer,
        cache: OpenclCache,
        plan: OpenclPlan,
    ) -> None:
        self._queue.run(
            self._kernel("store", cache),
            (layer.spec.num_kv_heads * layer.spec.head_dim, k.rows),
            k.data,
            v.data,
            k.width,
            v.width,
            *offsets,
            plan.places_T,
            *cache.layer(layer.index),
        )

    def _attend(self, q: Matrix, layer: AttentionLayer, cache: OpenclCache, plan: OpenclPlan) -> Matrix:
        spec = layer.spec
        out = self._queue.matrix(q.rows, spec.num_heads * spec.head_dim)
        self._queue.run(
            self._kernel("attend", cache),
            (spec.num_heads * LANES, q.rows),
            q.data,
            q.width,
            *cache.layer(layer.index),
            out.data,
            plan.positions_T,
            plan.token_row_T,
            plan.tables_RP,
            plan.table_width,
            cache.spec.page_size,
            plan.num_tokens,
            spec.num_kv_heads,
            spec.head_dim,
            float(spec.scale),
            spec.window or 0,
            float(spec.soft_cap or 0.0),
            self._queue.keep(layer.sinks_H),
            int(layer.sinks_H is not None),
            self._queue.keep(layer.alibi_H),
            int(layer.alibi_H is not None),
            group=(LANES, 1),
        )
        return out

    def _kernel(self, name: str, cache: OpenclCache) -> cl.Kernel:
        defines = ("HALF_PAGES",) if cache.spec.dtype == "float16" else ()
        return self._queue.kernel("attention", name, *defines)
