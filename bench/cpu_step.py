"""Times the device part of a step on the CPU backend: random weights, SmolLM2-135M's shapes, no server, no scheduler.

    python bench/cpu_step.py [--dtype bfloat16] [--threads 0] [--profile] [--only decode32 ...]

Prints, for each kind of step, the best and the median time beside the floor: bytes of weights and pages over the copy
bandwidth, or multiplications over the matrix rate, both measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

os.environ.setdefault("GOMP_SPINCOUNT", "50000")  # as the engine does for this backend, before torch is loaded

import numpy as np
import torch

from drivetrain_cpu.backend import CpuBackend, CpuDevice
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, RotaryTable
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.batch import BatchLayout, SampleFeatures
from drivetrain_plugins.contract.memory import KVCache, KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.contract.model import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    RotarySpec,
)
from drivetrain_plugins.contract.ops import LayerWeights, LinearWeight, StepContext
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import SlotState

PAGE_SIZE = 16
CONTEXT = 130


def smollm2_135m() -> DecoderSpec:
    """SmolLM2-135M as data."""
    norm = NormSpec(kind="rms", eps=1e-5)
    mixer = AttentionSpec(
        num_heads=9, num_kv_heads=3, head_dim=64, scale=0.125, rotary=RotarySpec(dim=64, base=100_000.0)
    )
    layer = LayerSpec(mixer=mixer, mlp=MlpSpec(inner_size=1536, activation="silu"), norm=norm)
    return DecoderSpec(
        architecture="LlamaForCausalLM",
        vocab_size=49152,
        hidden_size=576,
        max_positions=8192,
        layers=(layer,) * 30,
        final_norm=norm,
        tied=True,
    )


class RandomModel:
    """A decoder with random weights, run by hand through the device's ops."""

    def __init__(self, spec: DecoderSpec, device: CpuDevice, dtype: torch.dtype) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.embedding_VD = torch.randn(spec.vocab_size, spec.hidden_size).to(dtype)
        self.lm_head = device.ops.prepare_linear(LinearWeight(weight=self.embedding_VD))
        mixer = spec.layers[0].mixer
        angle = torch.arange(spec.max_positions)[:, None] * 1e5 ** (-torch.arange(0, 64, 2) / 64)
        rotary = RotaryTable(cos_PF=angle.cos(), sin_PF=angle.sin(), interleaved=False)
        inner, width = spec.layers[0].mlp.inner_size, mixer.num_heads * mixer.head_dim
        kv_width = 2 * mixer.num_kv_heads * mixer.head_dim
        self.layers = [
            LayerWeights(
                spec=layer,
                norms={name: self._norm() for name in layer.norm_names},
                qkv=self._linear(width + kv_width, spec.hidden_size),
                out=self._linear(spec.hidden_size, width),
                up=self._linear(2 * inner, spec.hidden_size),
                down=self._linear(spec.hidden_size, inner),
                attention=AttentionLayer(
                    index=index, spec=mixer, rotary=rotary, q_norm=None, k_norm=None, sinks_H=None, alibi_H=None
                ),
            )
            for index, layer in enumerate(spec.layers)
        ]
        self.final_norm = self._norm()

    @property
    def layer_elements(self) -> int:
        """Weights that one token multiplies, the output matrix aside."""
        hidden, mixer, mlp = self.spec.hidden_size, self.spec.layers[0].mixer, self.spec.layers[0].mlp
        width = (2 * mixer.num_heads + 2 * mixer.num_kv_heads) * mixer.head_dim
        return len(self.layers) * hidden * (width + 3 * mlp.inner_size)

    @property
    def head_elements(self) -> int:
        """Weights of the output matrix."""
        return self.spec.vocab_size * self.spec.hidden_size

    def step(
        self, packed: torch.Tensor, layout: BatchLayout, slots: SlotState, cache: KVCache, features: SampleFeatures
    ) -> torch.Tensor:
        """From a packed batch to sampled ids."""
        device = self.device
        inputs = device.ops.prepare(packed, layout, slots, PAGE_SIZE)
        shape = StepShape(rows=layout.rows, tokens=layout.tokens, pages=slots.page_table_SP.shape[1])
        plan = device.attention.plan(inputs, shape, None, cache)
        context = StepContext(attention=device.attention, plan=plan, cache=cache, communicator=device.communicator)
        delta_TD, residual_TD = None, device.ops.embed(inputs.ids_T, self.embedding_VD)
        for layer in self.layers:
            delta_TD, residual_TD = device.ops.decoder_layer(delta_TD, residual_TD, layer, context)
        if delta_TD is None:
            x_TD = device.ops.norm(residual_TD, self.final_norm)
        else:
            x_TD, _ = device.ops.add_norm(delta_TD, residual_TD, self.final_norm)
        x_KD = x_TD.index_select(0, inputs.sample_token_K)
        logits_KV = device.ops.logits(x_KD, self.lm_head, self.spec)
        return device.ops.sample(logits_KV, inputs, slots, features).ids_K

    def _norm(self) -> NormWeights:
        weight = torch.rand(self.spec.hidden_size).add(0.5).to(self.dtype)
        return NormWeights(spec=self.spec.layers[0].norm, weight=weight, bias=None)

    def _linear(self, out: int, size: int) -> object:
        weight = (torch.randn(out, size) / size**0.5).to(self.dtype)
        return self.device.ops.prepare_linear(LinearWeight(weight=weight))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of step: rows of so many new tokens after so many kept ones."""

    name: str
    rows: int
    queries: int
    kept: int
    features: SampleFeatures = field(default_factory=SampleFeatures)


CASES = (
    Case(name="decode1", rows=1, queries=1, kept=CONTEXT),
    Case(name="decode8", rows=8, queries=1, kept=CONTEXT),
    Case(name="decode32", rows=32, queries=1, kept=CONTEXT),
    Case(name="decode32-random", rows=32, queries=1, kept=CONTEXT, features=SampleFeatures(random=True)),
    Case(
        name="decode32-filters",
        rows=32,
        queries=1,
        kept=CONTEXT,
        features=SampleFeatures(random=True, filters=True),
    ),
    Case(name="decode1-8k", rows=1, queries=1, kept=8000),
    Case(name="prefill64", rows=1, queries=64, kept=0),
    Case(name="prefill128x8", rows=8, queries=128, kept=0),
    Case(name="prefill1024", rows=1, queries=1024, kept=0),
    Case(name="chunk512+4096", rows=1, queries=512, kept=4096),
)


def packed_batch(case: Case) -> tuple[torch.Tensor, BatchLayout]:
    """The step's packed buffer; row i is slot i."""
    rows, tokens = case.rows, case.rows * case.queries
    layout = BatchLayout(rows=rows, tokens=tokens, samples=rows, page_updates=0)
    parts = (
        np.arange(rows),
        np.full(rows, case.kept),
        np.arange(rows + 1) * case.queries,
        np.random.default_rng(0).integers(0, 49152, tokens),
        np.repeat(np.arange(rows), case.queries),
        np.arange(rows),
    )
    return torch.from_numpy(np.concatenate(parts).astype(np.int32)), layout


