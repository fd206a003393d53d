"""The lists that the device makes of a decode step's work: every token once, room never exceeded, load spread."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drivetrain_cuda.tables.decode import DecodeConfig
from drivetrain_triton.attention.plan import UNIT, DecodeWork, Geometry, WorkSizes, make_decode_work
from drivetrain_triton.attention.work import (
    ALL_PARTS,
    BLOCK_FIRST,
    BLOCK_LAST,
    FIRST,
    FIRST_PART,
    LAST,
    LENGTH,
    OWN_PARTS,
    PART,
    SHARED_FIRST,
    SHARED_LAST,
    SHARED_PART,
    SLOT,
    TOKEN,
)

GEOMETRY = Geometry(num_heads=8, num_kv_heads=2, head_dim=64, window=None, exact=False)
PROCESSORS, PROGRAMS, PAGE, COLUMNS = 132, 3, 64, 4096


def plan(
    device: torch.device,
    lengths: list[int],
    counts: list[int] | None = None,
    *,
    window: int | None = None,
    groups: list[tuple[list[int], int]] | None = None,
    batch_invariant: bool = False,
) -> DecodeWork:
    counts = counts or [1] * len(lengths)
    inputs: dict[str, torch.Tensor | None] = {
        "kv_len_R": torch.tensor(lengths),
        "query_start_R1": torch.tensor(np.cumsum([0, *counts])),
        "row_slot_R": torch.arange(len(lengths)) + 100,
    }
    order = [row for members, _ in groups or [] for row in members]
    ends = np.cumsum([len(members) for members, _ in groups or []])
    triples = [(end - len(members), end, tokens) for end, (members, tokens) in zip(ends, groups or [], strict=True)]
    order += [row for row in range(len(lengths)) if row not in order]
    shared = groups is not None
    inputs["shared_rows_R"] = torch.tensor(order, dtype=torch.int32) if shared else None
    inputs["shared_groups_G3"] = torch.tensor([*triples, (0, 0, 0)], dtype=torch.int32) if shared else None
    moved = {name: None if value is None else value.to(device) for name, value in inputs.items()}
    return make_decode_work(
        SimpleNamespace(**moved),  # type: ignore[arg-type]
        geometry=Geometry(num_heads=8, num_kv_heads=2, head_dim=64, window=window, exact=False),
        config=DecodeConfig(block_n=64, num_warps=4, num_stages=3, programs=PROGRAMS),
        max_tokens=COLUMNS * PAGE,
        num_processors=PROCESSORS,
        batch_invariant=batch_invariant,
        pdl=False,
    )


@pytest.mark.parametrize(
    ("rows", "groups", "window", "invariant", "expected"),
    [
        # 4 query heads a program: 16 rows a block of 64 query rows.
        (4, 0, None, False, WorkSizes(places=9, chunk=0, entries=13, groups=0, shared_entries=0, parts=13)),
        (40, 0, None, False, WorkSizes(places=9, chunk=0, entries=80, groups=0, shared_entries=0, parts=80)),
        (40, 3, None, False, WorkSizes(places=9, chunk=0, entries=80, groups=3, shared_entries=14, parts=304)),
        (40, 3, 128, False, WorkSizes(places=9, chunk=0, entries=80, groups=0, shared_entries=0, parts=80)),
        (4, 3, None, True, WorkSizes(places=9, chunk=512, entries=64, groups=0, shared_entries=0, parts=64)),
    ],
)
def test_room_follows_from_the_numbers_of_rows_and_groups(
    rows: int, groups: int, window: int | None, invariant: bool, expected: WorkSizes
) -> None:
    geometry = replace(GEOMETRY, window=window)
    sizes = WorkSizes.of(geometry, rows=rows, groups=groups, places=9, max_tokens=8192, invariant=invariant)
    assert sizes == expected


def check_rows(work: DecodeWork, lengths: list[int], firsts: dict[int, int], shared_parts: dict[int, int]) -> int:
    """Returns the longest chunk."""
    entries = work.work_WC.cpu().numpy()
    used = entries[entries[:, TOKEN] >= 0]
    assert (entries[len(used) :, TOKEN] == -1).all(), "entries without work come last"
    parts: list[int] = []
    chunks = []
    for row, length in enumerate(lengths):
        own = used[used[:, SLOT] == 100 + row]
        if row not in firsts:
            assert len(own) == 0
            continue
        assert own[0, FIRST] == firsts[row] and own[-1, LAST] == own[-1, LENGTH] == min(length, COLUMNS * PAGE)
        assert all(a[LAST] == b[FIRST] for a, b in pairwise(own))
        assert (own[:, OWN_PARTS] == len(own)).all()
        assert (own[:, ALL_PARTS] == len(own) + shared_parts.get(row, 0)).all()
        assert list(own[:, PART]) == list(range(own[0, FIRST_PART], own[0, FIRST_PART] + len(own)))
        parts += range(own[0, FIRST_PART], own[0, FIRST_PART] + own[0, ALL_PARTS])
        chunks.append(int((own[:, LAST] - own[:, FIRST]).max()))
    assert len(parts) == len(set(parts)) and max(parts) < len(work.part_o_AHK)
    assert not work.arrivals_WN.any()
    return max(chunks)


@pytest.mark.parametrize("rows", [1, 3, 16, 40, 100])
def test_every_token_is_listed_once(device: torch.device, rows: int) -> None:
    random = np.random.default_rng(int(torch.randint(2**31, ())))
    lengths = [int(2 ** random.uniform(0, 17)) for _ in range(rows)]
    check_rows(plan(device, lengths), lengths, dict.fromkeys(range(rows), 0), {})


def test_one_row_fills_the_device(device: torch.device) -> None:
    longest = check_rows(plan(device, [100_000]), [100_000], {0: 0}, {})
    assert 100_000 * 2 / (PROCESSORS * PROGRAMS) < longest <= 1.3 * 100_000 * 2 / (PROCESSORS * PROGRAMS) + UNIT


def test_few_rows_are_cut_until_every_program_has_a_chunk(device: torch.device) -> None:
    lengths = [8192] * 4
    even = 4 * 8192 * 2 / (PROCESSORS * PROGRAMS)
    assert even <= check_rows(plan(device, lengths), lengths, dict.fromkeys(range(4), 0), {}) <= even + UNIT


def test_a_long_row_does_not_wait_alone(device: torch.device) -> None:
    lengths = [60_000] + [500] * 63
    assert check_rows(plan(device, lengths), lengths, dict.fromkeys(range(64), 0), {}) <= 1024


def test_many_equal_rows_stay_whole(device: torch.device) -> None:
    lengths = [700] * 600
    assert check_rows(plan(device, lengths), lengths, dict.fromkeys(range(600), 0), {}) == 700


def test_rows_of_other_counts_and_impossible_lengths(device: torch.device) -> None:
    lengths, counts = [700, 5, 900, 10**7, 2, 1], [1, 0, 3, 1, 2, 1]
    check_rows(plan(device, lengths, counts), lengths, {0: 0, 3: 0, 5: 0}, {})


def test_a_window_begins_at_a_tile(device: torch.device) -> None:
    lengths = [1, 99, 100, 101, 5000]
    firsts = {0: 0, 1: 0, 2: 0, 3: 0, 4: 4864}
    check_rows(plan(device, lengths, window=100), lengths, firsts, {})


def test_chunks_of_a_row_do_not_depend_on_others_when_asked(device: torch.device) -> None:
    alone = plan(device, [90_000], batch_invariant=True).work_WC.cpu().numpy()
    among = plan(device, [90_000, *[100_000] * 20, 1], batch_invariant=True).work_WC.cpu().numpy()
    used = alone[alone[:, TOKEN] >= 0]
    assert len(used) == 6 and np.array_equal(used[:, : ALL_PARTS + 1], among[: len(used), : ALL_PARTS + 1])


def test_shared_tokens_are_listed_for_groups(device: torch.device) -> None:
    lengths = [int(2300 + 50 * row) for row in range(40)]
    groups = [(list(range(30, 7, -1)), 2048), ([0, 3], 1024)]
    work = plan(device, lengths, groups=groups)
    assert work.shared_work_VC is not None and work.shared_part_R is not None
    entries = work.shared_work_VC.cpu().numpy()
    used = entries[entries[:, BLOCK_FIRST] >= 0]
    assert (entries[len(used) :, BLOCK_FIRST] == -1).all()
    seen = {place: np.zeros(2048 if place < 23 else 1024, int) for place in range(25)}
    chunks: dict[int, int] = {}
    for entry in used:
        assert 0 < entry[BLOCK_LAST] - entry[BLOCK_FIRST] <= GEOMETRY.rows_a_block
        for place in range(entry[BLOCK_FIRST], entry[BLOCK_LAST]):
            seen[place][entry[SHARED_FIRST] : entry[SHARED_LAST]] += 1
            chunks[place] = max(chunks.get(place, 0), int(entry[SHARED_PART]) + 1)
    assert all((counts == 1).all() for counts in seen.values())
    order = [*groups[0][0], *groups[1][0]]
    firsts = dict.fromkeys(range(40), 0) | dict.fromkeys(groups[0][0], 2048) | dict.fromkeys(groups[1][0], 1024)
    check_rows(work, lengths, firsts, {row: chunks[place] for place, row in enumerate(order)})
    rows = work.work_WC.cpu().numpy()
    for place, row in enumerate(order):
        own = rows[rows[:, SLOT] == 100 + row][0]
        assert work.shared_part_R[place] == own[FIRST_PART] + own[OWN_PARTS]
