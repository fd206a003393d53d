"""Every op against its torch reference: in float32 nearly the same, in 16 bits as near to the float32 truth as torch.

T tokens, D hidden size, F inner size, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import torch

from drivetrain_plugins.conformance.check import check, require
from drivetrain_plugins.conformance.closeness import GATES, listed, require_close
from drivetrain_plugins.conformance.subject import Subject, torch_dtype
from drivetrain_plugins.conformance.tiny_llama import tiny_spec
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.capabilities import Dtype
from drivetrain_plugins.contract.model import Activation, DecoderSpec, MlpSpec, NormSpec
from drivetrain_plugins.contract.ops import LinearWeight, Ops
from drivetrain_plugins.errors import Unsupported

_TOKENS = (1, 3, 17, 130)
Put = Callable[[torch.Tensor], torch.Tensor]
Run = Callable[[Ops, Put], torch.Tensor]
"""An op on given inputs: called with the ops and with what brings a host tensor to the type and place of the run."""


def _judge(subject: Subject, dtype: Dtype, run: Run, what: str, *, typical: float = 0.0) -> None:
    """Run the backend's op, the reference in float32 on the same rounded inputs, and the reference in `dtype`."""

    def rounded(host: torch.Tensor) -> torch.Tensor:
        return host.to(torch_dtype(dtype)) if host.is_floating_point() else host

    truth = run(Ops(), lambda host: rounded(host).float() if host.is_floating_point() else host)
    plain = run(Ops(), rounded)
    subject.poison(truth.numel(), dtype)
    got = run(subject.parts.ops, lambda host: subject.put(rounded(host)))
    require(got.dtype == plain.dtype, f"ops.{what} in {dtype}: got {got.dtype}, expected {plain.dtype}")
    require_close(subject.get(got), truth, GATES[dtype], f"ops.{what} in {dtype}", plain=plain, typical=typical)


@check()
def embed_takes_rows(subject: Subject) -> None:
    """Exact rows of the embedding, the first and last too."""
    for dtype in subject.parts.capabilities.dtypes:
        weight, ids = subject.randn(37, 48), torch.tensor([0, 36, 5, 5, 0])
        _judge(subject, dtype, lambda ops, put, w=weight, i=ids: ops.embed(put(i), put(w)), "embed")


@check()
def norms_match(subject: Subject) -> None:
    """Root-mean-square and layer norm, with and without weight, offset, bias and early weight."""
    variants = (
        NormSpec(kind="rms", eps=1e-6),
        NormSpec(kind="rms", eps=1e-2, weight_offset=1.0, late_weight=False),
        NormSpec(kind="rms", eps=1e-6, weight=False),
        NormSpec(kind="layer", eps=1e-5, bias=True),
        NormSpec(kind="layer", eps=1e-5),
        NormSpec(kind="layer", eps=1e-5, weight=False),
    )
    for dtype, spec, tokens in itertools.product(subject.dtypes, variants, _TOKENS):
        size = 72
        x_TD, other_TD = subject.randn(tokens, size, scale=3.0) + 0.5, subject.randn(tokens, size)
        weight, bias = 1 + subject.randn(size, scale=0.3), subject.randn(size)

        def weights(put: Put, spec: NormSpec = spec, w: torch.Tensor = weight, b: torch.Tensor = bias) -> NormWeights:
            return NormWeights(spec=spec, weight=put(w) if spec.weight else None, bias=put(b) if spec.bias else None)

        what = f"norm ({spec.kind}, weight {spec.weight}, bias {spec.bias}, {tokens} tokens)"
        _judge(subject, dtype, lambda ops, put, x=x_TD, w=weights: ops.norm(put(x), w(put)), what)
        for index, part in enumerate(("norm", "sum")):
            _judge(
                subject,
                dtype,
                lambda ops, put, x=x_TD, y=other_TD, w=weights, i=index: ops.add_norm(put(x), put(y), w(put))[i],
                f"add_norm, the {part} ({spec.kind}, {tokens} tokens)",
            )


def _linear(ops: Ops, put: Put, weight: torch.Tensor, bias: torch.Tensor | None) -> object:
    return ops.prepare_linear(LinearWeight(weight=put(weight), bias=None if bias is None else put(bias)))


@check()
def linear_layers_match(subject: Subject) -> None:
    """x W^T + b over odd sizes, one token and many, with and without bias."""
    shapes = ((64, 96), (33, 47), (256, 128), (1, 64))
    for dtype, (out, width), tokens, biased in itertools.product(subject.dtypes, shapes, _TOKENS, (False, True)):
        weight, x_TD = subject.randn(out, width, scale=width**-0.5), subject.randn(tokens, width)
        bias = subject.randn(out) if biased else None

        def run(
            ops: Ops, put: Put, x: torch.Tensor = x_TD, w: torch.Tensor = weight, b: torch.Tensor | None = bias
        ) -> torch.Tensor:
            return ops.linear(put(x), _linear(ops, put, w, b))

        _judge(subject, dtype, run, f"linear ({tokens} x {width} to {out}, bias {biased})", typical=0.5)


@check()
def unknown_weight_formats_are_unsupported(subject: Subject) -> None:
    """`prepare_linear` refuses a format that it has not, instead of taking it for plain weights."""
    weight = LinearWeight(weight=subject.put(subject.randn(8, 8)), quantization="no-such-format")
    try:
        subject.parts.ops.prepare_linear(weight)
    except Unsupported as error:
        require("no-such-format" in str(error), f"prepare_linear: the error does not name the format: {error}")
    else:
        require(False, "ops.prepare_linear: took quantization 'no-such-format', expected Unsupported")


