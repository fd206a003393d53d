"""Request state that lives on the device between steps, and the inputs that `prepare` makes from it.

S slots (the last is the dummy slot of padding), P page-table columns, V vocabulary, C slot columns, R rows, T tokens,
K samples, G groups of rows with a shared prefix, M rows with a mask, W words of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from drivetrain_plugins.contract.batch import NUM_FLOAT_COLUMNS, NUM_SLOT_COLUMNS


class SlotState:
    """One row a live request: what the device must remember of it.

    Attributes:
        last_token_S: int32, id sampled last.
        page_table_SP: int32, page ids in order; zero (the null page) where unset.
        params_SC: int32, sampling parameters by the columns of `contract.batch`; floats as bits.
        counts_SV: int32, generated tokens so far, or None before the first request with penalties.
        in_prompt_SV: bool, tokens that the prompt has, or None likewise.
    """

    def __init__(self, *, num_slots: int, max_pages: int, vocab_size: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.device = device
        rows = num_slots + 1
        self.last_token_S = torch.zeros(rows, dtype=torch.int32, device=device)
        self.page_table_SP = torch.zeros(rows, max_pages, dtype=torch.int32, device=device)
        self.params_SC = torch.zeros(rows, NUM_SLOT_COLUMNS, dtype=torch.int32, device=device)
        self.counts_SV: torch.Tensor | None = None
        self.in_prompt_SV: torch.Tensor | None = None

    @property
    def dummy_slot(self) -> int:
        """Where padding rows keep their state."""
        return self.num_slots

    @property
    def floats_SC(self) -> torch.Tensor:
        """The float columns of `params_SC`, float32, sharing its memory."""
        return self.params_SC.view(torch.float32)[:, :NUM_FLOAT_COLUMNS]

    @property
    def counts_bytes(self) -> int:
        """What token counts and prompt marks take once they are allocated."""
        return (self.num_slots + 1) * self.vocab_size * (torch.int32.itemsize + torch.bool.itemsize)

    def ensure_counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token counts and prompt marks, allocated when the first request needs them."""
        if self.counts_SV is None or self.in_prompt_SV is None:
            shape = (self.num_slots + 1, self.vocab_size)
            self.counts_SV = torch.zeros(shape, dtype=torch.int32, device=self.device)
            self.in_prompt_SV = torch.zeros(shape, dtype=torch.bool, device=self.device)
        return self.counts_SV, self.in_prompt_SV


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """Everything that a forward pass reads about the batch, on the device. All int64 but where noted.

    Attributes:
        ids_T: token ids.
        positions_T: position of each token in its sequence; never past the page table, padding included.
        kv_slots_T: where its keys and values go: page * page_size + offset.
        token_row_T: row of each token.
        row_slot_R: slot of each row; indexes `page_table_SP`.
        row_start_R: keys already in pages.
        kv_len_R: keys after this step.
        query_start_R1: (R + 1) first token of each row.
        sample_token_K: index of the token whose logits are sampled.
        sample_slot_K: slot that the sampled id is written to.
        sample_position_K: position of the sampled token; with the seed it decides the noise.
        biases_N4: int32, see `StepBatch`.
        page_table_SP: int32, all slots.
        shared_rows_R: int32, the rows in an order in which each group's stand together; None without groups.
        shared_groups_G3: int32 (begin, end, shared tokens) of each group, see `StepBatch`; None without groups.
        mask_rows_M, masks_MW: int32, what `TokenMasks` says, for the sampler alone; None without masks.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    kv_slots_T: torch.Tensor
    token_row_T: torch.Tensor
    row_slot_R: torch.Tensor
    row_start_R: torch.Tensor
    kv_len_R: torch.Tensor
    query_start_R1: torch.Tensor
    sample_token_K: torch.Tensor
    sample_slot_K: torch.Tensor
    sample_position_K: torch.Tensor
    biases_N4: torch.Tensor
    page_table_SP: torch.Tensor
    shared_rows_R: torch.Tensor | None = None
    shared_groups_G3: torch.Tensor | None = None
    mask_rows_M: torch.Tensor | None = None
    masks_MW: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """What the sampler made, on the device; the optional parts exist when logprobs were asked for.

    Attributes:
        ids_K: int32. logprobs_K: float32. ranks_K: int32. top_ids_Kk: int32. top_logprobs_Kk: float32.
    """

    ids_K: torch.Tensor
    logprobs_K: torch.Tensor | None = None
    ranks_K: torch.Tensor | None = None
    top_ids_Kk: torch.Tensor | None = None
    top_logprobs_Kk: torch.Tensor | None = None
