"""Whole decoder layers of every arrangement, at whatever grain the backend fuses them.

T tokens, D hidden size.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch

from drivetrain_plugins.conformance import oracle
from drivetrain_plugins.conformance.check import check
from drivetrain_plugins.conformance.closeness import GATES, require_close
from drivetrain_plugins.conformance.op_checks import Put
from drivetrain_plugins.conformance.paged_rows import TESTED_LAYER, Kind, PagedRows
from drivetrain_plugins.conformance.subject import Subject, torch_dtype
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, PagedAttention
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.capabilities import Dtype
from drivetrain_plugins.contract.communicator import SoleRank
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.model import AttentionSpec, LayerSpec, MlpSpec, NormSpec, RotarySpec
from drivetrain_plugins.contract.ops import LayerWeights, LinearWeight, Ops, StepContext
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs

_HIDDEN, _INNER, _TOKENS = 48, 80, 21
_ATTENTION = AttentionSpec(
    num_heads=4, num_kv_heads=2, head_dim=32, scale=32**-0.5, rotary=RotarySpec(dim=32, base=10_000.0)
)
_BASE = LayerSpec(
    mixer=_ATTENTION,
    mlp=MlpSpec(inner_size=_INNER, activation="silu"),
    norm=NormSpec(kind="rms", eps=1e-6),
)
_VARIANTS = {
    "pre-norm": _BASE,
    "scaled branches": replace(_BASE, residual_scale=0.4),
    "branch norms too": replace(_BASE, branch_norm=True),
    "branch norms only": replace(_BASE, branch_norm=True, pre_norm=False),
    "sum norms": replace(_BASE, pre_norm=False, sum_norm=True),
    "parallel, one norm": replace(_BASE, parallel="shared"),
    "parallel, two norms": replace(_BASE, parallel="separate"),
}


class _DenseAttention(PagedAttention):
    """The oracle in place of paged attention: one sequence that begins with this step."""

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> None:
        raise AssertionError("the dense oracle has no plan")

    def write(self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: Any) -> None:
        raise AssertionError("the dense oracle has no pages")

    def attend(self, q_THK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: Any) -> torch.Tensor:
        raise AssertionError("the dense oracle has no pages")

    def attention(self, qkv_TX: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: Any) -> torch.Tensor:
        out = oracle.attention(qkv_TX.double(), qkv_TX.shape[0], layer.spec, oracle.AttentionParameters())
        return out.to(qkv_TX.dtype)


class _Weights:
    """Random weights of one layer on the host."""

    def __init__(self, subject: Subject, spec: LayerSpec) -> None:
        attn = spec.mixer
        q_size, kv_size = attn.num_heads * attn.head_dim, attn.num_kv_heads * attn.head_dim
        shapes = {
            "qkv": (q_size + 2 * kv_size, _HIDDEN),
            "out": (_HIDDEN, q_size),
            "up": (2 * _INNER, _HIDDEN),
            "down": (_HIDDEN, _INNER),
        }
        self.spec = spec
        self.linear = {name: subject.randn(*shape, scale=shape[1] ** -0.5) for name, shape in shapes.items()}
        self.norms = {name: 1 + subject.randn(_HIDDEN, scale=0.3) for name in spec.norm_names}

    def on(self, ops: Ops, put: Put, attention: AttentionLayer) -> LayerWeights:
        """These weights as `ops` wants them."""
        handles = {name: ops.prepare_linear(LinearWeight(weight=put(host))) for name, host in self.linear.items()}
        norms = {
            name: NormWeights(spec=self.spec.norm, weight=put(host), bias=None) for name, host in self.norms.items()
        }
        return LayerWeights(spec=self.spec, norms=norms, attention=attention, **handles)


@check()
def decoder_layers_match(subject: Subject) -> None:
    """Every arrangement of norms, residuals and branches, with and without a pending branch."""
    for dtype, name, pending in itertools.product(subject.parts.capabilities.dtypes, _VARIANTS, (True, False)):
        _match(subject, dtype, name, pending=pending)


@check()
def decoder_layers_keep_only_the_wanted_tokens(subject: Subject) -> None:
    """The last layer's results are wanted for some tokens only, in any order; all tokens are attended to."""
    for dtype, name, pending in itertools.product(subject.parts.capabilities.dtypes, _VARIANTS, (True, False)):
        for keep in ((_TOKENS - 1,), (3, 17, 8), (5, 5, 0, 20)):
            _match(subject, dtype, name, pending=pending, keep=keep)


def _match(subject: Subject, dtype: Dtype, name: str, *, pending: bool, keep: tuple[int, ...] | None = None) -> None:
    """Judge one layer; `keep` are the tokens that are wanted."""
    spec = _VARIANTS[name]
    weights = _Weights(subject, spec)
    residual_TD, delta_TD = subject.randn(_TOKENS, _HIDDEN), subject.randn(_TOKENS, _HIDDEN)
    kv_dtypes = subject.capabilities.kv_dtypes
    kind = Kind(
        spec=spec.mixer,
        dtype=dtype,
        kv_dtype=dtype if dtype in kv_dtypes else kv_dtypes[0],
        page_size=min(subject.capabilities.page_sizes),
    )
    rows = PagedRows(subject, kind, num_slots=1, num_pages=8)
    step = StepContext(
        attention=rows.device.attention,
        plan=rows.plan([(0, _TOKENS)]),
        cache=rows.cache,
        communicator=rows.device.communicator,
    )
    dense = StepContext(attention=_DenseAttention(), plan=None, cache=rows.cache, communicator=SoleRank())

    def run(ops: Ops, put: Put, step: StepContext, keep_K: torch.Tensor | None) -> torch.Tensor:
        layer = weights.on(ops, put, rows.layers[TESTED_LAYER])
        pending_TD = put(delta_TD) if pending else None
        delta, residual = ops.decoder_layer(pending_TD, put(residual_TD), layer, step, keep_K)
        return residual if delta is None else residual + delta

    typed = torch_dtype(dtype)
    keep_K = None if keep is None else torch.tensor(keep)
    truth = run(Ops(), lambda host: host.to(typed).float(), dense, keep_K)
    plain = run(Ops(), lambda host: host.to(typed), dense, keep_K)
    subject.poison(_TOKENS * _HIDDEN, dtype)
    on_device = None if keep_K is None else subject.put(keep_K)
    got = subject.get(run(rows.device.ops, lambda host: subject.put(host.to(typed)), step, on_device))
    rows.close()
    what = f"ops.decoder_layer ({name}, pending {pending}, keep {keep}) in {dtype}"
    require_close(got, truth, GATES[dtype], what, plain=plain)
