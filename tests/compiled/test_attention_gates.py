"""Every entry of the decode table compiles for its parts without spills and within their shared memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from drivetrain_cuda.attention import CudaAttention, DecodeOnly, decode_variants
from drivetrain_cuda.tables.decode import DECODE_CONFIGS, decode_config
from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    QKNormSpec,
    RotarySpec,
)
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.attention.variants import meta, meta_inputs, meta_layer
from drivetrain_triton.cross_compile import compile_variant
from drivetrain_triton.launch import Variant, recording

PARTS = ("sm_80", "sm_90", "sm_100", "sm_120")
PARTS_SLOWLY = [pytest.param(part, marks=[] if part == "sm_90" else [pytest.mark.slow]) for part in PARTS]
STORED = {1: torch.float8_e4m3fn, 2: torch.bfloat16, 4: torch.float32}


def mixer(heads: int, kv_heads: int, size: int, **more: object) -> AttentionSpec:
    norm = NormSpec(kind="rms", eps=1e-6)
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        scale=size**-0.5,
        rotary=RotarySpec(dim=size, base=1e4),
        qk_norm=QKNormSpec(norm=norm),
        **more,  # type: ignore[arg-type]
    )


def variants(part: str, spec: AttentionSpec, item_bytes: int, shape: StepShape, page: int = 64) -> list[Variant]:
    """What a layer launches in a step, planning left out."""
    dtype = torch.float32 if item_bytes == 4 else torch.bfloat16
    pages = meta(2, page, spec.num_kv_heads, spec.head_dim, dtype=STORED[item_bytes])
    cache = SimpleNamespace(spec=SimpleNamespace(page_size=page), k=[pages], v=[pages])
    attention = DecodeOnly(arch=part, num_processors=132, pdl=part not in ("sm_80",))
    with recording() as recorded:
        plan = attention.plan(meta_inputs(shape, 64), shape, None, cache)  # type: ignore[arg-type]
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        attention.attention(meta(shape.tokens, width, dtype=dtype), meta_layer(spec, dtype), cache, plan)  # type: ignore[arg-type]
    return [variant for variant in recorded if variant.kernel.__name__ != "plan_kernel"]


def check(part: str, variant: Variant, instruction: str | None) -> None:
    compiled = compile_variant(part, variant)
    assert compiled.fits, f"{variant.kernel.__name__}: {compiled}"
    assert instruction is None or instruction in compiled.matrix_instructions


DECODE = StepShape(rows=8, tokens=8, pages=1, decode_only=True)
SHARED = StepShape(rows=8, tokens=8, pages=1, decode_only=True, shared_groups=2)


@pytest.mark.parametrize("item_bytes", STORED)
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("part", PARTS_SLOWLY)
def test_entries_for_few_rows(part: str, size: int, item_bytes: int) -> None:
    """Groups of four heads, and the pass over shared pages that packs rows of them."""
    cascade, decode = variants(part, mixer(32, 8, size), item_bytes, SHARED)
    exact = item_bytes == 4
    check(part, decode, None if exact else "mma.sync")
    packed = {"sm_90": "wgmma"}.get(part, "mma.sync") if part != "sm_100" else None
    check(part, cascade, None if exact else packed)


@pytest.mark.parametrize("item_bytes", STORED)
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("part", PARTS_SLOWLY)
def test_entries_for_many_rows(part: str, size: int, item_bytes: int) -> None:
    (decode,) = variants(part, mixer(71, 1, size), item_bytes, DECODE)
    check(part, decode, None)


@pytest.mark.parametrize("part", PARTS_SLOWLY)
@pytest.mark.parametrize(
    "spec",
    [
        mixer(3, 3, 80),
        mixer(7, 1, 96),
        mixer(8, 4, 192, window=1024, soft_cap=30.0),
        mixer(64, 8, 64, window=128, sinks=True),
    ],
    ids=["80", "96", "192 capped", "sinks"],
)
def test_other_sizes_and_kinds(part: str, spec: AttentionSpec) -> None:
    for variant in variants(part, spec, 2, DECODE, page=16):
        check(part, variant, "mma.sync")


@pytest.mark.parametrize("part", ["sm_80", "sm_90"])
@pytest.mark.parametrize("item_bytes", STORED)
def test_steps_with_chunks(part: str, item_bytes: int) -> None:
    """The kernel that writes the cache, and decoding beside it."""
    shape = StepShape(rows=8, tokens=64, pages=1)
    for variant in variants(part, mixer(32, 8, 128), item_bytes, shape):
        check(part, variant, None)


@pytest.mark.parametrize("part", ["sm_80", "sm_90"])
@pytest.mark.parametrize("rows", [1, 300, 1024])
def test_planning(part: str, rows: int) -> None:
    attention = DecodeOnly(arch=part, num_processors=132, pdl=part == "sm_90")
    shape = StepShape(rows=rows, tokens=rows, pages=1, decode_only=True, shared_groups=8)
    spec = mixer(32, 8, 128)
    pages = meta(2, 64, 8, 128, dtype=torch.bfloat16)
    cache = SimpleNamespace(spec=SimpleNamespace(page_size=64), k=[pages], v=[pages])
    with recording() as recorded:
        plan = attention.plan(meta_inputs(shape, 64), shape, None, cache)  # type: ignore[arg-type]
        qkv_TX = meta(rows, 48 * 128, dtype=torch.bfloat16)
        attention.attention(qkv_TX, meta_layer(spec, torch.bfloat16), cache, plan)  # type: ignore[arg-type]
    assert recorded[0].kernel.__name__ == "plan_kernel"
    check(part, recorded[0], None)


def test_the_table_has_an_entry_for_every_part_it_names() -> None:
    for part in (*PARTS, "sm_86", "sm_89", "sm_103", "sm_121"):
        for size in (64, 80, 128, 192, 256):
            assert decode_config(part, size, 2, 2, 16).block_n >= 16
    with pytest.raises(ValueError, match=r"no decode configuration for sm_75, head size 128.*parts are .*sm_90"):
        decode_config("sm_75", 128, 2, 2, 16)
    with pytest.raises(ValueError, match="head size 512"):
        decode_config("sm_90", 512, 2, 2, 16)
    assert {part for part, *_ in DECODE_CONFIGS} <= set(PARTS)


def model(*mixers: AttentionSpec) -> DecoderSpec:
    norm = NormSpec(kind="rms", eps=1e-6)
    mlp = MlpSpec(inner_size=64, activation="silu")
    return DecoderSpec(
        architecture="Tiny",
        vocab_size=8,
        hidden_size=64,
        max_positions=4096,
        layers=tuple(LayerSpec(mixer=each, mlp=mlp, norm=norm) for each in mixers),
        final_norm=norm,
    )


@pytest.mark.parametrize("rows", [1, 5, 17, 33])
@pytest.mark.parametrize("decode_only", [True, False])
def test_whatever_a_step_launches_was_listed(rows: int, decode_only: bool) -> None:
    limits = ExecutorLimits(
        dtype="bfloat16",
        kv_dtype="fp8_e4m3",
        max_num_rows=32,
        max_step_tokens=512,
        max_model_len=4096,
        page_size=64,
        memory=MemoryLimits(),
    )
    specs = (mixer(8, 2, 64), mixer(8, 2, 64, window=100), mixer(4, 4, 80))
    arch = GpuArch(name="sm_90", num_processors=132, shared_bytes=227 << 10, pdl=True)
    listed = {variant.key for variant in decode_variants(model(*specs), limits, arch)}
    attention = DecodeOnly(arch="sm_90", num_processors=132, pdl=True)
    for shared_groups in (0, 8):
        tokens = rows if decode_only else rows + 3
        shape = StepShape(rows=rows, tokens=tokens, pages=9, decode_only=decode_only, shared_groups=shared_groups)
        for spec in specs:
            pages = meta(77, 64, spec.num_kv_heads, spec.head_dim, dtype=torch.float8_e4m3fn)
            cache = SimpleNamespace(spec=SimpleNamespace(page_size=64), k=[pages], v=[pages])
            width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
            with recording() as launched:
                plan = attention.plan(meta_inputs(shape, 64), shape, None, cache)  # type: ignore[arg-type]
                qkv_TX = meta(shape.tokens, width, dtype=torch.bfloat16)
                attention.attention(qkv_TX, meta_layer(spec, torch.bfloat16), cache, plan)  # type: ignore[arg-type]
            assert launched and {variant.key for variant in launched} <= listed


def test_keys_and_values_are_written_without_queries():
    spec = AttentionSpec(num_heads=8, num_kv_heads=2, head_dim=128, scale=0.1)
    layer = AttentionLayer(index=0, spec=spec, rotary=None, q_norm=None, k_norm=None, sinks_H=None, alibi_H=None)
    pages_PSGK = torch.empty(10, 64, 2, 128, dtype=torch.bfloat16, device="meta")
    new_TGK = torch.empty(5, 2, 128, dtype=torch.bfloat16, device="meta")
    where_T = torch.empty(5, dtype=torch.int64, device="meta")
    cache = SimpleNamespace(k=[pages_PSGK], v=[pages_PSGK], spec=SimpleNamespace(page_size=64))
    plan = SimpleNamespace(inputs=SimpleNamespace(positions_T=where_T, kv_slots_T=where_T))
    with recording() as variants:
        CudaAttention(arch="sm_90", num_processors=132, pdl=True).write(new_TGK, new_TGK, layer, cache, plan)  # type: ignore[arg-type]
    assert [compile_variant("sm_90", variant).fits for variant in variants] == [True]
