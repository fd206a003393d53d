"""Attention of one sequence, dense, in float64 and in plain sight: what every paged kernel is judged by.

T queries, L keys, H query heads, G key-value heads, K head size, X packed projections (H + 2 G) K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from drivetrain_plugins.contract.model import AttentionSpec, NormSpec, RotarySpec

Rounding = Callable[[torch.Tensor], torch.Tensor]


def exact(x: torch.Tensor) -> torch.Tensor:
    """No rounding between operations."""
    return x


def rounded_to(dtype: torch.dtype) -> Rounding:
    """Round to `dtype` as storing a tensor of that type does, and go on in float64."""
    return lambda x: x.to(dtype).double()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParameters:
    """Float64 parameters of one attention layer on the host; None or empty where the spec has none."""

    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    sinks_H: torch.Tensor | None = None


def attention(
    qkv_LX: torch.Tensor,
    num_queries: int,
    spec: AttentionSpec,
    parameters: AttentionParameters,
    *,
    store: Rounding = exact,
    between: Rounding = exact,
) -> torch.Tensor:
    """Outputs (T, H K) of the last `num_queries` tokens of a sequence of packed projections.

    Args:
        qkv_LX: float64 projections of every token of the sequence, as the backend was given them.
        store: rounding of keys and values into the cache.
        between: rounding after each operation, to see what plain code in that type would make of it.
    """
    length, size = qkv_LX.shape[0], spec.head_dim
    if spec.clip_qkv is not None:
        qkv_LX = qkv_LX.clamp(-spec.clip_qkv, spec.clip_qkv)
    heads, groups = spec.num_heads, spec.num_kv_heads
    packed_LXK = qkv_LX.view(length, heads + 2 * groups, size)
    q_LHK, k_LGK = packed_LXK[:, :heads], packed_LXK[:, heads : heads + groups]
    v_LGK = packed_LXK[:, heads + groups :]
    if spec.qk_norm is not None:
        q_LHK = between(_qk_norm(q_LHK, spec.qk_norm.norm, spec.qk_norm.span, parameters.q_norm))
        k_LGK = between(_qk_norm(k_LGK, spec.qk_norm.norm, spec.qk_norm.span, parameters.k_norm))
    if spec.rotary is not None:
        q_LHK, k_LGK = between(rotate(q_LHK, spec.rotary)), between(rotate(k_LGK, spec.rotary))
    k_LGK, v_LGK = store(k_LGK), store(v_LGK)
    out_THK = dense(q_LHK[length - num_queries :], k_LGK, v_LGK, spec, parameters.sinks_H, between=between)
    return between(out_THK.flatten(1))


def dense(
    q_THK: torch.Tensor,
    k_LGK: torch.Tensor,
    v_LGK: torch.Tensor,
    spec: AttentionSpec,
    sinks_H: torch.Tensor | None = None,
    *,
    between: Rounding = exact,
) -> torch.Tensor:
    """Causal attention (T, H, K) of the last T of L tokens, all in float64."""
    queries, length = q_THK.shape[0], k_LGK.shape[0]
    repeat = spec.num_heads // spec.num_kv_heads
    k_LHK, v_LHK = (x.repeat_interleave(repeat, dim=1) for x in (k_LGK, v_LGK))
    scores_HTL = between(torch.einsum("thk,lhk->htl", q_THK, k_LHK) * spec.scale)
    if spec.soft_cap is not None:
        scores_HTL = spec.soft_cap * torch.tanh(scores_HTL / spec.soft_cap)
    query_T1 = torch.arange(length - queries, length)[:, None]
    key_L = torch.arange(length)
    if spec.alibi_slopes:
        slopes_H11 = torch.tensor(spec.alibi_slopes, dtype=torch.float64)[:, None, None]
        scores_HTL = scores_HTL + slopes_H11 * (key_L - query_T1)
    hidden_TL = key_L > query_T1
    if spec.window is not None:
        hidden_TL |= key_L <= query_T1 - spec.window
    scores_HTL = scores_HTL.masked_fill(hidden_TL, float("-inf"))
    if sinks_H is not None:
        sink_HT1 = sinks_H[:, None, None].expand(-1, queries, 1)
        p_HTL = torch.cat((scores_HTL, sink_HT1), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        p_HTL = scores_HTL.softmax(dim=-1)
    return torch.einsum("htl,lhk->thk", between(p_HTL), v_LHK)


def rotate(x_LHK: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
    """Rotary embedding of a whole sequence, positions from 0; unscaled."""
    cos_L1F, sin_L1F = (table.unsqueeze(1) for table in angles(rotary, x_LHK.shape[0]))
    turned, rest = x_LHK[..., : rotary.dim], x_LHK[..., rotary.dim :]
    if rotary.style == "interleaved":
        a, b = turned[..., 0::2], turned[..., 1::2]
        return torch.cat(
            (torch.stack((a * cos_L1F - b * sin_L1F, b * cos_L1F + a * sin_L1F), -1).flatten(-2), rest), -1
        )
    a, b = turned[..., : rotary.dim // 2], turned[..., rotary.dim // 2 :]
    return torch.cat((a * cos_L1F - b * sin_L1F, b * cos_L1F + a * sin_L1F, rest), dim=-1)


def angles(rotary: RotarySpec, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, dim / 2) in float64."""
    frequency_F = rotary.base ** (-torch.arange(0, rotary.dim, 2, dtype=torch.float64) / rotary.dim)
    angle_PF = torch.arange(positions, dtype=torch.float64)[:, None] * frequency_F
    return angle_PF.cos(), angle_PF.sin()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def _qk_norm(x_LHK: torch.Tensor, norm: NormSpec, span: str, weight: torch.Tensor | None) -> torch.Tensor:
    assert weight is not None
    if span == "full":
        return rms_norm(x_LHK.flatten(1), weight, norm.eps).view_as(x_LHK)
    return rms_norm(x_LHK, weight, norm.eps)
