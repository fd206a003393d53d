"""An executor over a device's parts for the tiny Llama: the parts are proved together, in core's order of calls.

Core's own executor serves any model; this one exists so that the suite needs nothing beyond the contract.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from drivetrain_plugins.conformance import oracle
from drivetrain_plugins.conformance.batches import Packing, Row, pack
from drivetrain_plugins.conformance.subject import from_ints, torch_dtype
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, RotaryTable
from drivetrain_plugins.contract.backend import Device
from drivetrain_plugins.contract.batch import BatchLayout, StepBatch, Ticket, TokenMasks
from drivetrain_plugins.contract.executor import Executor, ExecutorLimits, FetchedStep, Progress, Weights
from drivetrain_plugins.contract.memory import KVCache, MemoryPlan, kv_spec
from drivetrain_plugins.contract.model import DecoderSpec, LayerSpec
from drivetrain_plugins.contract.ops import LayerWeights, LinearWeight, StepContext
from drivetrain_plugins.contract.runtime import Replay
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape
from drivetrain_plugins.contract.slots import SlotState, StepInputs

_MAX_PACKED = 1 << 16


@dataclass(frozen=True, slots=True)
class _Forward:
    inputs: StepInputs
    x_TD: torch.Tensor
    logits_KV: torch.Tensor


class PartsExecutor(Executor):
    """Drives runtime, allocator, attention and ops of one device through a Llama of plain layers."""

    pools = True

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def shape_policy(self) -> ShapePolicy:
        return self._policy

    @torch.inference_mode()
    def load(self, spec: DecoderSpec, weights: Weights, limits: ExecutorLimits, progress: Progress) -> MemoryPlan:
        device = self._device
        self._spec, self._limits = spec, limits
        self._policy = device.shape_policy(limits)
        self._cache: KVCache = device.allocator.reserve(kv_spec(spec, limits.kv_dtype, limits.page_size), limits.memory)
        self._weights = weights
        self._embed_VD = self._put("embed.weight")
        self._lm_head = self._linear("lm_head.weight")
        self._layers = [self._layer(index, layer) for index, layer in enumerate(spec.layers)]
        self._final_norm = self._norm("final_norm", spec.layers[0])
        self._slots = SlotState(
            num_slots=limits.max_num_rows,
            max_pages=limits.max_pages,
            vocab_size=spec.vocab_size,
            device=device.torch_device,
        )
        self._packed = torch.zeros(_MAX_PACKED, dtype=torch.int32, device=device.torch_device)
        self._recordings: dict[tuple[BatchLayout, int, int], tuple[_Forward, Replay]] = {}
        self._warm_up()
        plan = device.allocator.plan(self._cache, limits.memory)
        device.allocator.commit(self._cache, plan.num_pages)
        progress("load", 1, 1, "model")
        return plan

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> Ticket:
        device = self._device
        if batch.page_copies is not None:
            source, destination = batch.page_copies.T.tolist()
            device.allocator.copy_pages(self._cache, source, destination)
        self._begin_counts(batch)
        device.runtime.stage(batch.packed, self._packed)
        if batch.captured:
            forward = self._replay(batch)
        else:
            rows, tokens = batch.layout.rows, batch.layout.tokens
            shape = StepShape(
                rows=rows,
                tokens=tokens,
                pages=batch.max_pages,
                decode_only=batch.decode_only,
                total_pages=batch.total_pages,
            )
            forward = self._forward(batch.layout, shape, batch)
        results: dict[str, torch.Tensor] = {}
        asked = batch.prompt_logprobs
        if asked is not None:
            tokens, targets = (from_ints(part).to(device.torch_device) for part in (asked.tokens, asked.targets))
            logits = device.ops.logits(forward.x_TD.index_select(0, tokens.long()), self._lm_head, self._spec)
            logprobs, ranks, top_ids, top_logprobs = device.ops.token_logprobs(logits, targets, asked.top)
            results |= {"prompt_logprobs": logprobs, "prompt_ranks": ranks}
            results |= {"prompt_top_ids": top_ids, "prompt_top_logprobs": top_logprobs}
        if batch.pooling is not None:
            results["pooled"] = device.ops.pool(forward.x_TD, batch.pooling.spans)
        inputs = forward.inputs if batch.masks is None else self._masked(forward.inputs, batch.masks)
        sampled = device.ops.sample(forward.logits_KV, inputs, self._slots, batch.features)
        results["token_ids"] = sampled.ids_K
        for name, tensor in (
            ("logprobs", sampled.logprobs_K),
            ("ranks", sampled.ranks_K),
            ("top_ids", sampled.top_ids_Kk),
            ("top_logprobs", sampled.top_logprobs_Kk),
        ):
            if tensor is not None:
                results[name] = tensor
        return FetchedStep(device.runtime.fetch(results), batch.num_samples)

    def _masked(self, inputs: StepInputs, masks: TokenMasks) -> StepInputs:
        masks_MW = from_ints(masks.fill()).to(self._device.torch_device)
        return replace(inputs, masks_MW=masks_MW, mask_rows_M=from_ints(masks.rows).to(self._device.torch_device))

    def close(self) -> None:
        self._recordings.clear()
        self._device.allocator.release(self._cache)
        self._device.close()

    def _begin_counts(self, batch: StepBatch) -> None:
        """Token counts of newly assigned slots with penalties."""
        if not batch.cleared and not batch.features.penalties:
            return
        counts_SV, in_prompt_SV = self._slots.ensure_counts()
        for slot in batch.cleared:
            counts_SV[slot].zero_()
            in_prompt_SV[slot].zero_()
        if batch.history is not None:
            history = from_ints(batch.history).to(self._device.torch_device).long()
            in_prompt_SV[history[:, 0], history[:, 1]] = True

    def _forward(self, layout: BatchLayout, shape: StepShape, batch: StepBatch | None) -> _Forward:
        device = self._device
        inputs = device.ops.prepare(self._packed, layout, self._slots, self._limits.page_size)
        plan = device.attention.plan(inputs, shape, batch, self._cache)
        step = StepContext(attention=device.attention, plan=plan, cache=self._cache, communicator=device.communicator)
        residual_TD = device.ops.embed(inputs.ids_T, self._embed_VD)
        delta_TD: torch.Tensor | None = None
        for layer in self._layers:
            delta_TD, residual_TD = device.ops.decoder_layer(delta_TD, residual_TD, layer, step)
        if delta_TD is None:
            x_TD = device.ops.norm(residual_TD, self._final_norm)
        else:
            x_TD, _ = device.ops.add_norm(delta_TD, residual_TD, self._final_norm)
        logits_KV = device.ops.logits(x_TD.index_select(0, inputs.sample_token_K), self._lm_head, self._spec)
        return _Forward(inputs, x_TD, logits_KV)

    def _replay(self, batch: StepBatch) -> _Forward:
        layout = replace(batch.layout, biases=0)
        pages = batch.max_pages if self._policy.page_buckets else self._limits.max_pages
        key = (layout, pages, batch.total_pages)
        recording = self._recordings.get(key)
        if recording is None:
            rows, tokens = layout.rows, layout.tokens
            shape = StepShape(
                rows=rows,
                tokens=tokens,
                pages=pages,
                decode_only=True,
                captured=True,
                total_pages=batch.total_pages,
            )
            made: list[_Forward] = []

            def step() -> None:
                made.append(self._forward(layout, shape, None))

            step()
            replay = self._device.runtime.capture(step)
            recording = self._recordings[key] = (made[-1], replay)
        forward, replay = recording
        replay()
        if batch.layout.biases:  # the last section, which only the sampler reads
            biases_N4 = self._packed[layout.size : batch.layout.size].view(-1, 4)
            return replace(forward, inputs=replace(forward.inputs, biases_N4=biases_N4))
        return forward

    def _warm_up(self) -> None:
        """A prefill on the null page before pages are committed, as core does."""
        row = Row(slot=self._slots.dummy_slot, start=0, ids=[0] * self._limits.page_size, new_pages=[(0, 0)])
        shape = self._policy.pad(rows=2, tokens=len(row.ids), pages=1, decode_only=False)
        packing = Packing(page_size=self._limits.page_size, dummy_slot=self._slots.dummy_slot)
        self.execute(pack([row], replace(shape, captured=False), packing)).wait()

    def _put(self, name: str) -> torch.Tensor:
        weight = self._weights.load(name).to(torch_dtype(self._limits.dtype))
        return weight.to(self._device.torch_device)

    def _linear(self, *names: str) -> object:
        return self._device.ops.prepare_linear(LinearWeight(weight=torch.cat([self._put(name) for name in names])))

    def _norm(self, prefix: str, layer: LayerSpec) -> NormWeights:
        return NormWeights(spec=layer.norm, weight=self._put(f"{prefix}.weight"), bias=None)

    def _layer(self, index: int, layer: LayerSpec) -> LayerWeights:
        prefix, rotary = f"layers.{index}", layer.mixer.rotary
        assert rotary is not None
        cos_PF, sin_PF = (
            table.float().to(self._device.torch_device) for table in oracle.angles(rotary, self._limits.max_model_len)
        )
        attention = AttentionLayer(
            index=index,
            spec=layer.mixer,
            rotary=RotaryTable(cos_PF=cos_PF, sin_PF=sin_PF, interleaved=False),
            q_norm=None,
            k_norm=None,
            sinks_H=None,
            alibi_H=None,
        )
        return LayerWeights(
            spec=layer,
            norms={name: self._norm(f"{prefix}.{name}", layer) for name in layer.norm_names},
            qkv=self._linear(*(f"{prefix}.attn.{name}.weight" for name in "qkv")),
            out=self._linear(f"{prefix}.attn.out.weight"),
            up=self._linear(f"{prefix}.mlp.gate.weight", f"{prefix}.mlp.up.weight"),
            down=self._linear(f"{prefix}.mlp.down.weight"),
            attention=attention,
        )
