"""Every entry of ROCm's tables compiles for its part: no spills, no scratch, within its shared memory, on its units."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton, which has no build for this platform")

from compiled.test_attention_gates import mixer
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_rocm.attention import RocmAttention
from drivetrain_rocm.fp8 import kv_dtypes
from drivetrain_rocm.parts import PARTS
from drivetrain_rocm.tables.decode import DECODE_CONFIGS
from drivetrain_rocm.tables.prefill import PREFILL_CONFIGS
from drivetrain_triton.attention.variants import LARGE_PAGES_BYTES, meta, meta_inputs, meta_layer
from drivetrain_triton.cross_compile import CompiledKernel, compile_variant
from drivetrain_triton.launch import Variant, recording

DECODE = StepShape(rows=8, tokens=8, pages=1, decode_only=True)
SHARED = StepShape(rows=8, tokens=8, pages=1, decode_only=True, shared_groups=2)
MIXED = StepShape(rows=8, tokens=64, pages=1)
KV_NAMES = {1: ("fp8_e4m3", "fp8_e5m2"), 2: ("bfloat16",), 4: ("float32",)}
ODD_SIZES = {64: 48, 128: 80, 256: 192}
FP8_INSTRUCTIONS = {
    "gfx942": r"v_cvt_(?:pk_)?f32_(?:fp8|bf8)",
    "gfx950": r"v_cvt_(?:scalef32_)?(?:pk_)?(?:f32|bf16|f16)_(?:fp8|bf8)",
}
"""Of parts whose conversions Triton knows; on gfx1201, which has them, it converts with integer instructions."""
EVERY_RUN = [("gfx942", 128, 2, "few"), ("gfx1201", 64, 1, "few")]
EVERY_RUN_PREFILL = [("gfx942", 128, 2)]


def featured(heads: int, kv_heads: int, size: int) -> AttentionSpec:
    """Everything at once."""
    return replace(mixer(heads, kv_heads, size), window=100, soft_cap=30.0, sinks=True, alibi_slopes=(0.1,) * heads)


def variants(part: str, spec: AttentionSpec, item_bytes: int, shape: StepShape, kv: str, page: int) -> list[Variant]:
    """What a layer launches in a step."""
    dtype = torch.float32 if item_bytes == 4 else torch.bfloat16
    stored = kv_dtypes(PARTS[part])[kv]  # type: ignore[index]
    num_pages = LARGE_PAGES_BYTES // (page * spec.num_kv_heads * spec.head_dim * stored.itemsize) + 1
    pages = meta(num_pages, page, spec.num_kv_heads, spec.head_dim, dtype=stored)
    cache = SimpleNamespace(spec=SimpleNamespace(page_size=page), k=[pages], v=[pages])
    attention = RocmAttention(arch=part, num_processors=304)
    with recording() as recorded:
        plan = attention.plan(meta_inputs(shape, 64), shape, None, cache)  # type: ignore[arg-type]
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        attention.attention(meta(shape.tokens, width, dtype=dtype), meta_layer(spec, dtype), cache, plan)  # type: ignore[arg-type]
    return list({variant.key: variant for variant in recorded}.values())


def named(found: list[Variant], *names: str) -> list[Variant]:
    return [variant for variant in found if variant.kernel.__name__ in names]


def check(part: str, variant: Variant, item_bytes: int, kv: str) -> CompiledKernel:
    """Nothing spills, and products of 16 bits run on the matrix units."""
    made = compile_variant(part, variant)
    assert made.fits, f"{variant.kernel.__name__} {kv} {variant.constexprs}: {made}"
    if item_bytes != 4:
        assert made.matrix_instructions == {PARTS[part].matrix}
        assert "mfma_f32_16x16x4_f32" not in made.assembly
    if item_bytes == 1 and part in FP8_INSTRUCTIONS:
        assert re.search(FP8_INSTRUCTIONS[part], made.assembly), f"{variant.kernel.__name__} {kv} converts by hand"
    return made


@pytest.mark.parametrize(
    ("part", "size", "item_bytes", "rows"),
    [pytest.param(*key, marks=[] if key in EVERY_RUN else [pytest.mark.slow]) for key in DECODE_CONFIGS],
)
def test_decode_entries(part: str, size: int, item_bytes: int, rows: str) -> None:
    """Norm, rotation and cache write beside everything that attention may have; and passes over shared pages."""
    plain, wide = ((32, 8), (28, 4)) if rows == "few" else ((71, 1), (71, 1))
    odd = ODD_SIZES[size]
    for kv in KV_NAMES[item_bytes]:
        found = named(variants(part, mixer(*plain, size), item_bytes, DECODE, kv, 64), "decode_kernel")
        found += named(variants(part, featured(*wide, odd), item_bytes, DECODE, kv, 16), "decode_kernel")
        if rows == "many" or item_bytes == 4:
            shared = replace(featured(28, 4, odd), window=None)
            found += named(variants(part, shared, item_bytes, SHARED, kv, 16), "cascade_kernel")
            found += named(variants(part, mixer(32, 8, size), item_bytes, SHARED, kv, 64), "cascade_kernel")
        for variant in found:
            made = check(part, variant, item_bytes, kv)
            if variant.kernel.__name__ == "decode_kernel":
                require_stores_before_arrival(part, made.assembly)


def require_stores_before_arrival(part: str, assembly: str) -> None:
    """Every wave's partial results are in the shared cache before the barrier behind which one wave says so."""
    lines = [line.strip() for line in assembly.splitlines()]
    arrival = next(i for i, line in enumerate(lines) if line.startswith("global_atomic_add"))
    barrier = max(i for i in range(arrival) if lines[i].startswith("s_barrier"))
    stored = max(i for i in range(barrier) if lines[i].startswith(("buffer_store", "global_store")))
    waits = ("s_waitcnt vmcnt(0)", "s_waitcnt_vscnt null, 0x0", "s_wait_storecnt 0x0")
    assert any(line in waits for line in lines[stored:barrier]), f"{part}: {lines[stored : arrival + 1]}"


@pytest.mark.parametrize(
    ("part", "size", "item_bytes"),
    [pytest.param(*key, marks=[] if key in EVERY_RUN_PREFILL else [pytest.mark.slow]) for key in PREFILL_CONFIGS],
)
def test_prefill_entries(part: str, size: int, item_bytes: int) -> None:
    kv = KV_NAMES[item_bytes][0]
    found = named(variants(part, mixer(32, 8, size), item_bytes, MIXED, kv, 64), "prefill_kernel", "write_kernel")
    found += named(variants(part, featured(28, 4, ODD_SIZES[size]), item_bytes, MIXED, kv, 16), "prefill_kernel")
    for variant in found:
        check(part, variant, 4 if variant.kernel.__name__ == "write_kernel" else item_bytes, kv)
    for fp8 in KV_NAMES[1] if item_bytes == 2 else ():
        for variant in named(variants(part, mixer(32, 8, size), 2, MIXED, fp8, 64), "prefill_kernel", "write_kernel"):
            check(part, variant, 4 if variant.kernel.__name__ == "write_kernel" else 1, fp8)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_planning(part: str) -> None:
    """Of decoding, with shared prefixes and without, and of prompts."""
    planners = {
        (variant.kernel.__module__, str(variant.constexprs)): variant
        for shape in (DECODE, SHARED, MIXED)
        for variant in named(variants(part, mixer(32, 8, 128), 2, shape, "bfloat16", 64), "plan_kernel")
    }
    assert len({module for module, _ in planners}) == 2
    for variant in planners.values():
        made = compile_variant(part, variant)
        assert made.fits, f"{variant.constexprs}: {made}"
