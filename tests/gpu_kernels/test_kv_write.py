"""Norm, rotation and storing of keys and values of all tokens in one pass, against the reference."""

from __future__ import annotations

import pytest
import torch

from decode_case import DTYPES, GATES, DecodeCase, attention, head_norm, make_layer, relative_l2, rotary, spec
from drivetrain_cuda.attention import CudaAttention
from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.model import QKNormSpec


class WriteOnly(CudaAttention):
    """Shows the queries that attention is given."""

    queries: torch.Tensor

    def attend(self, q_THK, layer, cache, plan):  # type: ignore[no-untyped-def]
        self.queries = q_THK.clone()
        return q_THK


def check(layer: AttentionLayer, device: torch.device, dtype: torch.dtype, **more: object) -> None:
    case = DecodeCase(layer=layer, device=device, dtype=dtype, lengths=[30, 1, 17, 16], counts=[7, 1, 17, 2], **more)  # type: ignore[arg-type]
    source = attention()
    writer = WriteOnly.__new__(WriteOnly)
    writer.__dict__.update(source.__dict__)
    case.run(writer)
    q_THK, _, _ = case.transformed()
    if layer.rotary is None and layer.q_norm is None:
        assert torch.equal(writer.queries.cpu(), q_THK)
    assert relative_l2(writer.queries, q_THK.double()) <= GATES[dtype]
    case.check_cache()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "interleaved"), [(64, False), (64, True), (32, False), (16, True)])
def test_norm_and_rotary(device: torch.device, dtype: torch.dtype, dim: int, interleaved: bool) -> None:
    norms = {name: head_norm(64, dtype, device) for name in ("q_norm", "k_norm")}
    qk_norm = QKNormSpec(norm=norms["q_norm"].spec)
    check(
        make_layer(spec(qk_norm=qk_norm), device, rotary=rotary(dim, device, interleaved=interleaved), **norms),
        device,
        dtype,
    )


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(1, 1, 64), (3, 3, 80), (11, 11, 96), (20, 1, 128)])
def test_any_number_of_heads(device: torch.device, heads: int, kv_heads: int, size: int) -> None:
    check(make_layer(spec(heads, kv_heads, size), device, rotary=rotary(size, device)), device, torch.float16, page=32)


def test_nothing_to_transform(device: torch.device) -> None:
    check(make_layer(spec(), device), device, torch.bfloat16)


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16], ids=str)
def test_another_type_of_cache(device: torch.device, kv_dtype: torch.dtype) -> None:
    check(make_layer(spec(), device, rotary=rotary(64, device)), device, torch.bfloat16, kv_dtype=kv_dtype)


def test_the_contract_composes_the_same(device: torch.device) -> None:
    """`PagedAttention.attention` over `write` and `attend` gives what the fused kernels give."""

    class Composed(CudaAttention):
        attention = PagedAttention.attention

    layer = make_layer(spec(), device, rotary=rotary(64, device))
    case = DecodeCase(layer=layer, device=device, dtype=torch.float32, lengths=[30, 1, 17], counts=[7, 1, 1])
    source = attention()
    composed = Composed.__new__(Composed)
    composed.__dict__.update(source.__dict__)
    assert relative_l2(case.run(composed), case.run(source).double()) <= 1e-5
    assert relative_l2(case.run(source), case.truth()) <= 1e-5
