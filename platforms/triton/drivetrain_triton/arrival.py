"""What must come before a program tells others that its results are in memory.

The pattern is: every thread stores, `stores_done()`, a barrier, then one atomic with release semantics; who arrives
last acquires and reads the others' results.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import current_target


@triton.constexpr_function
def _stores_outlive_barriers() -> bool:
    """Whether a barrier lets a wave go on before the second-level cache has its stores: AMD's CDNA parts.

    There the release of one wave writes back only what the cache has, so each wave has to wait for its own stores. All
    other parts wait at the barrier.
    """
    target = current_target()
    return target is not None and target.backend == "hip" and target.arch.startswith("gfx9")


@triton.jit
def stores_done():
    """Wait until this thread's stores have reached the cache that all processors share, where nothing else does."""
    if _stores_outlive_barriers():
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\n\tv_mov_b32 $0, 0", "=v", [], dtype=tl.int32, is_pure=False, pack=1
        )
