"""Measure every candidate configuration of the products of few tokens on this GPU, and write the table of the fastest.

    python bench/tune_linear.py --out OUT                                 all token counts, shapes of two models
    python bench/tune_linear.py --out OUT --models Qwen3-8B --tokens 32,64 --budget 60

A product is measured with what stands around it in a decoder layer: the norm before it, the activation or the addition
after it, in the same kernel or in kernels of their own, as the candidate needs. The rival is the vendor's library with
separate kernels; where it is the fastest, an entry has no configuration. Candidates are checked against float64, then
timed as the median of replays of a recorded graph that reads other weights at every launch, more than the caches hold.
OUT gets `linear.json`, the entries of this part for `drivetrain_triton/tables/linear.json`, and `measured.jsonl`, every
measurement.

M tokens, N outputs (with a gate of each half), K inputs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import NormSpec
from drivetrain_plugins.contract.ops import LinearWeight
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import recording
from drivetrain_triton.linear import Ending
from drivetrain_triton.linear_tables import LinearConfig
from drivetrain_triton.ops import TritonOps

CONFIGS = Path(__file__).parent.parent / "tests/data/configs"
READ_BYTES = 700 << 20
"""Weights that a graph reads, so that none is in a cache when it is read again."""
MOST_ERROR = 5e-3
REPLAYS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A product of a decoder layer.

    Attributes:
        role: "norm" a norm before it, "gate" also an activation after it, "add" added to the residual stream.
    """

    role: Literal["norm", "gate", "add"]
    n: int
    k: int

    @property
    def rows(self) -> int:
        """Rows of the weights."""
        return 2 * self.n if self.role == "gate" else self.n


def shapes_of(model: str) -> list[Shape]:
    """The four products of a layer."""
    config = json.loads((CONFIGS / f"{model}.json").read_text())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    return [
        Shape(role="norm", n=(heads + 2 * config["num_key_value_heads"]) * size, k=hidden),
        Shape(role="add", n=hidden, k=heads * size),
        Shape(role="gate", n=inner, k=hidden),
        Shape(role="add", n=hidden, k=inner),
    ]


def candidates(shape: Shape, tokens: int, arch: GpuArch) -> Iterator[LinearConfig]:
    """Configurations that may be the fastest."""
    if tokens <= 2:
        yield from _gemv_candidates(shape, tokens)
    elif tokens <= 16:
        yield from _skinny_candidates(shape, arch)
    if tokens > 2 and arch.name == "sm_90":
        yield from _stream_candidates(shape, max(16, 1 << (tokens - 1).bit_length()), arch)


def _gemv_candidates(shape: Shape, tokens: int) -> Iterator[LinearConfig]:
    for bn, warps, vectors, unroll in itertools.product((1, 2, 4, 8), (2, 4, 8), (1, 2), (1, 2)):
        bk = 256 * warps * vectors
        sums = tokens * bn * vectors * (2 if shape.role == "gate" else 1)
        if bk <= shape.k and sums <= 32:
            yield LinearConfig(kind="gemv", bn=bn, bk=bk, num_warps=warps, unroll=unroll)


