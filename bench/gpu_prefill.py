"""Times prefill attention's configurations on one GPU, beside torch's own attention on contiguous tensors.

    PYTHONPATH=plugins:platforms/triton:platforms/cuda python bench/gpu_prefill.py [--only ahead]

Compiles all candidates in threads, checks each against float32 on a ragged step, then prints a line for each shape of
heads: TFLOP/s by step, where a step is rows x tokens, or a chunk behind tokens that are in pages already. "flash" and
"cudnn" are torch's fused attentions on the same numbers without pages. `--tiny` shrinks everything for a dry run under
TRITON_INTERPRET=1.

T tokens, R rows, H query heads, G key-value heads, K head size, P pages, S slots of a page.
"""

# Relaxed: torch's stubs leave much untyped.
# pyright: basic

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from drivetrain_cuda.kernels.prefill import plan_prefill, prefill_attention
from drivetrain_cuda.tables.prefill import PrefillConfig, prefill_config
from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.attention.prefill_plan import PrefillPlan
from drivetrain_triton.launch import compile_all, recording

HEADS = ((32, 8, 128), (16, 8, 128))
RAGGED = [(0, 700), (300, 201), (63, 2), (1000, 129), (5, 64)]
STEPS = {
    "1x4096": [(0, 4096)],
    "2x4096": [(0, 4096)] * 2,
    "8x512": [(0, 512)] * 8,
    "2048 behind 6144": [(6144, 2048)],
}
TINY_RAGGED = [(0, 33), (17, 5)]
TINY_STEPS = {"1x40": [(0, 40)], "16 behind 20": [(20, 16)]}


def _config(block_m: int, block_n: int, num_warps: int, num_stages: int, **parts: bool) -> PrefillConfig:
    return PrefillConfig(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages, **parts)


