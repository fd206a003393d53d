"""The ops that run on the device. A plain decoder layer runs there whole; its input comes and its output goes once.

T tokens, D hidden size, F inner size, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyopencl as cl
import torch
import torch.nn.functional as F

from drivetrain_opencl.attention import OpenclAttention
from drivetrain_opencl.memory import own
from drivetrain_opencl.queue import LANES, DeviceQueue, Matrix
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import Activation, MlpSpec
from drivetrain_plugins.contract.ops import LayerWeights, LinearWeight, Ops, StepContext

TILE = 16
"""Outputs that a work item of `linear` makes."""
ROWS = (1, 4, 8)
"""Tokens that it makes them of, by kernel."""
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2")


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear layer on the device, packed as `kernels/linear.cl` says."""

    weight: cl.Buffer
    bias: cl.Buffer | None
    inner: int
    outputs: int


class OpenclOps(Ops):
    """Products, norms, activations and whole layers. Embedding, step inputs and sampling stay with the reference."""

    def __init__(self, queue: DeviceQueue) -> None:
        self._queue = queue

    def prepare_linear(self, weight: LinearWeight) -> PackedLinear:
        plain = reference.prepare_linear(weight)
        outputs, inner = plain.weight.shape
        spare = -outputs % TILE
        packed = F.pad(plain.weight, (0, 0, 0, spare)).view(-1, TILE, inner).transpose(1, 2)
        bias = None if plain.bias is None else self._hold(F.pad(plain.bias, (0, spare)))
        return PackedLinear(self._hold(packed), bias, inner, outputs)

    def linear(self, x_TD: torch.Tensor, handle: PackedLinear) -> torch.Tensor:
        return self._queue.get(self._linear(self._queue.put_matrix(x_TD), handle))

    def norm(self, x_TD: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        return self._queue.get(self._norm(self._queue.put_matrix(x_TD), weights))

    def add_norm(
        self, delta_TD: torch.Tensor, residual_TD: torch.Tensor, weights: NormWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = self._queue.put_matrix(residual_TD)
        normed = self._norm(total, weights, delta=self._queue.put_matrix(delta_TD))
        return self._queue.get(normed), self._queue.get(total)

    def activate(self, x_TF: torch.Tensor, activation: Activation) -> torch.Tensor:
        return self._queue.get(self._activate(self._queue.put_matrix(x_TF), activation))

    def activate_gate(self, x_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
        return self._queue.get(self._activate_gate(self._queue.put_matrix(x_T2F), activation))

    def mlp(self, x_TD: torch.Tensor, spec: MlpSpec, up: PackedLinear, down: PackedLinear) -> torch.Tensor:
        return self._queue.get(self._mlp(self._queue.put_matrix(x_TD), spec, up, down))

    def decoder_layer(
        self,
        delta_TD: torch.Tensor | None,
        residual_TD: torch.Tensor,
        layer: LayerWeights,
        step: StepContext,
        keep_K: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        attention = step.attention
        if not isinstance(attention, OpenclAttention) or not _is_plain(layer, step, attention):
            return super().decoder_layer(delta_TD, residual_TD, layer, step, keep_K)
        residual = self._queue.put_matrix(residual_TD)
        delta = None if delta_TD is None else self._queue.put_matrix(delta_TD)
        x = self._norm(residual, layer.norms["attn_norm"], delta=delta)
        mixed = attention.mix(self._linear(x, layer.qkv), layer.attention, own(step.cache), step.plan)
        if keep_K is not None:
            index_K = self._queue.put(keep_K.int())
            mixed, residual = (self._take(y, index_K, len(keep_K)) for y in (mixed, residual))
        x = self._norm(residual, layer.norms["mlp_norm"], delta=self._linear(mixed, layer.out))
        return None, self._queue.get(self._add(residual, self._mlp(x, layer.spec.mlp, layer.up, layer.down)))

    def _linear(self, x: Matrix, handle: PackedLinear) -> Matrix:
        rows = next((rows for rows in ROWS if rows >= x.rows), ROWS[-1])
        out = self._queue.matrix(x.rows, handle.outputs)
        self._queue.run(
            self._queue.kernel("linear", "linear", f"ROWS={rows}"),
            (-(-handle.outputs // TILE), -(-x.rows // rows)),
            x.data,
            handle.weight,
            handle.bias or self._queue.keep(None),
            out.data,
            x.rows,
            handle.inner,
            handle.outputs,
            int(handle.bias is not None),
        )
        return out

    def _norm(self, x: Matrix, weights: NormWeights, *, delta: Matrix | None = None) -> Matrix:
        """The norm of `x + delta`, which `x` becomes."""
        spec, nothing = weights.spec, self._queue.keep(None)
        out = self._queue.matrix(x.rows, x.width)
        self._queue.run(
            self._queue.kernel("elementwise", "norm_rows"),
            (x.rows * LANES,),
            x.data,
            nothing if delta is None else delta.data,
            self._queue.keep(weights.weight),
            self._queue.keep(weights.bias),
            out.data,
            x.width,
            float(spec.eps),
            float(spec.weight_offset),
            int(spec.kind == "layer"),
            int(delta is not None),
            int(weights.weight is not None),
            int(weights.bias is not None),
            group=(LANES,),
        )
        return out

    def _mlp(self, x: Matrix, spec: MlpSpec, up: PackedLinear, down: PackedLinear) -> Matrix:
        activate = self._activate_gate if spec.gated else self._activate
        return self._linear(activate(self._linear(x, up), spec.activation), down)

    def _activate(self, x: Matrix, activation: Activation) -> Matrix:
        out = self._queue.matrix(x.rows, x.width)
        kernel = self._queue.kernel("elementwise", "activate")
        self._queue.run(kernel, (x.rows * x.width,), x.data, out.data, ACTIVATIONS.index(activation))
        return out

    def _activate_gate(self, x: Matrix, activation: Activation) -> Matrix:
        out = self._queue.matrix(x.rows, x.width // 2)
        kernel = self._queue.kernel("elementwise", "activate_gate")
        self._queue.run(kernel, (out.width, out.rows), x.data, out.data, ACTIVATIONS.index(activation))
        return out

    def _take(self, x: Matrix, index_K: cl.Buffer, count: int) -> Matrix:
        out = self._queue.matrix(count, x.width)
        self._queue.run(self._queue.kernel("elementwise", "take_rows"), (x.width, count), x.data, index_K, out.data)
        return out

    def _add(self, x: Matrix, y: Matrix) -> Matrix:
        out = self._queue.matrix(x.rows, x.width)
        self._queue.run(self._queue.kernel("elementwise", "add"), (x.rows * x.width,), x.data, y.data, out.data)
        return out

    def _hold(self, host: torch.Tensor) -> cl.Buffer:
        """A weight in memory of its own."""
        array = host.float().contiguous().numpy()
        made = self._queue.buffer(array.nbytes)
        cl.enqueue_copy(self._queue.queue, made, array, is_blocking=True)
        return made


def _is_plain(layer: LayerWeights, step: StepContext, attention: OpenclAttention) -> bool:
    """Whether norms, attention and MLP follow each other with nothing in between."""
    spec = layer.spec
    arranged = spec.pre_norm and not spec.branch_norm and not spec.sum_norm and spec.parallel == "no"
    return arranged and spec.residual_scale == 1.0 and step.communicator.world == 1 and attention.mixes(layer.attention)
