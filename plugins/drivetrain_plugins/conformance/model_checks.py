"""A whole tiny Llama, every token judged by the dense float64 model: the proof of executors and of parts together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from drivetrain_plugins.conformance.batches import SlotParameters
from drivetrain_plugins.conformance.check import check, need, require
from drivetrain_plugins.conformance.closeness import GATES, require_close
from drivetrain_plugins.conformance.session import Session
from drivetrain_plugins.conformance.subject import Subject
from drivetrain_plugins.contract.batch import Pooling, PromptLogprobs, StepOutput

_LOGPROB_TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}


@check()
def prefill_and_decode_choose_the_right_tokens(subject: Subject) -> None:
    """Prompts of length 1, page and page +-1 together, then decode across page ends."""
    with Session(subject) as session:
        page = session.limits.page_size
        running = [session.begin(length) for length in (1, page - 1, page, page + 1)]
        for sequence in running:
            session.chunks([(sequence, len(sequence.tokens))])
            session.land_all()
        session.run(running, page // 2 + 2, ahead=False)


@check()
def steps_may_overlap(subject: Subject) -> None:
    """The next step starts before the last one's tokens are known to the host; rows change their order."""
    with Session(subject) as session:
        page = session.limits.page_size
        running = [session.begin(length) for length in (3, page - 2, 7)]
        session.chunks([(sequence, len(sequence.tokens)) for sequence in running])
        session.run(running, 6, ahead=True)
        session.run(running[::-1], 5, ahead=True)
        session.run([running[1]], 2, ahead=True)


@check()
def prompts_in_chunks_give_the_same_tokens(subject: Subject) -> None:
    """A prompt computed in pieces, beside decode rows where the policy mixes them."""
    with Session(subject) as session:
        page = session.limits.page_size
        first = session.begin(5)
        session.chunks([(first, 5)])
        session.land_all()
        second, third = session.begin(3 * page + 2), session.begin(page + 4)
        session.chunks([(second, page + 3)], [first])
        session.land_all()
        session.chunks([(second, page), (third, 2)], [first])
        session.land_all()
        session.chunks([(second, page - 1), (third, page + 2)], [first])
        session.land_all()
        session.run([first, second, third], 4, ahead=True)


@check()
def slots_and_pages_are_used_again(subject: Subject) -> None:
    """A new sequence in the slot and pages of one that ended, while another goes on."""
    with Session(subject) as session:
        page = session.limits.page_size
        old, staying = session.begin(2 * page + 3), session.begin(4)
        session.chunks([(old, len(old.tokens)), (staying, 4)])
        session.run([old, staying], 3, ahead=True)
        session.end(old)
        fresh = session.begin(page + 5)
        require(fresh.slot == old.slot, "the suite meant to use the slot again")
        session.chunks([(fresh, page + 5)], [staying])
        session.run([staying, fresh], 3, ahead=True)


@check()
def pages_are_shared_between_sequences(subject: Subject) -> None:
    """A prompt that begins like an earlier one starts from its pages, and both go on."""
    with Session(subject) as session:
        page = session.limits.page_size
        first = session.begin(2 * page + 3)
        session.chunks([(first, len(first.tokens))])
        session.land_all()
        second = session.begin(2 * page + 6, shared=first)
        require(second.computed == 2 * page, "the suite meant to share two pages")
        session.chunks([(second, 6)], [first])
        session.run([first, second], 3, ahead=True)


@check()
def pages_are_copied_before_the_step(subject: Subject) -> None:
    """A step copies pages first, so that its rows may read the copies and overwrite the originals."""
    with Session(subject) as session:
        page = session.limits.page_size
        first = session.begin(page + 5)
        session.chunks([(first, page + 5)])
        session.land_all()
        session.move_pages(first)
        second = session.begin(page + 2)
        session.chunks([(second, page + 2)])
        session.land_all()
        session.run([first, second], 3, ahead=True)