CANDIDATES: dict[str, tuple[PrefillConfig, int]] = {
    "ahead mapped 128x64": (_config(128, 64, 8, 2, ahead=True, mapped=True), 64),
    "ahead mapped 128x64, 3 stages": (_config(128, 64, 8, 3, ahead=True, mapped=True), 64),
    "ahead mapped 64x64, 4 warps": (_config(64, 64, 4, 2, ahead=True, mapped=True), 64),
    "ahead mapped 128x128, page 128": (_config(128, 128, 8, 2, ahead=True, mapped=True), 128),
    "ahead mapped 64x128, 4 warps, page 128": (_config(64, 128, 4, 2, ahead=True, mapped=True), 128),
    "ahead 128x64": (_config(128, 64, 8, 2, ahead=True), 64),
    "mapped 128x64, 3 stages": (_config(128, 64, 8, 3, mapped=True), 64),
    "mapped 64x64, 4 warps": (_config(64, 64, 4, 2, mapped=True), 64),
    "mapped 128x128, page 128": (_config(128, 128, 8, 2, mapped=True), 128),
    "128x64": (_config(128, 64, 8, 2), 64),
}
"""Name: configuration and page size. For sm_90 and head size 128."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Random queries, keys and values on scrambled pages."""

    layer: AttentionLayer
    rows: list[tuple[int, int]]
    q_THK: torch.Tensor
    k_PSGK: torch.Tensor
    v_PSGK: torch.Tensor
    inputs: StepInputs
    pages: list[torch.Tensor]

    @property
    def flops(self) -> float:
        """Of both products, for visible keys only."""
        visible = sum(count * start + count * (count + 1) / 2 for start, count in self.rows)
        return 4.0 * self.layer.spec.num_heads * self.layer.spec.head_dim * visible

    def plan(self, config: PrefillConfig, *, arch: str, pdl: bool) -> PrefillPlan:
        spec = self.layer.spec
        tokens = self.q_THK.shape[0]
        shape = StepShape(rows=len(self.rows), tokens=tokens, pages=self.inputs.page_table_SP.shape[1])
        return plan_prefill(
            self.inputs,
            shape,
            None,
            group=spec.num_heads // spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=self.q_THK.dtype,
            arch=arch,
            pdl=pdl,
            config=config,
        )

    def keys_and_values(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(H, L, K) of a row, contiguous."""
        spec = self.layer.spec
        length = sum(self.rows[row])
        k, v = (x[self.pages[row]].flatten(0, 1)[:length].transpose(0, 1) for x in (self.k_PSGK, self.v_PSGK))
        group = spec.num_heads // spec.num_kv_heads
        return k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)


def make_step(heads: tuple[int, int, int], rows: list[tuple[int, int]], page: int, device: str) -> Step:
    """A step of bfloat16 whose queries are a view into packed projections."""
    num_heads, kv_heads, size = heads
    spec = AttentionSpec(num_heads=num_heads, num_kv_heads=kv_heads, head_dim=size, scale=size**-0.5)
    layer = AttentionLayer(
        index=0, spec=spec, rotary=None, q_norm=None, k_norm=None, sinks_H=None, alibi_H=None
    )  # fmt: skip
    needed = [-(-(start + count) // page) for start, count in rows]
    free = 1 + torch.randperm(sum(needed), device=device)
    pages = list(free.split(needed))
    table = torch.zeros(len(rows) + 1, max(needed), dtype=torch.int32, device=device)
    for row, mine in enumerate(pages):
        table[row, : len(mine)] = mine
    tokens = sum(count for _, count in rows)
    counts = torch.tensor([0] + [count for _, count in rows], device=device)
    required = [part.name for part in fields(StepInputs) if part.default is MISSING]
    values = dict.fromkeys(required, counts) | {
        "row_slot_R": torch.arange(len(rows), device=device),
        "row_start_R": torch.tensor([start for start, _ in rows], device=device),
        "query_start_R1": counts.cumsum(0),
        "page_table_SP": table,
    }
    cache = (sum(needed) + 1, page, kv_heads, size)
    qkv_TX = torch.randn(tokens, num_heads + 2 * kv_heads, size, device=device).bfloat16()
    return Step(
        layer=layer,
        rows=rows,
        q_THK=qkv_TX[:, :num_heads],
        k_PSGK=torch.randn(cache, device=device).bfloat16(),
        v_PSGK=torch.randn(cache, device=device).bfloat16(),
        inputs=StepInputs(**values),
        pages=pages,
    )


def attend(step: Step, config: PrefillConfig, *, arch: str, pdl: bool) -> Callable[[], torch.Tensor]:
    """The kernel on a step, ready to be called again and again."""
    plan = step.plan(config, arch=arch, pdl=pdl)
    out_THK = torch.full(step.q_THK.shape, float("nan"), dtype=step.q_THK.dtype, device=step.q_THK.device)

    def run() -> torch.Tensor:
        prefill_attention(
            step.q_THK, out_THK, step.layer, step.k_PSGK, step.v_PSGK, step.inputs, plan,
            pdl=pdl, arch=arch, config=config,
        )  # fmt: skip
        return out_THK

    return run


def relative_error(step: Step, out_THK: torch.Tensor) -> float:
    """Relative L2 distance to float32."""
    wanted: list[torch.Tensor] = []
    first = 0
    for row, (start, count) in enumerate(step.rows):
        k, v = step.keys_and_values(row)
        q = step.q_THK[first : first + count].transpose(0, 1)
        first += count
        s = (q.float() @ k.float().mT) * step.layer.spec.scale
        hidden = torch.ones(count, start + count, dtype=torch.bool, device=q.device).triu(start + 1)
        wanted.append((s.masked_fill(hidden, float("-inf")).softmax(-1) @ v.float()).transpose(0, 1))
    truth = torch.cat(wanted)
    return float((out_THK.float() - truth).norm() / truth.norm())


def torch_attention(step: Step, backend: SDPBackend) -> Callable[[], torch.Tensor]:
    """torch's fused attention on a step whose rows are equal."""
    (start, count), rows = step.rows[0], len(step.rows)
    k, v = (torch.stack(part).contiguous() for part in zip(*map(step.keys_and_values, range(rows)), strict=True))
    q = step.q_THK.unflatten(0, (rows, count)).transpose(1, 2).contiguous()
    bias = causal_lower_right(count, start + count) if start else None

    def run() -> torch.Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)

    return run


