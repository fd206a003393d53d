"""The repaired interpreter gives what a GPU gives in 16 and 8 bits. On a GPU the same tests run for real."""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import os

import pytest
import torch
import triton
import triton.language as tl

from gpu_kernels.closeness import assert_close


@triton.jit
def arithmetic(x, y, out, lower, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i, i < n), tl.load(y + i, i < n)
    c = (a * b + a) * (b * b + 1.0) - 0.5 * a
    tl.store(out + i, tl.where(a < b, c, tl.maximum(a, c)), i < n)
    tl.store(lower + i, (a < b).to(tl.int32), i < n)


@triton.jit
def cast(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, i < n).to(out.dtype.element_ty), i < n)


@triton.jit
def reduce(x, total, largest, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    a = tl.load(x + i[:, None] * COLUMNS + j[None, :])
    tl.store(total + i, tl.sum(a.to(tl.float32), axis=1))
    tl.store(largest + i, tl.max(a, axis=1))
    tl.store(place + i, tl.argmax(a, axis=1))


@triton.jit
def product(x, y, out, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(out + i * N + j, tl.dot(tl.load(x + i * N + j), tl.load(y + i * N + j)))


@triton.jit
def constant(out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.full((BLOCK,), 1.1, tl.bfloat16) * 3.0)


@triton.jit
def larger_number(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.maximum(tl.load(x + i), tl.load(y + i)))


@triton.jit
def sum_of_range(start, out):
    total = 0
    first = tl.load(start)
    for i in range(first, first + 3):
        total += i
    tl.store(out, total)


def test_bf16_arithmetic_rounds_each_result(device: torch.device):
    x, y = torch.randn(2, 200, device=device, generator=torch.Generator(device).manual_seed(1)).bfloat16()
    out, lower = torch.empty_like(x), torch.empty(200, dtype=torch.int32, device=device)
    arithmetic[(1,)](x, y, out, lower, 200, BLOCK=256)
    c = (x * y + x) * (y * y + 1.0) - 0.5 * x
    assert lower.bool().equal(x < y)
    # A GPU may fuse a product and a sum and so round once less.
    assert_close(out, torch.where(x < y, c, torch.maximum(x, c)), 1e-2)


def test_bf16_arithmetic_of_the_interpreter_is_torchs(device: torch.device, interpreted: bool):
    if not interpreted:
        pytest.skip("a GPU fuses products and sums; the interpreter does not")
    x, y = torch.randn(2, 200, generator=torch.Generator().manual_seed(2)).bfloat16()
    out, lower = torch.empty_like(x), torch.empty(200, dtype=torch.int32)
    arithmetic[(1,)](x, y, out, lower, 200, BLOCK=256)
    c = (x * y + x) * (y * y + 1.0) - 0.5 * x
    assert out.equal(torch.where(x < y, c, torch.maximum(x, c)))


FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, *FLOAT8])
@pytest.mark.parametrize("wide", [torch.float32, torch.float16, torch.bfloat16])
def test_casts_round_to_the_nearest_even_and_back_exactly(
    device: torch.device, dtype: torch.dtype, wide: torch.dtype, interpreted: bool
):
    if dtype == torch.float8_e4m3fn and not interpreted and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU of compute capability 8.9: this one has no float8 e4m3")
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 0.0, -0.0, 2.0**-14, 1.0625, 1.1875, 17.0, 19.0])
    x = torch.cat((ties, torch.randn(246, generator=torch.Generator().manual_seed(3)) * 8)).to(wide).to(device)
    out = torch.empty(256, dtype=dtype, device=device)
    cast[(1,)](x, out, 256, BLOCK=256)
    assert out.float().equal(x.to(dtype).float())
    back = torch.empty(256, dtype=torch.float32, device=device)
    cast[(1,)](out, back, 256, BLOCK=256)
    assert back.equal(out.float())


def test_bf16_to_and_from_integers(device: torch.device):
    x = torch.tensor([0.0, 1.5, -2.75, 255.0] * 4, dtype=torch.bfloat16, device=device)
    whole = torch.empty(16, dtype=torch.int32, device=device)
    cast[(1,)](x, whole, 16, BLOCK=16)
    assert whole[:4].tolist() == [0, 1, -2, 255]
    cast[(1,)](torch.tensor([257, 259, 3, -1] * 4, dtype=torch.int32, device=device), x, 16, BLOCK=16)
    assert x[:4].tolist() == [256.0, 260.0, 3.0, -1.0]


def test_bf16_reductions(device: torch.device):
    x = torch.randn(4, 64, device=device, generator=torch.Generator(device).manual_seed(4)).bfloat16()
    total, largest = torch.empty(4, device=device), torch.empty(4, dtype=torch.bfloat16, device=device)
    place = torch.empty(4, dtype=torch.int32, device=device)
    reduce[(1,)](x, total, largest, place, ROWS=4, COLUMNS=64)
    torch.testing.assert_close(total, x.float().sum(1), rtol=1e-5, atol=1e-5)
    assert largest.equal(x.amax(1))
    assert place.equal(x.argmax(1).int())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2, torch.float16])
def test_products_accumulate_in_float32(device: torch.device, dtype: torch.dtype):
    x, y = torch.randn(2, 32, 32, device=device, generator=torch.Generator(device).manual_seed(5)).to(dtype)
    out = torch.empty(32, 32, device=device)
    product[(1,)](x, y, out, N=32)
    torch.testing.assert_close(out, x.float() @ y.float(), rtol=1e-4, atol=1e-3)


def test_bf16_constants(device: torch.device):
    out = torch.empty(16, dtype=torch.bfloat16, device=device)
    constant[(1,)](out, BLOCK=16)
    assert out[0].item() == (torch.tensor(1.1, dtype=torch.bfloat16) * 3.0).item()


def test_the_larger_of_a_number_and_nan_is_the_number(device: torch.device):
    x = torch.tensor([float("nan"), 1.0] * 8, device=device)
    y = torch.tensor([2.0, float("nan")] * 8, device=device)
    out = torch.empty(16, device=device)
    larger_number[(1,)](x, y, out, BLOCK=16)
    assert out.tolist() == [2.0, 1.0] * 8


def test_a_loaded_number_bounds_a_loop(device: torch.device):
    out = torch.empty(1, dtype=torch.int32, device=device)
    sum_of_range[(1,)](torch.tensor([5], dtype=torch.int32, device=device), out)
    assert out.item() == 5 + 6 + 7


def test_the_environment_is_what_the_device_says(device: torch.device):
    assert (device.type == "cpu") == (os.environ.get("TRITON_INTERPRET") == "1")
