"""Every kernel that the shared ops launch for a model, recorded from the ops themselves.

T tokens, D hidden size, E embedding size, F inner size, K samples, V vocabulary.
"""

# Relaxed: torch's stubs leave methods untyped, and the kernels' modules are Triton's.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.batch import BatchLayout, SampleFeatures
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec, NormSpec
from drivetrain_plugins.contract.slots import SlotState
from drivetrain_triton import logits
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import Variant, recording
from drivetrain_triton.ops import TritonOps

_META = torch.device("meta")
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROWS = 3
"""Any number: kernels do not depend on how many rows, tokens or samples a step has."""


def ops_variants(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """What `TritonOps` may launch while it serves a model, to be compiled ahead.

    Args:
        spec: this rank's share of the model.
    """
    ops = TritonOps(arch)
    dtype = _TYPES[limits.dtype]
    with recording() as variants:
        _record_layers(ops, spec, dtype)
        _record_embedding(ops, spec, dtype)
        _record_sampling(ops, spec, limits)
        bias_V = torch.empty(spec.vocab_size, dtype=dtype, device=_META) if spec.lm_head_bias else None
        logits.finish(_logits(spec), bias_V, spec.logits_scale, spec.logits_soft_cap, arch)
    return list({variant.key: variant for variant in variants}.values())


def _record_layers(ops: TritonOps, spec: DecoderSpec, dtype: torch.dtype) -> None:
    norms = [layer.norm for layer in spec.layers]
    if spec.final_norm is not None:
        norms.append(spec.final_norm)
    x_TD = torch.empty((_ROWS, spec.hidden_size), dtype=dtype, device=_META)
    for norm in dict.fromkeys(norms):
        weights = _norm_weights(norm, spec.hidden_size, dtype)
        ops.norm(x_TD, weights)
        ops.add_norm(x_TD, x_TD, weights)
    for mlp in dict.fromkeys(layer.mlp for layer in spec.layers):
        width = 2 * mlp.inner_size if mlp.gated else mlp.inner_size
        inner = torch.empty((_ROWS, width), dtype=dtype, device=_META)
        activated = ops.activate_gate if mlp.gated else ops.activate
        activated(inner, mlp.activation)


def _record_embedding(ops: TritonOps, spec: DecoderSpec, dtype: torch.dtype) -> None:
    ids_T = torch.empty(_ROWS, dtype=torch.int64, device=_META)
    width = spec.embedding.size or spec.hidden_size
    ops.embed(ids_T, torch.empty((spec.vocab_size, width), dtype=dtype, device=_META))
    if spec.embedding.positions:
        ops.embed(ids_T, torch.empty((_ROWS, spec.hidden_size), dtype=dtype, device=_META))
    if spec.embedding.norm is not None:
        x_TE = torch.empty((_ROWS, width), dtype=dtype, device=_META)
        ops.norm(x_TE, _norm_weights(spec.embedding.norm, width, dtype))


def _record_sampling(ops: TritonOps, spec: DecoderSpec, limits: ExecutorLimits) -> None:
    slots = SlotState(
        num_slots=limits.max_num_rows, max_pages=limits.max_pages, vocab_size=spec.vocab_size, device=_META
    )
    layout = BatchLayout(rows=_ROWS, tokens=_ROWS, samples=_ROWS, page_updates=1, slot_updates=1, biases=1)
    packed = torch.empty(layout.size, dtype=torch.int32, device=_META)
    inputs = ops.prepare(packed, layout, slots, limits.page_size)
    words = -(-spec.vocab_size // 32)
    inputs = replace(
        inputs,
        mask_rows_M=torch.empty(_ROWS, dtype=torch.int32, device=_META),
        masks_MW=torch.empty((_ROWS, words), dtype=torch.int32, device=_META),
    )
    for random, filters, penalties in itertools.product((False, True), repeat=3):
        features = SampleFeatures(
            random=random, filters=filters, penalties=penalties, biases=True, masks=True, logprobs=0
        )
        ops.sample(_logits(spec), inputs, slots, features)


def _logits(spec: DecoderSpec) -> torch.Tensor:
    return torch.empty((_ROWS, spec.vocab_size), dtype=torch.float32, device=_META)


def _norm_weights(spec: NormSpec, size: int, dtype: torch.dtype) -> NormWeights:
    weight_D = torch.empty(size, dtype=dtype, device=_META)
    return NormWeights(spec=spec, weight=weight_D if spec.weight else None, bias=weight_D if spec.bias else None)
