"""Core's own executor: drives a backend's runtime, allocator, attention and ops through the one decoder.

R rows, T tokens, K samples, D hidden size, V vocabulary, M rows with a mask, W words of a mask.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import torch

from drivetrain.layouts import largest_layout
from drivetrain.models.decoder import Decoder
from drivetrain.recordings import Outcome, Recorded, Recordings, padding_batch, samples_inside
from drivetrain.warm_up import WarmUp
from drivetrain_plugins.contract.backend import Device
from drivetrain_plugins.contract.batch import (
    BatchLayout,
    Int32Array,
    PromptLogprobs,
    SampleFeatures,
    StepBatch,
    Ticket,
    TokenMasks,
)
from drivetrain_plugins.contract.executor import Executor, ExecutorLimits, FetchedStep, Progress, Weights
from drivetrain_plugins.contract.memory import KVCache, MemoryPlan
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.ops import StepContext
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape
from drivetrain_plugins.contract.slots import SlotState, StepInputs
from drivetrain_plugins.errors import BackendError, OutOfMemory

_log = logging.getLogger(__name__)

_SCORED_AT_ONCE = 256
_COUNTS_LATER = 256 << 20
"""Bytes of token counts that may wait for the first request with penalties: what devices leave free beside the pages.
Larger ones exist before the pages are measured out, or that request would find no memory."""


class ModelRunner(Executor):
    """Runs the steps of one model on one device.

    Request state stays on the device in slots. A step stages one packed buffer; from there to the sampled tokens
    everything is one function of device buffers, which is recorded for the shapes that the device's policy names.
    """

    pools = True

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def shape_policy(self) -> ShapePolicy:
        return self._policy

    @torch.inference_mode()
    def load(self, spec: DecoderSpec, weights: Weights, limits: ExecutorLimits, progress: Progress) -> MemoryPlan:
        device = self._device
        self._decoder = Decoder(spec, device, limits.dtype, limits.max_model_len)
        wait_for_kernels = device.compile_ahead(self._decoder.share, limits, progress)
        self._cache: KVCache = device.allocator.reserve(
            self._decoder.kv_spec(limits.kv_dtype, limits.page_size), limits.memory
        )
        most_pages = self._cache.most_pages
        if most_pages is not None and most_pages < limits.memory.max_pages:
            limits = replace(limits, memory=replace(limits.memory, max_pages=most_pages))
        self._limits = limits
        self._policy = policy = device.shape_policy(limits)
        self._decoder.load(weights, progress)
        self._slots = SlotState(
            num_slots=limits.max_num_rows,
            max_pages=limits.max_pages,
            vocab_size=spec.vocab_size,
            device=device.torch_device,
        )
        largest = largest_layout(
            policy,
            rows=limits.max_num_rows,
            tokens=limits.max_step_tokens,
            columns=limits.max_pages,
            page_size=limits.page_size,
        )
        if self._slots.counts_bytes > _COUNTS_LATER:
            self._slots.ensure_counts()
        self._packed = torch.zeros(largest.size, dtype=torch.int32, device=device.torch_device)
        self._logits_KV = self._recorded_logits(largest.rows, spec.vocab_size)
        self._recordings = Recordings(device.runtime.capture, self._run_recorded, self._stage_padding)
        self._warm_up = WarmUp(policy, limits)
        wait_for_kernels()
        self._warm(progress)
        plan = device.allocator.plan(self._cache, limits.memory)
        device.allocator.commit(self._cache, plan.num_pages)
        return plan

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> Ticket:
        try:
            return self._execute(batch)
        except BackendError:
            raise
        except Exception as error:
            meaning = self._device.classify(error)
            if meaning is None:
                raise
            raise meaning from error

    @torch.inference_mode()
    def prepare_more(self) -> bool:
        step = self._warm_up.next_recording() if self._recordings.has_room else None
        if step is None:
            return self._prepare_device()
        if step not in self._recordings:
            self._device.runtime.preparing(True)
            try:
                self._record(step)
            finally:
                self._device.runtime.preparing(False)
        return True

    @torch.inference_mode()
    def set_pages(self, num_pages: int) -> None:
        self._device.runtime.synchronize()
        self._device.allocator.commit(self._cache, num_pages)

    def close(self) -> None:
        self._recordings.clear()
        self._device.allocator.release(self._cache)
        self._device.close()

    def _prepare_device(self) -> bool:
        """As `Device.prepare_more`; what finds no memory now is left to the step that needs it."""
        try:
            return self._device.prepare_more()
        except BackendError:
            raise
        except Exception as error:
            meaning = self._device.classify(error)
            if meaning is None:
                raise
            if not isinstance(meaning, OutOfMemory):
                raise meaning from error
            return False

    def _execute(self, batch: StepBatch) -> Ticket:
        if batch.page_copies is not None:
            source, destination = batch.page_copies.T.tolist()
            self._device.allocator.copy_pages(self._cache, source, destination)
        self._begin_counts(batch)
        aside: dict[str, torch.Tensor] = {}
        if batch.captured:
            outcome = self._execute_recorded(batch)
        else:
            outcome = self._execute_plainly(batch)
            if batch.prompt_logprobs is not None:
                assert outcome.states is not None, "states of all tokens are kept for their scores"
                aside = self._score_prompt(outcome.states, batch.prompt_logprobs)
            if batch.pooling is not None:
                assert outcome.states is not None, "states of all tokens are kept for their sums"
                sums_PD = self._device.ops.pool(outcome.states, batch.pooling.spans)
                aside["pooled"] = self._decoder.embedding(sums_PD)
        return FetchedStep(self._device.runtime.fetch(outcome.results | aside), batch.num_samples)

    def _execute_plainly(self, batch: StepBatch) -> Outcome:
        self._stage(batch)
        keep_all = batch.prompt_logprobs is not None or batch.pooling is not None
        layout = batch.layout
        shape = StepShape(
            rows=layout.rows,
            tokens=layout.tokens,
            pages=batch.max_pages,
            decode_only=batch.decode_only,
            shared_groups=layout.shared_groups,
            total_pages=batch.total_pages,
        )
        return self._run(layout, shape, batch, batch.features, keep_all=keep_all)

    def _execute_recorded(self, batch: StepBatch) -> Outcome:
        """Replay the step, or record it if it is due, or run just what would be recorded."""
        inside = samples_inside(batch.features, self._policy)
        step = Recorded(
            layout=replace(batch.layout, biases=0) if batch.layout.biases else batch.layout,
            pages=batch.max_pages if self._policy.page_buckets else self._limits.max_pages,
            features=batch.features if inside else None,
            decode_only=batch.decode_only,
            total_pages=batch.total_pages,
        )
        if step not in self._recordings and self._recordings.is_due(step):
            self._record(step)
        self._stage(batch)  # may drop all recordings
        outcome = self._recordings.replay(step) if step in self._recordings else self._run_recorded(step)
        if inside:
            return outcome
        inputs = outcome.inputs
        if batch.layout.biases:  # the last section, behind all that a recording reads
            inputs = replace(inputs, biases_N4=self._packed[step.layout.size : batch.layout.size].view(-1, 4))
        if batch.masks is not None:
            inputs = self._masked(inputs, batch.masks)
        assert outcome.logits_KV is not None, "what is not sampled inside of a recording is sampled behind it"
        sampled = self._device.ops.sample(outcome.logits_KV, inputs, self._slots, batch.features)
        return Outcome(inputs=inputs, sampled=sampled)

    def _run(
        self,
        layout: BatchLayout,
        shape: StepShape,
        batch: StepBatch | None,
        features: SampleFeatures | None,
        *,
        keep_all: bool = False,
    ) -> Outcome:
        """From the staged buffer to sampled tokens, or to logits if there are no `features`."""
        device = self._device
        inputs = device.ops.prepare(self._packed, layout, self._slots, self._limits.page_size)
        plan = device.attention.plan(inputs, shape, batch, self._cache)
        step = StepContext(attention=device.attention, plan=plan, cache=self._cache, communicator=device.communicator)
        # A decode step that samples as many rows as it has samples them in order.
        gathers = not (shape.decode_only and layout.samples == layout.rows)
        if gathers and not keep_all:
            states = x_KD = self._decoder.forward(inputs, step, inputs.sample_token_K)
        else:
            states = self._decoder.forward(inputs, step)
            x_KD = states.index_select(0, inputs.sample_token_K) if gathers else states
        logits_KV = self._decoder.logits(x_KD)
        if features is None:
            return Outcome(inputs, logits_KV=logits_KV)
        if batch is not None and batch.masks is not None:
            inputs = self._masked(inputs, batch.masks)
        sampled = device.ops.sample(logits_KV, inputs, self._slots, features)
        return Outcome(inputs, states=states if keep_all else None, sampled=sampled)

    def _masked(self, inputs: StepInputs, masks: TokenMasks) -> StepInputs:
        """The inputs with masks, which are filled now: the device is busy with the step's forward pass."""
        masks_MW = masks.fill()
        count = masks_MW.size
        uploaded = self._upload(np.concatenate((masks_MW.reshape(-1), masks.rows)))
        return replace(inputs, masks_MW=uploaded[:count].view(masks_MW.shape), mask_rows_M=uploaded[count:])

    def _run_recorded(self, step: Recorded) -> Outcome:
        outcome = self._run(step.layout, step.shape, None, step.features)
        if outcome.logits_KV is None:
            return outcome
        # One buffer for all recordings, so that none of them keeps logits of its own.
        shared_KV = self._logits_KV[: step.layout.samples]
        return Outcome(outcome.inputs, logits_KV=shared_KV.copy_(outcome.logits_KV))

    def _record(self, step: Recorded) -> None:
        """Record a step; one that finds no memory is never recorded, and runs as it is."""
        try:
            self._recordings.record(step)
        except Exception as error:
            meaning = error if isinstance(error, BackendError) else self._device.classify(error)
            if not isinstance(meaning, OutOfMemory):
                raise
            self._recordings.refuse(step)

    def _recorded_logits(self, rows: int, vocab_size: int) -> torch.Tensor:
        captures = self._policy.max_captured_rows or self._policy.max_captured_tokens
        return torch.empty(rows if captures else 0, vocab_size, device=self._device.torch_device)

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

    def _begin_counts(self, batch: StepBatch) -> None:
        """Token counts of slots whose new request has penalties."""
        if not batch.cleared and not batch.features.penalties:
            return
        counts_SV, in_prompt_SV = self._slots.ensure_counts()
        for slot in batch.cleared:
            counts_SV[slot].zero_()
            in_prompt_SV[slot].zero_()
        if batch.history is not None:
            # Told apart on the host: a mask on the device would have to be waited for.
            generated = batch.history[:, 2] != 0
            made, prompt = self._upload(batch.history[generated]).long(), self._upload(batch.history[~generated]).long()
            counts_SV.index_put_((made[:, 0], made[:, 1]), made[:, 2].int(), accumulate=True)
            in_prompt_SV.index_put_((prompt[:, 0], prompt[:, 1]), torch.ones_like(prompt[:, 0], dtype=torch.bool))

    def _stage(self, batch: StepBatch) -> None:
        if batch.layout.size > self._packed.numel():
            # Recorded steps read the old buffer at its address; they are made again for the new one.
            self._recordings.clear()
            self._packed = torch.zeros(2 * batch.layout.size, dtype=torch.int32, device=self._device.torch_device)
        self._device.runtime.stage(batch.packed, self._packed)

    def _stage_padding(self, step: Recorded) -> None:
        self._stage(padding_batch(step.layout, step.shape, self._slots.dummy_slot))

    def _upload(self, host: Int32Array) -> torch.Tensor:
        destination = torch.empty(host.shape, dtype=torch.int32, device=self._device.torch_device)
        self._device.runtime.stage(np.ascontiguousarray(host).reshape(-1), destination.view(-1))
        return destination

    def _warm(self, progress: Progress) -> None:
        """Run the largest steps and record the first shapes, all on the null page."""
        self._device.runtime.preparing(True)
        try:
            self._prepare_shapes(progress)
        finally:
            self._device.runtime.preparing(False)

    def _prepare_shapes(self, progress: Progress) -> None:
        warm_up, budget_s, begin = self._warm_up, self._policy.record_budget_s, time.monotonic()
        # The last step is the wait for the device, which ends the phase.
        total = len(warm_up.eager) + len(warm_up.recorded_first) + 1
        progress("warm up", 0, total, "steps")
        for done, (layout, shape, features) in enumerate(warm_up.eager, start=1):
            self._execute(padding_batch(layout, shape, self._slots.dummy_slot, features)).wait()
            progress("warm up", done, total, "steps")
        for index, step in enumerate(warm_up.recorded_first):
            if budget_s is not None and time.monotonic() - begin > budget_s:
                warm_up.postpone(warm_up.recorded_first[index:])
                _log.warning(
                    "warm-up ended after its %g s with %d of %d shapes prepared; the other %d are prepared while nobody"
                    " waits, and a request that needs one before waits for it",
                    budget_s,
                    index,
                    len(warm_up.recorded_first),
                    warm_up.num_left,
                )
                break
            self._recordings.record(step)
            progress("warm up", len(warm_up.eager) + index + 1, total, "steps")
        self._device.runtime.synchronize()
        progress("warm up", total, total, "steps")
