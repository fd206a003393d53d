"""A two-layer Llama with random weights, and its logits in dense float64: the truth of whole-model checks.

L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drivetrain_plugins.conformance import oracle
from drivetrain_plugins.contract.capabilities import Capabilities
from drivetrain_plugins.contract.executor import ExecutorLimits, Weights
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    RotarySpec,
    weight_shapes,
)

MAX_ROWS = 6
PAGES_A_ROW = 5
VOCAB_SIZE = 131


def tiny_spec() -> DecoderSpec:
    """Grouped heads, rotary, gated feed-forward and a vocabulary that is no round number."""
    norm = NormSpec(kind="rms", eps=1e-5)
    layer = LayerSpec(
        mixer=AttentionSpec(
            num_heads=4, num_kv_heads=2, head_dim=32, scale=32**-0.5, rotary=RotarySpec(dim=32, base=10_000.0)
        ),
        mlp=MlpSpec(inner_size=96, activation="silu"),
        norm=norm,
    )
    return DecoderSpec(
        architecture="LlamaForCausalLM",
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        max_positions=4096,
        layers=(layer, layer),
        final_norm=norm,
    )


def tiny_limits(capabilities: Capabilities) -> ExecutorLimits:
    """Limits that the checks stay within, in the device's preferred types; float32 if it has it."""
    dtype = "float32" if "float32" in capabilities.dtypes else capabilities.dtypes[0]
    kv_dtype = dtype if dtype in capabilities.kv_dtypes else capabilities.kv_dtypes[0]
    page_size = min(capabilities.page_sizes)
    return ExecutorLimits(
        dtype=dtype,
        kv_dtype=kv_dtype,
        max_num_rows=MAX_ROWS,
        max_step_tokens=max(4 * page_size, MAX_ROWS),
        max_model_len=PAGES_A_ROW * page_size,
        page_size=page_size,
        memory=MemoryLimits(kv_bytes=1 << 26, max_pages=MAX_ROWS * PAGES_A_ROW + 1),
    )


class TinyLlama(Weights):
    """Random weights under canonical names, rounded to `dtype` so that every device has the same ones."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype) -> None:
        self.spec = tiny_spec()
        self._weights: dict[str, torch.Tensor] = {}
        for name, shape in weight_shapes(self.spec):
            if name.endswith("norm.weight"):
                weight = 1 + 0.2 * torch.randn(shape, generator=generator)
            else:
                scale = 1.0 if name == "embed.weight" else 1.5 * shape[-1] ** -0.5
                weight = scale * torch.randn(shape, generator=generator)
            self._weights[name] = weight.to(dtype)

    def load(self, name: str) -> torch.Tensor:
        return self._weights[name]

    @property
    def total_bytes(self) -> int:
        return sum(weight.nbytes for weight in self._weights.values())

    def logits(self, ids: Sequence[int], *, last: int = 1) -> torch.Tensor:
        """Float64 logits (last, V) after each of the last tokens of a sequence."""
        return self.states(ids, last=last) @ self._weight("lm_head.weight").T

    def states(self, ids: Sequence[int], *, last: int = 1) -> torch.Tensor:
        """Float64 states after the final norm (last, D) of the last tokens of a sequence."""
        x_LD = self._weight("embed.weight")[torch.tensor(ids)]
        for index, layer in enumerate(self.spec.layers):
            prefix = f"layers.{index}"
            y_LD = self._norm(x_LD, f"{prefix}.attn_norm", layer.norm.eps)
            qkv = torch.cat([y_LD @ self._weight(f"{prefix}.attn.{name}.weight").T for name in "qkv"], dim=1)
            mixed = oracle.attention(qkv, len(ids), layer.mixer, oracle.AttentionParameters())
            x_LD = x_LD + mixed @ self._weight(f"{prefix}.attn.out.weight").T
            y_LD = self._norm(x_LD, f"{prefix}.mlp_norm", layer.norm.eps)
            gate, up = (y_LD @ self._weight(f"{prefix}.mlp.{name}.weight").T for name in ("gate", "up"))
            x_LD = x_LD + (gate * torch.sigmoid(gate) * up) @ self._weight(f"{prefix}.mlp.down.weight").T
        assert self.spec.final_norm is not None
        return self._norm(x_LD[-last:], "final_norm", self.spec.final_norm.eps)

    def _weight(self, name: str) -> torch.Tensor:
        return self._weights[name].double()

    def _norm(self, x_LD: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return oracle.rms_norm(x_LD, self._weight(f"{name}.weight"), eps)
