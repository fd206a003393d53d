"""`FusedSDPA` with the signature of version 1.19."""

from __future__ import annotations

import torch


class FusedSDPA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q,
        k,
        v,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        softmax_mode="None",
        recompute_mode=None,
        valid_seq_len=None,
        seq_padding_type="left",
        return_dropout_mask=False,
        return_attn_probs=False,
    ):
        if q.ndim != 4 or recompute_mode is not True or return_dropout_mask or return_attn_probs:
            raise RuntimeError("FusedSDPA: this reference serves (batch, heads, tokens, size) with recompute_mode")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        batch, heads, tokens, size = q.shape
        grouped = heads != k.shape[1] and k.shape[1] != 1
        if grouped:
            q = q.reshape(batch, k.shape[1], -1, tokens, size)
            k, v = k.unsqueeze(2), v.unsqueeze(2)
            attn_mask = attn_mask if attn_mask is None else attn_mask.unsqueeze(1)
        out = torch.ops.hpu.sdpa_recomp_fwd(
            q,
            k,
            v,
            attn_mask,
            dropout_p,
            scale,
            is_causal,
            False,
            softmax_mode.lower(),
            valid_seq_len,
            seq_padding_type.lower(),
        )[0]
        return out.reshape(batch, heads, tokens, -1)
