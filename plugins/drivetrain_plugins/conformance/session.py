"""Sequences run through an executor as core runs them: slots, pages, padding, one step ahead; every token is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from drivetrain_plugins.conformance.batches import Packing, Row, SlotParameters, pack, padded_shape
from drivetrain_plugins.conformance.check import require
from drivetrain_plugins.conformance.parts_executor import PartsExecutor
from drivetrain_plugins.conformance.subject import Subject, from_ints, torch_dtype
from drivetrain_plugins.conformance.tiny_llama import TinyLlama, tiny_limits
from drivetrain_plugins.contract.batch import (
    LAST_TOKEN,
    MIN_P,
    SEED_HIGH,
    SEED_LOW,
    TOP_K,
    TOP_P,
    Int32Array,
    Pooling,
    PromptLogprobs,
    SampleFeatures,
    StepOutput,
    Ticket,
    TokenMasks,
)
from drivetrain_plugins.contract.reference.sampling import apply_penalties, filter_logits, gumbel_noise
from drivetrain_plugins.contract.slots import SlotState

_TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
"""How far below the best score a chosen token may lie, since logits of that type are no nearer to the truth."""


@dataclass(slots=True, eq=False)
class Running:
    """One sequence: its tokens as far as the host knows them, and its place on the device."""

    tokens: list[int]
    slot: int
    parameters: SlotParameters
    prompt_length: int
    pages: list[int] = field(default_factory=list[int])
    biases: dict[int, float] = field(default_factory=dict[int, float])
    stride: int = 0  # of the tokens that may follow another, as `allowed_after` has it; 0 allows any
    computed: int = 0
    told_pages: int = 0
    in_flight: int = 0
    admitted: bool = False

    @property
    def length(self) -> int:
        """Tokens, those included that only the device knows."""
        return len(self.tokens) + self.in_flight

    def allowed_after(self, token: int, vocab_size: int) -> list[int]:
        """Which tokens its mask leaves after this one."""
        return list(range(token % self.stride, vocab_size, self.stride + 1))


@dataclass(slots=True)
class _Step:
    ticket: Ticket
    sampled: list[Running]
    output: StepOutput | None = None

    def wait(self) -> StepOutput:
        """The results; may be called again."""
        if self.output is None:
            self.output = self.ticket.wait()
        return self.output


class Session:
    """A tiny Llama loaded into the subject's executor, or into one over its parts.

    Use as a context manager. `chunks` and `decode` start steps; `land` judges the oldest one's tokens.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.limits = limits = tiny_limits(subject.capabilities)
        generator = torch.Generator().manual_seed(subject.pick(0, 2**31))
        self.model = TinyLlama(generator, torch_dtype(limits.dtype))
        subject.close()
        device = subject.open()
        self._own = device.executor()
        self.executor = self._own or PartsExecutor(device)
        plan = self.executor.load(self.model.spec, self.model, limits, _silent)
        most = limits.memory.max_pages
        require(2 <= plan.num_pages <= most, f"executor.load: {plan.num_pages} pages, expected 2 to {most}")
        self.policy = self.executor.shape_policy
        self.free_pages = [page + 1 for page in subject.permutation(plan.num_pages - 1)]
        self.free_slots = subject.permutation(limits.max_num_rows)
        self._flying: list[_Step] = []
        self.logprobs = -1  # likeliest tokens that steps report, -1 for none at all
        self._step_id = 0
        self._shared: set[int] = set()
        self._copies: Sequence[tuple[int, int]] = ()
        self._asked: PromptLogprobs | None = None
        self._pooling: Pooling | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.close()

    def begin(self, length: int, parameters: SlotParameters | None = None, *, shared: Running | None = None) -> Running:
        """A sequence with a random prompt of this length and a random seed.

        Args:
            parameters: of its sampling; greedy if None.
            shared: the prompt begins with that sequence's full pages, and takes them over.
        """
        pick, page = self.subject.pick, self.limits.page_size
        tokens = [pick(0, self.model.spec.vocab_size) for _ in range(length)]
        made = Running(
            tokens=tokens,
            slot=self.free_slots.pop(0),
            parameters=replace(parameters or SlotParameters(), seed=pick(0, 2**62)),
            prompt_length=length,
        )
        if shared is not None:
            full = min(shared.computed, length - 1) // page
            made.tokens[: full * page] = shared.tokens[: full * page]
            made.pages, made.computed = shared.pages[:full], full * page
            self._shared.update(made.pages)
        return made

    def end(self, sequence: Running) -> None:
        """Give a sequence's slot and pages to whoever comes next."""
        self.free_slots.insert(0, sequence.slot)
        self.free_pages = [page for page in sequence.pages if page not in self._shared] + self.free_pages

    def chunks(self, todo: Sequence[tuple[Running, int]], decoding: Sequence[Running] = ()) -> None:
        """Compute so many further prompt tokens of each sequence, beside decode rows if the policy mixes them."""
        at_once = self.policy.max_prefills_per_step or len(todo)
        groups = [todo[first : first + at_once] for first in range(0, len(todo), at_once)]
        if decoding and not self.policy.mixed_steps:
            self.decode(decoding)
            decoding = ()
        for group in groups:
            self._start_within([*((sequence, 1) for sequence in decoding), *group])
            decoding = ()

    def decode(self, sequences: Sequence[Running]) -> None:
        """One further token of each sequence."""
        self._start_within([(sequence, 1) for sequence in sequences])

    def run(self, sequences: Sequence[Running], steps: int, *, ahead: bool) -> None:
        """Decode some steps, with two under way at once if `ahead`."""
        for _ in range(steps):
            self.decode(sequences)
            while len(self._flying) > int(ahead):
                self.land()
        self.land_all()

    def move_pages(self, sequence: Running) -> None:
        """Move a sequence to other pages; the next step copies them, and its new pages may be the old ones."""
        fresh = [self.free_pages.pop(0) for _ in sequence.pages]
        self._copies = list(zip(sequence.pages, fresh, strict=True))
        self.free_pages = sequence.pages + self.free_pages
        sequence.pages, sequence.told_pages = fresh, 0

    def land_all(self) -> None:
        """Judge everything under way."""
        while self._flying:
            self.land()

    def land(self) -> StepOutput:
        """Wait for the oldest step and judge its tokens.

        Raises:
            Violation: a token is not the one that the float64 model would choose, or a hair's breadth from it.
        """
        step = self._flying.pop(0)
        output = step.wait()
        count = len(step.sampled)
        require(
            output.token_ids.shape == (count,),
            f"ticket.wait: got token_ids of shape {output.token_ids.shape}, expected ({count},)",
        )
        for sequence, token in zip(step.sampled, output.token_ids.tolist(), strict=True):
            self._judge(sequence, token)
            sequence.tokens.append(token)
            sequence.in_flight -= 1
        return output

    def _judge(self, sequence: Running, token: int) -> None:
        vocab, known = self.model.spec.vocab_size, sequence.tokens
        require(0 <= token < vocab, f"ticket.wait: token {token} of a vocabulary of {vocab}")
        score_V = self._scores(sequence)
        parameters = sequence.parameters
        allowed = _TOLERANCE[self.limits.dtype] / (parameters.temperature or 1.0)
        best = int(score_V.argmax())
        missed = float(score_V[best] - score_V[token])
        require(
            missed <= allowed,
            f"token {len(known)} of a sequence with {parameters}: got {token}, expected {best}, whose score is "
            f"{missed:.3g} higher",
        )

    def _scores(self, sequence: Running) -> torch.Tensor:
        """What the next token must be the largest of (V): the float64 model's logits as the reference samples them."""
        vocab, parameters, known = self.model.spec.vocab_size, sequence.parameters, sequence.tokens
        score_1V = self.model.logits(known).float()
        for token, bias in sequence.biases.items():
            score_1V[0, token] += bias
        if sequence.stride:
            allowed = torch.zeros(vocab, dtype=torch.bool)
            allowed[sequence.allowed_after(known[-1], vocab)] = True
            score_1V[0, ~allowed] = float("-inf")
        slots = SlotState(num_slots=0, max_pages=1, vocab_size=vocab, device=score_1V.device)
        slots.params_SC[0] = from_ints(parameters.columns())
        if parameters.penalized:
            counts_SV, in_prompt_SV = slots.ensure_counts()
            generated = torch.tensor(known[sequence.prompt_length :], dtype=torch.long)
            counts_SV[0] = torch.bincount(generated, minlength=vocab).int()
            in_prompt_SV[0, torch.tensor(known[: sequence.prompt_length])] = True
            apply_penalties(score_1V, torch.zeros(1, dtype=torch.long), slots)
        if parameters.temperature > 0:
            score_1V = score_1V / parameters.temperature
            if parameters.filtered:
                floats = slots.floats_SC
                score_1V = filter_logits(score_1V, slots.params_SC[:, TOP_K], floats[:, TOP_P], floats[:, MIN_P])
            position = torch.tensor([len(known)], dtype=torch.int32)
            seeds = slots.params_SC[:, SEED_LOW], slots.params_SC[:, SEED_HIGH]
            score_1V = score_1V + gumbel_noise(*seeds, position, vocab)
        return score_1V[0]

    def _start_within(self, todo: Sequence[tuple[Running, int]]) -> None:
        """Start these rows in as few steps as the policy's `max_total_pages` allows."""
        most, page = self.policy.max_total_pages, self.limits.page_size
        group: list[tuple[Running, int]] = []
        num_pages = 0
        for sequence, count in todo:
            pages = -(-(sequence.computed + count) // page)
            if most is not None and group and num_pages + pages > most:
                self._start(group)
                group, num_pages = [], 0
            group.append((sequence, count))
            num_pages += pages
        self._start(group)

    def _start(self, todo: Sequence[tuple[Running, int]]) -> None:
        while len(self._flying) > 1:
            self.land()
        rows = [self._row(sequence, count) for sequence, count in todo]
        sampled = [sequence for sequence, _ in todo if sequence.computed == sequence.length]
        features = SampleFeatures(
            random=any(sequence.parameters.temperature > 0 for sequence in sampled),
            filters=any(sequence.parameters.filtered for sequence in sampled),
            penalties=any(sequence.parameters.penalized for sequence in sampled),
            biases=any(sequence.biases for sequence in sampled),
            masks=any(sequence.stride for sequence in sampled),
            logprobs=self.logprobs,
        )
        packing = Packing(
            page_size=self.limits.page_size,
            dummy_slot=self.limits.max_num_rows,
            features=features,
            biases=[
                (index, token, bias, LAST_TOKEN)
                for index, sequence in enumerate(sampled)
                for token, bias in sequence.biases.items()
            ],
            page_copies=self._copies,
            prompt_logprobs=self._asked,
            pooling=self._pooling,
            masks=self._masks(sampled) if features.masks else None,
        )
        self._copies, self._asked, self._pooling = (), None, None
        batch = pack(rows, padded_shape(rows, self.policy, self.limits.page_size), packing, step_id=self._step_id)
        self._step_id += 1
        self._flying.append(_Step(self.executor.execute(batch), sampled))
        for sequence in sampled:
            sequence.in_flight += 1

    def _masks(self, sampled: Sequence[Running]) -> TokenMasks:
        vocab = self.model.spec.vocab_size
        masked = [(index, sequence) for index, sequence in enumerate(sampled) if sequence.stride]
        earlier = list(self._flying)

        def fill() -> Int32Array:
            newest = {
                sequence: token
                for step in earlier
                for sequence, token in zip(step.sampled, step.wait().token_ids.tolist(), strict=True)
            }
            allowed_MV = np.zeros((len(masked), -(-vocab // 32) * 32), np.uint8)
            for line, (_, sequence) in zip(allowed_MV, masked, strict=True):
                line[sequence.allowed_after(newest.get(sequence, sequence.tokens[-1]), vocab)] = 1
            return np.packbits(allowed_MV, axis=1, bitorder="little").view(np.int32)

        return TokenMasks(rows=np.array([index for index, _ in masked], np.int32), fill=fill)

    def ask(self, prompt_logprobs: PromptLogprobs) -> None:
        """Ask the next step for log-probabilities of prompt tokens."""
        self._asked = prompt_logprobs

    def pool(self, pooling: Pooling) -> None:
        """Ask the next step for sums of hidden states."""
        self._pooling = pooling

    def _row(self, sequence: Running, count: int) -> Row:
        start, end, page = sequence.computed, sequence.computed + count, self.limits.page_size
        while len(sequence.pages) * page < end:
            sequence.pages.append(self.free_pages.pop(0))
        new_pages = list(enumerate(sequence.pages))[sequence.told_pages :]
        known = sequence.tokens[start:end]
        row = Row(
            slot=sequence.slot,
            start=start,
            ids=known + [LAST_TOKEN] * (count - len(known)),
            samples=end == sequence.length,
            new_pages=new_pages,
            admitted=None if sequence.admitted else sequence.parameters,
            prompt=sequence.tokens,
        )
        sequence.computed, sequence.told_pages, sequence.admitted = end, len(sequence.pages), True
        return row


def _silent(phase: str, done: float, total: float, unit: str) -> None:
    del phase, done, total, unit
