"""Claimed weight formats against what the contract says they mean: packing, groups, scales; few tokens and many.

O output features, I input features, B bytes of a row, D hidden size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from drivetrain_plugins.conformance.check import check, need, require
from drivetrain_plugins.conformance.closeness import GATES, require_close
from drivetrain_plugins.conformance.subject import Subject, torch_dtype
from drivetrain_plugins.conformance.tiny_llama import tiny_spec
from drivetrain_plugins.contract.capabilities import Dtype
from drivetrain_plugins.contract.model import MlpSpec
from drivetrain_plugins.contract.ops import LinearWeight, Ops
from drivetrain_plugins.contract.reference import dequantize
from drivetrain_plugins.contract.weight_formats import FP8_BLOCK, WEIGHT_FORMATS, WeightFormat
from drivetrain_plugins.errors import Unsupported

_TOKENS = (1, 3, 17, 130)
_ROUNDED_INPUTS = {"fp8_e4m3": 4e-2, "int8": 2e-2}
"""Gates of formats whose matrix units take inputs of eight bits too: what rounding these alone costs, and half more."""

_HALVES = {
    "gguf_q8_0": (0,),
    "gguf_q4_0": (0,),
    "gguf_q4_1": (0, 2),
    "gguf_q5_0": (0,),
    "gguf_q5_1": (0, 2),
    "gguf_q4_k": (0, 2),
    "gguf_q5_k": (0, 2),
    "gguf_q6_k": (208,),
}
"""Where the float16 numbers of a block begin; any other byte may be anything."""

Make = Callable[[int, int], LinearWeight]
"""A random weight on the host, of so many outputs and inputs."""


@check("quantized")
def fp8_weights_match(subject: Subject) -> None:
    """One scale for all, one a row, one a block of 128 by 128, the last blocks cut off by the weight's edges."""
    _need(subject, "fp8_e4m3")

    def make(kind: str) -> Make:
        def made(out: int, width: int) -> LinearWeight:
            scales = {"tensor": (1, 1), "row": (out, 1), "block": (-(-out // FP8_BLOCK), -(-width // FP8_BLOCK))}
            weight = subject.randn(out, width, scale=60.0).clamp(-448, 448).to(torch.float8_e4m3fn)
            return _weight("fp8_e4m3", weight, scale=_scales(subject, *scales[kind], largest=width**-0.5 / 60))

        return made

    for kind in ("tensor", "row", "block"):
        _judge(subject, make(kind), ((192, 256), (320, 208)), f"a scale a {kind}")


@check("quantized")
def int8_weights_match(subject: Subject) -> None:
    """One scale a row, all values from -128 to 127."""
    _need(subject, "int8")

    def make(out: int, width: int) -> LinearWeight:
        weight = subject.randint(-128, 128, out, width).to(torch.int8)
        return _weight("int8", weight, scale=_scales(subject, out, 1, largest=width**-0.5 / 70))

    _judge(subject, make, ((192, 256), (72, 80)), "a scale a row")


@check("quantized")
def int4_weights_match(subject: Subject) -> None:
    """Two values a byte, a scale and a zero for each group of 32, 64 or 128 columns, or of a whole row."""
    _need(subject, "int4")

    def make(group: int | None) -> Make:
        def made(out: int, width: int) -> LinearWeight:
            groups = 1 if group is None else width // group
            return _weight(
                "int4",
                subject.randint(0, 256, out, width // 2).to(torch.uint8),
                scale=_scales(subject, out, groups, largest=width**-0.5 / 4),
                zero=subject.randint(0, 17, out, groups).to(torch.uint8),
            )

        return made

    for group in (32, 64, 128, None):
        _judge(subject, make(group), ((192, 256), (72, 384)), f"groups of {group or 'a row'}")


@check("quantized")
def gguf_weights_match(subject: Subject) -> None:
    """Blocks as a .gguf file has them, with every bit pattern in their packed parts."""
    claimed = [name for name in _HALVES if name in subject.parts.capabilities.quantizations]
    need(bool(claimed), "capabilities.quantizations has no format of GGUF")
    for name in claimed:
        _judge(subject, lambda out, width, n=name: _gguf(subject, n, out, width), ((192, 256), (72, 768)), "blocks")


@check()
def formats_that_are_not_claimed_are_refused(subject: Subject) -> None:
    """`prepare_linear` raises Unsupported, by name, for each format that the capabilities leave out."""
    claimed = subject.parts.capabilities.quantizations
    for name in WEIGHT_FORMATS:
        if name in claimed:
            continue
        weight = LinearWeight(weight=subject.put(torch.zeros(8, 64, dtype=torch.uint8)), quantization=name)
        try:
            subject.parts.ops.prepare_linear(weight)
        except Unsupported as error:
            require(name in str(error), f"prepare_linear: the error does not name the format {name}: {error}")
        else:
            require(False, f"ops.prepare_linear: took {name!r}, which capabilities.quantizations does not claim")


def _need(subject: Subject, name: WeightFormat) -> None:
    need(name in subject.parts.capabilities.quantizations, f"capabilities.quantizations lacks {name!r}")


def _weight(name: str, stored: torch.Tensor, **parts: torch.Tensor) -> LinearWeight:
    return LinearWeight(weight=stored, quantization=name, parts=parts)


def _scales(subject: Subject, *shape: int, largest: float) -> torch.Tensor:
    """Scales that lie up to eight times apart, so that a value with its neighbour's is far from the truth."""
    return largest * torch.exp2(-3 * subject.randint(0, 1000, *shape) / 1000)


def _gguf(subject: Subject, name: str, out: int, width: int) -> LinearWeight:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[name.removeprefix("gguf_").upper()]]
    blocks = subject.randint(0, 256, out * width // values, size).to(torch.uint8)
    for at in _HALVES[name]:
        signs = 2 * subject.randint(0, 2, len(blocks), 1) - 1
        numbers = (signs * _scales(subject, len(blocks), 1, largest=0.02)).half()
        blocks[:, at : at + 2] = numbers.view(torch.uint8)
    return _weight(name, blocks.view(out, -1))


def _judge(subject: Subject, make: Make, sizes: tuple[tuple[int, int], ...], what: str) -> None:
    """Linear layers of these (outputs, inputs), with and without bias, then the coarser ops over the first size."""
    for (out, width), biased in itertools.product(sizes, (False, True)):
        weight, bias = make(out, width), subject.randn(out) if biased else None
        for dtype, tokens in itertools.product(subject.dtypes, _TOKENS):
            x_TI = subject.randn(tokens, width).to(torch_dtype(dtype))
            place = f"{weight.quantization}, {what}: linear ({tokens} x {width} to {out}, bias {biased}) in {dtype}"
            handle = _prepared(subject, weight, dtype, bias)
            _compare(
                subject,
                subject.parts.ops.linear(subject.put(x_TI), handle),
                [
                    Ops().linear(x_TI.to(kind), _plain(weight, kind, bias, dtype))
                    for kind in (torch.float32, torch_dtype(dtype))
                ],
                _gate(weight, dtype),
                place,
            )
    for dtype in subject.dtypes:
        _judge_coarser(subject, make, sizes[0], dtype, what)


def _judge_coarser(subject: Subject, make: Make, size: tuple[int, int], dtype: Dtype, what: str) -> None:
    """The feed-forward part and the logits, which a backend may compute in kernels of their own."""
    spec, ops = tiny_spec(), subject.parts.ops
    out, width = size
    mlp = MlpSpec(inner_size=width, activation="silu", gated=True)
    up, down, head = make(2 * width, width), make(width, width), make(out, width)
    for tokens in _TOKENS:
        x_TI = subject.randn(tokens, width).to(torch_dtype(dtype))
        ways = list(_ways((up, down, head), dtype))
        place = f"{up.quantization}, {what}: {{}} ({tokens} x {width}) in {dtype}"
        got_TI = ops.mlp(subject.put(x_TI), mlp, _prepared(subject, up, dtype), _prepared(subject, down, dtype))
        expected = [Ops().mlp(x_TI.to(kind), mlp, u, d) for kind, (u, d, _) in ways]
        _compare(subject, got_TI, expected, 3 * _gate(up, dtype), place.format("mlp"))
        got_TV = ops.logits(subject.put(x_TI), _prepared(subject, head, dtype), spec)
        expected = [Ops().logits(x_TI.to(kind), h, spec) for kind, (_, _, h) in ways]
        _compare(subject, got_TV, expected, _gate(head, dtype), place.format("logits"))


def _ways(weights: tuple[LinearWeight, ...], dtype: Dtype) -> Iterator[tuple[torch.dtype, tuple[LinearWeight, ...]]]:
    """The weights as plain ones, in float32 and in `dtype`."""
    for kind in (torch.float32, torch_dtype(dtype)):
        yield kind, tuple(_plain(weight, kind, None, dtype) for weight in weights)


def _plain(weight: LinearWeight, kind: torch.dtype, bias: torch.Tensor | None, dtype: Dtype) -> LinearWeight:
    """What a weight means, with a bias that was rounded to the run's type."""
    rounded = None if bias is None else bias.to(torch_dtype(dtype)).to(kind)
    return LinearWeight(weight=dequantize(weight).to(kind), bias=rounded)


def _prepared(subject: Subject, weight: LinearWeight, dtype: Dtype, bias: torch.Tensor | None = None) -> object:
    on_device = LinearWeight(
        weight=subject.put(weight.weight),
        bias=None if bias is None else subject.put(bias, dtype),
        quantization=weight.quantization,
        parts={name: subject.put(part) for name, part in weight.parts.items()},
    )
    return subject.parts.ops.prepare_linear(on_device)


def _gate(weight: LinearWeight, dtype: Dtype) -> float:
    return max(GATES[dtype], _ROUNDED_INPUTS.get(weight.quantization, 0.0))


def _compare(subject: Subject, got: torch.Tensor, expected: list[torch.Tensor], gate: float, what: str) -> None:
    truth, plain = expected
    require(got.dtype == plain.dtype, f"{what}: got {got.dtype}, expected {plain.dtype}")
    require_close(subject.get(got), truth, gate, what, plain=plain)