@check()
def steps_as_large_as_the_limits_are_served(subject: Subject) -> None:
    """A prompt of the largest step, the longest sequence, and every row at once."""
    with Session(subject) as session:
        limits = session.limits
        longest = session.begin(limits.max_step_tokens)
        session.chunks([(longest, limits.max_step_tokens)])
        session.land_all()
        others = [session.begin(2) for _ in range(limits.max_num_rows - 1)]
        session.chunks([(sequence, 2) for sequence in others])
        session.run([longest, *others], 2, ahead=True)
        left = limits.max_model_len - longest.computed
        session.run([longest], left, ahead=True)
        require(longest.computed == limits.max_model_len, "the suite meant to fill the context")


@check()
def seeds_decide_draws(subject: Subject) -> None:
    """With a temperature, tokens are where the model's score plus the noise of (seed, position) is largest."""
    need("random" in subject.capabilities.sampling, "capabilities.sampling lacks 'random'")
    with Session(subject) as session:
        running = [session.begin(4, SlotParameters(temperature=heat)) for heat in (0.0, 0.7, 1.5)]
        session.chunks([(sequence, 4) for sequence in running])
        session.run(running, 8, ahead=True)


def _sampled(session: Session, *parameters: SlotParameters, bias: float = 0.0) -> None:
    """Sequences with these parameters decode together for a while; with a bias, each has two biased tokens."""
    running = [session.begin(5, each) for each in parameters]
    for sequence in running if bias else ():
        sequence.biases = {session.subject.pick(0, 131): value for value in (bias, -bias)}
    session.chunks([(sequence, 5) for sequence in running])
    session.run(running, 10, ahead=not bias)


@check()
def filters_exclude_tokens(subject: Subject) -> None:
    """Top-k, top-p and min-p, beside a row without any."""
    need("filters" in subject.capabilities.sampling, "capabilities.sampling lacks 'filters'")
    hot = SlotParameters(temperature=1.5)
    with Session(subject) as session:
        _sampled(session, hot, replace(hot, top_k=3), replace(hot, top_p=0.6), replace(hot, min_p=0.2, top_k=40))


@check()
def penalties_count_the_sequence_s_tokens(subject: Subject) -> None:
    """Repetition over prompt and answer, frequency and presence over the answer; a slot begins anew."""
    need("penalties" in subject.capabilities.sampling, "capabilities.sampling lacks 'penalties'")
    plain = SlotParameters()
    kinds = [replace(plain, repetition=1.8), replace(plain, frequency=1.2), replace(plain, presence=2.0), plain]
    with Session(subject) as session:
        _sampled(session, *kinds)


@check()
def biases_move_logits(subject: Subject) -> None:
    """A token's bias counts in the row that has it."""
    need("biases" in subject.capabilities.sampling, "capabilities.sampling lacks 'biases'")
    with Session(subject) as session:
        _sampled(session, SlotParameters(), SlotParameters(temperature=0.8), bias=4.0)


@check()
def masks_leave_what_they_allow(subject: Subject) -> None:
    """Masks that depend on the token before, which may still be on the device, beside a row without one."""
    need("masks" in subject.capabilities.sampling, "capabilities.sampling lacks 'masks'")
    for ahead in (False, True):
        with Session(subject) as session:
            running = [session.begin(5, SlotParameters()) for _ in range(3)]
            running[0].stride, running[2].stride = 6, 40
            session.chunks([(sequence, 5) for sequence in running])
            session.run(running, 10, ahead=ahead)


