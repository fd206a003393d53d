"""What can be known about memory before anything is loaded: a configuration that cannot fit is refused at once.

The sums hold for one rank that keeps the whole model. What else is used, and by whom, is measured once weights are
loaded and steps have run (`Allocator.plan`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from drivetrain.config import EngineConfig, format_size
from drivetrain.errors import ConfigError, OutOfMemory
from drivetrain_plugins.contract.capabilities import Capabilities, Dtype
from drivetrain_plugins.contract.memory import kv_spec
from drivetrain_plugins.contract.model import DecoderSpec, weight_shapes

if TYPE_CHECKING:  # what imports torch is imported once the backend's environment is set
    from drivetrain_plugins.contract.executor import ExecutorLimits

ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


def num_parameters(spec: DecoderSpec) -> int:
    """Numbers that a model's weights are made of."""
    return sum(math.prod(shape) for _, shape in weight_shapes(spec))


def exact_pages(limits: ExecutorLimits, spec: DecoderSpec, num_pages: int) -> ExecutorLimits:
    """The limits with memory for just so many pages, as core's own executor lays them out."""
    kv_bytes = num_pages * kv_spec(spec, limits.kv_dtype, limits.page_size).page_bytes
    return replace(limits, memory=replace(limits.memory, kv_bytes=kv_bytes, max_pages=num_pages))


def check_memory(config: EngineConfig, spec: DecoderSpec, limits: ExecutorLimits, capabilities: Capabilities) -> None:
    """Refuse what cannot fit whatever else is in the device's memory. A device that does not say how much it has is
    believed to have enough.

    Raises:
        ConfigError: the KV cache that is asked for has no room beside the weights.
        OutOfMemory: the weights alone have none.
    """
    total = capabilities.memory_bytes
    if not total:
        return
    weights = num_parameters(spec) * ITEM_BYTES[limits.dtype]
    device = f"{capabilities.device_name} has {format_size(total)} of memory in all"
    if weights >= total:
        raise OutOfMemory(
            f"the weights of {config.model} take {format_size(weights)} as {limits.dtype}, but {device}; "
            f"serve a smaller model, or this one on a larger device"
        )
    room = total - weights
    beside = f"{device}, of which the weights of {config.model} take {format_size(weights)} as {limits.dtype}"
    if isinstance(config.kv_memory, float) and config.kv_memory * total <= weights:
        raise ConfigError(
            f"limits.kv_memory: got {_percent(config.kv_memory)} of the device's memory, but {beside}; "
            f"raise it above {_percent(weights / total)}, or leave it out"
        )
    kv_bytes = limits.memory.kv_bytes
    if kv_bytes is not None and kv_bytes > room:
        key, got, most = "kv_memory", format_size(kv_bytes), format_size(room)
        if config.num_pages is not None:
            got = f"{config.num_pages}, which take {got}"
            key, most = "num_pages", str(room // (kv_bytes // config.num_pages))
        raise ConfigError(f"limits.{key}: got {got}, but {beside}; lower it to at most {most}, or leave it out")


def named_setting(config: EngineConfig, error: OutOfMemory) -> OutOfMemory:
    """What the device says of memory that it could not give, with the setting that asked for it."""
    if config.num_pages is not None:
        return OutOfMemory(f"limits.num_pages is {config.num_pages}: {error}")
    if config.kv_memory is not None:
        asked = (
            f"{_percent(config.kv_memory)}" if isinstance(config.kv_memory, float) else format_size(config.kv_memory)
        )
        return OutOfMemory(f"limits.kv_memory is {asked}: {error}")
    return error


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
