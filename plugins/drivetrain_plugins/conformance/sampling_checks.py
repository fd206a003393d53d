"""Step inputs and sampling: exactly what the reference makes of the same slots, seeds and logits.

K rows, V vocabulary, S slots.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from drivetrain_plugins.conformance.batches import Packing, Row, SlotParameters, pack, padded_shape
from drivetrain_plugins.conformance.check import check, need, require
from drivetrain_plugins.conformance.closeness import listed
from drivetrain_plugins.conformance.subject import Subject, from_ints
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.batch import LAST_TOKEN, SampleFeatures
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs

_SLOTS, _PAGE, _VOCAB, _COLUMNS = 12, 4, 509, 9
_VALUES: dict[str, tuple[float, ...]] = {
    "temperature": (0.0, 0.3, 0.7, 1.0, 1.9),
    "top_p": (1.0, 0.9, 0.5, 0.05),
    "min_p": (0.0, 0.02, 0.3),
    "presence": (0.0, 0.7, -0.4),
    "frequency": (0.0, 0.3, -0.2),
    "repetition": (1.0, 1.3, 0.8),
    "top_k": (0, 1, 5, 40, 600),
}
_VARIED = frozenset(_VALUES)
_TURNS = 8
_BIASES = (4.0, -3.0, float("-inf"))
_DEVICE_STATE = ("last_token_S", "page_table_SP", "params_SC", "counts_SV", "in_prompt_SV")


@dataclass(slots=True)
class _Twin:
    """Equal slots on the host, for the reference, and on the device."""

    subject: Subject
    host: SlotState
    device: SlotState

    @classmethod
    def make(cls, subject: Subject, *, counts: bool = False) -> _Twin:
        host, device = (
            SlotState(num_slots=_SLOTS, max_pages=_COLUMNS, vocab_size=_VOCAB, device=torch.device(place))
            for place in ("cpu", subject.parts.torch_device)
        )
        host.last_token_S.copy_(subject.randint(0, _VOCAB, _SLOTS + 1))
        host.page_table_SP[:-1] = subject.randint(1, 50, _SLOTS, _COLUMNS).int()
        if counts:
            counts_SV, in_prompt_SV = host.ensure_counts()
            device.ensure_counts()
            counts_SV.copy_(subject.randint(-6, 4, _SLOTS + 1, _VOCAB).clamp(min=0))
            in_prompt_SV.copy_(subject.randint(0, 5, _SLOTS + 1, _VOCAB) == 0)
        twin = cls(subject, host, device)
        twin.push()
        return twin

    def push(self) -> None:
        """Bring the device's slots to the host's state."""
        for name in _DEVICE_STATE:
            tensor, place = getattr(self.host, name), getattr(self.device, name)
            if tensor is not None:
                place.copy_(tensor)

    def require_equal(self, what: str) -> None:
        """The device's slots hold what the reference left in the host's, padding's slot excepted."""
        for name in _DEVICE_STATE:
            expected, found = getattr(self.host, name), getattr(self.device, name)
            if expected is None:
                continue
            got = self.subject.get(found)
            differs = (got[:-1] != expected[:-1]).nonzero()
            if len(differs):
                place = tuple(listed(differs[0]))
                require(
                    False,
                    f"{what}: slots.{name}{list(place)} is {got[place].item()} afterwards, expected "
                    f"{expected[place].item()}",
                )


