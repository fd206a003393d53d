"""A backend of plain torch ops for any torch device: slow attention, whole-step graphs on CUDA. A probe, not a product.

It exists to run the engine on a real GPU before that platform has kernels of its own, and to show how little a backend
must write. Serves causal attention with grouped heads only.

R rows, T tokens, P pages, L keys, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.batch import Int32Array, StepBatch
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, Capabilities
from drivetrain_plugins.contract.communicator import SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import Allocator, KVCache, KVSpec, MemoryLimits, MemoryPlan, MemoryUse
from drivetrain_plugins.contract.ops import Ops
from drivetrain_plugins.contract.runtime import Fetch, Replay, Runtime
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_plugins.errors import BackendError, DeviceLost, OutOfMemory

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PAGE_BUCKETS = (4, 8, 16, 32, 64)


class PlainRuntime(Runtime):
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._cuda else None

    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        source = torch.from_numpy(host)
        if self._cuda:
            pinned = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            source = pinned.copy_(source)
        destination[: source.numel()].copy_(source, non_blocking=True)

    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Fetch:
        return PlainFetch(tensors, self.device)

    def capture(self, step: Callable[[], None]) -> Replay:
        if not self._cuda:
            return step
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        return graph.replay

    def synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


class PlainFetch:
    def __init__(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        if device.type == "cuda":
            self._host = {
                name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
                for name, x in tensors.items()
            }
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = {name: x.clone() for name, x in tensors.items()}
            self._event = None

    def ready(self) -> bool:
        return self._event is None or self._event.query()

    def wait(self) -> dict[str, np.ndarray]:
        if self._event is not None:
            self._event.synchronize()
        return {name: x.numpy() for name, x in self._host.items()}


class PlainCache(KVCache):
    def __init__(self, spec: KVSpec, num_pages: int, device: torch.device) -> None:
        self.spec = spec
        self.num_pages = self.reserved_pages = num_pages
        dtype = getattr(torch, spec.dtype)
        shapes = [(num_pages * spec.page_size, layer.num_kv_heads, layer.head_dim) for layer in spec.layers]
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]


class PlainAllocator(Allocator):
    def __init__(self, device: torch.device, kv_bytes: int) -> None:
        self._device = device
        self._kv_bytes = kv_bytes
        self._caches: list[PlainCache] = []

    def reserve(self, spec: KVSpec, limits: MemoryLimits) -> KVCache:
        kv_bytes = limits.kv_bytes or self._kv_bytes
        num_pages = min(limits.max_pages, kv_bytes // spec.page_bytes)
        if num_pages < 2:
            raise OutOfMemory(f"{kv_bytes:,} bytes hold {num_pages} pages of {spec.page_bytes:,}, expected at least 2")
        cache = PlainCache(spec, num_pages, self._device)
        self._caches.append(cache)
        return cache

    def plan(self, cache: KVCache, limits: MemoryLimits) -> MemoryPlan:
        return MemoryPlan(num_pages=cache.num_pages, kv_bytes=cache.num_pages * cache.spec.page_bytes)

    def commit(self, cache: KVCache, num_pages: int) -> None:
        assert isinstance(cache, PlainCache)
        if num_pages > cache.reserved_pages:
            raise OutOfMemory(f"{num_pages} pages were asked for, {cache.reserved_pages} are reserved")
        cache.num_pages = num_pages

    def copy_pages(self, cache: KVCache, source: Sequence[int], destination: Sequence[int]) -> None:
        assert isinstance(cache, PlainCache)
        pairs = torch.tensor([list(source), list(destination)], dtype=torch.long, device=self._device)
        for x in (*cache.k, *cache.v):
            pages = x.view(-1, cache.spec.page_size, *x.shape[1:])
            pages[pairs[1]] = pages[pairs[0]]

    def export_pages(self, cache: KVCache, pages: Sequence[int]) -> Any:
        assert isinstance(cache, PlainCache)
        size = cache.spec.page_size
        return [x.view(-1, size, *x.shape[1:])[list(pages)].cpu() for x in (*cache.k, *cache.v)]

    def import_pages(self, cache: KVCache, pages: Sequence[int], content: Any) -> None:
        assert isinstance(cache, PlainCache)
        size = cache.spec.page_size
        for x, stored in zip((*cache.k, *cache.v), content, strict=True):
            x.view(-1, size, *x.shape[1:])[list(pages)] = stored.to(self._device)

    def release(self, cache: KVCache) -> None:
        assert isinstance(cache, PlainCache)
        self._caches.remove(cache)
        cache.k.clear()
        cache.v.clear()

    def use(self) -> MemoryUse:
        kv = sum(cache.num_pages * cache.spec.page_bytes for cache in self._caches)
        if self._device.type != "cuda":
            return MemoryUse(total=kv, used=kv, kv=kv)
        free, total = torch.cuda.mem_get_info(self._device)
        return MemoryUse(total=total, used=total - free, kv=kv)


@dataclass(frozen=True, slots=True)
class PlainPlan:
    """Indices that all layers share: one padded block of keys for decode steps, one entry a row otherwise."""

    inputs: StepInputs
    keys_RL: torch.Tensor | None
    mask_R11L: torch.Tensor | None
    rows: list[tuple[int, int, torch.Tensor, torch.Tensor]]


class PlainAttention(PagedAttention):
    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> PlainPlan:
        size = cache.spec.page_size
        device = inputs.ids_T.device
        pages_RP = inputs.page_table_SP[inputs.row_slot_R, : shape.pages].long()
        keys_RL = (pages_RP[:, :, None] * size + torch.arange(size, device=device)).flatten(1)
        place_L = torch.arange(keys_RL.shape[1], device=device)
        if shape.decode_only:
            mask_RL = place_L < inputs.kv_len_R[:, None]
            return PlainPlan(inputs, keys_RL, mask_RL[:, None, None, :], [])
        assert batch is not None, "steps with prefill are not captured"
        starts = batch.section("query_start").tolist()
        lengths = batch.section("row_start").tolist()
        rows: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []
        for row, (first, last) in enumerate(itertools.pairwise(starts)):
            if last > first:
                end = lengths[row] + last - first
                mask_TL = place_L[:end] <= inputs.positions_T[first:last, None]
                rows.append((first, last, keys_RL[row, :end], mask_TL))
        return PlainPlan(inputs, None, None, rows)

    def write(
        self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: PlainPlan
    ) -> None:
        assert isinstance(cache, PlainCache)
        cache.k[layer.index].index_copy_(0, plan.inputs.kv_slots_T, k_TGK.to(cache.k[layer.index].dtype))
        cache.v[layer.index].index_copy_(0, plan.inputs.kv_slots_T, v_TGK.to(cache.v[layer.index].dtype))

    def attend(self, q_THK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: PlainPlan) -> torch.Tensor:
        assert isinstance(cache, PlainCache)
        k, v = cache.k[layer.index], cache.v[layer.index]
        scale = layer.spec.scale
        if plan.keys_RL is not None:
            # Slots past a row's end hold anything, NaN too, and 0 * NaN is NaN.
            unused_RL11 = ~plan.mask_R11L[:, 0, 0, :, None, None]
            k_RLGK, v_RLGK = (x[plan.keys_RL].masked_fill(unused_RL11, 0.0).to(q_THK.dtype) for x in (k, v))
            k_RGLK, v_RGLK = k_RLGK.transpose(1, 2), v_RLGK.transpose(1, 2)
            out = F.scaled_dot_product_attention(
                q_THK[:, :, None], k_RGLK, v_RGLK, attn_mask=plan.mask_R11L, scale=scale, enable_gqa=True
            )
            return out[:, :, 0]
        out_THK = torch.zeros_like(q_THK)
        for first, last, keys_L, mask_TL in plan.rows:
            q_1HTK = q_THK[first:last].transpose(0, 1)[None]
            k_1GLK, v_1GLK = (x[keys_L].to(q_THK.dtype).transpose(0, 1)[None] for x in (k, v))
            out = F.scaled_dot_product_attention(
                q_1HTK, k_1GLK, v_1GLK, attn_mask=mask_TL, scale=scale, enable_gqa=True
            )
            out_THK[first:last] = out[0].transpose(0, 1)
        return out_THK


class PlainOps(Ops):
    """RMS norm as one call; everything else is the contract's reference."""


