"""Sequences on scrambled pages of a real cache, and beside them the dense truth of what attention must return.

T tokens, X packed projections, H query heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from drivetrain_plugins.conformance import oracle
from drivetrain_plugins.conformance.batches import Packing, Row, SlotParameters, pack, padded_shape
from drivetrain_plugins.conformance.check import require
from drivetrain_plugins.conformance.closeness import GATES, require_close
from drivetrain_plugins.conformance.subject import Subject, torch_dtype
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, RotaryTable
from drivetrain_plugins.contract.batch import BatchLayout, StepBatch
from drivetrain_plugins.contract.capabilities import Dtype, KVDtype
from drivetrain_plugins.contract.memory import KVCache, KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape
from drivetrain_plugins.contract.slots import SlotState, StepInputs

LAYERS = 2
TESTED_LAYER = 1
_POISONED_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Which attention is tested, in which types.

    Attributes:
        page_size: tokens a page.
    """

    spec: AttentionSpec
    dtype: Dtype
    kv_dtype: KVDtype
    page_size: int

    @property
    def width(self) -> int:
        """Packed projections of a token."""
        return (self.spec.num_heads + 2 * self.spec.num_kv_heads) * self.spec.head_dim

    def __str__(self) -> str:
        spec = self.spec
        extras = [
            f"{name} {value}" for name, value in (("window", spec.window), ("soft cap", spec.soft_cap)) if value
        ] + [name for name, held in (("sinks", spec.sinks), ("alibi", spec.alibi_slopes)) if held]
        heads = f"{spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_dim}"
        return f"{self.dtype}, KV {self.kv_dtype}, page {self.page_size}, {heads}" + "".join(f", {x}" for x in extras)