def new_slots(case: Case, vocab_size: int) -> SlotState:
    """Slots whose pages lie scattered; drawn tokens have temperature 0.7, top-k 50, top-p 0.95."""
    columns = -(-(case.kept + case.queries) // PAGE_SIZE)
    slots = SlotState(num_slots=case.rows, max_pages=columns, vocab_size=vocab_size, device=torch.device("cpu"))
    pages = 1 + torch.randperm(case.rows * columns, dtype=torch.int32)
    slots.page_table_SP[: case.rows] = pages.view(case.rows, columns)
    slots.floats_SC[:, :3] = torch.tensor([0.7, 0.95, 0.0])
    slots.floats_SC[:, 5] = 1.0
    slots.params_SC[:, 6] = 50
    return slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of a call: the best and the median by the clock, and the least processor time of all threads.

    On a machine that others use too only the last one says something, and with one thread most.
    """

    best: float
    median: float
    processor: float


def timed(run: Callable[[], object], seconds: float = 3.0) -> Timing:
    """Time a call, over as many calls as fit."""
    run()
    run()
    taken: list[float] = []
    worked: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        begin, worked_begin = time.perf_counter(), time.process_time()
        run()
        taken.append((time.perf_counter() - begin) * 1e3)
        worked.append((time.process_time() - worked_begin) * 1e3)
    return Timing(best=min(taken), median=statistics.median(taken), processor=min(worked))


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """(bytes a second that a large read reaches, multiplications and additions a second of a large product)."""
    source = torch.randn(1 << 26)
    read_ms = timed(source.sum, 0.5).best
    a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    out = torch.empty(1024, 1024, dtype=dtype)
    product_ms = timed(lambda: torch.mm(a, b, out=out), 0.5).best
    return source.nbytes / read_ms * 1e3, 2 * 1024**3 / product_ms * 1e3


def floor_ms(case: Case, model: RandomModel, cache_token_bytes: int, read: float, rate: float) -> float:
    """Weights and pages read once, or everything multiplied, whichever takes longer."""
    tokens, mixer = case.rows * case.queries, model.spec.layers[0].mixer
    item = model.embedding_VD.element_size()
    keys = case.kept + case.queries
    moved = (model.layer_elements + model.head_elements) * item + case.rows * keys * cache_token_bytes
    pairs = case.rows * case.queries * (case.kept + (case.queries + 1) / 2)
    multiplied = 2 * (tokens * model.layer_elements + case.rows * model.head_elements)
    multiplied += 4 * pairs * mixer.num_heads * mixer.head_dim * len(model.layers)
    return max(moved / read, multiplied / rate) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = CpuBackend().open(RankInfo(), {"threads": arguments.threads})
    dtype = getattr(torch, arguments.dtype)
    model = RandomModel(smollm2_135m(), device, dtype)
    mixer = model.spec.layers[0].mixer
    kv = KVLayerSpec(num_kv_heads=mixer.num_kv_heads, head_dim=mixer.head_dim)
    kv_spec = KVSpec(layers=(kv,) * len(model.layers), dtype=arguments.dtype, page_size=PAGE_SIZE)
    cache = device.allocator.reserve(kv_spec, MemoryLimits(kv_bytes=600 * kv_spec.page_bytes))
    device.allocator.commit(cache, 600)
    read, rate = ceilings(dtype)
    print(f"{device.capabilities.device_name}, torch {torch.__version__}, {arguments.dtype}")
    print(f"read {read / 1e9:.1f} GB/s, product {rate / 1e9:.0f} GFLOP/s")
    for case in CASES:
        if arguments.only and case.name not in arguments.only:
            continue
        packed, layout = packed_batch(case)
        slots = new_slots(case, model.spec.vocab_size)

        def run(
            packed: torch.Tensor = packed, layout: BatchLayout = layout, slots: SlotState = slots, case: Case = case
        ) -> None:
            with torch.inference_mode():
                model.step(packed, layout, slots, cache, case.features)

        timing = timed(run, arguments.seconds)
        floor = floor_ms(case, model, kv_spec.page_bytes // PAGE_SIZE, read, rate)
        tokens = case.rows * case.queries / timing.best * 1e3
        print(
            f"{case.name:18} best {timing.best:8.2f} ms  median {timing.median:8.2f}  processor {timing.processor:8.2f}"
            f"  floor {floor:7.2f}  {tokens:7.0f} tok/s"
        )
        if arguments.profile:
            with torch.profiler.profile() as profile:
                run()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