def seconds(run: Callable[[], object], *, on_gpu: bool, repeats: int = 20) -> float:
    """Mean time of a call, on the device's clock."""
    if not on_gpu:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    for _ in range(5):
        run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats / 1e3


def host_seconds(run: Callable[[], object]) -> float:
    """Time to enqueue a call."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        run()
    took = (time.perf_counter() - began) / 20
    torch.cuda.synchronize()
    return took


def rivals(step: Step) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    yield "flash", torch_attention(step, SDPBackend.FLASH_ATTENTION)
    if not step.rows[0][0]:
        yield "cudnn", torch_attention(step, SDPBackend.CUDNN_ATTENTION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="candidates whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="small steps on the CPU, under TRITON_INTERPRET=1")
    options = parser.parse_args()
    on_gpu = not options.tiny
    device = "cuda" if on_gpu else "cpu"
    major, minor = torch.cuda.get_device_capability() if on_gpu else (9, 0)
    arch, pdl = f"sm_{major}{minor}", on_gpu and major >= 9
    ragged, steps = (RAGGED, STEPS) if on_gpu else (TINY_RAGGED, TINY_STEPS)
    heads = HEADS if on_gpu else ((4, 2, 64),)
    print(torch.cuda.get_device_name() if on_gpu else "interpreter", torch.__version__, arch)

    torch.manual_seed(int(time.time()))
    names = [name for name in CANDIDATES if options.only in name]
    chosen = prefill_config(arch, heads[0][2], 2)
    named = {name: CANDIDATES[name] for name in names} | {"table": (chosen, 64)}
    if on_gpu:
        began = time.perf_counter()
        with recording() as variants:
            for config, page in named.values():
                for shape in heads:
                    attend(make_step(shape, ragged, page, device), config, arch=arch, pdl=pdl)()
        compile_all(variants, max_workers=os.cpu_count() or 1).wait()
        print(f"{len(variants)} kernels in {time.perf_counter() - began:.1f} s")

    for shape in heads:
        print(f"heads {shape[0]}/{shape[1]}, size {shape[2]}; TFLOP/s")
        print(f"{'':42}{'error':>9}{'host us':>9}" + "".join(f"{name:>18}" for name in steps))
        for name, (config, page) in named.items():
            try:
                step = make_step(shape, ragged, page, device)
                error = relative_error(step, attend(step, config, arch=arch, pdl=pdl)())
                cells, host_s = [], 0.0
                for rows in steps.values():
                    step = make_step(shape, rows, page, device)
                    run = attend(step, config, arch=arch, pdl=pdl)
                    cells.append(step.flops / seconds(run, on_gpu=on_gpu) / 1e12)
                    host_s = host_seconds(run) if on_gpu else 0.0
            except Exception as problem:
                print(f"{name:42} FAILED {type(problem).__name__}: {str(problem)[:300]}")
                continue
            verdict = f"{error:9.1e}" if error < 5e-3 else f"BAD{error:6.0e}"
            print(f"{name:42}{verdict}{1e6 * host_s:9.1f}" + "".join(f"{cell:18.4g}" for cell in cells), flush=True)
        if not on_gpu:
            continue
        cells_of: dict[str, list[str]] = {"flash": [], "cudnn": []}
        for rows in steps.values():
            step = make_step(shape, rows, 64, device)
            made = dict(rivals(step))
            for name, cells in cells_of.items():
                try:
                    cells.append(f"{step.flops / seconds(made[name], on_gpu=True) / 1e12:18.4g}")
                except (KeyError, RuntimeError):
                    cells.append(f"{'-':>18}")
        for name, cells in cells_of.items():
            print(f"torch {name:36}{'':18}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
