"""From a packed batch of differences to a step's inputs.

S slots, P page-table columns, R rows, T tokens, K samples, N biases, G groups of rows with a shared prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from drivetrain_plugins.contract.batch import NUM_SLOT_COLUMNS, BatchLayout

if TYPE_CHECKING:
    from drivetrain_plugins.contract.slots import SlotState, StepInputs


def prepare(packed: torch.Tensor, layout: BatchLayout, slots: SlotState, page_size: int) -> StepInputs:
    """Update the slots by a packed batch, then derive ids, positions and page slots of its tokens."""
    from drivetrain_plugins.contract.slots import StepInputs

    part = {name: packed[offset : offset + length] for name, offset, length in layout.sections}
    if layout.page_updates:
        updates = part["page_updates"].view(-1, 3).long()
        slots.page_table_SP.index_put_((updates[:, 0], updates[:, 1]), updates[:, 2].int())
    if layout.slot_updates:
        updates = part["slot_updates"].view(-1, 1 + NUM_SLOT_COLUMNS)
        slots.params_SC.index_copy_(0, updates[:, 0].long(), updates[:, 1:])
    row_slot_R = part["row_slot"].long()
    row_start_R = part["row_start"].long()
    query_start_R1 = part["query_start"].long()
    token_row_T = part["token_row"].long()
    token_slot_T = row_slot_R[token_row_T]
    ids_T = part["token_ids"]
    ids_T = torch.where(ids_T < 0, slots.last_token_S[token_slot_T], ids_T).long()
    within_T = torch.arange(layout.tokens, device=packed.device) - query_start_R1[token_row_T]
    # A padding row may be longer than any sequence: its tokens stay within the page table and the rotary tables.
    last_position = slots.page_table_SP.shape[1] * page_size - 1
    positions_T = (row_start_R[token_row_T] + within_T).clamp_(max=last_position)
    column_T = torch.div(positions_T, page_size, rounding_mode="floor")
    page_T = slots.page_table_SP[token_slot_T, column_T].long()
    kv_len_R = row_start_R + query_start_R1[1:] - query_start_R1[:-1]
    sample_row_K = part["sample_row"].long()
    return StepInputs(
        ids_T=ids_T,
        positions_T=positions_T,
        kv_slots_T=page_T * page_size + positions_T % page_size,
        token_row_T=token_row_T,
        row_slot_R=row_slot_R,
        row_start_R=row_start_R,
        kv_len_R=kv_len_R,
        query_start_R1=query_start_R1,
        sample_token_K=query_start_R1[sample_row_K + 1] - 1,
        sample_slot_K=row_slot_R[sample_row_K],
        sample_position_K=kv_len_R[sample_row_K],
        biases_N4=part["biases"].view(-1, 4),
        page_table_SP=slots.page_table_SP,
        shared_rows_R=part["shared_rows"] if layout.shared_groups else None,
        shared_groups_G3=part["shared_groups"].view(-1, 3) if layout.shared_groups else None,
    )