def _skinny_candidates(shape: Shape, arch: GpuArch) -> Iterator[LinearConfig]:
    for bk, split, stages in itertools.product((64, 128, 256), (1, 2, 4), (2, 3, 4, 5)):
        num_bytes = (64 * (2 if shape.role == "gate" else 1) + 16) * bk * 2 * stages
        programs = -(-shape.n // 64) * split
        if num_bytes <= arch.shared_bytes - 8192 and shape.k >= bk * split and programs <= 16 * arch.num_processors:
            yield LinearConfig(kind="skinny", bn=64, bk=bk, num_warps=4, split=split, stages=stages)


def _stream_candidates(shape: Shape, bm: int, arch: GpuArch) -> Iterator[LinearConfig]:
    halves = 2 if shape.role == "gate" else 1
    warps = 8 if bm * halves > 128 else 4
    tiles = -(-shape.n // 64)
    # Shares that are whole tiles or equal parts of them, and as many as there are processors.
    equal = {tiles // n for n in range(1, 65) if tiles % n == 0} | {tiles * n for n in (2, 4, 8)}
    programs = {n for n in equal if 44 <= n <= arch.num_processors} | {arch.num_processors}
    for bk in (64, 128, 256):
        most = (arch.shared_bytes - 4096 - 64 * bm * 2) // ((64 * halves + bm) * bk * 2)
        for stages, count in itertools.product(sorted({min(most, 8), min(most, 8) - 1}), sorted(programs)):
            if stages >= 2:
                yield LinearConfig(kind="stream", bn=64, bk=bk, num_warps=warps, bm=bm, stages=stages, programs=count)


class Tuner:
    """Measures on one device."""

    def __init__(self, device: torch.device, out: Path) -> None:
        properties = torch.cuda.get_device_properties(device)
        name = f"sm_{properties.major}{properties.minor}"
        self.arch = GpuArch(
            name=name,
            num_processors=properties.multi_processor_count,
            shared_bytes=properties.shared_memory_per_block_optin,
            pdl=properties.major >= 9,
        )
        self._ops = TritonOps(self.arch)
        self._device = device
        self._log = (out / "measured.jsonl").open("a")

    def tune(self, shape: Shape, tokens: int) -> dict[str, Any]:
        """Measure one shape; returns the table's entry."""
        count = max(2, READ_BYTES // (shape.rows * shape.k * 2) + 1)
        weights_NK = [self._draw(shape.rows, shape.k, scale=shape.k**-0.5) for _ in range(count)]
        layers = [LinearWeight(weight=weight_NK) for weight_NK in weights_NK]
        spec = NormSpec(kind="rms", eps=1e-5)
        norm = NormWeights(spec=spec, weight=self._draw(shape.k) + 1, bias=None)
        x_MK = self._draw(tokens, shape.k)
        total_MN = self._draw(tokens, shape.n)
        out_MN = total_MN.clone()
        expected_MN = _expected(shape, x_MK, norm, weights_NK[0], total_MN)
        rival = self._time(lambda layer: self._library(shape, x_MK, norm, layer, out_MN), layers)
        self._note(shape, tokens, None, rival)
        best, fastest = None, rival
        found = list(candidates(shape, tokens, self.arch))
        self._compile(
            [lambda config=config: self._run(shape, config, x_MK, norm, layers[0], out_MN) for config in found]
        )
        for config in found:

            def run(layer: LinearWeight, config: LinearConfig = config) -> None:
                self._run(shape, config, x_MK, norm, layer, out_MN)

            run(layers[1])  # leaves its counters at zero, or the next result is wrong
            out_MN.copy_(total_MN) if shape.role == "add" else out_MN.fill_(float("nan"))
            run(layers[0])
            error = ((out_MN.double() - expected_MN).norm() / expected_MN.norm()).item()
            if not error < MOST_ERROR:
                raise RuntimeError(f"{config} on {shape} with {tokens} tokens: error {error}, expected < {MOST_ERROR}")
            took = self._time(run, layers)
            self._note(shape, tokens, config, took)
            if took < fastest:
                best, fastest = config, took
        name = f"{shape.role} {shape.n}x{shape.k} M={tokens}"
        print(f"{name}: {fastest:.1f} us, library {rival:.1f}, {best and _short(best)}", flush=True)
        return {
            "tokens": tokens,
            "n": shape.n,
            "k": shape.k,
            "gate": shape.role == "gate",
            "config": None if best is None else _short(best),
        }

    def _draw(self, *sizes: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.bfloat16, device=self._device).mul_(scale)

    def _run(
        self,
        shape: Shape,
        config: LinearConfig,
        x_MK: torch.Tensor,
        norm: NormWeights,
        layer: LinearWeight,
        out_MN: torch.Tensor,
    ) -> None:
        gate = "silu" if shape.role == "gate" else None
        joined = norm if shape.role != "add" and config.kind != "stream" else None
        if shape.role != "add" and joined is None:
            x_MK = self._ops.norm(x_MK, norm)
        self._ops.linears.run(config, x_MK, layer, out_MN, Ending(norm=joined, gate=gate, add=shape.role == "add"))

    def _library(
        self, shape: Shape, x_MK: torch.Tensor, norm: NormWeights, layer: LinearWeight, out_MN: torch.Tensor
    ) -> None:
        if shape.role == "add":
            out_MN.addmm_(x_MK, layer.weight.t())
            return
        y_MN = torch.mm(self._ops.norm(x_MK, norm), layer.weight.t())
        if shape.role == "gate":
            self._ops.activate_gate(y_MN, "silu")

    def _compile(self, runs: list[Callable[[], None]]) -> None:
        with recording() as variants:
            for run in runs:
                run()
        distinct = {variant.key: variant for variant in variants}
        with ThreadPoolExecutor(14) as pool:
            list(pool.map(lambda variant: variant.compile(), distinct.values()))

    def _time(self, run: Callable[[LinearWeight], None], layers: list[LinearWeight]) -> float:
        """Microseconds a call."""
        run(layers[0])
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer in layers:
                run(layer)
        times = [_replay(graph) for _ in range(REPLAYS + 1)]
        return statistics.median(times[1:]) * 1e3 / len(layers)

    def _note(self, shape: Shape, tokens: int, config: LinearConfig | None, took: float) -> None:
        line = {**asdict(shape), "tokens": tokens, "us": round(took, 2), "config": config and _short(config)}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _expected(
    shape: Shape, x_MK: torch.Tensor, norm: NormWeights, weight_NK: torch.Tensor, total_MN: torch.Tensor
) -> torch.Tensor:
    x = x_MK.double()
    if shape.role != "add":
        assert norm.weight is not None
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.spec.eps) * norm.weight.double()
    y = x @ weight_NK.double().t()
    if shape.role == "gate":
        return torch.nn.functional.silu(y[:, : shape.n]) * y[:, shape.n :]
    return y + total_MN.double() if shape.role == "add" else y


def _short(config: LinearConfig) -> dict[str, Any]:
    """Without what its kind does not use."""
    used = {"gemv": ("unroll",), "skinny": ("bm", "split", "stages"), "stream": ("bm", "stages", "programs")}[
        config.kind
    ]
    return {name: getattr(config, name) for name in ("kind", "bn", "bk", "num_warps", *used)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default="Llama-3.1-8B,Qwen3-0.6B")
    parser.add_argument("--tokens", default="1,2,16,32,64,128")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which no further shape starts")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0)
    print(torch.cuda.get_device_name(device), torch.__version__)
    tuner, begin, entries = Tuner(device, args.out), time.monotonic(), []
    shapes = [shape for model in args.models.split(",") for shape in shapes_of(model)]
    for tokens, shape in itertools.product(map(int, args.tokens.split(",")), dict.fromkeys(shapes)):
        if time.monotonic() - begin > args.budget:
            print(f"stopped before {shape} with {tokens} tokens: the budget of {args.budget:.0f} s is spent")
            break
        entries.append(tuner.tune(shape, tokens))
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    (args.out / "linear.json").write_text(f'{{\n  "{tuner.arch.name}": [\n{lines}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
