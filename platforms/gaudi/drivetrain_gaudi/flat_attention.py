"""Attention over a flat list of pages, in products, sums and maxima of fixed shapes.

A decode step computes each page by itself, with its own maximum, and merges the pages of a row by one-hot products. So
the work follows the pages in use, not rows times the longest row. A step with prompts is one dense product of all its
queries with all its keys under a mask.

Hidden scores take a large finite number, not minus infinity: a page of which nothing is seen (a window has passed it)
weighs exp(HIDDEN - maximum of the row) = 0, and nothing becomes NaN. Numbers that are not finite stay in their row: a
one-hot product would carry 0 * NaN into every other one.

B rows (one query each), T queries, N pages, P tokens a page, L keys, H query heads, G key-value heads, g = H / G,
K head size.

Source: log-sum-exp merging of partial softmax results, as in FlashDecoding; the merge by one-hot products follows the
flat paged attention that serving on Gaudi uses, written anew from its formulas.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch

from drivetrain_gaudi.page_list import PageList

HIDDEN = -1e30
"""Score of what a query must not see."""
BLOCK_SCORES = 1 << 26
"""Most scores that a block of queries makes at once, where no fused kernel serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What bends scores beyond their scale, None where a layer has none of it.

    Attributes:
        alibi_H: float32 slopes. sinks_H: float32 logits.
    """

    scale: float
    soft_cap: float | None = None
    alibi_H: torch.Tensor | None = None
    sinks_H: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether scores are scaled and nothing else."""
        return self.soft_cap is None and self.alibi_H is None and self.sinks_H is None


def decode(
    q_BHK: torch.Tensor,
    k_NPGK: torch.Tensor,
    v_NPGK: torch.Tensor,
    pages: PageList,
    seen_NP: torch.Tensor,
    distance_NP: torch.Tensor,
    shaping: Shaping,
) -> torch.Tensor:
    """One query a row over the row's pages, (B, H, K) in the type of `q_BHK`; rows without pages get zeros.

    Args:
        k_NPGK, v_NPGK: as `GaudiCache.read` gives them, zero where nothing was written.
    """
    num_rows, num_heads, size = q_BHK.shape
    kv_heads = k_NPGK.shape[2]
    owns_NB = pages.owns_NR.to(q_BHK.dtype)
    wide = _wide(q_BHK.dtype)
    owns_wide_NB = pages.owns_NR.to(wide)
    q_BX = _finite(q_BHK * shaping.scale).flatten(1)
    q_NGgK = (owns_NB @ q_BX).view(-1, kv_heads, num_heads // kv_heads, size)
    s_NGgP = (q_NGgK @ k_NPGK.permute(0, 2, 3, 1)).to(wide)
    s_NGgP = _shaped(s_NGgP, distance_NP[:, None, None, :], kv_heads, shaping)
    s_NGgP = torch.where(seen_NP[:, None, None, :], s_NGgP, HIDDEN)

    m_NH = s_NGgP.amax(dim=-1).flatten(1)
    p_NGgP = torch.exp(s_NGgP - m_NH.view(s_NGgP.shape[:-1])[..., None])
    o_NH = p_NGgP.sum(dim=-1).flatten(1)
    mixed_NHK = (p_NGgP.to(v_NPGK.dtype) @ v_NPGK.transpose(1, 2)).flatten(1, 2).to(wide)

    # The maximum over a row's pages; a last row for the padding, which no page of a row reads.
    most_BH = torch.where(pages.owns_NR[:, :, None], m_NH[:, None, :], HIDDEN).amax(dim=0)
    if shaping.sinks_H is not None:
        most_BH = torch.maximum(most_BH, shaping.sinks_H.to(wide))
    padded_BH = torch.nn.functional.pad(most_BH, (0, 0, 0, 1), value=HIDDEN)
    weight_NH = torch.exp(m_NH - padded_BH.index_select(0, pages.group_N))
    part_NH = _finite(weight_NH * o_NH)
    sum_BH = owns_wide_NB.t() @ part_NH
    if shaping.sinks_H is not None:
        sum_BH = sum_BH + torch.exp(shaping.sinks_H.to(wide) - most_BH)
    # A page of padding has no sum of its row; its own part keeps the division sound.
    whole_NH = torch.maximum(owns_wide_NB @ sum_BH, part_NH)
    share_NHK = _finite(mixed_NHK * (weight_NH / whole_NH)[..., None])
    out_BX = owns_NB.t() @ share_NHK.flatten(1).to(q_BHK.dtype)
    return out_BX.view(num_rows, num_heads, size)


def prefill(
    q_THK: torch.Tensor,
    k_LGK: torch.Tensor,
    v_LGK: torch.Tensor,
    seen_TL: torch.Tensor,
    distance_TL: torch.Tensor,
    shaping: Shaping,
) -> torch.Tensor:
    """Several queries a row, in plain torch: (T, H, K). Queries that see nothing, which are padding, get an average."""
    num_heads, kv_heads = q_THK.shape[1], k_LGK.shape[1]
    k_GKL, v_GLK = k_LGK.permute(1, 2, 0), v_LGK.transpose(0, 1)
    wide = _wide(q_THK.dtype)
    step = max(16, BLOCK_SCORES // max(1, num_heads * k_LGK.shape[0]))
    blocks: list[torch.Tensor] = []
    for first in range(0, q_THK.shape[0], step):
        q_bHK, rows = q_THK[first : first + step] * shaping.scale, slice(first, first + step)
        count = q_bHK.shape[0]
        # (G, g b, K): the queries of a group share their keys
        q_GMK = q_bHK.view(count, kv_heads, -1, q_THK.shape[2]).permute(1, 2, 0, 3).flatten(1, 2)
        s_GgbL = (q_GMK @ k_GKL).to(wide).view(kv_heads, num_heads // kv_heads, count, -1)
        s_GgbL = _shaped(s_GgbL[None], distance_TL[rows], kv_heads, shaping)[0]
        s_GgbL = torch.where(seen_TL[rows], s_GgbL, HIDDEN)
        if shaping.sinks_H is not None:
            sinks_Ggb1 = shaping.sinks_H.to(wide).view(kv_heads, -1, 1, 1).expand(-1, -1, count, 1)
            s_GgbL = torch.cat((s_GgbL, sinks_Ggb1), dim=-1)
        p_GgbL = s_GgbL.softmax(dim=-1)
        if shaping.sinks_H is not None:
            p_GgbL = p_GgbL[..., :-1]
        mixed_GMK = p_GgbL.flatten(1, 2).to(v_GLK.dtype) @ v_GLK
        mixed_GgbK = mixed_GMK.view(kv_heads, num_heads // kv_heads, count, -1)
        blocks.append(mixed_GgbK.permute(2, 0, 1, 3).flatten(1, 2))
    return torch.cat(blocks).to(q_THK.dtype)


def _shaped(s: torch.Tensor, distance: torch.Tensor, kv_heads: int, shaping: Shaping) -> torch.Tensor:
    """Scores (.., G, g, .., L) bent by cap and distance; `distance` broadcasts against the last dimensions."""
    if shaping.soft_cap is not None:
        s = torch.tanh(s / shaping.soft_cap) * shaping.soft_cap
    if shaping.alibi_H is not None:
        slopes = shaping.alibi_H.to(s.dtype).view(kv_heads, -1, *(1,) * (s.ndim - 3))
        s = s + slopes * distance
    return s


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and maxima are computed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _finite(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isfinite(), x, 0.0)
