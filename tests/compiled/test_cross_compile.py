"""Kernels compile for parts that are not here, and the report says what the code does."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton, which has no build for this platform")

from triton.runtime import driver

from compiled import kernels
from drivetrain_plugins.errors import Unsupported
from drivetrain_triton.cross_compile import AMD_ARCHS, NVIDIA_ARCHS, compile_for, compile_variant
from drivetrain_triton.launch import Variant, compile_all, launch, recording

BF16 = torch.bfloat16
MATRIX = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), "mma.sync"),
    **{"sm_90": "wgmma", "sm_100": "tcgen05"},
    **dict.fromkeys(("gfx90a", "gfx942", "gfx950"), "mfma"),
    **dict.fromkeys(("gfx1100", "gfx1201"), "wmma"),
}


@pytest.mark.parametrize("arch", [*NVIDIA_ARCHS, *AMD_ARCHS])
def test_a_product_uses_the_part_s_matrix_instruction(arch: str) -> None:
    sizes: dict[str, Any] = {"M": 64, "N": 64, "K": 32, "PDL": False}
    made = compile_for(arch, kernels.product, (BF16, BF16, torch.float32), sizes)
    assert made.matrix_instructions == {MATRIX[arch]}
    assert 0 < made.registers < 256
    assert made.shared_bytes >= 2 * 32 * 64
    assert made.machine_code


def test_a_kernel_without_products_has_none_and_fits() -> None:
    made = compile_for("sm_90", kernels.scale, (BF16, BF16, 2.0, 1024), {"BLOCK": 256, "PDL": False})
    assert made.matrix_instructions == set()
    assert made.fits, str(made)


def test_spills_are_seen() -> None:
    sizes: dict[str, Any] = {"M": 128, "N": 128, "K": 64, "PDL": False}
    made = compile_for("sm_80", kernels.product, (BF16, BF16, torch.float32), sizes, num_warps=1)
    assert made.spills > 0
    assert made.local_bytes > 0
    assert not made.fits


def test_too_much_shared_memory_is_seen() -> None:
    sizes: dict[str, Any] = {"M": 128, "N": 256, "K": 256, "PDL": False}
    made = compile_for("gfx90a", kernels.product, (BF16, BF16, BF16), sizes, num_warps=8)
    assert made.shared_bytes > 64 << 10
    assert not made.fits


def test_pointers_and_integers_are_specialised_as_launches_do() -> None:
    def loads(x: torch.Tensor, n: int) -> str:
        args = (x, BF16, 2.0, n)
        return compile_for("sm_90", kernels.scale, args, {"BLOCK": 256, "PDL": False}, num_warps=1).assembly

    aligned = torch.empty(1024, dtype=BF16, device="meta")
    assert "ld.global.v4" in loads(aligned, 1024)
    assert "ld.global.v4" not in loads(aligned[1:], 1024)
    assert "ld.global.v4" not in loads(aligned, 1023)


def test_dependent_launch_is_in_the_code_only_where_asked_for() -> None:
    with recording() as variants:
        for pdl in (True, False):
            launch(kernels.scale, (4,), BF16, BF16, 2.0, 1024, pdl=pdl, BLOCK=256)
    with_wait, without = (compile_variant("sm_90", variant).assembly for variant in variants)
    assert "griddepcontrol.wait" in with_wait
    assert "griddepcontrol.launch_dependents" in with_wait
    assert "griddepcontrol" not in without


def test_unknown_parts_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="no part 'sm_70' to compile for; expected one of sm_80"):
        compile_for("sm_70", kernels.scale, (), {})


def test_the_driver_comes_back_even_after_a_failure() -> None:
    before = driver._active
    with pytest.raises(Exception, match="BLOCK"):
        compile_for("sm_90", kernels.scale, (BF16, BF16, 2.0, 1024), {})
    assert driver._active is before


class TestCompileAll:
    """Threads compile side by side; the absent part stands for the device."""

    @pytest.fixture(autouse=True)
    def absent_gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        from drivetrain_triton.cross_compile import absent_gpu

        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(driver, "_active", absent_gpu("sm_90"))
        monkeypatch.setattr(
            kernels.product, "device_caches", type(kernels.product.device_caches)(kernels.product.create_binder)
        )

    @staticmethod
    def variants() -> list[Variant]:
        return [
            Variant(
                kernel=kernels.product,
                args=(dtype, dtype, torch.float32),
                constexprs={"M": m, "N": n, "K": 32},
                num_warps=4,
            )
            for dtype in (BF16, torch.float16)
            for m in (16, 32, 64)
            for n in (16, 32)
        ]

    def test_threads_make_what_one_thread_makes(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        compile_all(self.variants() * 2, max_workers=6).wait()
        cache = kernels.product.device_caches[0][0]
        assert len(cache) == 12
        together = {key: made.asm["ptx"] for key, made in cache.items()}
        cache.clear()
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "alone"))
        for variant in self.variants():
            variant.compile()
        assert {key: made.asm["ptx"] for key, made in cache.items()} == together
        assert os.listdir(tmp_path / "alone")

    def test_a_launch_after_finds_everything_compiled(self) -> None:
        compile_all(self.variants(), max_workers=2).wait()
        (tensor,) = (torch.empty(4096, dtype=BF16, device="meta"),)
        cache = kernels.product.device_caches[0][0]
        with recording() as variants:
            launch(kernels.product, (1,), tensor, tensor, tensor.float(), M=16, N=16, K=32)
        variants[0].compile()
        assert len(cache) == 12

    def test_equal_keys_are_equal_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = kernels.copy_from
        monkeypatch.setattr(kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder))
        x = torch.empty(4096, dtype=BF16, device="meta")
        keys: set[Any] = set()
        for source, out, first, n in (
            (x, x, 0, 32),
            (x[1:], x, 0, 32),  # alignment is not looked at
            (x, x[1:], 0, 32),
            (x, BF16, 7, 32),  # nor is the value of `first`
            (x, x, 1, 64),
            (x, x, 1, 1),
            (x, x, 1, 33),
            (x, x, 1 << 40, 33),
            (x.float(), x.float(), 0, 32),
        ):
            with recording() as variants:
                launch(kernel, (1,), source, out, first, n, BLOCK=64)
            variants[0].compile()
            keys.add(variants[0].key)
            assert len(kernel.device_caches[0][0]) == len(keys)
        assert len(keys) == 6

    def test_failures_name_the_kernel(self) -> None:
        bad = Variant(kernel=kernels.product, args=(BF16, BF16, torch.float32), constexprs={"M": 16, "N": 3, "K": 16})
        compilation = compile_all([*self.variants()[:2], bad], max_workers=2)
        with pytest.raises(RuntimeError, match=r"1 of 3 kernels did not compile; the first is product\(.*'N': 3"):
            compilation.wait()
        assert compilation.remaining == 0
