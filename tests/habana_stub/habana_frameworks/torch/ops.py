"""Schemas of `torch.ops.hpu`, word for word as the bridge registers them, with reference bodies on the processor.

From habana_eager/eager_custom_op_register.cpp and scripts/hpu_op.yaml, tag v1.19.0.
"""

from __future__ import annotations

import torch

SCHEMAS = (
    "rms_norm(Tensor data_in, Tensor gamma, float epsilon) -> (Tensor, Tensor)",
    "sdpa_recomp_fwd(Tensor q, Tensor k, Tensor v, Tensor? attention_mask, float p, float scale, bool is_causal, "
    "bool requires_backward, str softmax_mode, Tensor? valid_seq_len, str seq_padding_type) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "cast_to_fp8_v2(Tensor input, Tensor? scale=None, bool stochastic_rounding=False, bool is_amax=False, "
    "ScalarType dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)",
    "cast_from_fp8(Tensor input, Tensor? scale, ScalarType out_dtype, int[]? scale_shape=None) -> Tensor",
)

BLOCK = 256
"""Queries that attention takes at once."""

_library = torch.library.Library("hpu", "DEF")
for schema in SCHEMAS:
    _library.define(schema)


def rms_norm(data_in, gamma, epsilon):
    if data_in.shape[-1:] != gamma.shape:
        raise RuntimeError(f"rms_norm: gamma {tuple(gamma.shape)} does not fit {tuple(data_in.shape)}")
    x = data_in.float()
    inverse = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)
    return (x * inverse * gamma.float()).to(data_in.dtype), inverse


def sdpa_recomp_fwd(
    q, k, v, attention_mask, p, scale, is_causal, requires_backward, softmax_mode, valid_seq_len, seq_padding_type
):
    if softmax_mode not in ("none", "fast") or seq_padding_type not in ("left", "right"):
        raise RuntimeError(f"sdpa_recomp_fwd: softmax_mode {softmax_mode!r}, seq_padding_type {seq_padding_type!r}")
    if p != 0.0 or requires_backward or is_causal or valid_seq_len is not None:
        raise RuntimeError("sdpa_recomp_fwd: this reference serves inference under a mask")
    if not q.dtype == k.dtype == v.dtype or (attention_mask is not None and attention_mask.dtype != q.dtype):
        raise RuntimeError("sdpa_recomp_fwd: one type for q, k, v and the mask")
    masks = [None] * q.shape[-2] if attention_mask is None else attention_mask.split(BLOCK, dim=-2)
    parts = []
    for q_part, mask in zip(q.split(BLOCK, dim=-2), masks, strict=False):
        scores = (q_part @ k.transpose(-1, -2)).float().mul_(scale)
        if mask is not None:
            scores += mask
        most = scores.amax(dim=-1, keepdim=True)
        weights = scores.sub_(most).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        parts.append((weights.div_(total).to(v.dtype) @ v, most, 1 / total))
    out, most, inverse = (torch.cat(column, dim=-2) for column in zip(*parts, strict=True))
    return out, most, inverse, q.new_zeros(1, dtype=torch.int32)


def cast_to_fp8_v2(input, scale=None, stochastic_rounding=False, is_amax=False, dtype=None, scale_shape=None):
    if dtype not in (torch.float8_e4m3fn, torch.float8_e5m2) or stochastic_rounding or scale_shape is not None:
        raise RuntimeError(f"cast_to_fp8_v2: dtype {dtype}, stochastic_rounding {stochastic_rounding}")
    x = input.float() if scale is None else input.float() * scale
    # What Gaudi 2 makes of numbers past its range: they must be clipped before.
    x = torch.where(x.abs() > fp8_range, float("inf"), x)
    return x.to(dtype), input.new_zeros(1, dtype=torch.float32)


def cast_from_fp8(input, scale, out_dtype, scale_shape=None):
    if input.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2) or scale_shape is not None:
        raise RuntimeError(f"cast_from_fp8: input {input.dtype}")
    x = input.float()
    return (x if scale is None else x * scale).to(out_dtype)


fp8_range = 240.0
for body in (rms_norm, sdpa_recomp_fwd, cast_to_fp8_v2, cast_from_fp8):
    # One body for all: it is plain torch, so that it serves the processor and shapes alone alike.
    _library.impl(body.__name__, body, "CompositeExplicitAutograd")
