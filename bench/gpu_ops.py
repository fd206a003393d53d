"""Device time of the shared Triton ops against plain torch, each in a captured graph.

    python bench/gpu_ops.py [--rows 1 8 64 512] [--vocab 151936] [--hidden 4096]

Prints a table: microseconds of the op and of its torch reference, and the achieved bandwidth where the op is bound by
it. Compiles everything first, in threads, and says how long that took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.batch import BatchLayout, SampleFeatures
from drivetrain_plugins.contract.model import NormSpec
from drivetrain_plugins.contract.ops import Ops
from drivetrain_plugins.contract.slots import SlotState
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import compile_all, recording
from drivetrain_triton.ops import TritonOps

REPEATS = 50
PAGE_SIZE = 64
Case = tuple[str, int, Callable[[Any], object]]
"""(name, bytes that must move, the op called on `TritonOps` or on the reference)."""


def this_gpu() -> GpuArch:
    """The first GPU, as kernels see it."""
    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability(0)
    return GpuArch(
        name=f"sm_{major}{minor}",
        num_processors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        pdl=major >= 9,
    )


def microseconds(run: Callable[[], object]) -> float:
    """Of one call in a captured chain of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(REPEATS):
                run()
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        graph.replay()
        end.record(stream)
        stream.synchronize()
    return begin.elapsed_time(end) * 1000 / REPEATS


def cases(rows: int, hidden: int, vocab: int, device: torch.device) -> Iterator[Case]:
    """Ops of a decode step with so many rows."""
    x, delta = torch.randn(2, rows, hidden, device=device).bfloat16()
    weight = torch.ones(hidden, dtype=torch.bfloat16, device=device)
    norm = NormWeights(spec=NormSpec(kind="rms", eps=1e-6), weight=weight, bias=None)
    row_bytes = rows * hidden * 2
    yield "norm", 2 * row_bytes, lambda ops: ops.norm(x, norm)
    yield "add_norm", 4 * row_bytes, lambda ops: ops.add_norm(delta, x, norm)
    gate = torch.randn(rows, 8 * hidden, device=device).bfloat16()
    yield "activate_gate", 12 * row_bytes, lambda ops: ops.activate_gate(gate, "silu")

    slots = SlotState(num_slots=rows, max_pages=128, vocab_size=vocab, device=device)
    layout = BatchLayout(rows=rows, tokens=rows, samples=rows, page_updates=rows)
    packed = torch.zeros(layout.size, dtype=torch.int32, device=device)
    yield "prepare", 0, lambda ops: ops.prepare(packed, layout, slots, PAGE_SIZE)

    yield from sampling_cases(rows, vocab, slots)


def sampling_cases(rows: int, vocab: int, slots: SlotState) -> Iterator[Case]:
    """Peaked logits, as a trained model's; temperature 0.6, top-k 20, top-p 0.95."""
    device = slots.device
    logits = torch.randn(rows, vocab, device=device) * 4
    inputs: Any = SimpleNamespace(
        sample_slot_K=torch.arange(rows, device=device), sample_position_K=torch.arange(rows, device=device)
    )
    floats = torch.tensor([0.6, 0.95, 0.0, 0.0, 0.0, 1.0], device=device)
    slots.params_SC[:, :6] = floats.view(torch.int32)
    slots.params_SC[:, 6] = 20
    table = rows * vocab * 4
    for name, passes, features in (
        ("greedy", 1, SampleFeatures()),
        ("random", 1, SampleFeatures(random=True)),
        ("filters", 4, SampleFeatures(random=True, filters=True)),
        ("logprobs 5", 5, SampleFeatures(random=True, logprobs=5)),
    ):
        yield name, passes * table, lambda ops, f=features: ops.sample(logits, inputs, slots, f)
    slots.params_SC[:, 6] = 0


def compile_first(rows: list[int], hidden: int, vocab: int, arch: GpuArch) -> None:
    """Every kernel that the cases launch, recorded and compiled in threads."""
    begin = time.perf_counter()
    ops = TritonOps(arch)
    with recording() as variants:
        for count in rows:
            for _, _, run in cases(count, hidden, vocab, torch.device("cuda")):
                run(ops)
    compile_all(variants, max_workers=8).wait()
    print(f"compiled in {time.perf_counter() - begin:.1f} s")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=4096)
    arguments = parser.parse_args()
    arch = this_gpu()
    print(torch.cuda.get_device_name(0), arch)
    compile_first(arguments.rows, arguments.hidden, arguments.vocab, arch)
    ops, plain = TritonOps(arch), Ops()
    print(f"{'op':<15}{'rows':>6}{'us':>10}{'torch us':>10}{'GB/s':>8}")
    for rows in arguments.rows:
        for name, moved, run in cases(rows, arguments.hidden, arguments.vocab, torch.device("cuda")):
            mine, theirs = microseconds(lambda run=run: run(ops)), microseconds(lambda run=run: run(plain))
            print(f"{name:<15}{rows:>6}{mine:>10.1f}{theirs:>10.1f}{moved / mine / 1000:>8.0f}")


if __name__ == "__main__":
    main()
