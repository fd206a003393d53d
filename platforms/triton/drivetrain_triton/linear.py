"""Linear layers on a GPU: own kernels for few tokens, the vendor's library for more.

With few tokens a product costs what reading its weights costs, and every further launch shows: so the norm before it,
the activation or the addition to the residual stream after it are part of the kernel. With some tens of tokens the norm
is a kernel of its own, whose time is hidden: the product reads its first weights meanwhile. With more tokens the
library's products are the fastest there are.

M tokens, N outputs, K inputs.
"""

# Relaxed: the kernels' types and Gluon's are unknown.
# pyright: reportUnknownVariableType=false, reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import Activation, DecoderSpec, LayerSpec
from drivetrain_plugins.contract.ops import LinearWeight
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.gemv import gemv_kernel
from drivetrain_triton.launch import Variant, launch, recording
from drivetrain_triton.linear_tables import LinearConfig, every_entry, linear_config
from drivetrain_triton.skinny_gemm import skinny_gemm_kernel
from drivetrain_triton.stream_gemm import TILE_LAYOUT, stream_gemm_kernel


@dataclass(frozen=True, slots=True)
class Ending:
    """What a kernel does around the product itself."""

    norm: NormWeights | None = None
    gate: Activation | None = None
    add: bool = False


class Linears:
    """The products of one device.

    Args:
        arch: of the device; selects tables and programmatic dependent launch.
    """

    def __init__(self, arch: GpuArch) -> None:
        self._arch = arch
        self._workspaces: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self._outgrown: list[tuple[torch.Tensor, torch.Tensor]] = []

    def prepare(self, weight: LinearWeight) -> LinearWeight:
        """Check a weight; 16- and 32-bit ones are used as they are.

        Raises:
            Unsupported: it is quantized.
        """
        plain = reference.prepare_linear(weight)
        assert plain.weight.is_contiguous(), "weights come packed"
        return plain

    def product(self, x_MK: torch.Tensor, layer: LinearWeight, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        """x W^T + b, (M, N) in `out_dtype` or the type of `x_MK`; the sum is rounded once."""
        dtype = out_dtype or x_MK.dtype
        config = self._config(x_MK, layer, gate=False)
        if config is None:
            return _library_product(x_MK, layer, dtype)
        out_MN = torch.empty(x_MK.shape[0], layer.weight.shape[0], dtype=dtype, device=x_MK.device)
        return self.run(config, x_MK, layer, out_MN, Ending())

    def add_product(self, x_MK: torch.Tensor, layer: LinearWeight, total_MN: torch.Tensor) -> torch.Tensor:
        """Add x W^T + b to `total_MN` in place and return it."""
        config = self._config(x_MK, layer, gate=False)
        if config is not None:
            return self.run(config, x_MK, layer, total_MN, Ending(add=True))
        if x_MK.is_meta:  # recorded: torch would import its compiler, for seconds, to compute nothing
            return total_MN
        if layer.bias is not None:
            total_MN.add_(layer.bias)
        return total_MN.addmm_(x_MK, layer.weight.t())

    def norm_product(self, x_MK: torch.Tensor, norm: NormWeights, layer: LinearWeight) -> torch.Tensor | None:
        """norm(x) W^T + b in one kernel, (M, N), or None where it takes two."""
        config = self._config(x_MK, layer, gate=False)
        if config is None or not _joins(norm, x_MK, config):
            return None
        out_MN = torch.empty(x_MK.shape[0], layer.weight.shape[0], dtype=x_MK.dtype, device=x_MK.device)
        return self.run(config, x_MK, layer, out_MN, Ending(norm=norm))

    def norm_gate(
        self, x_MK: torch.Tensor, norm: NormWeights, layer: LinearWeight, activation: Activation
    ) -> torch.Tensor | None:
        """activation(gate) * up of norm(x) in one kernel, (M, N / 2), or None where it takes more.

        Args:
            layer: gate rows, then up rows.
        """
        config = self._config(x_MK, layer, gate=True)
        if config is None or not _joins(norm, x_MK, config):
            return None
        half = layer.weight.shape[0] // 2
        out_MN = torch.empty(x_MK.shape[0], half, dtype=x_MK.dtype, device=x_MK.device)
        return self.run(config, x_MK, layer, out_MN, Ending(norm=norm, gate=activation))

    def gate_product(self, x_MK: torch.Tensor, layer: LinearWeight, activation: Activation) -> torch.Tensor | None:
        """activation(gate) * up of x in one kernel, (M, N / 2), or None where it takes two.

        Args:
            layer: gate rows, then up rows.
        """
        config = self._config(x_MK, layer, gate=True)
        if config is None or config.kind != "stream":
            return None  # the others have the norm before them, or spill registers without it
        half = layer.weight.shape[0] // 2
        out_MN = torch.empty(x_MK.shape[0], half, dtype=x_MK.dtype, device=x_MK.device)
        return self.run(config, x_MK, layer, out_MN, Ending(gate=activation))

    def _config(self, x_MK: torch.Tensor, layer: LinearWeight, *, gate: bool) -> LinearConfig | None:
        (rows, inputs), tokens = layer.weight.shape, x_MK.shape[0]
        config = linear_config(self._arch.name, tokens, rows // 2 if gate else rows, inputs, gate=gate)
        if config is not None and config.kind != "gemv" and x_MK.dtype == torch.float32:
            return None  # the matrix units would round to TF32
        if config is not None and config.kind == "stream" and not _copyable(x_MK, layer.weight):
            return None
        return config

    def run(
        self, config: LinearConfig, x_MK: torch.Tensor, layer: LinearWeight, out_MN: torch.Tensor, ending: Ending
    ) -> torch.Tensor:
        """Launch one kernel that fills or adds to `out_MN`, and return it."""
        flags: dict[str, Any] = {
            "GATE": ending.gate is not None,
            "ACTIVATION": ending.gate or "none",
            "ADD": ending.add,
            "BIAS": layer.bias is not None,
        }
        if config.kind == "stream":
            self._run_stream(config, x_MK, layer, out_MN, flags)
        elif config.kind == "skinny":
            self._run_skinny(config, x_MK, layer, out_MN, ending, flags)
        else:
            self._run_gemv(config, x_MK, layer, out_MN, ending, flags)
        return out_MN

    def _run_gemv(
        self,
        config: LinearConfig,
        x_MK: torch.Tensor,
        layer: LinearWeight,
        out_MN: torch.Tensor,
        ending: Ending,
        flags: dict[str, Any],
    ) -> None:
        tokens, inputs = x_MK.shape
        pointers, numbers = _arguments(x_MK, layer, out_MN, ending)
        launch(
            gemv_kernel,
            (-(-out_MN.shape[1] // config.bn),),
            *pointers,
            out_MN.shape[1],
            *numbers,
            num_warps=config.num_warps,
            pdl=self._arch.pdl,
            M=tokens,
            K=inputs,
            BN=config.bn,
            BK=config.bk,
            UNROLL=config.unroll,
            NORM=ending.norm is not None,
            **flags,
        )

    def _run_skinny(
        self,
        config: LinearConfig,
        x_MK: torch.Tensor,
        layer: LinearWeight,
        out_MN: torch.Tensor,
        ending: Ending,
        flags: dict[str, Any],
    ) -> None:
        tokens, inputs = x_MK.shape
        blocks = -(-out_MN.shape[1] // config.bn)
        pointers, numbers = _arguments(x_MK, layer, out_MN, ending)
        part = config.bn * config.bm * (2 if ending.gate else 1) + config.bm
        parts, arrived = self._workspace(x_MK.device, blocks * config.split * part, blocks)
        launch(
            skinny_gemm_kernel,
            (blocks, config.split),
            *pointers,
            parts,
            arrived,
            tokens,
            out_MN.shape[1],
            inputs,
            *numbers,
            num_warps=config.num_warps,
            num_stages=config.stages,
            pdl=self._arch.pdl,
            BM=config.bm,
            BN=config.bn,
            BK=config.bk,
            SPLIT=config.split,
            STAGES=config.stages,
            EVEN_K=inputs % (config.bk * config.split) == 0,
            NORM=ending.norm is not None,
            **flags,
        )

    def _run_stream(
        self,
        config: LinearConfig,
        x_MK: torch.Tensor,
        layer: LinearWeight,
        out_MN: torch.Tensor,
        flags: dict[str, Any],
    ) -> None:
        (tokens, inputs), outputs = x_MK.shape, out_MN.shape[1]
        tiles = -(-outputs // config.bn)
        rounds = tiles * -(-inputs // config.bk)
        per_program = -(-rounds // config.programs)
        programs = -(-rounds // per_program)
        part = config.bn * config.bm * (2 if flags["GATE"] else 1)
        parts, arrived = self._workspace(x_MK.device, 2 * programs * part, tiles)
        launch(
            stream_gemm_kernel,
            (programs,),
            TensorDescriptor.from_tensor(x_MK, [config.bm, config.bk], TILE_LAYOUT),
            TensorDescriptor.from_tensor(layer.weight, [config.bn, config.bk], TILE_LAYOUT),
            layer.bias if layer.bias is not None else layer.weight,
            out_MN,
            parts,
            arrived,
            tokens,
            outputs,
            inputs,
            out_MN.stride(0),
            per_program,
            config.rotation,
            num_warps=config.num_warps,
            pdl=self._arch.pdl,
            BM=config.bm,
            BN=config.bn,
            BK=config.bk,
            STAGES=config.stages,
            NUM_WARPS=config.num_warps,
            **flags,
        )

    def _workspace(self, device: torch.device, num_parts: int, num_counters: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers for split products. Recorded steps may know one that became too small, so it stays.

        Products run one after another and leave their counters at zero, so all share them.
        """
        found = self._workspaces.get(device)
        if found is not None:
            if found[0].numel() >= num_parts and found[1].numel() >= num_counters:
                return found
            self._outgrown.append(found)
        parts = torch.empty(max(num_parts, 1 << 22), dtype=torch.float32, device=device)
        counters = torch.zeros(max(num_counters, 1 << 14), dtype=torch.int32, device=device)
        self._workspaces[device] = (parts, counters)
        return parts, counters


def _arguments(
    x_MK: torch.Tensor, layer: LinearWeight, out_MN: torch.Tensor, ending: Ending
) -> tuple[tuple[torch.Tensor, ...], tuple[int | float, ...]]:
    """Pointers, then strides and numbers, as `gemv_kernel` and `skinny_gemm_kernel` take them."""
    norm, weight = ending.norm, layer.weight
    pointers = (
        x_MK,
        weight,
        layer.bias if layer.bias is not None else weight,
        norm.weight if norm is not None and norm.weight is not None else weight,
        out_MN,
    )
    numbers = (
        x_MK.stride(0),
        out_MN.stride(0),
        norm.spec.eps if norm is not None else 0.0,
        norm.spec.weight_offset if norm is not None else 0.0,
    )
    return pointers, numbers


def _copyable(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> bool:
    """Whether Hopper's copy engine can read both: rows of whole 16 bytes, on a GPU (the interpreter has no engine)."""
    return x_MK.device.type != "cpu" and all(
        tensor.data_ptr() % 16 == 0 and tensor.stride(0) % 8 == 0 and tensor.stride(1) == 1
        for tensor in (x_MK, weight_NK)
    )


def _joins(norm: NormWeights, x_MK: torch.Tensor, config: LinearConfig) -> bool:
    """Whether a norm can be part of the product that follows it."""
    if norm.spec.kind != "rms" or norm.weight is None or norm.bias is not None:
        return False
    # The matrix units take 16 bits, and x times the norm's weight may be too large for fp16 before it is scaled.
    return config.kind == "gemv" or (config.kind == "skinny" and x_MK.dtype == torch.bfloat16)


def _library_product(x_MK: torch.Tensor, layer: LinearWeight, dtype: torch.dtype) -> torch.Tensor:
    if x_MK.is_meta:
        return torch.empty(x_MK.shape[0], layer.weight.shape[0], dtype=dtype, device=x_MK.device)
    if dtype == x_MK.dtype:
        return F.linear(x_MK, layer.weight, layer.bias)
    if torch.version.cuda is None or not x_MK.is_cuda:
        return F.linear(x_MK, layer.weight, layer.bias).to(dtype)
    out_MN = torch.mm(x_MK, layer.weight.t(), out_dtype=dtype)
    return out_MN if layer.bias is None else out_MN.add_(layer.bias)


def linear_variants(spec: DecoderSpec, dtype: torch.dtype, arch: GpuArch) -> list[Variant]:
    """What the products of a model may launch, for compiling ahead.

    Args:
        spec: of this rank's share.
    """
    linears = Linears(arch)
    layers = {(layer.mixer, layer.mlp, layer.norm): layer for layer in spec.layers}.values()
    head = _absent(spec.vocab_size, spec.embedding.size or spec.hidden_size, dtype, bias=spec.lm_head_bias)
    with recording() as variants:
        for tokens in sorted({entry.tokens for entry in every_entry(arch.name)}):
            for layer in layers:
                _record_layer(linears, layer, spec.hidden_size, dtype, tokens)
            linears.product(_meta(tokens, head.weight.shape[1], dtype=dtype), head, torch.float32)
    return variants


def _record_layer(linears: Linears, layer: LayerSpec, hidden: int, dtype: torch.dtype, tokens: int) -> None:
    mixer, mlp = layer.mixer, layer.mlp
    heads = mixer.num_heads * mixer.head_dim
    qkv = _absent(heads + 2 * mixer.num_kv_heads * mixer.head_dim, hidden, dtype, bias=mixer.qkv_bias)
    up = _absent(mlp.inner_size * (2 if mlp.gated else 1), hidden, dtype, bias=mlp.up_bias)
    x_TD = _meta(tokens, hidden, dtype=dtype)
    norm = NormWeights(
        spec=layer.norm,
        weight=_meta(hidden, dtype=dtype) if layer.norm.weight else None,
        bias=_meta(hidden, dtype=dtype) if layer.norm.bias else None,
    )
    for width, size, bias in ((heads, hidden, mixer.out_bias), (mlp.inner_size, hidden, mlp.down_bias)):
        down = _absent(size, width, dtype, bias=bias)
        linears.add_product(_meta(tokens, width, dtype=dtype), down, _meta(tokens, hidden, dtype=dtype))
    if linears.norm_product(x_TD, norm, qkv) is None:
        linears.product(x_TD, qkv)
    if not mlp.gated:
        if linears.norm_product(x_TD, norm, up) is None:
            linears.product(x_TD, up)
    elif linears.norm_gate(x_TD, norm, up, mlp.activation) is None:
        linears.gate_product(x_TD, up, mlp.activation)


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _absent(rows: int, inputs: int, dtype: torch.dtype, *, bias: bool) -> LinearWeight:
    """A layer with shapes and no memory."""
    return LinearWeight(weight=_meta(rows, inputs, dtype=dtype), bias=_meta(rows, dtype=dtype) if bias else None)
