"""Every configuration of prefill attention compiles for its part without spills, into its matrix instructions."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="needs the package triton, which has no build for this platform")

from drivetrain_cuda.kernels.prefill_variants import prefill_variants
from drivetrain_cuda.tables.prefill import PREFILL_CONFIGS, SIBLINGS, PrefillConfig, prefill_config
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, EmbeddingSpec, LayerSpec, MlpSpec, NormSpec
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.cross_compile import SHARED_LIMITS, compile_variant
from drivetrain_triton.launch import Variant

MATRIX = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma.sync"}
ODD_SIZES = {64: 48, 128: 80, 256: 192}
EVERY_RUN = [("sm_90", 128, 2)]


def variants(
    arch: str, mixer: AttentionSpec, *, item_bytes: int, page: int = 64, kv: str | None = None
) -> list[Variant]:
    """What a model of one such layer launches."""
    dtype = {2: "bfloat16", 4: "float32"}[item_bytes]
    limits = ExecutorLimits(
        dtype=dtype,  # type: ignore[arg-type]
        kv_dtype=kv or dtype,  # type: ignore[arg-type]
        max_num_rows=64,
        max_step_tokens=8192,
        max_model_len=8192,
        page_size=page,
        memory=MemoryLimits(),
    )
    norm = NormSpec(kind="rms", eps=1e-6)
    spec = DecoderSpec(
        architecture="Example",
        vocab_size=1000,
        hidden_size=1024,
        max_positions=8192,
        layers=(LayerSpec(mixer=mixer, mlp=MlpSpec(inner_size=1024, activation="silu"), norm=norm),),
        embedding=EmbeddingSpec(),
        final_norm=norm,
    )
    part = GpuArch(name=arch, num_processors=132, shared_bytes=SHARED_LIMITS[arch], pdl=arch != "sm_80")
    return prefill_variants(spec, limits, part)


def plain(head_dim: int, *, group: int = 4) -> AttentionSpec:
    return AttentionSpec(num_heads=8 * group, num_kv_heads=8, head_dim=head_dim, scale=0.1)


def featured(head_dim: int) -> AttentionSpec:
    """Everything at once, and a group that fills no block."""
    mixer = plain(head_dim, group=7)
    return replace(mixer, window=100, soft_cap=30.0, sinks=True, alibi_slopes=(0.1,) * mixer.num_heads)


@pytest.mark.parametrize("case", ["plain", "featured", "fp8"])
@pytest.mark.parametrize(
    "key",
    [key if key in EVERY_RUN else pytest.param(key, marks=pytest.mark.slow) for key in PREFILL_CONFIGS],
    ids=lambda key: "-".join(map(str, key)),
)
def test_nothing_spills_and_products_use_matrix_units(key: tuple[str, int, int], case: str):
    arch, size, item_bytes = key
    if case == "plain":
        found = variants(arch, plain(size), item_bytes=item_bytes)
    elif case == "featured":
        found = variants(arch, featured(ODD_SIZES[size]), item_bytes=item_bytes, page=16)
    else:
        found = variants(arch, plain(size), item_bytes=item_bytes, kv="fp8_e4m3")
    assert len(found) == 2
    for variant in found:
        made = compile_variant(arch, variant)
        assert made.fits, f"{variant}: {made}"
        assert ("griddepcontrol.wait" in made.assembly) == (arch != "sm_80")
    if item_bytes == 2:
        assert MATRIX[arch] in made.matrix_instructions, str(made)
        maps = PREFILL_CONFIGS[key].mapped and case != "featured"
        assert ("cp.async.bulk.tensor" in made.assembly) == maps
    else:
        assert not made.matrix_instructions, "fp32 is exact, so it may not round to tf32"


def test_parts_without_entries_use_a_siblings():
    assert prefill_config("sm_89", 80, 2) is PREFILL_CONFIGS["sm_120", 128, 2]
    assert all((sibling, 64, 2) in PREFILL_CONFIGS for sibling in SIBLINGS.values())
    with pytest.raises(ValueError, match=r"no prefill configuration for sm_75, head size 64, 2 bytes.*sm_80.*add an"):
        prefill_config("sm_75", 64, 2)
    with pytest.raises(ValueError, match="head size 300"):
        prefill_config("sm_90", 300, 2)


def test_every_entry_can_pack_a_large_group():
    for config in PREFILL_CONFIGS.values():
        assert isinstance(config, PrefillConfig)
        assert config.block_m >= 16 and config.block_n >= 16
