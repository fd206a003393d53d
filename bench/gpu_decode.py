"""Times decode attention's configurations on one GPU: norm, rotation, cache write, attention and merge in one kernel.

    PYTHONPATH=plugins:platforms/triton:platforms/cuda python bench/gpu_decode.py [--heads 32,8,128] [--only 64x4x3]

Compiles all candidates in threads, checks each against float32 on a ragged step, then prints a line for each: time of
one layer in microseconds and the bandwidth at which it reads keys and values, by step (rows x tokens). Each layer of a
step has pages of its own, more than the second-level cache holds in all, and all layers run in one captured graph. The
planning of a step is timed by itself. `--cascade` times rows that share all but their last pages, with and without
sharing. `--tiny` shrinks everything for a dry run under TRITON_INTERPRET=1.

T tokens, X packed projections, R rows, H query heads, G key-value heads, K head size, P pages, S slots of a page.
"""

# Relaxed: torch's stubs leave much untyped.
# pyright: basic

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import torch

from drivetrain_cuda.attention import CudaAttention
from drivetrain_cuda.tables.decode import DECODE_CONFIGS, DecodeConfig
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, RotaryTable
from drivetrain_plugins.contract.model import AttentionSpec, NormSpec, QKNormSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.attention import plan as attention_plan
from drivetrain_triton.launch import compile_all, recording

PAGE = 64
STEPS = {
    "1x512": [512],
    "1x640": [640],
    "8x640": [640] * 8,
    "32x640": [640] * 32,
    "64x640": [640] * 64,
    "256x192": [128 + row % 129 for row in range(256)],
    "128x1100": [200 + 14 * row for row in range(128)],
    "1x4096": [4096],
    "1x32768": [32768],
    "8x1024": [1024] * 8,
    "8x8192": [8192] * 8,
    "64x1024": [1024] * 64,
    "64x8192": [8192] * 64,
    "256x600": [100 + 4 * row for row in range(256)],
    "1x32768+63x512": [32768] + [512] * 63,
}
CASCADES = ((8, 2048, 200), (64, 2048, 200), (128, 2048, 200), (256, 2048, 64), (16, 8192, 200), (32, 16384, 200))
"""Rows, shared tokens, and the fewest of their own; each row has one more than the row before."""
TINY_STEPS = {"2x40": [40, 9]}
RAGGED = [1, 63, 64, 65, 700, 1500, 5000]
COLD_BYTES = 300 << 20
MOST_LAYERS = 28


def _config(block_n: int, num_warps: int, num_stages: int, programs: int) -> DecodeConfig:
    return DecodeConfig(block_n=block_n, num_warps=num_warps, num_stages=num_stages, programs=programs)


CANDIDATES = {
    "64x4x3, 3 programs": _config(64, 4, 3, 3),
    "64x4x3, 2 programs": _config(64, 4, 3, 2),
    "64x4x4, 2 programs": _config(64, 4, 4, 2),
    "32x4x4, 3 programs": _config(32, 4, 4, 3),
    "32x4x5, 3 programs": _config(32, 4, 5, 3),
    "32x2x4, 4 programs": _config(32, 2, 4, 4),
    "32x2x3, 3 programs": _config(32, 2, 3, 3),
    "64x2x3, 3 programs": _config(64, 2, 3, 3),
    "64x2x2, 3 programs": _config(64, 2, 2, 3),
    "64x8x3, 2 programs": _config(64, 8, 3, 2),
    "128x4x2, 2 programs": _config(128, 4, 2, 2),
}
"""Keys of a tile x warps x stages, and how many programs are planned for a processor."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of single tokens over layers of their own."""

    spec: AttentionSpec
    qkv_TX: torch.Tensor
    layers: list[AttentionLayer]
    cache: SimpleNamespace
    inputs: StepInputs
    shape: StepShape
    num_bytes: int


