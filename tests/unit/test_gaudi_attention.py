"""Flat paged attention against a dense float64 truth, over random ragged batches.

R rows, N pages, P tokens a page, L keys of a row, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain_gaudi import flat_attention
from drivetrain_gaudi.flat_attention import Shaping
from drivetrain_gaudi.page_list import list_pages, seen_by_rows, seen_by_tokens
from drivetrain_plugins.contract.slots import StepInputs

PAGE = 8
NAN = float("nan")


@dataclass
class Case:
    """A batch on scrambled pages.

    Attributes:
        starts, counts: keys before this step, and new tokens, of each row; padding rows come behind.
        k, v: (C P, G, K) NaN where nothing was written. page_table: (slots, columns).
    """

    starts: list[int]
    counts: list[int]
    padding_rows: int
    padding_pages: int
    heads: int
    kv_heads: int
    size: int
    dtype: torch.dtype
    seed: int

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        rng = random.Random(self.seed)
        lengths = [start + count for start, count in zip(self.starts, self.counts, strict=True)]
        needed = [-(-length // PAGE) for length in lengths]
        num_pages = 1 + sum(needed)
        free = list(range(1, num_pages))
        rng.shuffle(free)
        slots = list(range(len(lengths) + 2))
        rng.shuffle(slots)
        self.slots = slots[: len(lengths)]
        dummy = len(lengths) + 2
        self.page_table = torch.zeros(dummy + 1, max(needed) + 1, dtype=torch.int32)
        shape = (num_pages * PAGE, self.kv_heads, self.size)
        self.k, self.v = torch.full(shape, NAN, dtype=self.dtype), torch.full(shape, NAN, dtype=self.dtype)
        self.truth: list[tuple[torch.Tensor, torch.Tensor]] = []
        for slot, length, pages in zip(self.slots, lengths, needed, strict=True):
            mine = [free.pop() for _ in range(pages)]
            self.page_table[slot, :pages] = torch.tensor(mine, dtype=torch.int32)
            where = torch.tensor([mine[at // PAGE] * PAGE + at % PAGE for at in range(length)])
            keys, values = (
                torch.randn(length, self.kv_heads, self.size, generator=generator).to(self.dtype) for _ in range(2)
            )
            self.k[where], self.v[where] = keys, values
            self.truth.append((keys.double(), values.double()))
        tokens = sum(self.counts) + self.padding_rows
        self.q = torch.randn(tokens, self.heads, self.size, generator=generator).to(self.dtype)
        starts = torch.tensor(self.starts + [0] * self.padding_rows)
        counts = torch.tensor(self.counts + [1] * self.padding_rows)
        begins = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        unused: Any = torch.zeros(1, dtype=torch.long)
        self.inputs = StepInputs(
            ids_T=unused,
            positions_T=torch.cat([torch.arange(s, s + c) for s, c in zip(starts, counts, strict=True)]),
            kv_slots_T=unused,
            token_row_T=rows,
            row_slot_R=torch.tensor(self.slots + [dummy] * self.padding_rows),
            row_start_R=starts,
            kv_len_R=starts + counts,
            query_start_R1=begins,
            sample_token_K=unused,
            sample_slot_K=unused,
            sample_position_K=unused,
            biases_N4=unused,
            page_table_SP=self.page_table,
        )
        self.pages = list_pages(self.inputs, sum(needed) + self.padding_pages, PAGE)

    def gathered(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (N, P, G, K) as the cache reads them."""
        keep = self.pages.filled_NP[:, :, None, None]
        k, v = (
            torch.where(keep, x.unflatten(0, (-1, PAGE)).index_select(0, self.pages.page_N), 0.0)
            for x in (self.k, self.v)
        )
        return k, v

    def run(self, shaping: Shaping, window: int | None = None) -> torch.Tensor:
        """The algorithm of this kind of step, for the rows that are no padding."""
        k, v = self.gathered()
        if all(count == 1 for count in self.counts):
            seen, distance = seen_by_rows(self.pages, self.inputs.row_start_R, window)
            out = flat_attention.decode(self.q, k, v, self.pages, seen, distance, shaping)
        else:
            seen, distance = seen_by_tokens(self.pages, self.inputs.positions_T, self.inputs.token_row_T, window)
            out = flat_attention.prefill(self.q, k.flatten(0, 1), v.flatten(0, 1), seen, distance, shaping)
        assert out.dtype == self.dtype
        assert bool(out.isfinite().all()), "padding is finite too"
        return out[: sum(self.counts)]

    def dense(self, shaping: Shaping, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Row by row, with all keys at once, computed in `dtype`."""
        return self._dense(self.truth, shaping, window, dtype)

    def rounding(self, got: torch.Tensor, shaping: Shaping, window: int | None) -> float:
        """What rounding cost, relative to the magnitudes that were summed: where values cancel, little is left."""
        truth = self.dense(shaping, window, torch.float64)
        magnitudes = self._dense([(k, v.abs()) for k, v in self.truth], shaping, window, torch.float64)
        return float((got.double() - truth).norm() / magnitudes.norm())

    def _dense(
        self, kv: list[tuple[torch.Tensor, torch.Tensor]], shaping: Shaping, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        first = 0
        for (keys, values), start, count in zip(kv, self.starts, self.counts, strict=True):
            group = self.heads // self.kv_heads
            q = self.q[first : first + count].to(dtype).transpose(0, 1)
            k = keys.to(dtype).repeat_interleave(group, dim=1).permute(1, 2, 0)
            v = values.to(dtype).repeat_interleave(group, dim=1).transpose(0, 1)
            wide = torch.promote_types(dtype, torch.float32)
            scores = ((q * shaping.scale) @ k).to(wide)
            if shaping.soft_cap is not None:
                scores = torch.tanh(scores / shaping.soft_cap) * shaping.soft_cap
            distance = torch.arange(k.shape[-1])[None] - torch.arange(start, start + count)[:, None]
            if shaping.alibi_H is not None:
                scores = scores + shaping.alibi_H.to(wide)[:, None, None] * distance
            hidden = distance > 0
            if window is not None:
                hidden = hidden | (distance <= -window)
            scores = scores.masked_fill(hidden, float("-inf"))
            if shaping.sinks_H is not None:
                sinks = shaping.sinks_H.to(wide)[:, None, None].expand(-1, count, 1)
                scores = torch.cat((scores, sinks), dim=-1)
            p = scores.softmax(dim=-1)
            p = p[..., :-1] if shaping.sinks_H is not None else p
            outputs.append((p.to(dtype) @ v).transpose(0, 1))
            first += count
        return torch.cat(outputs)


def distance(got: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative L2."""
    return float((got.double() - truth.double()).norm() / truth.double().norm())


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype, *, decode: bool) -> tuple[Case, Shaping, int | None]:
    rows = draw(st.integers(1, 5))
    length = st.sampled_from((0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 3 * PAGE, 5 * PAGE + 3))
    starts = [draw(length) for _ in range(rows)]
    counts = [1] * rows if decode else [draw(st.integers(1, 2 * PAGE)) for _ in range(rows)]
    if not decode:
        counts[0] += 1
    kv_heads, group = draw(st.sampled_from(((1, 1), (2, 1), (1, 5), (2, 3), (2, 2))))
    heads = kv_heads * group
    case = Case(
        starts=starts,
        counts=counts,
        padding_rows=draw(st.integers(0, 3)),
        padding_pages=draw(st.integers(0, 4)),
        heads=heads,
        kv_heads=kv_heads,
        size=draw(st.sampled_from((4, 16))),
        dtype=dtype,
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    generator = torch.Generator().manual_seed(case.seed ^ 1)
    shaping = Shaping(
        scale=case.size**-0.5,
        soft_cap=draw(st.sampled_from((None, 1.5))),
        alibi_H=draw(st.sampled_from((None, torch.linspace(0.05, 0.5, heads)))),
        sinks_H=draw(st.sampled_from((None, torch.randn(heads, generator=generator)))),
    )
    return case, shaping, draw(st.sampled_from((None, 1, 3, PAGE, PAGE + 3)))


EXACT = {torch.float64: 1e-12, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize("decode", [True, False])
def test_any_ragged_batch_is_as_dense_float64_has_it(dtype: torch.dtype, decode: bool) -> None:
    @settings(max_examples=60, deadline=None)
    @given(cases(dtype, decode=decode))
    def check(drawn: tuple[Case, Shaping, int | None]) -> None:
        case, shaping, window = drawn
        assert case.rounding(case.run(shaping, window), shaping, window) < EXACT[dtype]

    check()


@pytest.mark.parametrize("decode", [True, False])
def test_bfloat16_is_as_near_to_the_truth_as_dense_bfloat16(decode: bool) -> None:
    @settings(max_examples=60, deadline=None)
    @given(cases(torch.bfloat16, decode=decode))
    def check(drawn: tuple[Case, Shaping, int | None]) -> None:
        case, shaping, window = drawn
        plain = case.rounding(case.dense(shaping, window, torch.bfloat16), shaping, window)
        assert case.rounding(case.run(shaping, window), shaping, window) < max(5e-3, 2 * plain)

    check()


def plain_case(**changes: Any) -> Case:
    settings_of: dict[str, Any] = {
        "starts": [20, 3, 15],
        "counts": [1, 1, 1],
        "padding_rows": 1,
        "padding_pages": 2,
        "heads": 4,
        "kv_heads": 2,
        "size": 16,
        "dtype": torch.float32,
        "seed": 5,
    }
    return Case(**settings_of | changes)


def test_pages_are_listed_by_row_then_padding() -> None:
    case = plain_case()
    pages = case.pages
    assert pages.group_N.tolist() == [0, 0, 0, 1, 2, 2, 4, 4]
    assert pages.page_N.tolist()[:3] == case.page_table[case.slots[0], :3].tolist()
    assert pages.page_N.tolist()[-2:] == [0, 0]
    assert pages.filled_NP.sum(dim=1).tolist() == [8, 8, 5, 4, 8, 8, 0, 0]
    assert pages.owns_NR.sum(dim=0).tolist() == [3, 1, 2, 0], "the padding row owns no page"


def test_what_does_not_fit_the_list_is_left_out_and_nothing_else_breaks() -> None:
    case = plain_case()
    short = list_pages(case.inputs, 4, PAGE)
    assert short.group_N.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 3, 1]])
