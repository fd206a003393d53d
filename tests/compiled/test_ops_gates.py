"""The shared kernels compile for every part without spills, and what is compiled ahead is what is launched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton, which has no build for this platform")

from drivetrain_plugins.contract.batch import BatchLayout, SampleFeatures
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, EmbeddingSpec, LayerSpec, MlpSpec, NormSpec
from drivetrain_plugins.contract.slots import SlotState
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.cross_compile import SHARED_LIMITS, compile_variant
from drivetrain_triton.launch import recording
from drivetrain_triton.ops import TritonOps
from drivetrain_triton.variants import ops_variants

PARTS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
EVERY_RUN = ("sm_90", "gfx942")
META = torch.device("meta")
LIMITS = ExecutorLimits(
    dtype="bfloat16",
    kv_dtype="bfloat16",
    max_num_rows=512,
    max_step_tokens=8192,
    max_model_len=8192,
    page_size=64,
    memory=MemoryLimits(),
)


def model(*, hidden: int = 5120, vocab: int = 151_936) -> DecoderSpec:
    """Wide rows, layers of both kinds of norm, and everything that may follow an output product."""
    attention = AttentionSpec(num_heads=8, num_kv_heads=2, head_dim=64, scale=0.125)
    rms, layer_norm = NormSpec(kind="rms", eps=1e-6), NormSpec(kind="layer", eps=1e-5, bias=True)
    first = LayerSpec(mixer=attention, mlp=MlpSpec(inner_size=17_408, activation="silu"), norm=rms)
    second = replace(first, mlp=MlpSpec(inner_size=8192, activation="gelu", gated=False), norm=layer_norm)
    return DecoderSpec(
        architecture="Example",
        vocab_size=vocab,
        hidden_size=hidden,
        max_positions=8192,
        layers=(first, second, first),
        embedding=EmbeddingSpec(positions=8192, norm=layer_norm),
        final_norm=replace(rms, weight_offset=1.0, late_weight=False),
        lm_head_bias=True,
        logits_soft_cap=30.0,
    )


def part(name: str) -> GpuArch:
    return GpuArch(
        name=name,
        num_processors=132,
        shared_bytes=SHARED_LIMITS[name],
        pdl=name in ("sm_90", "sm_100", "sm_120"),
        warp_size=64 if name.startswith("gfx9") else 32,
    )


@pytest.mark.parametrize(
    "name", [name if name in EVERY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in PARTS]
)
def test_nothing_spills_and_everything_fits(name: str):
    variants = ops_variants(model(), LIMITS, part(name))
    assert len(variants) >= 20
    for variant in variants:
        made = compile_variant(name, variant)
        assert made.fits, f"{variant}: {made}"
        assert made.registers <= 128, f"{variant}: {made}"
        assert ("griddepcontrol.wait" in made.assembly) == variant.pdl


@pytest.mark.parametrize(("hidden", "vocab"), [(5120, 151_936), (72, 509), (16_384, 128_256)])
def test_serving_launches_nothing_that_was_not_compiled_ahead(hidden: int, vocab: int):
    spec, arch = model(hidden=hidden, vocab=vocab), part("sm_90")
    known = {variant.key for variant in ops_variants(spec, LIMITS, arch)}
    ops = TritonOps(arch)
    slots = SlotState(num_slots=512, max_pages=LIMITS.max_pages, vocab_size=vocab, device=META)
    with recording() as launched:
        for rows, tokens, biases in ((1, 1, 0), (16, 16, 1), (17, 1000, 3), (512, 8192, 64)):
            layout = BatchLayout(
                rows=rows,
                tokens=tokens,
                samples=rows,
                page_updates=rows,
                slot_updates=rows // 2,
                biases=biases,
                shared_groups=rows // 8,
            )
            inputs = ops.prepare(torch.empty(layout.size, dtype=torch.int32, device=META), layout, slots, 64)
            ops.embed(inputs.ids_T, torch.empty((vocab, hidden), dtype=torch.bfloat16, device=META))
            for features in (
                SampleFeatures(),
                SampleFeatures(random=True, biases=biases > 0),
                SampleFeatures(random=True, filters=True, penalties=True, logprobs=4),
            ):
                ops.sample(torch.empty((rows, vocab), device=META), inputs, slots, features)
            masked = replace(
                inputs,
                mask_rows_M=torch.empty(rows, dtype=torch.int32, device=META),
                masks_MW=torch.empty((rows, -(-vocab // 32)), dtype=torch.int32, device=META),
            )
            ops.sample(torch.empty((rows, vocab), device=META), masked, slots, SampleFeatures(masks=True))
    unknown = [str(variant) for variant in launched if variant.key not in known]
    assert launched
    assert not unknown
