"""A CPU backend that claims every weight format and expands the weights, and ways to get each format wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from drivetrain_cpu.backend import CpuBackend
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.ops import LinearWeight, Ops
from drivetrain_plugins.contract.weight_formats import WEIGHT_FORMATS

Change = Callable[[LinearWeight], LinearWeight]


class ExpandingOps(Ops):
    """Weights of any format as float32, each first changed by `change`."""

    def __init__(self, change: Change) -> None:
        self._change = change

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        if weight.quantization not in WEIGHT_FORMATS:
            return super().prepare_linear(weight)
        changed = self._change(weight)
        return LinearWeight(weight=reference.dequantize(changed), bias=changed.bias)

    def linear(self, x_TD: torch.Tensor, handle: LinearWeight) -> torch.Tensor:
        bias = None if handle.bias is None else handle.bias.float()
        return torch.nn.functional.linear(x_TD.float(), handle.weight.float(), bias).to(x_TD.dtype)


class Quantized(CpuBackend):
    """Serves every format."""

    change: Change = staticmethod(lambda weight: weight)

    def open(self, rank, options):
        device = super().open(rank, options)
        device.capabilities = replace(device.capabilities, quantizations=frozenset(WEIGHT_FORMATS))
        device.ops = ExpandingOps(self.change)
        return device


class EightBitInputs(Quantized):
    """Rounds the inputs of fp8 and int8 products to these types too, a scale a token, as matrix units take them."""

    def open(self, rank, options):
        device = super().open(rank, options)
        device.ops = RoundingOps(self.change)
        return device


class RoundingOps(ExpandingOps):
    """Keeps a weight's format as an attribute of what it prepares."""

    largest = {"fp8_e4m3": 448.0, "int8": 127.0}

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        return replace(super().prepare_linear(weight), quantization=weight.quantization)

    def linear(self, x_TD: torch.Tensor, handle: LinearWeight) -> torch.Tensor:
        largest = self.largest.get(handle.quantization)
        if largest is None:
            return super().linear(x_TD, handle)
        scale_T1 = x_TD.float().abs().amax(dim=1, keepdim=True) / largest
        unit_TD = x_TD.float() / scale_T1
        rounded_TD = unit_TD.round() if handle.quantization == "int8" else unit_TD.to(torch.float8_e4m3fn).float()
        return super().linear((rounded_TD * scale_T1).to(x_TD.dtype), handle)


FAULTS: dict[str, tuple[str, Change]] = {}
"""(check that must see it, what is wrong) by name."""


def fault(caught_by: str, name: str):
    """Collect a change of weights of one format as a fault."""

    def collect(change: Change) -> Change:
        FAULTS[change.__name__] = (
            caught_by,
            lambda weight: change(weight) if weight.quantization.startswith(name) else weight,
        )
        return change

    return collect


def with_parts(weight: LinearWeight, **parts: torch.Tensor) -> LinearWeight:
    return replace(weight, parts=weight.parts | parts)


@fault("weight.int4", "int4")
def halves_of_a_byte_exchanged(weight: LinearWeight) -> LinearWeight:
    return replace(weight, weight=weight.weight >> 4 | weight.weight << 4)


@fault("weight.int4", "int4")
def zeros_that_are_always_eight(weight: LinearWeight) -> LinearWeight:
    return with_parts(weight, zero=torch.full_like(weight.parts["zero"], 8))


@fault("weight.int4", "int4")
def zeros_cut_to_four_bits(weight: LinearWeight) -> LinearWeight:
    return with_parts(weight, zero=weight.parts["zero"] & 15)


@fault("weight.int4", "int4")
def scales_of_the_group_before(weight: LinearWeight) -> LinearWeight:
    return with_parts(weight, scale=weight.parts["scale"].roll(1, dims=1))


@fault("weight.int8", "int8")
def values_without_their_sign(weight: LinearWeight) -> LinearWeight:
    return replace(weight, weight=weight.weight.view(torch.uint8))


@fault("weight.int8", "int8")
def one_scale_for_all_rows(weight: LinearWeight) -> LinearWeight:
    return with_parts(weight, scale=weight.parts["scale"].mean().expand_as(weight.parts["scale"]))


@fault("weight.fp8", "fp8_e4m3")
def half_of_each_value(weight: LinearWeight) -> LinearWeight:
    """As a device of the other flavour reads the same bits."""
    return with_parts(weight, scale=weight.parts["scale"] / 2)


@fault("weight.fp8", "fp8_e4m3")
def scales_of_the_block_below(weight: LinearWeight) -> LinearWeight:
    scale = weight.parts["scale"]
    return with_parts(weight, scale=scale.roll(1, dims=0)) if scale.shape[1] > 1 else weight


@fault("weight.gguf", "gguf_q4_k")
def blocks_of_a_row_in_another_order(weight: LinearWeight) -> LinearWeight:
    return replace(weight, weight=weight.weight.unflatten(1, (-1, 144)).flip(1).flatten(1))


@fault("weight.gguf", "gguf_q4_0")
def scales_without_their_sign(weight: LinearWeight) -> LinearWeight:
    rows = weight.weight.unflatten(1, (-1, 18)).clone()
    rows[:, :, 1] &= 127
    return replace(weight, weight=rows.flatten(1))


@fault("weight.gguf", "gguf_q6_k")
def the_highest_bit_of_a_byte_lost(weight: LinearWeight) -> LinearWeight:
    rows = weight.weight.clone()
    rows[:, 0] &= 127
    return replace(weight, weight=rows)
