"""Every configuration of the tables of products compiles for every part without spills and within its memory."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton, which has no build for this platform")

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import NormSpec
from drivetrain_plugins.contract.ops import LinearWeight
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.cross_compile import AMD_ARCHS, SHARED_LIMITS, compile_variant
from drivetrain_triton.launch import Variant, recording
from drivetrain_triton.linear import Linears
from drivetrain_triton.linear_tables import every_entry

BF16 = torch.bfloat16
NVIDIA = ("sm_80", "sm_90", "sm_100", "sm_120")


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=BF16, device="meta")


def recorded(arch: str) -> list[Variant]:
    """What each entry that this part uses would launch."""
    made = Linears(
        GpuArch(
            name=arch,
            num_processors=132,
            shared_bytes=SHARED_LIMITS[arch],
            pdl=arch in ("sm_90", "sm_100", "sm_120"),
            warp_size=64 if arch.startswith("gfx9") else 32,
        )
    )
    norm = NormSpec(kind="rms", eps=1e-5)
    with recording() as variants:
        for entry in every_entry(arch):
            if entry.config is None:
                continue
            x = meta(entry.tokens, entry.k)
            weights = NormWeights(spec=norm, weight=meta(entry.k), bias=None)
            joins = entry.config.kind != "stream"
            if entry.gate:
                layer = LinearWeight(weight=meta(2 * entry.n, entry.k))
                assert (made.norm_gate(x, weights, layer, "silu") is not None) == joins
                assert (made.gate_product(x, layer, "silu") is not None) != joins
            else:
                layer = LinearWeight(weight=meta(entry.n, entry.k))
                assert (made.norm_product(x, weights, layer) is not None) == joins
                made.add_product(x, layer, meta(entry.tokens, entry.n))
    return variants


@pytest.mark.parametrize("arch", [*NVIDIA, *AMD_ARCHS])
def test_every_entry_fits(arch: str) -> None:
    distinct = {variant.key: variant for variant in recorded(arch)}.values()
    assert distinct
    for variant in distinct:
        made = compile_variant(arch, variant)
        assert made.fits, f"{variant}: {made}"
        if variant.kernel.__name__ == "stream_gemm_kernel":
            assert made.matrix_instructions == {"wgmma"}, f"{variant}: {made}"
            assert "cp.async.bulk.tensor" in made.assembly
        elif variant.kernel.__name__ == "skinny_gemm_kernel":
            assert made.matrix_instructions, f"{variant}: {made}"
        else:
            assert not made.matrix_instructions
