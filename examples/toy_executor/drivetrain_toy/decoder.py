"""A Llama-style decoder in numpy float32, with keys and values in pages.

N lanes (sequences), Q queries a lane, L keys a lane, D hidden size, H query heads, G key-value heads, K head size,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drivetrain_plugins.contract.batch import Float32Array
from drivetrain_plugins.contract.executor import Weights
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, NormSpec, weight_shapes

_Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """The tokens of one step, an equal number in every lane.

    Attributes:
        ids_NQ: token ids.
        positions_NQ: their positions.
        write_NQ: page * page_size + offset that their keys and values go to.
        read_NL: where each lane's keys lie, by position.
    """

    ids_NQ: _Int64Array
    positions_NQ: _Int64Array
    write_NQ: _Int64Array
    read_NL: _Int64Array


class ToyDecoder:
    """Weights, pages and the forward pass.

    Args:
        num_slots: page slots of each layer, the null page's included.
    """

    def __init__(self, spec: DecoderSpec, weights: Weights, *, num_slots: int) -> None:
        self._spec = spec
        self._weights: dict[str, Float32Array] = {
            name: weights.load(name).float().numpy().reshape(shape) for name, shape in weight_shapes(spec)
        }
        self._k, self._v = (
            [np.zeros((num_slots, layer.mixer.num_kv_heads, layer.mixer.head_dim), np.float32) for layer in spec.layers]
            for _ in range(2)
        )

    def copy_slots(self, source: _Int64Array, destination: _Int64Array) -> None:
        """Copy keys and values between page slots in all layers."""
        for pages in (*self._k, *self._v):
            pages[destination] = pages[source]

    def forward(self, lanes: Lanes) -> Float32Array:
        """Hidden states (N, Q, D) after the final norm; writes keys and values."""
        spec = self._spec
        x_NQD = self._weights["embed.weight"][lanes.ids_NQ]
        for index, layer in enumerate(spec.layers):
            prefix = f"layers.{index}"
            x_NQD = x_NQD + self._attention(self._norm(x_NQD, f"{prefix}.attn_norm", layer.norm), index, lanes)
            y_NQD = self._norm(x_NQD, f"{prefix}.mlp_norm", layer.norm)
            gate, up = (self._linear(y_NQD, f"{prefix}.mlp.{name}") for name in ("gate", "up"))
            x_NQD = x_NQD + self._linear(gate / (np.float32(1) + np.exp(-gate)) * up, f"{prefix}.mlp.down")
        return x_NQD if spec.final_norm is None else self._norm(x_NQD, "final_norm", spec.final_norm)

    def logits(self, x_KD: Float32Array) -> Float32Array:
        """Logits (K, V)."""
        return x_KD @ self._weights["embed.weight" if self._spec.tied else "lm_head.weight"].T

    def _attention(self, x_NQD: Float32Array, index: int, lanes: Lanes) -> Float32Array:
        attn, prefix = self._spec.layers[index].mixer, f"layers.{index}.attn"
        heads, groups, size = attn.num_heads, attn.num_kv_heads, attn.head_dim
        shape = x_NQD.shape[:2]
        q_NQHK = _rotate(self._linear(x_NQD, f"{prefix}.q").reshape(*shape, heads, size), lanes.positions_NQ, attn)
        k_NQGK = _rotate(self._linear(x_NQD, f"{prefix}.k").reshape(*shape, groups, size), lanes.positions_NQ, attn)
        self._k[index][lanes.write_NQ] = k_NQGK
        self._v[index][lanes.write_NQ] = self._linear(x_NQD, f"{prefix}.v").reshape(*shape, groups, size)
        key_L = np.arange(lanes.read_NL.shape[1], dtype=np.int64)
        hidden_NQL = np.less(lanes.positions_NQ[:, :, None], key_L)
        k_NLGK, v_NLGK = (pages[index][lanes.read_NL] for pages in (self._k, self._v))
        q_NQGhK = q_NQHK.reshape(*shape, groups, heads // groups, size)
        scores = np.einsum("nqghk,nlgk->nghql", q_NQGhK, k_NLGK, optimize=True) * np.float32(attn.scale)
        scores = np.where(hidden_NQL[:, None, None], -np.inf, scores)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        mixed = np.einsum("nghql,nlgk->nqghk", p, v_NLGK, optimize=True)
        return self._linear(mixed.reshape(*shape, heads * size).astype(np.float32), f"{prefix}.out")

    def _linear(self, x: Float32Array, name: str) -> Float32Array:
        y = x @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, x: Float32Array, name: str, norm: NormSpec) -> Float32Array:
        size = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(norm.eps))
        return x / size.astype(np.float32) * self._weights[f"{name}.weight"]


def _rotate(x_NQHK: Float32Array, positions_NQ: _Int64Array, attn: AttentionSpec) -> Float32Array:
    rotary = attn.rotary
    assert rotary is not None, "`unsupported` refused it"
    frequency_F = rotary.base ** (-np.arange(0, rotary.dim, 2) / rotary.dim)
    angle = (positions_NQ[:, :, None] * frequency_F)[:, :, None, :]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    half = rotary.dim // 2
    a, b = x_NQHK[..., :half], x_NQHK[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1).astype(np.float32)
