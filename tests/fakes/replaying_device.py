"""A device that captures steps as a GPU does: a replay repeats the recorded ops on the same tensors, and no Python.

R rows, T tokens, L keys, G groups of rows with a shared prefix, K head size, H query heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drivetrain_plain import PlainAttention, PlainCache, PlainDevice, PlainPlan, PlainRuntime
from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.runtime import Replay
from drivetrain_plugins.contract.shapes import CapturedSampling, ShapePolicy, StepShape
from drivetrain_plugins.contract.slots import StepInputs


class _Tape(TorchDispatchMode):
    """Runs ops and remembers each with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.ops.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, recorded in self.ops:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class ReplayingRuntime(PlainRuntime):
    """Counts captures and replays."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.captures = 0
        self.replays = 0

    def capture(self, step: Callable[[], None]) -> Replay:
        self.captures += 1
        with _Tape() as tape:
            step()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay


class BlindAttention(PlainAttention):
    """Plans steps of any kind from what is on the device, and reads shared prefixes through their groups alone."""

    def __init__(self) -> None:
        self.grouped_steps = 0

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> PlainPlan:
        size = cache.spec.page_size
        pages_RP = inputs.page_table_SP[inputs.row_slot_R, : shape.pages].long()
        keys_RL = (pages_RP[:, :, None] * size + torch.arange(size)).flatten(1)
        if inputs.shared_groups_G3 is not None:
            assert inputs.shared_rows_R is not None
            self.grouped_steps += batch is None or bool((batch.section("shared_groups")[:, 1] > 0).any())
            keys_RL = _through_groups(keys_RL, inputs.shared_rows_R.long(), inputs.shared_groups_G3.long())
        mask_TL = torch.arange(keys_RL.shape[1]) <= inputs.positions_T[:, None]
        return PlainPlan(inputs, keys_RL[inputs.token_row_T], mask_TL[:, None, None, :], [])

    def attend(self, q_THK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: PlainPlan) -> torch.Tensor:
        assert isinstance(cache, PlainCache) and plan.keys_RL is not None and plan.mask_R11L is not None
        mask_T11L = plan.mask_R11L
        window = layer.spec.window
        if window is not None:
            place_L = torch.arange(mask_T11L.shape[-1])
            near_TL = place_L > plan.inputs.positions_T[:, None] - window
            mask_T11L = mask_T11L & near_TL[:, None, None, :]
        unused_TL11 = ~mask_T11L[:, 0, 0, :, None, None]
        k_TGLK, v_TGLK = (
            x[plan.keys_RL].masked_fill(unused_TL11, 0.0).transpose(1, 2)
            for x in (cache.k[layer.index], cache.v[layer.index])
        )
        out = F.scaled_dot_product_attention(
            q_THK[:, :, None], k_TGLK, v_TGLK, attn_mask=mask_T11L, scale=layer.spec.scale, enable_gqa=True
        )
        return out[:, :, 0]


def _through_groups(keys_RL: torch.Tensor, rows_R: torch.Tensor, groups_G3: torch.Tensor) -> torch.Tensor:
    """The same keys, but the shared ones of each row are those of the first row of its group."""
    begin_G, end_G, shared_G = groups_G3.unbind(dim=1)
    place_R1 = torch.arange(len(rows_R))[:, None]
    inside_RG = (place_R1 >= begin_G) & (place_R1 < end_G)
    shared_by_place_R = (inside_RG * shared_G).sum(dim=1)
    first_place_R = torch.where(inside_RG.any(dim=1), (inside_RG * begin_G).sum(dim=1), place_R1[:, 0])
    shared_R = torch.zeros_like(rows_R).index_copy_(0, rows_R, shared_by_place_R)
    leader_R = torch.zeros_like(rows_R).index_copy_(0, rows_R, rows_R[first_place_R])
    is_shared_RL = torch.arange(keys_RL.shape[1]) < shared_R[:, None]
    return torch.where(is_shared_RL, keys_RL[leader_R], keys_RL)


class ReplayingDevice(PlainDevice):
    """Plain torch ops on the processor; steps are captured as its `policy` says.

    Args:
        captured_tokens: steps with prefill are captured up to so many tokens.
        sampling: what recordings may sample.
        shared_groups: groups with a shared prefix that a step may tell; such of 2 rows and a page are worth it.
    """

    runtime: ReplayingRuntime
    attention: BlindAttention

    def __init__(
        self,
        *,
        captured_tokens: int = 0,
        sampling: frozenset[CapturedSampling] = frozenset({"random"}),
        shared_groups: int = 0,
    ) -> None:
        super().__init__(torch.device("cpu"), kv_bytes=1 << 26)
        self._captured_tokens, self._sampling, self._groups = captured_tokens, sampling, shared_groups
        self.capabilities = type(self.capabilities)(
            device_name="replaying processor",
            sampling=self.capabilities.sampling,
            dtypes=("float32",),
            kv_dtypes=("float32",),
            page_sizes=(16,),
            attention=frozenset({"window", "cascade"} if shared_groups else {"window"}),
            graphs=True,
        )
        self.runtime = ReplayingRuntime()
        self.attention = BlindAttention()

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        policy = super().shape_policy(limits)
        return replace(
            policy,
            page_buckets=(),
            token_buckets=tuple(range(8, self._captured_tokens + 1, 8)),
            max_captured_tokens=self._captured_tokens,
            captured_sampling=self._sampling,
            max_shared_groups=self._groups,
            min_shared_rows=2,
            min_shared_tokens=16,
        )