def make_step(
    lengths: Sequence[int], heads: tuple[int, int, int], device: torch.device, *, layers: int, shared: int = 0
) -> Step:
    """Random numbers on scrambled pages; with `shared`, all rows begin with the same so many tokens."""
    num_heads, num_kv_heads, size = heads
    norm = NormWeights(
        spec=NormSpec(kind="rms", eps=1e-6),
        weight=torch.rand(size, device=device, dtype=torch.bfloat16) + 0.5,
        bias=None,
    )
    spec = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=size,
        scale=size**-0.5,
        qk_norm=QKNormSpec(norm=norm.spec),
    )
    columns = [-(-length // PAGE) for length in lengths]
    common = shared // PAGE
    num_pages = 1 + common + sum(count - common for count in columns)
    order = 1 + torch.randperm(num_pages - 1)
    table = torch.zeros(len(lengths) + 1, max(columns) + 1, dtype=torch.int32)
    table[:-1, :common] = order[:common]
    used = common
    for row, count in enumerate(columns):
        table[row, common:count] = order[used : used + count - common]
        used += count - common
    angle = torch.arange(max(lengths) + 1)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    rotary = RotaryTable(cos_PF=angle.cos().to(device), sin_PF=angle.sin().to(device), interleaved=False)
    layer = {"spec": spec, "rotary": rotary, "q_norm": norm, "k_norm": norm, "sinks_H": None, "alibi_H": None}

    def pages() -> list[torch.Tensor]:
        shape = (num_pages, PAGE, num_kv_heads, size)
        return [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(layers)]

    lengths_R = torch.tensor(lengths, device=device)
    rows_R = torch.arange(len(lengths), device=device)
    values: dict[str, torch.Tensor | None] = {field.name: rows_R for field in fields(StepInputs)}
    values["kv_len_R"] = lengths_R
    values["positions_T"] = values["row_start_R"] = lengths_R - 1
    values["query_start_R1"] = torch.arange(len(lengths) + 1, device=device)
    values["page_table_SP"] = table.to(device)
    values["shared_rows_R"] = rows_R.int() if shared else None
    groups = [(0, len(lengths), shared)]
    values["shared_groups_G3"] = torch.tensor(groups, dtype=torch.int32, device=device) if shared else None
    width = (num_heads + 2 * num_kv_heads) * size
    return Step(
        spec=spec,
        qkv_TX=torch.randn(len(lengths), width, device=device, dtype=torch.bfloat16),
        layers=[AttentionLayer(index=index, **layer) for index in range(layers)],
        cache=SimpleNamespace(spec=SimpleNamespace(page_size=PAGE), k=pages(), v=pages()),
        inputs=StepInputs(**values),  # type: ignore[arg-type]
        shape=StepShape(
            rows=len(lengths), tokens=len(lengths), pages=max(columns), decode_only=True, shared_groups=int(shared > 0)
        ),
        num_bytes=sum(lengths) * num_kv_heads * size * 4,
    )


def run(attention: CudaAttention, step: Step, *, plan_only: bool = False) -> list[torch.Tensor]:
    """Outputs of all layers, or the plan alone as often as there are layers."""
    if plan_only:
        return [attention.attention(step.qkv_TX, step.layers[0], step.cache, _plan(attention, step)) for _ in range(8)]
    plan = _plan(attention, step)
    return [attention.attention(step.qkv_TX, layer, step.cache, plan) for layer in step.layers]


def _plan(attention: CudaAttention, step: Step) -> attention_plan.AttentionPlan:
    return attention.plan(step.inputs, step.shape, None, step.cache)  # type: ignore[arg-type]


def truth(step: Step) -> torch.Tensor:
    """Outputs of the first layer in float32."""
    spec, layer = step.spec, step.layers[0]
    q_end, k_end = spec.num_heads * spec.head_dim, (spec.num_heads + spec.num_kv_heads) * spec.head_dim
    q_norm, k_norm, rotary = layer.q_norm, layer.k_norm, layer.rotary
    assert q_norm is not None and k_norm is not None and rotary is not None
    q_THK = reference.qk_norm(step.qkv_TX[:, :q_end], q_norm, spec.num_heads)
    k_TGK = reference.qk_norm(step.qkv_TX[:, q_end:k_end], k_norm, spec.num_kv_heads)
    v_TGK = step.qkv_TX[:, k_end:].view(k_TGK.shape)
    q_THK, k_TGK = reference.rotate(q_THK, k_TGK, step.inputs.positions_T, rotary)
    outputs = []
    for row, length in enumerate(step.inputs.kv_len_R.tolist()):
        pages = step.inputs.page_table_SP[row, : -(-length // PAGE)].long()
        k, v = (
            torch.cat((x[pages].flatten(0, 1)[: length - 1], new[row, None])).float().repeat_interleave(repeat, dim=1)
            for x, new, repeat in (
                (step.cache.k[0], k_TGK, spec.num_heads // spec.num_kv_heads),
                (step.cache.v[0], v_TGK, spec.num_heads // spec.num_kv_heads),
            )
        )
        p_HL = (torch.einsum("hk,lhk->hl", q_THK[row].float(), k) * spec.scale).softmax(dim=-1)
        outputs.append(torch.einsum("hl,lhk->hk", p_HL, v).flatten())
    return torch.stack(outputs)


def seconds(work: object) -> float:
    """Least time of a replay of captured `work`, a callable."""
    assert callable(work)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(8):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e-3)
    return best


def main() -> None:
    """Check and time all candidates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--heads", default="32,8,128", help="query heads, key-value heads, head size")
    parser.add_argument("--only", default="", help="candidates whose name has this in it")
    parser.add_argument("--unit", type=int, default=attention_plan.UNIT, help="shortest chunk")
    parser.add_argument("--overhead", type=int, default=attention_plan.OVERHEAD, help="tokens that a chunk costs")
    parser.add_argument("--cascade", action="store_true", help="time shared prefixes instead")
    parser.add_argument("--tiny", action="store_true", help="a dry run")
    options = parser.parse_args()
    attention_plan.UNIT, attention_plan.OVERHEAD = options.unit, options.overhead
    heads = tuple(int(number) for number in options.heads.split(","))
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted:
        from drivetrain_triton.interpreter import repair

        repair()
        device, arch, processors = torch.device("cpu"), "sm_90", 8
    else:
        properties = torch.cuda.get_device_properties(0)
        device, arch, processors = (
            torch.device("cuda"),
            f"sm_{properties.major}{properties.minor}",
            properties.multi_processor_count,
        )
        print(properties.name, processors, "processors", flush=True)
    attention = CudaAttention(arch=arch, num_processors=processors, pdl=not interpreted and int(arch[3:]) >= 90)
    candidates = {name: config for name, config in CANDIDATES.items() if options.only in name}
    key = ("sm_90" if arch == "sm_100" else arch, max(64, 1 << (heads[2] - 1).bit_length()), 2, "few")
    if options.cascade:
        _cascade(attention, heads, device)
        return
    ragged = make_step([1, 40] if options.tiny else RAGGED, heads, device, layers=1)
    if not interpreted:
        variants = []
        began = time.perf_counter()
        with recording() as recorded:
            for config in candidates.values():
                DECODE_CONFIGS[key] = config
                run(attention, ragged)
        variants += recorded
        compile_all(variants, max_workers=16).wait()
        print(f"compiled {len(variants)} variants in {time.perf_counter() - began:.1f} s", flush=True)
    expected = truth(ragged)
    steps = {
        name: make_step(lengths, heads, device, layers=_layers(lengths, heads, tiny=options.tiny))
        for name, lengths in (TINY_STEPS if options.tiny else STEPS).items()
    }
    for name, config in candidates.items():
        DECODE_CONFIGS[key] = config
        got = run(attention, ragged)[0].float()
        error = float((got - expected).norm() / expected.norm())
        line = [f"{name:22s} error {error:.1e}{'' if error < 5e-3 else ' WRONG'}"]
        for step_name, step in steps.items():
            if interpreted:
                run(attention, step)
                continue
            taken = seconds(lambda step=step: run(attention, step)) / len(step.layers)
            line.append(f"{step_name} {taken * 1e6:.1f} us {step.num_bytes / taken * 1e-12:.2f} TB/s")
        print("; ".join(line), flush=True)
    if not interpreted:
        for name, step in steps.items():
            both = seconds(lambda step=step: run(attention, step, plan_only=True)) / 8
            once = seconds(lambda step=step: run(attention, step)) / len(step.layers)
            print(f"plan and first layer, {name}: {both * 1e6:.1f} us; a layer {once * 1e6:.1f} us", flush=True)


def _layers(lengths: Sequence[int], heads: tuple[int, ...], *, tiny: bool) -> int:
    if tiny:
        return 1
    return min(MOST_LAYERS, max(1, -(-COLD_BYTES // (sum(lengths) * heads[1] * heads[2] * 4))))


def _cascade(attention: CudaAttention, heads: tuple[int, ...], device: torch.device) -> None:
    """Rows with a common prefix: the same step with and without being told."""
    for rows, prefix, own in CASCADES:
        lengths = [prefix + own + row for row in range(rows)]
        step = make_step(lengths, heads, device, layers=8, shared=prefix)  # type: ignore[arg-type]
        got, expected = run(attention, step)[0].float(), truth(step)
        error = float((got - expected).norm() / expected.norm())
        shared = seconds(lambda step=step: run(attention, step)) / 8
        plain = replace(step, inputs=replace(step.inputs, shared_rows_R=None, shared_groups_G3=None))
        alone = seconds(lambda plain=plain: run(attention, plain)) / 8
        print(f"{rows} rows, {prefix} shared: {shared * 1e6:.1f} us, unshared {alone * 1e6:.1f} us, error {error:.1e}")


if __name__ == "__main__":
    main()
