"""One opened card: its parts, what they can do, and what of a model they cannot."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from drivetrain_gaudi.allocator import GaudiAllocator
from drivetrain_gaudi.attention import GaudiAttention
from drivetrain_gaudi.buckets import MASK_BYTES, mask_bytes, most_prefills, plan_buckets
from drivetrain_gaudi.communicator import HcclCommunicator
from drivetrain_gaudi.faults import classify
from drivetrain_gaudi.habana import Habana, load_collectives
from drivetrain_gaudi.ledger import ShapeLedger
from drivetrain_gaudi.ops import GaudiOps
from drivetrain_gaudi.options import GaudiOptions
from drivetrain_gaudi.runtime import GaudiRuntime
from drivetrain_plugins.contract.backend import Device, RankInfo, capability_gaps
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, Capabilities, KVDtype
from drivetrain_plugins.contract.communicator import Communicator, SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits, Progress
from drivetrain_plugins.contract.model import DecoderSpec, weight_shapes
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError

_log = logging.getLogger(__name__)

PAGE_SIZE = 128
STEP_TOKENS = 2048
LARGEST_MASK_BYTES = 8 * MASK_BYTES
"""A longer context times a larger step than this is refused: its mask alone would fill the card."""
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class GaudiDevice(Device):
    """A Gaudi card, as one rank sees it."""

    def __init__(self, rank: RankInfo, options: GaudiOptions, habana: Habana) -> None:
        self._options = options
        generation = habana.generation
        _, total = habana.hpu.mem_get_info()
        kv_dtypes: tuple[KVDtype, ...] = ("bfloat16", "float32")
        self.torch_device = habana.device
        self.capabilities = Capabilities(
            device_name=f"{habana.hpu.get_device_name()} ({generation.name})",
            dtypes=("bfloat16", "float32"),
            kv_dtypes=kv_dtypes if generation.fp8_max is None else (*kv_dtypes, "fp8_e4m3"),
            fp8="none" if generation.fp8_max is None else "ocp",
            page_sizes=(PAGE_SIZE,),
            attention=frozenset({"window", "soft_cap", "sinks", "alibi"}),
            max_head_dim=256,
            max_ranks=habana.hpu.device_count(),
            sampling=EVERY_SAMPLING_FEATURE,
            graphs=True,
            async_execution=True,
            step_tokens=STEP_TOKENS,
            memory_bytes=total,
            features=frozenset({generation.name}),
        )
        self.ledger = ShapeLedger(options.new_shapes)
        limit_s = rank.timeout_s if rank.world > 1 else None
        self.runtime = GaudiRuntime(habana, self.ledger, limit_s=limit_s)
        self.allocator = self._allocator = GaudiAllocator(habana.device, habana.hpu.mem_get_info, generation.fp8_max)
        self.attention = GaudiAttention(habana.fused_sdpa, self.ledger)
        self.ops = GaudiOps(habana.fused_rms_norm)
        self.communicator = _communicator(rank, habana)

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        plan = plan_buckets(limits, self._options.warm_up_s)
        _log.info("%s; up to %g s are spent on running them before serving", plan.explain(), self._options.warm_up_s)
        return plan.policy

    def unsupported(self, spec: DecoderSpec, limits: ExecutorLimits) -> list[str]:
        gaps = capability_gaps(self.capabilities, spec, limits)
        if mask_bytes(limits) > LARGEST_MASK_BYTES:
            gaps.append(
                f"steps of {limits.max_step_tokens} tokens over contexts of {limits.max_model_len} need a mask of "
                f"{mask_bytes(limits):,} bytes, more than {LARGEST_MASK_BYTES:,}; lower limits.max_step_tokens or "
                "limits.max_model_len"
            )
        return gaps

    def compile_ahead(self, spec: DecoderSpec, limits: ExecutorLimits, progress: Progress) -> Callable[[], None]:
        """Nothing compiles ahead; the allocator learns what weights and the largest step will take."""
        self._allocator.expected_bytes = (
            ("weights", weight_bytes(spec, limits)),
            ("the largest step", step_bytes(spec, limits)),
        )
        return super().compile_ahead(spec, limits, progress)

    def classify(self, error: Exception) -> BackendError | None:
        return classify(error)

    def close(self) -> None:
        self.runtime.close()
        self.communicator.close()


def weight_bytes(spec: DecoderSpec, limits: ExecutorLimits) -> int:
    """Bytes of this rank's weights."""
    return sum(math.prod(shape) for _, shape in weight_shapes(spec)) * _ITEM_BYTES[limits.dtype]


def step_bytes(spec: DecoderSpec, limits: ExecutorLimits) -> int:
    """An upper estimate of what the largest step takes beside pages: activations, logits, the mask."""
    item, tokens = _ITEM_BYTES[limits.dtype], limits.max_step_tokens
    widest = max(
        (
            spec_layer.mlp.inner_size * (2 if spec_layer.mlp.gated else 1)
            + (spec_layer.mixer.num_heads + 2 * spec_layer.mixer.num_kv_heads) * spec_layer.mixer.head_dim
            for spec_layer in spec.layers
        ),
        default=0,
    )
    activations = tokens * (4 * spec.hidden_size + 2 * widest) * item
    logits = 3 * 4 * (limits.max_num_rows + 1) * spec.vocab_size
    return activations + logits + 2 * mask_bytes(limits) * most_prefills(limits)


def _communicator(rank: RankInfo, habana: Habana) -> Communicator:
    if rank.world == 1:
        return SoleRank()
    load_collectives()
    return HcclCommunicator(rank, habana.device, habana.collectives)