@check()
def log_probabilities_of_answers_are_the_model_s(subject: Subject) -> None:
    """Each chosen token's log-probability, and the likeliest tokens beside it."""
    need("logprobs" in subject.capabilities.sampling, "capabilities.sampling lacks 'logprobs'")
    with Session(subject) as session:
        session.logprobs = 3
        sequence = session.begin(6)
        session.chunks([(sequence, 6)])
        for _ in range(3):
            expected_V = session.model.logits(sequence.tokens)[0].log_softmax(dim=-1)
            output = session.land()
            token = sequence.tokens[-1]
            found = (output.logprobs, output.ranks, output.top_ids, output.top_logprobs)
            require(all(part is not None for part in found), "ticket.wait: logprobs, ranks or top tokens are missing")
            assert output.logprobs is not None
            assert output.top_logprobs is not None
            allowed = _LOGPROB_TOLERANCE[session.limits.dtype]
            pairs = [("logprobs", float(output.logprobs[0]), float(expected_V[token]))]
            best_k = expected_V.topk(3).values
            pairs += [
                ("top_logprobs", float(output.top_logprobs[0, place]), float(best_k[place])) for place in range(3)
            ]
            for name, mine, truth in pairs:
                require(abs(mine - truth) <= allowed, f"ticket.wait: {name} has {mine:.5f}, expected {truth:.5f}")
            session.decode([sequence])
        session.land_all()


@check()
def prompt_log_probabilities_are_the_model_s(subject: Subject) -> None:
    """Each prompt token's log-probability given those before it."""
    need("prompt_logprobs" in subject.capabilities.sampling, "capabilities.sampling lacks 'prompt_logprobs'")
    with Session(subject) as session:
        sequence = session.begin(9)
        targets = np.array(sequence.tokens[1:], np.int32)
        session.ask(PromptLogprobs(tokens=np.arange(8, dtype=np.int32), targets=targets, top=2))
        session.chunks([(sequence, 9)])
        expected = session.model.logits(sequence.tokens, last=9).log_softmax(dim=-1)[:8]
        output = session.land()
        require(output.prompt_logprobs is not None, "ticket.wait: prompt_logprobs are missing")
        assert output.prompt_logprobs is not None
        got = output.prompt_logprobs
        require(got.shape == (8,), f"ticket.wait: prompt_logprobs have shape {got.shape}, expected (8,)")
        allowed = _LOGPROB_TOLERANCE[session.limits.dtype]
        for place, (mine, row) in enumerate(zip(got.tolist(), expected, strict=True)):
            truth = float(row[targets[place]])
            require(
                abs(mine - truth) <= allowed,
                f"ticket.wait: prompt_logprobs[{place}] is {mine:.5f}, expected {truth:.5f}",
            )


@check()
def pooled_states_are_the_model_s(subject: Subject) -> None:
    """Sums of the states after the final norm, of whole prompts and of chunks, beside a row that pools nothing."""
    with Session(subject) as session:
        need(session.executor.pools, "executor.pools is False: it serves no embeddings")
        together = session.policy.max_prefills_per_step != 1
        first, second = session.begin(11), session.begin(7)
        spans = [(0, 8), (7, 8), (8, 15)] if together else [(0, 8), (7, 8)]
        expected = [session.model.states(first.tokens[:8], last=8).sum(0), session.model.states(first.tokens[:8])[0]]
        if together:
            expected.append(session.model.states(second.tokens, last=7).sum(0))
        session.pool(Pooling(spans=np.array(spans, np.int32)))
        session.chunks([(first, 8), (second, 7)] if together else [(first, 8)])
        _same_sums(session, session.land(), expected)
        session.pool(Pooling(spans=np.array([(0, 3)], np.int32)))
        session.chunks([(first, 3)])
        _same_sums(session, session.land(), [session.model.states(first.tokens[:11], last=3).sum(0)])
        session.decode([first])
        require(session.land().pooled is None, "ticket.wait: got pooled sums of a step that was not asked for any")


def _same_sums(session: Session, output: StepOutput, expected: Sequence[torch.Tensor]) -> None:
    require(output.pooled is not None, "ticket.wait: pooled sums are missing")
    assert output.pooled is not None
    shape = (len(expected), session.model.spec.hidden_size)
    require(output.pooled.shape == shape, f"ticket.wait: pooled has shape {output.pooled.shape}, expected {shape}")
    for index, (mine_D, truth_D) in enumerate(zip(output.pooled, expected, strict=True)):
        gate = 10 * GATES[session.limits.dtype]
        require_close(torch.tensor(mine_D), truth_D, gate, f"ticket.wait: pooled[{index}]")
