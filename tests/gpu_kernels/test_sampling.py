"""Sampling kernels where the conformance suite's small vocabularies do not reach: large rows, many ties, flat rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drivetrain_plugins.conformance.batches import SlotParameters
from drivetrain_plugins.conformance.subject import from_ints
from drivetrain_plugins.contract.batch import SampleFeatures
from drivetrain_plugins.contract.reference.sampling import filter_logits, gumbel_noise, sample, token_logprobs
from drivetrain_plugins.contract.slots import SlotState
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.sampling import logprobs
from drivetrain_triton.sampling.filters import bounds
from drivetrain_triton.sampling.groups import GroupScratch
from drivetrain_triton.sampling.sampler import Sampler


def slots_with(parameters: list[SlotParameters], vocab_size: int, device: torch.device) -> SlotState:
    slots = SlotState(num_slots=len(parameters), max_pages=1, vocab_size=vocab_size, device=device)
    for slot, each in enumerate(parameters):
        slots.params_SC[slot] = from_ints(each.columns()).to(device)
    return slots


def inputs_for(rows: int, device: torch.device) -> Any:
    return SimpleNamespace(
        sample_slot_K=torch.arange(rows, device=device),
        sample_position_K=torch.randint(1, 4000, (rows,)).to(device),
        biases_N4=torch.empty((0, 4), dtype=torch.int32, device=device),
    )


def kept_by(bounds_K5: torch.Tensor, scaled_KV: torch.Tensor) -> torch.Tensor:
    """What bounds say of each token, by the words of their docstring."""
    bounds_K5 = bounds_K5.cpu()
    floats_K5 = bounds_K5.view(torch.float32)
    least, largest, min_p = (floats_K5[:, column, None] for column in (0, 2, 3))
    token_V = torch.arange(scaled_KV.shape[1])
    kept = (scaled_KV > least) | ((scaled_KV == least) & (token_V <= bounds_K5[:, 1, None]))
    return kept & ((min_p <= 0) | ((scaled_KV - largest).exp() >= min_p))


CASES = {
    "top_k": [SlotParameters(temperature=0.7, top_k=k) for k in (1, 2, 50, 2500)],
    "top_p": [SlotParameters(temperature=0.7, top_p=p) for p in (0.0, 1e-6, 0.5, 0.95)],
    "min_p": [SlotParameters(temperature=1.3, min_p=p) for p in (0.02, 0.3, 1.0)],
    "mixed": [
        SlotParameters(temperature=0.6, top_k=20, top_p=0.95),
        SlotParameters(temperature=1.0, top_k=9999, top_p=0.3, min_p=0.01),
        SlotParameters(temperature=2.0, top_k=3, top_p=0.99, min_p=0.4),
        SlotParameters(temperature=1.0),
        SlotParameters(temperature=0.0, top_k=1),
    ],
}


def rows_of(kind: str, rows: int, vocab_size: int) -> torch.Tensor:
    x = torch.randn(rows, vocab_size) * 3
    if kind == "tied":
        x = x.round()
        x[x == 0] = torch.tensor([0.0, -0.0]).repeat(int((x == 0).sum()) // 2 + 1)[: int((x == 0).sum())]
    elif kind == "flat":
        x = x * 1e-3
    elif kind == "equal":
        x = torch.full_like(x, -2.5)
    elif kind == "banned":
        x[:, torch.randperm(vocab_size)[: vocab_size - 7]] = float("-inf")
    return x


@pytest.mark.parametrize("kind", ["spread", "tied", "flat", "equal", "banned"])
@pytest.mark.parametrize("case", CASES)
def test_filters_leave_what_the_reference_leaves(arch: GpuArch, device: torch.device, kind: str, case: str):
    assert rows_unlike_the_reference(arch, device, rows_of(kind, len(CASES[case]), 2600), CASES[case]) == []


@pytest.mark.parametrize("kind", ["tied", "flat", "equal", "banned"])
def test_filters_that_leave_more_tokens_than_are_gathered(arch: GpuArch, device: torch.device, kind: str):
    """The search then reads the whole row."""
    parameters = [
        SlotParameters(temperature=0.7, top_k=5000),
        SlotParameters(temperature=1.0, top_p=0.9),
        SlotParameters(temperature=3.0, top_k=7000, top_p=0.8, min_p=0.01),
    ]
    assert rows_unlike_the_reference(arch, device, rows_of(kind, len(parameters), 9001), parameters) == []


def rows_unlike_the_reference(
    arch: GpuArch, device: torch.device, logits_KV: torch.Tensor, parameters: list[SlotParameters]
) -> list[tuple[SlotParameters, int]]:
    """Rows of which other tokens are left than by the reference filters, or not the likeliest; and how many differ."""
    vocab_size = logits_KV.shape[1]
    slots = slots_with(parameters, vocab_size, device)
    got_K5 = bounds(logits_KV.to(device), inputs_for(len(parameters), device), slots, GroupScratch(), arch)
    temperature_K1 = torch.tensor([each.temperature or 1.0 for each in parameters])[:, None]
    scaled_KV = logits_KV / temperature_K1
    top_k, top_p, min_p = (
        torch.tensor([getattr(each, name) for each in parameters]) for name in ("top_k", "top_p", "min_p")
    )
    expected = filter_logits(scaled_KV, top_k, top_p, min_p) > float("-inf")
    got = kept_by(got_K5, scaled_KV) & (scaled_KV > float("-inf"))
    unlike: list[tuple[SlotParameters, int]] = []
    for row, each in enumerate(parameters):
        greedy = each.temperature == 0
        wrong = int((got[row] != (scaled_KV[row] > float("-inf") if greedy else expected[row])).sum())
        # Sums of thousands of probabilities end a few rounding errors apart, which moves the last tokens of top-p.
        margin = 0 if greedy or each.top_p == 1.0 else int(2e-5 * vocab_size) + 1
        if wrong > margin or not got[row, scaled_KV[row].argmax()]:
            unlike.append((each, wrong))
    return unlike


@pytest.mark.parametrize(
    ("kind", "filters"), [("spread", True), ("tied", True), ("flat", True), ("spread", False), ("flat", False)]
)
def test_draws_are_the_reference_s(arch: GpuArch, device: torch.device, kind: str, filters: bool):
    """Of few tokens and of many, at low temperatures and high ones, with filters that leave few or all."""
    vocab_size = 2100
    parameters = [
        SlotParameters(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=int(torch.randint(0, 1 << 62, (1,)))
        )
        for temperature in (0.02, 0.6, 9.0)
        for top_k, top_p, min_p in ((20, 0.95, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (900, 1.0, 0.001))
    ]
    parameters += [SlotParameters(), SlotParameters(temperature=0.9)]
    logits_KV = rows_of(kind, len(parameters), vocab_size)
    features, inputs = SampleFeatures(random=True, filters=filters), inputs_for(len(parameters), device)
    host_inputs = inputs_for(len(parameters), torch.device("cpu"))
    host_inputs.sample_position_K = inputs.sample_position_K.cpu()
    host, slots = (slots_with(parameters, vocab_size, place) for place in (torch.device("cpu"), device))
    expected = sample(logits_KV.clone(), host_inputs, host, features)
    got = Sampler(arch).sample(logits_KV.to(device), inputs, slots, features)
    assert got.ids_K.cpu().equal(expected.ids_K)
    assert slots.last_token_S.cpu().equal(host.last_token_S)


def test_noise_is_the_reference_s(arch: GpuArch, device: torch.device):
    """Flat logits: the drawn token is where the noise is largest, in every part of a large vocabulary."""
    vocab_size, rows = 20_001, 4
    seeds = [torch.randint(0, 1 << 31, (2,)).tolist() for _ in range(rows)]
    parameters = [SlotParameters(temperature=1.0, seed=low | high << 32) for low, high in seeds]
    slots, inputs = slots_with(parameters, vocab_size, device), inputs_for(rows, device)
    flat_KV = torch.zeros(rows, vocab_size, device=device)
    got = Sampler(arch).sample(flat_KV, inputs, slots, SampleFeatures(random=True))
    low_K, high_K = torch.tensor(seeds, dtype=torch.int32).T
    noise_KV = gumbel_noise(low_K, high_K, inputs.sample_position_K.int().cpu(), vocab_size)
    assert got.ids_K.cpu().equal(noise_KV.argmax(1).int())
    assert slots.last_token_S[:rows].equal(got.ids_K)


def test_of_equal_logits_the_lowest_id_is_taken_in_any_part(arch: GpuArch, device: torch.device):
    logits_KV = torch.zeros(3, 5000)
    logits_KV[0, [17, 1023, 1024, 4999]] = 1.0
    logits_KV[1, [4098, 4097, 4999]] = 1.0
    logits_KV[2] = float("-inf")
    slots = slots_with([SlotParameters()] * 3, 5000, device)
    sampler = Sampler(arch)
    for _ in range(2):  # what the first call left must not disturb the second
        got = sampler.sample(logits_KV.to(device), inputs_for(3, device), slots, SampleFeatures())
        assert got.ids_K.tolist() == [17, 4097, 0]


def test_a_row_of_nan_gives_a_token_of_the_vocabulary(arch: GpuArch, device: torch.device):
    logits_KV = torch.full((2, 3000), float("nan"), device=device)
    slots = slots_with([SlotParameters(temperature=1.0), SlotParameters()], 3000, device)
    got = Sampler(arch).sample(logits_KV, inputs_for(2, device), slots, SampleFeatures(random=True))
    assert ((got.ids_K >= 0) & (got.ids_K < 3000)).all()


def test_more_rows_later_find_room(arch: GpuArch, device: torch.device):
    sampler = Sampler(arch)
    for rows in (1, 5, 2):
        logits_KV = torch.randn(rows, 1500).to(device)
        slots = slots_with([SlotParameters()] * rows, 1500, device)
        got = sampler.sample(logits_KV, inputs_for(rows, device), slots, SampleFeatures())
        assert got.ids_K.equal(logits_KV.argmax(1).int())


def test_penalties_leave_other_rows_alone_and_count(arch: GpuArch, device: torch.device):
    vocab_size = 2100
    parameters = [SlotParameters(), SlotParameters(repetition=1.5, frequency=0.25, presence=-0.5)]
    states = [slots_with(parameters, vocab_size, place) for place in (torch.device("cpu"), device)]
    counts_SV, in_prompt_SV = torch.randint(-3, 3, (3, vocab_size)).clamp(0).int(), torch.rand(3, vocab_size) < 0.2
    for state in states:
        for mine, given in zip(state.ensure_counts(), (counts_SV, in_prompt_SV), strict=True):
            mine.copy_(given)
    logits_KV = torch.randn(2, vocab_size)
    features = SampleFeatures(penalties=True)
    expected_KV, got_KV = logits_KV.clone(), logits_KV.clone().to(device)
    expected = sample(expected_KV, inputs_for(2, torch.device("cpu")), states[0], features)
    got = Sampler(arch).sample(got_KV, inputs_for(2, device), states[1], features)
    assert got.ids_K.cpu().equal(expected.ids_K)
    assert got_KV[0].cpu().equal(logits_KV[0])
    torch.testing.assert_close(got_KV.cpu(), expected_KV, rtol=1e-6, atol=1e-6)
    assert states[1].ensure_counts()[0].cpu().equal(states[0].ensure_counts()[0])


def test_the_likeliest_of_equal_tokens_are_the_first(arch: GpuArch, device: torch.device):
    """More tokens may be among the likeliest than are compared with each other."""
    logits_QV = torch.full((2, 1500), -1.0, device=device)
    logits_QV[1, [1400, 9]] = 2.0
    targets_Q = torch.tensor([5, 9], dtype=torch.int32, device=device)
    _, ranks_Q, top_ids_Qk, top_logprobs_Qk = logprobs.token_logprobs(logits_QV, targets_Q, 4, GroupScratch(), arch)
    assert ranks_Q.tolist() == [1, 1]
    assert top_ids_Qk.tolist() == [[0, 1, 2, 3], [9, 1400, 0, 1]]
    torch.testing.assert_close(top_logprobs_Qk, logits_QV.log_softmax(-1).gather(1, top_ids_Qk.long()))


def test_log_probabilities_of_a_row_of_nan_name_tokens_of_the_vocabulary(arch: GpuArch, device: torch.device):
    logits_QV = torch.full((1, 700), float("nan"), device=device)
    targets_Q = torch.zeros(1, dtype=torch.int32, device=device)
    _, _, top_ids_Qk, _ = logprobs.token_logprobs(logits_QV, targets_Q, 3, GroupScratch(), arch)
    assert ((top_ids_Qk >= 0) & (top_ids_Qk < 700)).all()


def test_log_probabilities_of_more_rows_than_fit_at_once(
    arch: GpuArch, device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logprobs, "_ROWS_AT_ONCE", 4)
    logits_QV, targets_Q = torch.randn(9, 200) * 3, torch.randint(0, 200, (9,), dtype=torch.int32)
    got = logprobs.token_logprobs(logits_QV.to(device), targets_Q.to(device), 2, GroupScratch(), arch)
    for mine, theirs in zip(got, token_logprobs(logits_QV, targets_Q, 2), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("top", [0, 3, 128, 129])
def test_log_probabilities_over_a_large_vocabulary(arch: GpuArch, device: torch.device, top: int):
    # Multiples of 1/1024 stay apart at 1e4; where two are equal, who comes first is nobody's promise.
    logits_QV = torch.stack([torch.randperm(6001) for _ in range(3)]).float() / 1024
    logits_QV[1] -= 1e4
    targets_Q = torch.tensor([0, 6000, int(logits_QV[2].argmax())], dtype=torch.int32)
    got = logprobs.token_logprobs(logits_QV.to(device), targets_Q.to(device), top, GroupScratch(), arch)
    for mine, theirs in zip(got, token_logprobs(logits_QV, targets_Q, top), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-5, atol=2e-5)