@check()
def prepare_matches(subject: Subject) -> None:
    """Ids, positions, page slots and slot updates of prefill, decode and padded steps."""
    policies = (ShapePolicy(), ShapePolicy(row_buckets=(9,), token_buckets=(70,), max_captured_rows=9))
    steps: dict[str, list[tuple[int, int]]] = {
        "prefill": [(0, 5), (3, 17), (7, 1), (2, 9)],
        "decode": [(7, 1), (0, 1), (2, 1), (3, 1)],
        "mixed": [(3, 1), (0, 1), (2, 6), (5, 11)],
        "one token": [(5, 1)],
    }
    for policy in policies:
        twin = _Twin.make(subject)
        lengths = dict.fromkeys(range(_SLOTS), 0)
        for name, step in steps.items():
            rows: list[Row] = []
            for slot, count in step:
                start = lengths[slot]
                ids = [subject.pick(0, _VOCAB) for _ in range(count)] if start == 0 or count > 1 else [LAST_TOKEN]
                pages = [(index, subject.pick(1, 50)) for index in range(start // _PAGE, (start + count) // _PAGE + 1)]
                admitted = None if start else _parameters(subject)
                rows.append(Row(slot=slot, start=start, ids=ids, new_pages=pages[:1], admitted=admitted))
                lengths[slot] += count
            biases = [(0, 3, 1.5, LAST_TOKEN), (0, 7, float("-inf"), 4)]
            packing = Packing(
                page_size=_PAGE,
                dummy_slot=_SLOTS,
                biases=biases if name == "mixed" else (),
                groups=[((1, 3, 0), _PAGE)],
                padded_groups=2 if name == "decode" else 0,
            )
            batch = pack(rows, padded_shape(rows, policy, _PAGE), packing)
            packed = torch.full((batch.layout.size + 8,), -9, dtype=torch.int32, device=subject.device.torch_device)
            subject.stage(batch.packed, packed)
            expected = reference.prepare(from_ints(batch.packed), batch.layout, twin.host, _PAGE)
            got = subject.parts.ops.prepare(packed, batch.layout, twin.device, _PAGE)
            _same_inputs(subject, got, expected, f"ops.prepare ({name}, {batch.layout})", batch.num_tokens)
            twin.require_equal(f"ops.prepare ({name})")


def _same_inputs(subject: Subject, got: StepInputs, expected: StepInputs, what: str, num_tokens: int) -> None:
    for name in (field.name for field in fields(StepInputs)):
        if name == "page_table_SP":
            continue
        mine, theirs = getattr(got, name), getattr(expected, name)
        if theirs is None:
            require(mine is None, f"{what}: {name} is there, expected None")
            continue
        require(mine is not None, f"{what}: {name} is None, expected {listed(theirs.flatten()[:12])}")
        mine = subject.get(mine)
        require(mine.dtype == theirs.dtype, f"{what}: {name} is {mine.dtype}, expected {theirs.dtype}")
        require(
            mine.shape == theirs.shape, f"{what}: {name} has shape {tuple(mine.shape)}, expected {tuple(theirs.shape)}"
        )
        if name == "kv_slots_T":
            padding = mine[num_tokens:]
            require(bool((padding < _PAGE).all()), f"{what}: padding tokens write to slots {listed(padding)}")
        same = mine[:num_tokens].equal(theirs[:num_tokens]) if name == "ids_T" else mine.equal(theirs)
        require(same, f"{what}: {name} is {listed(mine.flatten()[:12])}, expected {listed(theirs.flatten()[:12])}")


def _parameters(subject: Subject, varied: Collection[str] = _VARIED) -> SlotParameters:
    """Random parameters; those not varied are neutral."""
    values = {name: _VALUES[name][subject.pick(0, len(_VALUES[name]))] for name in varied}
    return replace(SlotParameters(temperature=1.0, seed=subject.pick(0, 2**62)), **values)


def _sampled(subject: Subject, features: SampleFeatures, what: str, varied: Collection[str] = _VARIED) -> None:
    """Sample the same logits with the backend and with the reference, a few times in a row."""
    twin = _Twin.make(subject, counts=features.penalties)
    for slot in range(_SLOTS):
        twin.host.params_SC[slot] = from_ints(_parameters(subject, varied).columns())
    twin.push()
    for turn in range(_TURNS):
        num_rows = _SLOTS if turn < 2 else subject.pick(1, _SLOTS)
        slots = subject.permutation(_SLOTS)[:num_rows]
        rows = [Row(slot=slot, start=subject.pick(1, 8 * _PAGE), ids=[LAST_TOKEN]) for slot in slots]
        biases: list[tuple[int, int, float, int]] = []
        if features.biases:
            biases = [
                (
                    subject.pick(0, num_rows),
                    subject.pick(0, _VOCAB),
                    _BIASES[subject.pick(0, 3)],
                    last,
                )
                for last in (LAST_TOKEN, LAST_TOKEN, int(twin.host.last_token_S[slots[0]]), 5)
            ]
        packing = Packing(page_size=_PAGE, dummy_slot=_SLOTS, features=features, biases=biases)
        masks = _masks(subject, num_rows) if features.masks else {}
        policy = ShapePolicy(row_buckets=(_SLOTS + 2,), max_captured_rows=_SLOTS + 2) if turn % 2 else ShapePolicy()
        batch = pack(rows, padded_shape(rows, policy, _PAGE), packing)
        expected_inputs = reference.prepare(from_ints(batch.packed), batch.layout, twin.host, _PAGE)
        packed = torch.zeros(batch.layout.size, dtype=torch.int32, device=subject.device.torch_device)
        subject.stage(batch.packed, packed)
        inputs = reference.prepare(packed, batch.layout, twin.device, _PAGE)
        logits_KV = subject.randn(batch.layout.samples, _VOCAB, scale=2.5)
        expected = reference.sample(logits_KV.clone(), replace(expected_inputs, **masks), twin.host, features)
        inputs = replace(inputs, **{name: subject.put(mask) for name, mask in masks.items()})
        subject.poison(batch.layout.samples, "float32")
        got = subject.parts.ops.sample(subject.put(logits_KV), inputs, twin.device, features)
        _same_samples(subject, got, expected, num_rows, f"ops.sample ({what}), step {turn}")
        twin.require_equal(f"ops.sample ({what}), step {turn}")


def _masks(subject: Subject, num_rows: int) -> dict[str, torch.Tensor]:
    """Masks of some rows, of which one allows a single token; bits past the vocabulary are set, and mean nothing."""
    rows = sorted(subject.permutation(num_rows)[: subject.pick(1, num_rows + 1)])
    masks_MW = subject.randint(-(2**31), 2**31, len(rows), -(-_VOCAB // 32)).int()
    only = subject.pick(0, _VOCAB)
    masks_MW[0] = 0
    masks_MW[0, only // 32] = from_ints(np.array([1 << only % 32], np.uint32).view(np.int32))[0]
    masks_MW[0, -1] |= from_ints(np.array([0xFFFFFFFF << _VOCAB % 32 & 0xFFFFFFFF], np.uint32).view(np.int32))[0]
    return {"mask_rows_M": torch.tensor(rows, dtype=torch.int32), "masks_MW": masks_MW}


def _same_samples(subject: Subject, got: SampledTokens, expected: SampledTokens, rows: int, what: str) -> None:
    for name in (field.name for field in fields(SampledTokens)):
        mine, theirs = getattr(got, name), getattr(expected, name)
        if theirs is None:
            continue
        require(mine is not None, f"{what}: {name} is missing")
        mine = subject.get(mine)
        require(
            mine.dtype == theirs.dtype and mine.shape == theirs.shape,
            f"{what}: {name} is {mine.dtype} {tuple(mine.shape)}, expected {theirs.dtype} {tuple(theirs.shape)}",
        )
        mine, theirs = mine[:rows], theirs[:rows]
        if mine.is_floating_point():
            same = torch.allclose(mine, theirs, atol=2e-5, rtol=1e-5)
        else:
            same = mine.equal(theirs)
        require(same, f"{what}: {name} is {listed(mine.flatten()[:12])}, expected {listed(theirs.flatten()[:12])}")


@check()
def greedy_takes_the_likeliest(subject: Subject) -> None:
    """The largest logit of each row, remembered in the row's slot and in no other."""
    _sampled(subject, SampleFeatures(), "greedy")


@check()
def draws_depend_on_seed_and_position_only(subject: Subject) -> None:
    """Given seeds draw the reference's tokens, beside rows with temperature 0."""
    _sampled(subject, SampleFeatures(random=True), "random")


@check()
def filters_keep_what_they_should(subject: Subject) -> None:
    """Top-k, top-p and min-p, each alone and in every mix."""
    for name in ("top_k", "top_p", "min_p"):
        _sampled(subject, SampleFeatures(random=True, filters=True), name, (name,))
    _sampled(subject, SampleFeatures(random=True, filters=True), "filters")


@check()
def penalties_count_tokens(subject: Subject) -> None:
    """Repetition, frequency and presence, and the counts that they leave."""
    for name in ("presence", "frequency", "repetition"):
        _sampled(subject, SampleFeatures(random=True, penalties=True), name, (name,))
    _sampled(subject, SampleFeatures(penalties=True), "penalties")
    _sampled(subject, SampleFeatures(random=True, filters=True, penalties=True), "penalties, filters")


@check()
def biases_are_added(subject: Subject) -> None:
    """Unconditional biases, bans, and those that depend on the slot's last token."""
    _sampled(subject, SampleFeatures(biases=True), "biases")
    _sampled(subject, SampleFeatures(random=True, biases=True), "biases, random")


@check()
def masks_forbid_tokens(subject: Subject) -> None:
    """Rows with a mask take an allowed token, the others are free; before anything else, but for log-probabilities."""
    need("masks" in subject.parts.capabilities.sampling, "capabilities.sampling lacks 'masks'")
    _sampled(subject, SampleFeatures(masks=True), "masks")
    _sampled(subject, SampleFeatures(random=True, masks=True), "masks, random")
    everything = SampleFeatures(random=True, filters=True, penalties=True, biases=True, masks=True, logprobs=3)
    _sampled(subject, everything, "masks and everything")


@check()
def log_probabilities_are_those_of_the_model(subject: Subject) -> None:
    """Before temperature, penalties and biases, for every number of likeliest tokens."""
    for top in (0, 1, 20):
        _sampled(subject, SampleFeatures(logprobs=top), f"logprobs {top}")
    everything = SampleFeatures(random=True, filters=True, penalties=True, biases=True, logprobs=5)
    _sampled(subject, everything, "everything")


@check()
def noise_is_the_reference_s_over_a_large_vocabulary(subject: Subject) -> None:
    """Flat logits over 32,000 tokens: the drawn token is where the noise of (seed, position) is largest."""
    vocab, num_rows = 32_000, 6
    host, device = (
        SlotState(num_slots=num_rows, max_pages=1, vocab_size=vocab, device=torch.device(place))
        for place in ("cpu", subject.parts.torch_device)
    )
    rows: list[Row] = []
    for slot in range(num_rows):
        parameters = SlotParameters(temperature=1.0, seed=subject.pick(0, 2**62))
        host.params_SC[slot] = from_ints(parameters.columns())
        rows.append(Row(slot=slot, start=subject.pick(1, 4000), ids=[1]))
    device.params_SC.copy_(host.params_SC)
    batch = pack(rows, padded_shape(rows, ShapePolicy(), 4096), Packing(page_size=4096, dummy_slot=num_rows))
    inputs = [
        reference.prepare(from_ints(batch.packed).to(slots.device), batch.layout, slots, 4096)
        for slots in (host, device)
    ]
    flat_KV = torch.zeros(num_rows, vocab)
    features = SampleFeatures(random=True)
    expected = reference.sample(flat_KV.clone(), inputs[0], host, features)
    got = subject.parts.ops.sample(subject.put(flat_KV), inputs[1], device, features)
    _same_samples(subject, got, expected, num_rows, "ops.sample (flat logits)")