class PlainDevice(Device):
    def __init__(self, device: torch.device, kv_bytes: int) -> None:
        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else "processor"
        self.torch_device = device
        self.capabilities = Capabilities(
            sampling=EVERY_SAMPLING_FEATURE,
            device_name=name,
            dtypes=("bfloat16", "float32", "float16") if cuda else ("float32", "bfloat16"),
            kv_dtypes=("bfloat16", "float32", "float16") if cuda else ("float32", "bfloat16"),
            page_sizes=(64, 16, 32, 128),
            graphs=cuda,
            async_execution=cuda,
        )
        self.runtime = PlainRuntime(device)
        self.allocator = PlainAllocator(device, kv_bytes)
        self.attention = PlainAttention()
        self.ops = PlainOps()
        self.communicator = SoleRank()

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        rows = tuple(bucket for bucket in ROW_BUCKETS if bucket <= limits.max_num_rows)
        pages = tuple(bucket for bucket in PAGE_BUCKETS if bucket < limits.max_pages)
        return ShapePolicy(
            row_buckets=(*rows, limits.max_num_rows) if rows[-1] < limits.max_num_rows else rows,
            page_buckets=(*pages, limits.max_pages),
            max_captured_rows=limits.max_num_rows if self.capabilities.graphs else 0,
        )

    def classify(self, error: Exception) -> BackendError | None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return OutOfMemory(str(error))
        if "CUDA error" in str(error):
            return DeviceLost(str(error))
        return None

    def close(self) -> None:
        self.runtime.close()


class PlainBackend(Backend):
    """`device` and `kv_bytes` are its options."""

    name = "plain"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> Device:
        return PlainDevice(torch.device(options.get("device", "cuda")), int(options.get("kv_bytes", 8 << 30)))
