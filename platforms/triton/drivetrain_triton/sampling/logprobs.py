"""Log-probability and rank of given tokens, and the likeliest ones.

Q rows, V vocabulary, k reported tokens.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

_BLOCK = 2048


@triton.jit
def logprobs_kernel(
    logits_QV, targets_Q, logprobs_Q, ranks_Q, normalizer_Q2, V, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One row a program, read twice. A log-probability is (x - largest) - log(sum), as torch rounds it."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    q = tl.program_id(0).to(tl.int64)
    row = logits_QV + q * V
    largest_B = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        largest_B = tl.maximum(largest_B, tl.load(row + at, at < V, other=float("-inf")))
    largest = tl.max(largest_B, axis=0)
    sum_B = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        sum_B += tl.exp(tl.load(row + at, at < V, other=float("-inf")) - largest)
    log_sum = tl.log(tl.sum(sum_B, axis=0))
    chosen = (tl.load(row + tl.load(targets_Q + q)) - largest) - log_sum
    likelier_B = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, at < V, other=float("-inf"))
        likelier_B += ((x - largest) - log_sum > chosen).to(tl.int32)
    tl.store(logprobs_Q + q, chosen)
    tl.store(ranks_Q + q, tl.sum(likelier_B, axis=0) + 1)
    tl.store(normalizer_Q2 + q * 2, largest)
    tl.store(normalizer_Q2 + q * 2 + 1, log_sum)


def token_logprobs(
    logits_QV: torch.Tensor, targets_Q: torch.Tensor, top: int, arch: GpuArch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `contract.reference.token_logprobs`, with no table of log-probabilities.

    Args:
        logits_QV: float32, contiguous.

    Returns:
        (logprobs_Q float32, ranks_Q int32, top_ids_Qk int32, top_logprobs_Qk float32).
    """
    rows, vocab_size = logits_QV.shape
    device = logits_QV.device
    logprobs_Q = torch.empty(rows, dtype=torch.float32, device=device)
    ranks_Q = torch.empty(rows, dtype=torch.int32, device=device)
    normalizer_Q2 = torch.empty((rows, 2), dtype=torch.float32, device=device)
    args = (logits_QV, targets_Q, logprobs_Q, ranks_Q, normalizer_Q2, vocab_size)
    launch(logprobs_kernel, (rows,), *args, num_warps=8, pdl=arch.pdl, BLOCK=_BLOCK)
    if top == 0:
        shape = (rows, 0)
        none = torch.empty(shape, dtype=torch.int32, device=device)
        return logprobs_Q, ranks_Q, none, torch.empty(shape, dtype=torch.float32, device=device)
    top_Qk, top_ids_Qk = logits_QV.topk(top, dim=-1)
    top_logprobs_Qk = (top_Qk - normalizer_Q2[:, :1]) - normalizer_Q2[:, 1:]
    return logprobs_Q, ranks_Q, top_ids_Qk.int(), top_logprobs_Qk
