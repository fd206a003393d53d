"""The activations, elementwise in fp32, for kernels that end with one."""

# Relaxed: Triton's language is untyped.
# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activated(x, KIND: tl.constexpr):
    """An activation of `contract.model` by its name.

    Args:
        x: fp32, any shape.
    """
    if KIND == "silu":
        return x / (1.0 + tl.exp(-x))
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * (1.0 - 1.0 / (1.0 + tl.exp(2.0 * inner)))
    elif KIND == "gelu_quick":
        return x / (1.0 + tl.exp(-1.702 * x))
    elif KIND == "relu":
        return tl.maximum(x, 0.0)
    else:
        tl.static_assert(KIND == "relu2", "unknown activation")
        positive = tl.maximum(x, 0.0)
        return positive * positive
