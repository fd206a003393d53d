"""What a device can do, as data. Core reads these instead of asking which vendor it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
KVDtype = Literal["float32", "bfloat16", "float16", "fp8_e4m3", "fp8_e5m2"]
Fp8Flavour = Literal["none", "ocp", "fnuz"]
AttentionFeature = Literal["window", "soft_cap", "sinks", "alibi", "mla", "cascade"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Fixed facts about an opened device.

    Attributes:
        device_name: as the vendor names it.
        dtypes: activation and weight types, the preferred one first.
        kv_dtypes: storage types of the KV cache, the preferred one first.
        fp8: which fp8 encoding the matrix units take.
        page_sizes: tokens a page, the preferred one first.
        attention: what paged attention serves beyond plain causal attention with grouped heads.
        max_head_dim: largest head size.
        quantizations: names of weight formats that `prepare_linear` takes.
        graphs: whether `Runtime.capture` replays a step without the host.
        async_execution: whether work runs on while the host goes on. False makes one-step-ahead pointless.
        memory_bytes: memory that one rank may use.
        features: further names, for reports only.
    """

    device_name: str
    dtypes: tuple[Dtype, ...]
    kv_dtypes: tuple[KVDtype, ...]
    fp8: Fp8Flavour = "none"
    page_sizes: tuple[int, ...] = (64,)
    attention: frozenset[AttentionFeature] = frozenset()
    max_head_dim: int = 256
    quantizations: frozenset[str] = frozenset()
    graphs: bool = False
    async_execution: bool = False
    memory_bytes: int = 0
    features: frozenset[str] = field(default_factory=frozenset[str])
