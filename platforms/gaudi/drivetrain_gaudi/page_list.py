"""The flat list of pages that a step reads, derived on the device from its inputs alone.

N pages of all rows together, padded; R rows, P tokens a page, T tokens, L = N P keys.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch

from drivetrain_plugins.contract.slots import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class PageList:
    """Pages of the rows, in the order of the rows and of their tokens, then padding.

    Attributes:
        page_N: page ids; the null page for padding.
        group_N: row that owns each page; R for padding.
        position_NP: position of each of its tokens in the row.
        filled_NP: whether a token of the row was written there.
        owns_NR: one-hot rows of `group_N`, all zero for padding.
    """

    page_N: torch.Tensor
    group_N: torch.Tensor
    position_NP: torch.Tensor
    filled_NP: torch.Tensor
    owns_NR: torch.Tensor


def list_pages(inputs: StepInputs, num_pages: int, page_size: int) -> PageList:
    """List the pages of a step's rows. Rows of the dummy slot, which are padding, have none.

    Args:
        num_pages: N; what does not fit is left out.
    """
    device = inputs.row_slot_R.device
    num_rows, num_columns = inputs.row_slot_R.shape[0], inputs.page_table_SP.shape[1]
    dummy_slot = inputs.page_table_SP.shape[0] - 1
    pages_R = torch.div(inputs.kv_len_R + (page_size - 1), page_size, rounding_mode="floor")
    pages_R = torch.where(inputs.row_slot_R == dummy_slot, 0, pages_R)
    end_R = pages_R.cumsum(0)
    place_N = torch.arange(num_pages, device=device)
    group_N = (end_R[None, :] <= place_N[:, None]).sum(dim=1)
    real_N = group_N < num_rows
    row_N = group_N.clamp(max=num_rows - 1)
    column_N = place_N - (end_R - pages_R).index_select(0, row_N)
    entry_N = inputs.row_slot_R.index_select(0, row_N) * num_columns + column_N.clamp(0, num_columns - 1)
    page_N = inputs.page_table_SP.view(-1).index_select(0, torch.where(real_N, entry_N, 0)).long()
    position_NP = column_N[:, None] * page_size + torch.arange(page_size, device=device)
    filled_NP = (position_NP < inputs.kv_len_R.index_select(0, row_N)[:, None]) & real_N[:, None]
    return PageList(
        page_N=torch.where(real_N, page_N, 0),
        group_N=group_N,
        position_NP=position_NP,
        filled_NP=filled_NP,
        owns_NR=group_N[:, None] == torch.arange(num_rows, device=device),
    )


def seen_by_rows(pages: PageList, position_R: torch.Tensor, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the one query of each row may see of its pages.

    Args:
        position_R: of the queries.

    Returns:
        (seen_NP, distance_NP): the distance is the key's position less the query's.
    """
    last_row = position_R.shape[0] - 1
    query_N1 = position_R.index_select(0, pages.group_N.clamp(max=last_row))[:, None]
    return _seen(pages, pages.position_NP - query_N1, window)


def seen_by_tokens(
    pages: PageList, positions_T: torch.Tensor, token_row_T: torch.Tensor, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each of several queries may see of all pages: (seen_TL, distance_TL)."""
    distance_TNP = pages.position_NP[None] - positions_T[:, None, None]
    seen_TNP, _ = _seen(pages, distance_TNP, window)
    seen_TNP = seen_TNP & (pages.group_N[None, :] == token_row_T[:, None])[:, :, None]
    return seen_TNP.flatten(1), distance_TNP.flatten(1)


def _seen(pages: PageList, distance: torch.Tensor, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    seen = (distance <= 0) & pages.filled_NP
    if window is not None:
        seen = seen & (distance > -window)
    return seen, distance
