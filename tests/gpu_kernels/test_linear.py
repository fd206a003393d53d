"""Products of few tokens against float64: every ending, ragged sizes, poisoned outputs, split sums."""

from __future__ import annotations

import pytest
import torch

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import Activation, NormSpec
from drivetrain_plugins.contract.ops import LinearWeight
from drivetrain_plugins.contract.reference import activate
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.linear import Ending, Linears
from drivetrain_triton.linear_tables import LinearConfig

GATES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
SIZES = [(48, 64), (72, 136), (40, 520)]


def linears(interpreted: bool) -> Linears:
    """With the default tables, whose kernels run anywhere."""
    return Linears(GpuArch(name="sm_80", num_processors=132, shared_bytes=227 << 10, pdl=not interpreted))


def draw(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).to(device, dtype)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


def normed(x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
    assert norm.weight is not None
    scale = torch.rsqrt(x.double().square().mean(-1, keepdim=True) + norm.spec.eps)
    return x.double() * scale * (norm.weight.double() + norm.spec.weight_offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3, 16])
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_products(device: torch.device, interpreted: bool, tokens: int, outputs: int, inputs: int, dtype: torch.dtype):
    x = draw(tokens, inputs, dtype=dtype, device=device)
    bias = draw(outputs, dtype=dtype, device=device)
    weight = draw(outputs, inputs, dtype=dtype, device=device, scale=inputs**-0.5)
    total = draw(tokens, outputs, dtype=dtype, device=device)
    expected = x.double() @ weight.double().t()
    made = linears(interpreted)
    assert error(made.product(x, LinearWeight(weight=weight)), expected) < GATES[dtype]
    assert error(made.product(x, LinearWeight(weight=weight, bias=bias)), expected + bias.double()) < GATES[dtype]
    wide = made.product(x, LinearWeight(weight=weight), torch.float32)
    assert wide.dtype == torch.float32
    assert error(wide, expected) < 1e-5
    added = total.double() + expected + bias.double()
    same = made.add_product(x, LinearWeight(weight=weight, bias=bias), total)
    assert same is total
    assert error(total, added) < GATES[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_before(
    device: torch.device,
    interpreted: bool,
    tokens: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    offset: float,
):
    x = draw(tokens, inputs, dtype=dtype, device=device, scale=3.0)
    weight = draw(outputs, inputs, dtype=dtype, device=device, scale=inputs**-0.5)
    spec = NormSpec(kind="rms", eps=1e-5, weight_offset=offset)
    norm = NormWeights(spec=spec, weight=draw(inputs, dtype=dtype, device=device), bias=None)
    got = linears(interpreted).norm_product(x, norm, LinearWeight(weight=weight))
    if tokens > 2 and dtype != torch.bfloat16:
        assert got is None, "fp32 and fp16 do not fit the matrix units here"
        return
    assert got is not None
    assert error(got, normed(x, norm) @ weight.double().t()) < GATES[dtype]


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_gate_after(device: torch.device, interpreted: bool, tokens: int, activation: Activation):
    inputs, half, dtype = 136, 40, torch.bfloat16
    x = draw(tokens, inputs, dtype=dtype, device=device)
    weight = draw(2 * half, inputs, dtype=dtype, device=device, scale=inputs**-0.5)
    bias = draw(2 * half, dtype=dtype, device=device)
    norm = NormWeights(spec=NormSpec(kind="rms", eps=1e-6), weight=draw(inputs, dtype=dtype, device=device), bias=None)
    got = linears(interpreted).norm_gate(x, norm, LinearWeight(weight=weight, bias=bias), activation)
    assert got is not None
    both = normed(x, norm) @ weight.double().t() + bias.double()
    expected = activate(both[:, :half], activation) * both[:, half:]
    assert error(got, expected) < GATES[dtype]


def test_split_sums_leave_their_counters_at_zero(device: torch.device, interpreted: bool):
    """A second product with the same buffers, of other sizes, is as right as the first."""
    made = linears(interpreted)
    for outputs, inputs in ((40, 520), (72, 264), (40, 520)):
        x = draw(4, inputs, dtype=torch.bfloat16, device=device)
        weight = draw(outputs, inputs, dtype=torch.bfloat16, device=device, scale=inputs**-0.5)
        got = made.product(x, LinearWeight(weight=weight))
        assert error(got, x.double() @ weight.double().t()) < 5e-3


def test_norms_that_a_product_cannot_take_in(device: torch.device, interpreted: bool):
    x = draw(1, 64, dtype=torch.bfloat16, device=device)
    layer = LinearWeight(weight=draw(48, 64, dtype=torch.bfloat16, device=device))
    weight = draw(64, dtype=torch.bfloat16, device=device)
    made = linears(interpreted)
    for norm in (
        NormWeights(spec=NormSpec(kind="layer", eps=1e-5), weight=weight, bias=None),
        NormWeights(spec=NormSpec(kind="rms", eps=1e-5, bias=True), weight=weight, bias=weight),
        NormWeights(spec=NormSpec(kind="rms", eps=1e-5, weight=False), weight=None, bias=None),
    ):
        assert made.norm_product(x, norm, layer) is None


_STREAM = {"kind": "stream", "bn": 64, "bk": 64, "num_warps": 4}
STREAMED = [
    LinearConfig(**_STREAM, bm=32, stages=3, programs=1, rotation=1),
    LinearConfig(**_STREAM, bm=64, stages=4, programs=2),
    LinearConfig(**{**_STREAM, "bk": 128}, bm=128, stages=2, programs=7),
    LinearConfig(**{**_STREAM, "num_warps": 8}, bm=128, stages=2, programs=5, rotation=3),
    LinearConfig(**_STREAM, bm=16, stages=5, programs=132),
]
"""Programs with several tiles, tiles of several programs, programs that end amid a tile."""


@pytest.fixture
def hopper(device: torch.device) -> torch.device:
    if device.type == "cpu" or torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("the interpreter has no copy engine: needs a Hopper GPU")
    return device


@pytest.mark.parametrize("config", STREAMED, ids=lambda config: f"{config.bm}-{config.programs}-{config.rotation}")
@pytest.mark.parametrize(
    ("outputs", "inputs", "dtype"),
    [(64, 64, torch.bfloat16), (200, 520, torch.float16), (640, 1032, torch.bfloat16)],
    ids=str,
)
def test_streamed_products(
    hopper: torch.device, config: LinearConfig, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    """Twice each, because the first leaves the counters that the second starts with."""
    made = linears(interpreted=False)
    weight = draw(2 * outputs, inputs, dtype=dtype, device=hopper, scale=inputs**-0.5)
    bias = draw(2 * outputs, dtype=dtype, device=hopper)
    for tokens in (config.bm, config.bm - 3):
        x = draw(tokens, inputs, dtype=dtype, device=hopper)
        both = x.double() @ weight.double().t() + bias.double()
        plain = LinearWeight(weight=weight[:outputs], bias=bias[:outputs])
        total = draw(tokens, outputs, dtype=dtype, device=hopper)
        added = total.double() + both[:, :outputs]
        assert error(made.run(config, x, plain, total, Ending(add=True)), added) < GATES[dtype]
        out = torch.full((tokens, outputs), float("nan"), dtype=torch.float32, device=hopper)
        assert error(made.run(config, x, plain, out, Ending()), both[:, :outputs]) < 1e-5
        out = torch.full((tokens, outputs), float("nan"), dtype=dtype, device=hopper)
        layer = LinearWeight(weight=weight, bias=bias)
        gated = activate(both[:, :outputs], "silu") * both[:, outputs:]
        assert error(made.run(config, x, layer, out, Ending(gate="silu")), gated) < GATES[dtype]


def test_more_tokens_than_tables_have_go_to_the_library(device: torch.device, interpreted: bool) -> None:
    made = linears(interpreted)
    x = draw(300, 64, dtype=torch.bfloat16, device=device)
    layer = LinearWeight(weight=draw(96, 64, dtype=torch.bfloat16, device=device))
    assert made.gate_product(x, layer, "silu") is None
    assert error(made.product(x, layer), x.double() @ layer.weight.double().t()) < 5e-3


def test_a_gate_without_a_norm_is_for_streamed_products(hopper: torch.device) -> None:
    made = Linears(GpuArch(name="sm_90", num_processors=132, shared_bytes=227 << 10, pdl=True))
    layer = LinearWeight(weight=draw(80, 136, dtype=torch.bfloat16, device=hopper, scale=136**-0.5))
    x = draw(64, 136, dtype=torch.bfloat16, device=hopper)
    both = x.double() @ layer.weight.double().t()
    got = made.gate_product(x, layer, "silu")
    assert got is not None
    assert error(got, activate(both[:, :40], "silu") * both[:, 40:]) < 5e-3
    assert made.gate_product(x[:2], layer, "silu") is None
