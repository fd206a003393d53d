"""The device: capabilities, shapes, and the executor that does everything else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.capabilities import Capabilities
from drivetrain_plugins.contract.executor import Executor, ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec, EmbeddingSpec, LayerSpec
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError
from drivetrain_toy.executor import ToyExecutor, static_shapes


class ToyDevice(Device):
    """Numpy as a device. It has no parts that core could drive."""

    def __init__(self) -> None:
        self.capabilities = Capabilities(
            device_name="numpy",
            dtypes=("float32",),
            kv_dtypes=("float32",),
            page_sizes=(16, 32),
            max_head_dim=256,
            sampling=frozenset({"random"}),
            step_tokens=256,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
        self._executor = ToyExecutor()

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        return static_shapes(limits)

    def unsupported(self, spec: DecoderSpec, limits: ExecutorLimits) -> list[str]:
        return super().unsupported(spec, limits) + [f"the toy has no {gap}" for gap in _gaps(spec)]

    def executor(self) -> Executor:
        return self._executor

    def close(self) -> None:
        return None


class ToyBackend(Backend):
    """Opens the toy, for one rank."""

    name = "toy"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> ToyDevice:
        if rank.world != 1:
            raise BackendError(f"the toy runs on one rank, got {rank.world}; lower the parallelism")
        return ToyDevice()


def _gaps(spec: DecoderSpec) -> Iterator[str]:
    """What this decoder needs beyond a plain Llama."""
    if spec.embedding != EmbeddingSpec():
        yield "learned positions, or scaled, normed or projected embeddings"
    if spec.lm_head_bias or spec.logits_scale != 1.0 or spec.logits_soft_cap is not None:
        yield "bias, scale or cap of logits"
    yield from sorted({gap for layer in spec.layers for gap in _layer_gaps(layer)})


def _layer_gaps(layer: LayerSpec) -> Iterator[str]:
    norm, attn, mlp = layer.norm, layer.mixer, layer.mlp
    if norm.kind != "rms" or norm.weight_offset or norm.bias or not norm.weight:
        yield "norm but plain root-mean-square norm"
    if not layer.pre_norm or layer.branch_norm or layer.sum_norm or layer.parallel != "no":
        yield "layers but pre-norm ones"
    if layer.residual_scale != 1.0:
        yield "scaled branches"
    if not mlp.gated or mlp.activation != "silu" or mlp.up_bias or mlp.down_bias:
        yield "feed-forward part but gated silu"
    rotary = attn.rotary
    if rotary is None or rotary.style != "half" or rotary.scaling != "none" or rotary.dim != attn.head_dim:
        yield "positions but unscaled rotary over whole heads"
    if attn.qk_norm is not None or attn.out_bias or attn.clip_qkv is not None:
        yield "q/k norm, output bias or clamp of the projections"
