"""Norms, activations, embedding and logits against float32 references on identical inputs."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch

from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import Activation, NormSpec
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.ops import TritonOps
from gpu_kernels.closeness import GATES, assert_close

DTYPES = tuple(GATES)
NORMS = (
    NormSpec(kind="rms", eps=1e-6),
    NormSpec(kind="rms", eps=1e-2, weight_offset=1.0, late_weight=False),
    NormSpec(kind="rms", eps=1e-6, weight=False),
    NormSpec(kind="layer", eps=1e-5, bias=True),
    NormSpec(kind="layer", eps=1e-5, weight=False),
)


@pytest.fixture
def ops(arch: GpuArch) -> TritonOps:
    return TritonOps(arch)


def random(device: torch.device, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).to(device)


def norm_weights(spec: NormSpec, size: int, dtype: torch.dtype, device: torch.device) -> NormWeights:
    weight = (1 + random(device, size, scale=0.3)).to(dtype) if spec.weight else None
    return NormWeights(spec=spec, weight=weight, bias=random(device, size).to(dtype) if spec.bias else None)


def exact(weights: NormWeights) -> NormWeights:
    weight = None if weights.weight is None else weights.weight.float()
    return NormWeights(spec=weights.spec, weight=weight, bias=None if weights.bias is None else weights.bias.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", NORMS)
def test_norm_and_add_norm(ops: TritonOps, device: torch.device, spec: NormSpec, dtype: torch.dtype):
    for tokens, size in itertools.product((1, 3), (72, 256)):
        weights = norm_weights(spec, size, dtype, device)
        x_TD = (random(device, tokens, size, scale=3.0) + 0.5).to(dtype)
        delta_TD = random(device, tokens, size).to(dtype)
        assert_close(ops.norm(x_TD, weights), reference.norm(x_TD.float(), exact(weights)))
        total_TD = x_TD + delta_TD
        residual_TD = x_TD.clone()
        got_TD, kept_TD = ops.add_norm(delta_TD, residual_TD, weights)
        assert kept_TD.equal(total_TD)
        assert kept_TD.data_ptr() == residual_TD.data_ptr()
        assert_close(got_TD, reference.norm(total_TD.float(), exact(weights)))


def test_the_weight_comes_after_rounding_where_the_model_says_so(ops: TritonOps, device: torch.device):
    x_TD, weight = random(device, 3, 128).bfloat16(), (1 + random(device, 128, scale=0.3)).bfloat16()
    for late in (True, False):
        weights = NormWeights(spec=NormSpec(kind="rms", eps=1e-6, late_weight=late), weight=weight, bias=None)
        expected, got = reference.norm(x_TD, weights), ops.norm(x_TD, weights)
        assert (got != expected).float().mean() < 0.01
    late, early = (
        ops.norm(x_TD, NormWeights(spec=NormSpec(kind="rms", eps=1e-6, late_weight=late), weight=weight, bias=None))
        for late in (True, False)
    )
    assert (late != early).float().mean() > 0.05


def test_norm_reads_rows_that_lie_apart(ops: TritonOps, device: torch.device):
    wide = torch.full((3, 200), float("nan"), device=device)
    x_TD = wide[:, 8:80]
    x_TD.copy_(random(device, 3, 72))
    weights = norm_weights(NORMS[0], 72, torch.float32, device)
    assert_close(ops.norm(x_TD, weights), reference.norm(x_TD.contiguous(), weights))


def test_a_norm_with_a_weight_a_head_is_the_reference_s(ops: TritonOps, device: torch.device):
    weights = NormWeights(spec=NORMS[0], weight=random(device, 4, 16), bias=None)
    x_THK = random(device, 5, 4, 16)
    assert ops.norm(x_THK, weights).equal(reference.norm(x_THK, weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", get_args(Activation))
def test_activations(ops: TritonOps, device: torch.device, activation: Activation, dtype: torch.dtype):
    x_TF = random(device, 3, 200, scale=2.0).to(dtype)
    x_TF[0, :4] = torch.tensor([60.0, -60.0, 0.0, -0.0])
    truth = reference.activate(x_TF.double(), activation)
    assert_close(ops.activate(x_TF, activation), truth)
    gate, up = x_TF.double().chunk(2, dim=-1)
    assert_close(ops.activate_gate(x_TF, activation), reference.activate(gate, activation) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_rows_are_exact(ops: TritonOps, device: torch.device, dtype: torch.dtype):
    weight, ids = random(device, 37, 48).to(dtype), torch.tensor([0, 36, 5, 5, 0], device=device)
    assert ops.embed(ids, weight).equal(weight[ids])


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (0.5, 30.0)])
@pytest.mark.parametrize("biased", [False, True])
def test_logits_are_float32_scaled_and_capped(
    ops: TritonOps, device: torch.device, scale: float, cap: float | None, biased: bool
):
    from dataclasses import replace

    from drivetrain_plugins.conformance.tiny_llama import tiny_spec
    from drivetrain_plugins.contract.ops import LinearWeight, Ops

    spec = replace(tiny_spec(), logits_scale=scale, logits_soft_cap=cap)
    weight, x_KD = random(device, 131, 64, scale=0.3).bfloat16(), random(device, 5, 64).bfloat16()
    bias = random(device, 131).bfloat16() if biased else None
    exact_head = LinearWeight(weight=weight.double(), bias=None if bias is None else bias.double())
    got = ops.logits(x_KD, LinearWeight(weight=weight, bias=bias), spec)
    assert got.dtype == torch.float32
    truth = Ops().logits(x_KD.double(), exact_head, spec)
    # Without a GPU the product is rounded to its inputs' type first.
    assert_close(got, truth, 5e-3 if device.type == "cpu" else 1e-5)
