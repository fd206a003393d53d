"""The one decoder: every family is this forward pass with another `DecoderSpec`.

It holds weights and calls a device's ops; it knows no vendor and no stream, never waits for the device and has no shape
that depends on data, so a backend may capture it whole.

T tokens, K rows to score, D hidden size, E embedding size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from drivetrain.errors import ConfigError
from drivetrain.models.loader import WeightLoader
from drivetrain.models.rotary import rotary_table
from drivetrain.models.sharding import shard_spec, shards, vocab_shard, vocab_share
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, RotaryTable
from drivetrain_plugins.contract.backend import Device
from drivetrain_plugins.contract.capabilities import Dtype, KVDtype
from drivetrain_plugins.contract.executor import Progress, Weights
from drivetrain_plugins.contract.memory import KVSpec, kv_spec
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, RotarySpec, weight_shapes
from drivetrain_plugins.contract.ops import LayerWeights, LinearWeight, StepContext
from drivetrain_plugins.contract.slots import StepInputs

_TABLE_ROWS = 512
"""Rotary tables have a multiple of so many rows: padding tokens may stand anywhere in a row's last page."""


class Decoder:
    """A model's weights on one device, and the forward pass over them.

    Args:
        spec: of the whole model; the share of this rank is computed from the device's communicator.
        dtype: type of weights and activations.
        max_model_len: longest sequence.

    Raises:
        ConfigError: the model has learned positions, and fewer than `max_model_len`.
        UnsupportedModel: the model cannot be split over the ranks that there are.
    """

    def __init__(self, spec: DecoderSpec, device: Device, dtype: Dtype, max_model_len: int) -> None:
        if 0 < spec.embedding.positions < max_model_len:
            raise ConfigError(
                f"limits.max_model_len: got {max_model_len}, but {spec.architecture} has learned only "
                f"{spec.embedding.positions} positions; lower it"
            )
        self.spec = spec
        self._device = device
        self._ops = device.ops
        self._communicator = device.communicator
        self._rank, self._world = device.communicator.rank, device.communicator.world
        self._share = shard_spec(spec, self._rank, self._world)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._max_model_len = max_model_len
        # The factor takes the activation type before it multiplies, as in the models' own training.
        self._embed_scale = torch.tensor(spec.embedding.scale, dtype=self._dtype).item()

    @property
    def share(self) -> DecoderSpec:
        """The spec with this rank's numbers of heads and inner features."""
        return self._share

    @property
    def weight_bytes(self) -> int:
        """Bytes of this rank's weights on the device, tables aside; known before they are loaded."""
        kept = shards(self.spec, self._rank, self._world)
        total = 0
        for name, shape in weight_shapes(self.spec):
            part = kept[name]
            elements = math.prod(shape)
            if part is not None:
                elements = elements // shape[part.dim] * (part.stop - part.start)
            total += elements * (4 if name.endswith(".sinks") else self._dtype.itemsize)
        return total

    def kv_spec(self, kv_dtype: KVDtype, page_size: int) -> KVSpec:
        """The cache that this rank needs."""
        return kv_spec(self._share, kv_dtype, page_size)

    @torch.inference_mode()
    def load(self, weights: Weights, progress: Progress) -> None:
        """Read all weights and prepare them for the device. Called once, before `forward`.

        Raises:
            WeightError: a weight is missing, corrupt or of another shape; names it and both shapes.
        """
        spec, loader = self.spec, WeightLoader(self.spec, weights, self._device, self._dtype, progress)
        embedding = spec.embedding
        self._embed_VE = loader.tensor("embed.weight")
        self._positions_PD = loader.tensor("embed.positions") if embedding.positions else None
        self._embed_norm = loader.norm("embed.norm", embedding.norm) if embedding.norm is not None else None
        self._project = loader.linear("embed.project") if embedding.size else None
        tables: dict[RotarySpec, RotaryTable] = {}
        self._layers = [self._load_layer(loader, index, tables) for index in range(len(spec.layers))]
        self._final_norm = loader.norm("final_norm", spec.final_norm) if spec.final_norm is not None else None
        self._unembed_project = loader.linear("unembed.project") if embedding.size else None
        self._lm_head = self._load_head(loader)

    def _load_layer(self, loader: WeightLoader, index: int, tables: dict[RotarySpec, RotaryTable]) -> LayerWeights:
        prefix, spec = f"layers.{index}", self._share.layers[index]
        return LayerWeights(
            spec=spec,
            norms={name: loader.norm(f"{prefix}.{name}", spec.norm) for name in spec.norm_names},
            qkv=loader.linear(f"{prefix}.attn.q", f"{prefix}.attn.k", f"{prefix}.attn.v"),
            out=loader.linear(f"{prefix}.attn.out"),
            up=loader.linear(*(f"{prefix}.mlp.{part}" for part in (("gate", "up") if spec.mlp.gated else ("up",)))),
            down=loader.linear(f"{prefix}.mlp.down"),
            attention=self._load_attention(loader, index, spec.mixer, tables),
        )

    def _load_attention(
        self, loader: WeightLoader, index: int, spec: AttentionSpec, tables: dict[RotarySpec, RotaryTable]
    ) -> AttentionLayer:
        prefix, device = f"layers.{index}.attn", self._device.torch_device
        rotary = spec.rotary
        if rotary is not None and rotary not in tables:
            rows = -(-self._max_model_len // _TABLE_ROWS) * _TABLE_ROWS
            tables[rotary] = rotary_table(rotary, max_model_len=self._max_model_len, positions=rows, device=device)
        norms: dict[str, NormWeights] = {}
        if spec.qk_norm is not None:
            norms = {name: loader.norm(f"{prefix}.{name}", spec.qk_norm.norm) for name in ("q_norm", "k_norm")}
        alibi = torch.tensor(spec.alibi_slopes, dtype=torch.float32) if spec.alibi_slopes else None
        return AttentionLayer(
            index=index,
            spec=spec,
            rotary=tables[rotary] if rotary is not None else None,
            q_norm=norms.get("q_norm"),
            k_norm=norms.get("k_norm"),
            sinks_H=loader.tensor(f"{prefix}.sinks", torch.float32) if spec.sinks else None,
            alibi_H=alibi.to(device) if alibi is not None else None,
        )

    def _load_head(self, loader: WeightLoader) -> Any:
        """The output matrix: this rank's rows; a view of the embedding where the two are tied."""
        if not self.spec.tied:
            return loader.linear("lm_head")
        start, stop = vocab_shard(self.spec.vocab_size, self._rank, self._world)
        bias = loader.tensor("lm_head.bias") if self.spec.lm_head_bias else None
        return self._ops.prepare_linear(LinearWeight(weight=self._embed_VE[start:stop], bias=bias))

    def forward(self, inputs: StepInputs, step: StepContext, keep_K: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states after the final norm, (T, D) in the activation type.

        Args:
            inputs: of this step; `step.plan` was made for them.
            keep_K: int64 indices of the tokens whose states are wanted, which the result then has in this order,
                (K, D); None wants all.
        """
        residual_TD, delta_TD = self._embed(inputs), None
        for layer in self._layers[:-1]:
            delta_TD, residual_TD = self._ops.decoder_layer(delta_TD, residual_TD, layer, step)
        delta_TD, residual_TD = self._ops.decoder_layer(delta_TD, residual_TD, self._layers[-1], step, keep_K)
        if self._final_norm is None:
            return residual_TD if delta_TD is None else residual_TD + delta_TD
        if delta_TD is None:
            return self._ops.norm(residual_TD, self._final_norm)
        return self._ops.add_norm(delta_TD, residual_TD, self._final_norm)[0]

    def _embed(self, inputs: StepInputs) -> torch.Tensor:
        x_TD = self._ops.embed(inputs.ids_T, self._embed_VE)
        if self._embed_scale != 1.0:
            x_TD = x_TD * self._embed_scale
        if self._project is not None:
            x_TD = self._ops.linear(x_TD, self._project)
        if self._positions_PD is not None:
            # Padding tokens may lie past the table.
            rows_T = (inputs.positions_T + self.spec.embedding.position_offset).clamp(
                max=self._positions_PD.shape[0] - 1
            )
            x_TD = x_TD + self._ops.embed(rows_T, self._positions_PD)
        return x_TD if self._embed_norm is None else self._ops.norm(x_TD, self._embed_norm)

    def embedding(self, sums_PD: torch.Tensor) -> torch.Tensor:
        """Sums of states that `forward` returned, as embeddings have them: float32, in the model's embedding size."""
        if self._unembed_project is None:
            return sums_PD
        # A sum of many states may be more than the activation type holds; its projection is linear.
        largest_P1 = sums_PD.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        unit_PD = (sums_PD / largest_P1).to(self._dtype)
        return self._ops.linear(unit_PD, self._unembed_project).float() * largest_P1

    def logits(self, x_KD: torch.Tensor) -> torch.Tensor:
        """Logits of rows that `forward` returned, float32 (K, V), the same on every rank."""
        if self._unembed_project is not None:
            x_KD = self._ops.linear(x_KD, self._unembed_project)
        logits_KV = self._ops.logits(x_KD, self._lm_head, self.spec)
        if self._world == 1:
            return logits_KV
        missing = vocab_share(self.spec.vocab_size, self._world) - logits_KV.shape[1]
        if missing:
            logits_KV = torch.nn.functional.pad(logits_KV, (0, missing))
        return self._communicator.all_gather(logits_KV)[:, : self.spec.vocab_size]