@check()
def activations_match(subject: Subject) -> None:
    """Every activation, alone and as a gate, for large inputs too."""
    activations: tuple[Activation, ...] = get_args(Activation)
    for dtype, activation, tokens in itertools.product(subject.dtypes, activations, (1, 17)):
        x_TF = subject.randn(tokens, 96, scale=2.0) if tokens > 1 else torch.tensor([[20.0, -20.0, 0.0, -0.0] * 2])
        _judge(
            subject, dtype, lambda ops, put, x=x_TF, a=activation: ops.activate(put(x), a), f"activate ({activation})"
        )
        _judge(
            subject,
            dtype,
            lambda ops, put, x=x_TF, a=activation: ops.activate_gate(put(x), a),
            f"activate_gate ({activation})",
        )


@check()
def mlps_match(subject: Subject) -> None:
    """The feed-forward part, gated and not."""
    for dtype, gated, tokens in itertools.product(subject.dtypes, (True, False), _TOKENS):
        spec = MlpSpec(inner_size=80, activation="silu" if gated else "gelu_tanh", gated=gated)
        up = subject.randn(160 if gated else 80, 48, scale=48**-0.5)
        down, x_TD = subject.randn(48, 80, scale=80**-0.5), subject.randn(tokens, 48)

        def run(
            ops: Ops,
            put: Put,
            s: MlpSpec = spec,
            x: torch.Tensor = x_TD,
            weights: tuple[torch.Tensor, torch.Tensor] = (up, down),
        ) -> torch.Tensor:
            u, d = weights
            return ops.mlp(put(x), s, _linear(ops, put, u, None), _linear(ops, put, d, None))

        _judge(subject, dtype, run, f"mlp (gated {gated}, {tokens} tokens)")


@check()
def logits_match(subject: Subject) -> None:
    """Float32 logits, scaled and capped."""
    spec = tiny_spec()
    for dtype, scale, cap in itertools.product(subject.dtypes, (1.0, 0.25), (None, 3.0)):
        scaled = replace(spec, logits_scale=scale, logits_soft_cap=cap)
        weight, x_KD = subject.randn(spec.vocab_size, spec.hidden_size, scale=0.3), subject.randn(5, spec.hidden_size)

        def run(
            ops: Ops, put: Put, s: DecoderSpec = scaled, w: torch.Tensor = weight, x: torch.Tensor = x_KD
        ) -> torch.Tensor:
            return ops.logits(put(x), _linear(ops, put, w, None), s)

        got = run(subject.parts.ops, lambda host, dtype=dtype: subject.put(host, dtype))
        require(got.dtype == torch.float32, f"ops.logits: got {got.dtype}, expected float32")
        _judge(subject, dtype, run, f"logits (scale {scale}, cap {cap})")


@check()
def pooled_sums_match(subject: Subject) -> None:
    """Sums of hidden states over spans, in float32 for states of any type: one token, all of them, states so large that
    16 bits hold no sum of them, and nothing of the tokens between."""
    tokens = 130
    spans_P2 = np.array([(0, 1), (1, 18), (40, 120), (tokens - 1, tokens), (0, tokens), (2, 5)], np.int32)
    for dtype, scale in itertools.product(subject.dtypes, (1.0, 9e3)):
        x_TD = subject.randn(tokens, 72, scale=scale).abs().to(torch_dtype(dtype))
        subject.poison(len(spans_P2) * 72, "float32")
        got_PD = subject.parts.ops.pool(subject.put(x_TD), spans_P2)
        require(got_PD.dtype == torch.float32, f"ops.pool in {dtype}: got {got_PD.dtype}, expected float32")
        truth_PD = torch.stack([x_TD[first:last].double().sum(0) for first, last in spans_P2.tolist()])
        for at, span in enumerate(spans_P2.tolist()):
            what = f"ops.pool in {dtype}, tokens {span[0]} to {span[1] - 1}, states around {scale:g}"
            require_close(subject.get(got_PD)[at], truth_PD[at], GATES["float32"], what)


@check()
def token_logprobs_match(subject: Subject) -> None:
    """Log-probability, rank and the likeliest tokens of given targets."""
    for tokens, top in ((1, 0), (5, 1), (17, 20)):
        logits_QV = subject.randn(tokens, 300, scale=3.0)
        targets_Q = subject.randint(0, 300, tokens).int()
        targets_Q[0] = int(logits_QV[0].argmax())
        expected = reference.token_logprobs(logits_QV.clone(), targets_Q, top)
        got = subject.parts.ops.token_logprobs(subject.put(logits_QV), subject.put(targets_Q), top)
        _same_logprobs([subject.get(part) for part in got], list(expected), f"token_logprobs (top {top})")


def _same_logprobs(got: list[torch.Tensor], expected: list[torch.Tensor], what: str) -> None:
    names = ("logprobs", "ranks", "top_ids", "top_logprobs")
    for name, mine, theirs in zip(names, got, expected, strict=True):
        require(
            mine.shape == theirs.shape and mine.dtype == theirs.dtype,
            f"ops.{what}, {name}: got {mine.dtype} {tuple(mine.shape)}, expected {theirs.dtype} {tuple(theirs.shape)}",
        )
        same = torch.allclose(mine, theirs, atol=2e-5, rtol=1e-5) if mine.is_floating_point() else mine.equal(theirs)
        require(same, f"ops.{what}, {name}: got {listed(mine.flatten()[:6])}, expected {listed(theirs.flatten()[:6])}")
