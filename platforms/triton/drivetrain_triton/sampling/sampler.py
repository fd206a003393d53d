"""From logits to tokens: the order of the steps, and what they keep between calls.

K rows, V vocabulary.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic

from __future__ import annotations

import torch

from drivetrain_plugins.contract.batch import SampleFeatures
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.sampling.adjust import apply_biases, apply_masks, apply_penalties
from drivetrain_triton.sampling.draw import DrawScratch, draw
from drivetrain_triton.sampling.filters import bounds
from drivetrain_triton.sampling.groups import GroupScratch
from drivetrain_triton.sampling.logprobs import token_logprobs


class Sampler:
    """Masks, biases, penalties, temperature, filters, noise, as `reference.sample`, with no table beside the logits.

    A row that padding repeats is sampled again with the same result. Counts are added once a sample, as the reference
    does; core lets padding repeat only a row of the dummy slot when there are penalties.
    """

    def __init__(self, arch: GpuArch) -> None:
        self._arch = arch
        self._draw_scratch = DrawScratch()
        self._group_scratch = GroupScratch()

    def sample(
        self, logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures
    ) -> SampledTokens:
        """Choose a token a row, write it to the row's slot, and report log-probabilities where asked for.

        Args:
            logits_KV: float32; masks, biases and penalties overwrite it.
        """
        logits_KV = logits_KV.contiguous()
        adjusted = features.masks or features.biases or features.penalties
        raw_KV = logits_KV.clone() if features.logprobs >= 0 and adjusted else logits_KV
        if features.masks:
            apply_masks(logits_KV, inputs, self._arch)
        if features.biases:
            apply_biases(logits_KV, inputs, slots, self._arch)
        if features.penalties:
            apply_penalties(logits_KV, inputs, slots, self._arch)
        bounds_K5 = None
        if features.random and features.filters:
            bounds_K5 = bounds(logits_KV, inputs, slots, self._group_scratch, self._arch)
        ids_K = draw(
            logits_KV,
            inputs,
            slots,
            self._draw_scratch,
            self._arch,
            random=features.random,
            bounds_K5=bounds_K5,
            counted=features.penalties,
        )
        if features.logprobs < 0:
            return SampledTokens(ids_K=ids_K)
        logprobs_K, ranks_K, top_ids_Kk, top_logprobs_Kk = self.token_logprobs(raw_KV, ids_K, features.logprobs)
        return SampledTokens(
            ids_K=ids_K,
            logprobs_K=logprobs_K,
            ranks_K=ranks_K,
            top_ids_Kk=top_ids_Kk,
            top_logprobs_Kk=top_logprobs_Kk,
        )

    def token_logprobs(
        self, logits_QV: torch.Tensor, targets_Q: torch.Tensor, top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `contract.reference.token_logprobs`; float32 logits."""
        return token_logprobs(logits_QV.contiguous(), targets_Q, top, self._group_scratch, self._arch)
