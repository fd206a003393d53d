"""Core's own executor: drives a backend's runtime, allocator, attention and ops through the one decoder.

R rows, T tokens, K samples, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from drivetrain.models.decoder import Decoder
from drivetrain_plugins.contract.backend import Device
from drivetrain_plugins.contract.batch import (
    NULL_PAGE,
    BatchLayout,
    Int32Array,
    PromptLogprobs,
    SampleFeatures,
    StepBatch,
    Ticket,
)
from drivetrain_plugins.contract.executor import Executor, ExecutorLimits, FetchedStep, Progress, Weights
from drivetrain_plugins.contract.memory import KVCache, MemoryPlan
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.ops import StepContext
from drivetrain_plugins.contract.runtime import Replay
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs

_WARM_FEATURES = (SampleFeatures(), SampleFeatures(random=True))
_SCORED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class _Forward:
    """What a forward pass leaves behind. After a capture, the buffers that every replay fills again."""

    inputs: StepInputs
    x_TD: torch.Tensor
    logits_KV: torch.Tensor


_Recording = tuple[_Forward, Replay]


class ModelRunner(Executor):
    """Runs the steps of one model on one device.

    Request state stays on the device in slots. A step stages one packed buffer; from there to the logits everything is
    one function of device buffers, which is captured for the shapes that the device's policy names.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def shape_policy(self) -> ShapePolicy:
        return self._policy

    @torch.inference_mode()
    def load(self, spec: DecoderSpec, weights: Weights, limits: ExecutorLimits, progress: Progress) -> MemoryPlan:
        device = self._device
        self._limits = limits
        self._policy = policy = device.shape_policy(limits)
        self._decoder = Decoder(spec, device, limits.dtype, limits.max_model_len)
        self._cache: KVCache = device.allocator.reserve(
            self._decoder.kv_spec(limits.kv_dtype, limits.page_size), limits.memory
        )
        self._decoder.load(weights, progress)
        self._slots = SlotState(
            num_slots=limits.max_num_rows,
            max_pages=limits.max_pages,
            vocab_size=spec.vocab_size,
            device=device.torch_device,
        )
        self._packed = torch.zeros(_largest_layout(policy, limits).size, dtype=torch.int32, device=device.torch_device)
        self._recordings: dict[tuple[BatchLayout, int], _Recording] = {}
        self._warm_up(progress)
        plan = device.allocator.plan(self._cache, limits.memory)
        device.allocator.commit(self._cache, plan.num_pages)
        return plan

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> Ticket:
        try:
            return self._execute(batch)
        except RuntimeError as error:
            meaning = self._device.classify(error)
            if meaning is None:
                raise
            raise meaning from error

    def close(self) -> None:
        self._recordings.clear()
        self._device.allocator.release(self._cache)
        self._device.close()

    def _execute(self, batch: StepBatch) -> Ticket:
        if batch.page_copies is not None:
            source, destination = batch.page_copies.T.tolist()
            self._device.allocator.copy_pages(self._cache, source, destination)
        self._begin_counts(batch)
        self._device.runtime.stage(batch.packed, self._buffer(batch.layout))
        prompt: dict[str, torch.Tensor] | None = None
        if batch.captured:
            forward = self._replay(batch)
        else:
            rows, tokens = batch.layout.rows, batch.layout.tokens
            shape = StepShape(rows=rows, tokens=tokens, pages=batch.max_pages, decode_only=batch.decode_only)
            forward = self._forward(batch.layout, shape, batch)
            if batch.prompt_logprobs is not None:
                prompt = self._score_prompt(forward.x_TD, batch.prompt_logprobs)
        sampled = self._device.ops.sample(forward.logits_KV, forward.inputs, self._slots, batch.features)
        results = _named(sampled)
        if prompt is not None:
            results.update(prompt)
        return FetchedStep(self._device.runtime.fetch(results), batch.num_samples)

    def _forward(self, layout: BatchLayout, shape: StepShape, batch: StepBatch | None) -> _Forward:
        """From the staged buffer to logits."""
        device = self._device
        inputs = device.ops.prepare(self._packed, layout, self._slots, self._limits.page_size)
        plan = device.attention.plan(inputs, shape, batch, self._cache)
        step = StepContext(attention=device.attention, plan=plan, cache=self._cache, communicator=device.communicator)
        x_TD = self._decoder.forward(inputs, step)
        logits_KV = self._decoder.logits(x_TD.index_select(0, inputs.sample_token_K))
        return _Forward(inputs, x_TD, logits_KV)

    def _score_prompt(self, x_TD: torch.Tensor, asked: PromptLogprobs) -> dict[str, torch.Tensor]:
        """Log-probabilities of prompt tokens, in blocks so that (tokens, V) never exists whole."""
        tokens_Q, targets_Q = self._upload(asked.tokens).long(), self._upload(asked.targets)
        blocks = [slice(at, at + _SCORED_AT_ONCE) for at in range(0, len(asked.tokens), _SCORED_AT_ONCE)]
        parts = [
            self._device.ops.token_logprobs(
                self._decoder.logits(x_TD.index_select(0, tokens_Q[block])), targets_Q[block], asked.top
            )
            for block in blocks
        ]
        names = ("prompt_logprobs", "prompt_ranks", "prompt_top_ids", "prompt_top_logprobs")
        return {name: torch.cat(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}

    def _replay(self, batch: StepBatch) -> _Forward:
        # Biases are the last section and only the sampler reads them, so one recording serves any number of them.
        layout = replace(batch.layout, biases=0)
        pages = batch.max_pages if self._policy.page_buckets else self._limits.max_pages
        shape = StepShape(
            rows=layout.rows, tokens=layout.tokens, pages=pages, decode_only=batch.decode_only, captured=True
        )
        recording = self._recordings.get((layout, pages))
        if recording is None:
            recording = self._recordings[layout, pages] = self._capture(layout, shape)
        forward, replay = recording
        replay()
        if batch.layout.biases:
            biases_N4 = self._packed[layout.size : batch.layout.size].view(-1, 4)
            return replace(forward, inputs=replace(forward.inputs, biases_N4=biases_N4))
        return forward

    def _capture(self, layout: BatchLayout, shape: StepShape) -> _Recording:
        """Record the forward pass of one shape.

        It runs once before and may run once while being recorded. That is harmless: `prepare` and the KV write only
        repeat themselves, and the sampler, which does not, stays outside.
        """
        made: list[_Forward] = []

        def step() -> None:
            made.append(self._forward(layout, shape, None))

        step()
        replay = self._device.runtime.capture(step)
        return made[-1], replay

    def _begin_counts(self, batch: StepBatch) -> None:
        """Token counts of slots whose new request has penalties."""
        if not batch.cleared and not batch.features.penalties:
            return
        counts_SV, in_prompt_SV = self._slots.ensure_counts()
        for slot in batch.cleared:
            counts_SV[slot].zero_()
            in_prompt_SV[slot].zero_()
        if batch.history is not None:
            history = self._upload(batch.history).long()
            slot, token, generated = history[:, 0], history[:, 1], history[:, 2]
            counts_SV.index_put_((slot, token), generated.int(), accumulate=True)
            prompt = generated == 0
            in_prompt_SV.index_put_((slot[prompt], token[prompt]), torch.ones_like(slot[prompt], dtype=torch.bool))

    def _buffer(self, layout: BatchLayout) -> torch.Tensor:
        if layout.size > self._packed.numel():
            # Captured steps read the old buffer at its address; they are made again for the new one.
            self._recordings.clear()
            self._packed = torch.zeros(2 * layout.size, dtype=torch.int32, device=self._device.torch_device)
        return self._packed

    def _upload(self, host: Int32Array) -> torch.Tensor:
        destination = torch.empty(host.shape, dtype=torch.int32, device=self._device.torch_device)
        self._device.runtime.stage(np.ascontiguousarray(host).reshape(-1), destination.view(-1))
        return destination

    def _warm_up(self, progress: Progress) -> None:
        """Run the largest step and record the policy's decode shapes, all on the null page."""
        layouts = _warm_layouts(self._policy, self._limits)
        for done, (layout, captured) in enumerate(layouts):
            progress("warm up", done, len(layouts), "shapes")
            for features in _WARM_FEATURES if captured else _WARM_FEATURES[:1]:
                batch = _null_batch(layout, self._slots.dummy_slot, captured=captured, features=features)
                self._execute(batch).wait()
        self._device.runtime.synchronize()
        progress("warm up", len(layouts), len(layouts), "shapes")


def _named(sampled: SampledTokens) -> dict[str, torch.Tensor]:
    results = {"token_ids": sampled.ids_K}
    optional: Mapping[str, torch.Tensor | None] = {
        "logprobs": sampled.logprobs_K,
        "ranks": sampled.ranks_K,
        "top_ids": sampled.top_ids_Kk,
        "top_logprobs": sampled.top_logprobs_Kk,
    }
    results.update({name: tensor for name, tensor in optional.items() if tensor is not None})
    return results


def _decode_layout(rows: int) -> BatchLayout:
    return BatchLayout(rows=rows, tokens=rows, samples=rows, page_updates=rows)


def _largest_layout(policy: ShapePolicy, limits: ExecutorLimits) -> BatchLayout:
    rows = max((limits.max_num_rows, *policy.row_buckets)) + 1
    tokens = max((limits.max_step_tokens, *policy.token_buckets))
    pages = tokens // limits.page_size + rows + limits.max_pages
    return BatchLayout(rows=rows, tokens=tokens, samples=rows, page_updates=pages, slot_updates=rows, biases=rows)


def _warm_layouts(policy: ShapePolicy, limits: ExecutorLimits) -> list[tuple[BatchLayout, bool]]:
    """(layout, captured): the largest prefill, then decode shapes from the largest down: graphs share memory."""
    rows = max(1, min(limits.max_num_rows, limits.max_step_tokens))
    layouts = [(BatchLayout(rows=rows, tokens=limits.max_step_tokens, samples=rows, page_updates=0), False)]
    layouts += [
        (_decode_layout(rows), True)
        for rows in sorted(policy.row_buckets, reverse=True)
        if rows <= policy.max_captured_rows
    ]
    if not policy.max_captured_rows:
        layouts.append((_decode_layout(1), False))
    return layouts


def _null_batch(layout: BatchLayout, dummy_slot: int, *, captured: bool, features: SampleFeatures) -> StepBatch:
    """A batch of padding rows only: every write goes to the null page."""
    lengths = np.full(layout.rows, layout.tokens // layout.rows)
    lengths[0] += layout.tokens % layout.rows
    batch = StepBatch(
        step_id=-1,
        layout=layout,
        packed=np.zeros(layout.size, np.int32),
        num_rows=layout.rows,
        num_tokens=layout.tokens,
        num_decode_rows=layout.rows if layout.tokens == layout.rows else 0,
        num_samples=layout.samples,
        max_query=int(lengths.max()),
        max_kv=int(lengths.max()),
        max_pages=1,
        features=features,
        captured=captured,
    )
    batch.section("row_slot")[:] = dummy_slot
    np.cumsum(lengths, out=batch.section("query_start")[1:])
    batch.section("token_row")[:] = np.repeat(np.arange(layout.rows), lengths)
    batch.section("sample_row")[:] = np.arange(layout.samples) % layout.rows
    batch.section("page_updates")[:] = (dummy_slot, 0, NULL_PAGE)
    return batch
