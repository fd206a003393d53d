"""The CPU sampler chooses what the reference chooses, and draws from the distribution that the parameters describe."""

from __future__ import annotations

import math

import pytest
import torch

from drivetrain_cpu.sampling import Sampler, first_argmax
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.batch import SampleFeatures
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs

VOCAB = 4096


def inputs(rows: int, position: int = 7, biases: torch.Tensor | None = None) -> StepInputs:
    index = torch.arange(rows)
    empty = torch.empty(0, dtype=torch.int64)
    return StepInputs(
        ids_T=empty,
        positions_T=empty,
        kv_slots_T=empty,
        token_row_T=empty,
        row_slot_R=index,
        row_start_R=empty,
        kv_len_R=empty,
        query_start_R1=empty,
        sample_token_K=index,
        sample_slot_K=index,
        sample_position_K=torch.full((rows,), position),
        biases_N4=torch.empty(0, 4, dtype=torch.int32) if biases is None else biases,
        page_table_SP=empty,
    )


def slots(rows: list[dict[str, float]], vocab: int = VOCAB) -> SlotState:
    """Slots with (temperature, top_p, min_p, presence, frequency, repetition, top_k) by name, seeds 1, 2, ..."""
    state = SlotState(num_slots=len(rows), max_pages=1, vocab_size=vocab, device=torch.device("cpu"))
    names = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
    usual = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "presence": 0.0, "frequency": 0.0, "repetition": 1.0}
    for slot, row in enumerate(rows):
        state.floats_SC[slot] = torch.tensor([row.get(name, usual[name]) for name in names])
        state.params_SC[slot, 6] = int(row.get("top_k", 0))
        state.params_SC[slot, 7] = slot + 1
    return state


def both(
    logits: torch.Tensor, rows: list[dict[str, float]], features: SampleFeatures, biases: torch.Tensor | None = None
) -> tuple[SampledTokens, SampledTokens, SlotState, SlotState]:
    """What the backend and what the reference make of the same input."""
    made: list[SampledTokens] = []
    states: list[SlotState] = []
    for sample in (Sampler().sample, reference.sample):
        state = slots(rows, logits.shape[1])
        if features.penalties:
            counts, in_prompt = state.ensure_counts()
            generator = torch.Generator().manual_seed(3)
            counts.copy_(torch.randint(0, 3, counts.shape, generator=generator))
            in_prompt.copy_(torch.rand(in_prompt.shape, generator=generator) < 0.3)
        made.append(sample(logits.clone(), inputs(len(rows), biases=biases), state, features))
        states.append(state)
    return made[0], made[1], states[0], states[1]


ROWS: list[dict[str, float]] = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 50, "top_p": 0.9},
    {"top_p": 0.8, "temperature": 1.3},
    {"min_p": 0.05},
    {"top_k": 700, "min_p": 0.01, "top_p": 0.99},
    {"temperature": 0.0, "top_k": 5},
    {"top_p": 0.999, "temperature": 3.0},
    {"min_p": 1e-9, "temperature": 5.0},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("features", [(), ("random",), ("random", "filters")], ids="+".join)
def test_ids_equal_the_reference(dtype: torch.dtype, features: tuple[str, ...]) -> None:
    for _ in range(20):
        logits = (3 * torch.randn(len(ROWS), VOCAB)).to(dtype).float()
        got, expected, state, reference_state = both(logits, ROWS, SampleFeatures(**dict.fromkeys(features, True)))
        assert got.ids_K.dtype == torch.int32
        assert got.ids_K.tolist() == expected.ids_K.tolist()
        assert torch.equal(state.last_token_S, reference_state.last_token_S)


def test_ties_at_the_border_of_top_k_go_to_the_lowest_ids() -> None:
    rows: list[dict[str, float]] = [{"top_k": k} for k in (1, 2, 7, 300, 1500)]
    for _ in range(20):
        logits = torch.randint(0, 4, (len(rows), VOCAB)).float()
        got, expected, _, _ = both(logits, rows, SampleFeatures(random=True, filters=True))
        assert got.ids_K.tolist() == expected.ids_K.tolist()


@pytest.mark.parametrize("vocab", [5, 100, 255, 1000, 2049])
def test_vocabularies_of_any_size_equal_the_reference(vocab: int) -> None:
    logits = torch.randn(len(ROWS), vocab)
    got, expected, _, _ = both(logits, ROWS, SampleFeatures(random=True, filters=True))
    assert got.ids_K.tolist() == expected.ids_K.tolist()


def test_biases_penalties_and_logprobs_equal_the_reference() -> None:
    rows: list[dict[str, float]] = [{**row, "presence": 0.4, "frequency": 0.2, "repetition": 1.2} for row in ROWS]
    value = torch.tensor([-100.0, 5.0]).view(torch.int32)
    biases = torch.tensor([[0, 3, value[0], -1], [1, 4, value[1], 0]], dtype=torch.int32)
    for random in (False, True):
        features = SampleFeatures(random=random, filters=random, penalties=True, biases=True, logprobs=3)
        logits = 3 * torch.randn(len(rows), VOCAB)
        got, expected, state, reference_state = both(logits, rows, features, biases)
        for name in ("ids_K", "ranks_K", "top_ids_Kk"):
            assert torch.equal(getattr(got, name), getattr(expected, name)), name
        for name in ("logprobs_K", "top_logprobs_Kk"):
            assert torch.allclose(getattr(got, name), getattr(expected, name)), name
        assert state.counts_SV is not None
        assert torch.equal(state.counts_SV, reference_state.ensure_counts()[0])


def test_draws_follow_the_filtered_softmax() -> None:
    draws, top_k = 4000, 6
    logits = torch.linspace(2, 0, 512)
    state = slots([{"temperature": 0.5, "top_k": top_k}] * draws, 512)
    state.params_SC[:-1, 8] = torch.arange(draws, dtype=torch.int32)
    features = SampleFeatures(random=True, filters=True)
    ids = Sampler().sample(logits.expand(draws, -1).clone(), inputs(draws), state, features).ids_K
    counted = torch.bincount(ids, minlength=512).double()
    expected = draws * (logits[:top_k].double() / 0.5).softmax(dim=0)
    assert counted[top_k:].sum() == 0
    chi2 = float(((counted[:top_k] - expected).square() / expected).sum())
    assert chi2 < 25, f"chi-square {chi2} with 5 degrees of freedom"  # passed by chance once in 7,000


def test_unfiltered_draws_follow_the_softmax() -> None:
    draws = 4000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    state = slots([{}] * draws, 4)
    state.params_SC[:-1, 8] = torch.arange(draws, dtype=torch.int32)
    ids = Sampler().sample(logits.expand(draws, -1).clone(), inputs(draws), state, SampleFeatures(random=True)).ids_K
    expected = draws * logits.double().softmax(dim=0)
    chi2 = float(((torch.bincount(ids, minlength=4).double() - expected).square() / expected).sum())
    assert chi2 < 21, f"chi-square {chi2} with 3 degrees of freedom"


@pytest.mark.parametrize("size", [1, 63, 256, 257, 49152])
def test_the_first_of_equal_maxima_is_chosen(size: int) -> None:
    x = torch.randint(0, 3, (5, size)).float()
    assert torch.equal(first_argmax(x), x.argmax(dim=-1))
    x.fill_(-math.inf)
    assert torch.equal(first_argmax(x), x.argmax(dim=-1))