class PagedRows:
    """Slots whose sequences grow step by step through a backend's attention.

    Every page starts poisoned with NaN, in all layers, the null page too; sequences take pages in random order.

    Args:
        num_slots: sequences at once.
        num_pages: pages of the cache.
    """

    def __init__(self, subject: Subject, kind: Kind, *, num_slots: int = 8, num_pages: int = 40) -> None:
        self.subject = subject
        self.kind = kind
        self.device = subject.parts
        self.page_size = kind.page_size
        spec = kind.spec
        layer = KVLayerSpec(num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, window=spec.window)
        kv_spec = KVSpec(layers=(layer,) * LAYERS, dtype=kind.kv_dtype, page_size=kind.page_size)
        self.cache: KVCache = reserve_pages(subject, kv_spec, num_pages)
        self.slots = SlotState(
            num_slots=num_slots + 1, max_pages=num_pages, vocab_size=8, device=self.device.torch_device
        )
        self.free = [page + 1 for page in subject.permutation(num_pages - 1)]
        self.pages: dict[int, list[int]] = {slot: [] for slot in range(num_slots)}
        self._told = dict.fromkeys(range(num_slots), 0)
        self.history: dict[int, torch.Tensor] = {
            slot: torch.zeros(0, kind.width, dtype=torch.float64) for slot in range(num_slots)
        }
        self._truth, self.layers = _layers(subject, kind, num_pages * kind.page_size)
        self._poison_slot = num_slots
        self._poison(num_pages)

    def close(self) -> None:
        """Give the pages back."""
        self.device.allocator.release(self.cache)

    def inputs(self, batch: StepBatch) -> StepInputs:
        """Stage a batch and prepare it with the reference."""
        packed = torch.zeros(batch.layout.size, dtype=torch.int32, device=self.device.torch_device)
        self.subject.stage(batch.packed, packed)
        return reference.prepare(packed, batch.layout, self.slots, self.page_size)

    def rows(self, step: Sequence[tuple[int, int]]) -> list[Row]:
        """Rows of a step that gives each slot so many new tokens; takes the pages that they need."""
        return [
            Row(
                slot=slot,
                start=len(self.history[slot]),
                ids=[0] * count,
                new_pages=self._grow(slot, len(self.history[slot]) + count),
                admitted=None if len(self.history[slot]) else SlotParameters(),
            )
            for slot, count in step
        ]

    def plan(self, step: Sequence[tuple[int, int]]) -> object:
        """Attention's plan of an unpadded step that gives each slot so many tokens."""
        rows = self.rows(step)
        shape = padded_shape(rows, ShapePolicy(), self.page_size)
        batch = pack(rows, shape, Packing(page_size=self.page_size, dummy_slot=self.slots.dummy_slot))
        return self.device.attention.plan(self.inputs(batch), shape, batch, self.cache)

    def share(self, source: int, target: int, num_pages: int) -> None:
        """Begin a slot's sequence with the first pages of another one."""
        self.pages[target] = self.pages[source][:num_pages]
        self._told[target] = 0
        self.history[target] = self.history[source][: num_pages * self.page_size]

    def step(
        self,
        step: Sequence[tuple[int, int]],
        *,
        policy: ShapePolicy | None = None,
        scale: float = 1.0,
        groups: Sequence[tuple[Sequence[int], int]] = (),
        padded_groups: int = 0,
    ) -> None:
        """Give (slot, new tokens) rows random projections and judge what attention returns.

        Args:
            policy: pads the step; nothing is padded without.
            scale: of the projections.
            groups: (row indices, pages of the common prefix) that the step tells, padded to `padded_groups`.

        Raises:
            Violation: the output is wrong, or padding is not finite.
        """
        rows = self.rows(step)
        shape = padded_shape(rows, policy or ShapePolicy(), self.page_size)
        packing = Packing(
            page_size=self.page_size,
            dummy_slot=self.slots.dummy_slot,
            groups=[(members, pages * self.page_size) for members, pages in groups],
            padded_groups=padded_groups,
        )
        batch = pack(rows, shape, packing)
        shape = replace(shape, pages=batch.max_pages, shared_groups=padded_groups)
        qkv_TX = self.projections(shape.tokens, scale)
        inputs = self.inputs(batch)
        plan = self.device.attention.plan(inputs, shape, batch, self.cache)
        out_TX = self.run(qkv_TX, plan)
        self.judge(out_TX, self.take(qkv_TX, step), what=f"{self.kind}: rows {self._describe(step)}")

    def projections(self, tokens: int, scale: float = 1.0) -> torch.Tensor:
        """Random projections on the host, rounded to the activation type."""
        return self.subject.randn(tokens, self.kind.width, scale=scale).to(torch_dtype(self.kind.dtype))

    def run(self, qkv_TX: torch.Tensor, plan: object) -> torch.Tensor:
        """Attention of the tested layer, on the host."""
        heads = self.kind.spec.num_heads * self.kind.spec.head_dim
        on_device = self.subject.put(qkv_TX)
        self.subject.poison(qkv_TX.shape[0] * heads, self.kind.dtype)
        out_TX = self.subject.get(
            self.device.attention.attention(on_device, self.layers[TESTED_LAYER], self.cache, plan)
        )
        expected = (qkv_TX.shape[0], heads)
        require(tuple(out_TX.shape) == expected, f"{self.kind}: got shape {tuple(out_TX.shape)}, expected {expected}")
        require(out_TX.dtype == qkv_TX.dtype, f"{self.kind}: got {out_TX.dtype}, expected {qkv_TX.dtype}")
        return out_TX

    def captured(
        self, packed: torch.Tensor, layout: BatchLayout, shape: StepShape, qkv_TX: torch.Tensor
    ) -> torch.Tensor:
        """What core captures: from the packed buffer to the tested layer's output, without the host's view."""
        inputs = reference.prepare(packed, layout, self.slots, self.page_size)
        plan = self.device.attention.plan(inputs, shape, None, self.cache)
        return self.device.attention.attention(qkv_TX, self.layers[TESTED_LAYER], self.cache, plan)

    def take(self, qkv_TX: torch.Tensor, step: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Add a step's projections to the histories; returns `step`."""
        first = 0
        for slot, count in step:
            self.history[slot] = torch.cat((self.history[slot], qkv_TX[first : first + count].double()))
            first += count
        return list(step)

    def judge(self, out_TX: torch.Tensor, step: Sequence[tuple[int, int]], *, what: str) -> None:
        """Compare a step's output with the dense truth of every row."""
        kind = self.kind
        require(bool(torch.isfinite(out_TX).all()), f"{what}: the output, padding included, has values not finite")
        store = oracle.rounded_to(self.subject.kv_torch_dtype(kind.kv_dtype))
        between = oracle.rounded_to(torch_dtype(kind.dtype))
        truth = [oracle.attention(self.history[slot], n, kind.spec, self._truth, store=store) for slot, n in step]
        plain = [
            oracle.attention(self.history[slot], n, kind.spec, self._truth, store=store, between=between)
            for slot, n in step
        ]
        got = out_TX[: sum(count for _, count in step)]
        gate = max(GATES[kind.dtype], GATES[kind.kv_dtype] if kind.kv_dtype.startswith("fp8") else 0.0)
        require_close(got, torch.cat(truth), gate, what, plain=torch.cat(plain))

    def move(self, slot: int) -> tuple[list[int], list[int]]:
        """Give a sequence other pages; the old ones are the next to be taken.

        Returns:
            (old pages, new pages); the caller moves the contents.
        """
        old = self.pages[slot]
        new = [self.free.pop(0) for _ in old]
        self.pages[slot] = new
        self.free = old + self.free
        self._told[slot] = 0
        return old, list(new)

    def drop(self, slot: int) -> None:
        """End a slot's sequence; its pages go to whoever comes next, in another order, contents and all."""
        self.free = self.pages[slot][::-1] + self.free
        self.pages[slot] = []
        self._told[slot] = 0
        self.history[slot] = self.history[slot][:0]

    def _grow(self, slot: int, length: int) -> list[tuple[int, int]]:
        pages, told = self.pages[slot], self._told[slot]
        while len(pages) * self.page_size < length:
            pages.append(self.free.pop(0))
        self._told[slot] = len(pages)
        return list(enumerate(pages))[told:]

    def _poison(self, num_pages: int) -> None:
        """NaN in every slot of every page of every layer, as left by whoever had the memory before."""
        packing = Packing(page_size=self.page_size, dummy_slot=self.slots.dummy_slot)
        for first in range(0, num_pages, _POISONED_AT_ONCE):
            pages = range(first, min(num_pages, first + _POISONED_AT_ONCE))
            tokens = len(pages) * self.page_size
            row = Row(slot=self._poison_slot, start=0, ids=[0] * tokens, new_pages=list(enumerate(pages)))
            shape = StepShape(rows=1, tokens=tokens, pages=len(pages))
            batch = pack([row], shape, packing)
            plan = self.device.attention.plan(self.inputs(batch), shape, batch, self.cache)
            nan_TX = torch.full((tokens, self.kind.width), float("nan"))
            for layer in self.layers:
                self.device.attention.attention(self.subject.put(nan_TX, self.kind.dtype), layer, self.cache, plan)
        self.device.runtime.synchronize()

    def _describe(self, step: Sequence[tuple[int, int]]) -> str:
        return ", ".join(f"{len(self.history[slot]) - n}+{n}" for slot, n in step)


def reserve_pages(subject: Subject, spec: KVSpec, num_pages: int) -> KVCache:
    """A cache with `num_pages` pages, made in the order of start-up."""
    allocator = subject.parts.allocator
    limits = MemoryLimits(kv_bytes=num_pages * spec.page_bytes, max_pages=num_pages)
    cache = allocator.reserve(spec, limits)
    plan = allocator.plan(cache, limits)
    require(
        plan.num_pages == num_pages,
        f"allocator.plan: got {plan.num_pages} pages of {spec.page_bytes} bytes, expected {num_pages} in "
        f"{limits.kv_bytes} bytes, which the limits grant",
    )
    allocator.commit(cache, plan.num_pages)
    return cache


def _layers(subject: Subject, kind: Kind, positions: int) -> tuple[oracle.AttentionParameters, list[AttentionLayer]]:
    """The tested layer's float64 parameters, and every layer as the backend gets it."""
    spec = kind.spec
    rotary = None
    if spec.rotary is not None:
        cos_PF, sin_PF = (subject.put(table.float()) for table in oracle.angles(spec.rotary, positions))
        rotary = RotaryTable(cos_PF=cos_PF, sin_PF=sin_PF, interleaved=spec.rotary.style == "interleaved")
    q_norm = k_norm = None
    truths: list[torch.Tensor | None] = [None, None]
    if spec.qk_norm is not None:
        norms: list[NormWeights] = []
        for index, heads in enumerate((spec.num_heads, spec.num_kv_heads)):
            size = spec.head_dim
            shape = {"head": (size,), "heads": (heads, size), "full": (heads * size,)}[spec.qk_norm.span]
            weight = (1 + subject.randn(*shape, scale=0.2)).to(torch_dtype(kind.dtype))
            truths[index] = weight.double()
            norms.append(NormWeights(spec=spec.qk_norm.norm, weight=subject.put(weight), bias=None))
        q_norm, k_norm = norms
    sinks_H = subject.randn(spec.num_heads) if spec.sinks else None
    alibi_H = torch.tensor(spec.alibi_slopes) if spec.alibi_slopes else None
    layers = [
        AttentionLayer(
            index=index,
            spec=spec,
            rotary=rotary,
            q_norm=q_norm,
            k_norm=k_norm,
            sinks_H=None if sinks_H is None else subject.put(sinks_H),
            alibi_H=None if alibi_H is None else subject.put(alibi_H),
        )
        for index in range(LAYERS)
    ]
    sinks = None if sinks_H is None else sinks_H.double()
    return oracle.AttentionParameters(q_norm=truths[0], k_norm=truths[1], sinks_H=sinks), layers