def test_one_row_s_nan_stays_in_its_row(counts: list[int]) -> None:
    from drivetrain_gaudi.cache import GaudiCache
    from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec

    case = plain_case(counts=counts)
    shaping = Shaping(scale=0.25)
    clean = case.run(shaping)
    num_pages = case.k.shape[0] // PAGE
    spec = KVSpec(layers=(KVLayerSpec(num_kv_heads=2, head_dim=16),), dtype="float32", page_size=PAGE)
    cache = GaudiCache(spec, num_pages, torch.device("cpu"), None)
    cache.k[0].copy_(case.k)
    cache.v[0].copy_(case.v)
    bad = int(case.page_table[case.slots[1], 0]) * PAGE
    cache.k[0][bad], cache.v[0][bad] = NAN, float("inf")
    case.gathered = lambda: cache.read(0, case.pages.page_N, case.pages.filled_NP, torch.float32)  # type: ignore[method-assign]
    first = 1
    case.q[first] = NAN
    assert all(bool(x.isfinite().all()) for x in case.gathered())
    if counts == [1, 1, 1]:
        got = case.run(shaping)
        others = [0, 2]
    else:
        case.q[first] = 1.0
        got = case.run(shaping)
        others = [0, 4]
    torch.testing.assert_close(got[others], clean[others])


def test_large_scores_do_not_overflow() -> None:
    case = plain_case(dtype=torch.bfloat16)
    case.q *= 1e4
    truth = case.dense(Shaping(scale=0.25), None, torch.float64)
    assert distance(case.run(Shaping(scale=0.25)), truth) < 2e-2
