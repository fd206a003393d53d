"""What a device can do, as data. Core reads these instead of asking which vendor it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
KVDtype = Literal["float32", "bfloat16", "float16", "fp8_e4m3", "fp8_e5m2"]
Fp8Flavour = Literal["none", "ocp", "fnuz"]
AttentionFeature = Literal["window", "soft_cap", "sinks", "alibi", "mla", "cascade"]
SamplingFeature = Literal["random", "filters", "penalties", "biases", "logprobs", "prompt_logprobs", "masks"]

FIRST_SAMPLING_FEATURES: frozenset[SamplingFeature] = frozenset(
    ("random", "filters", "penalties", "biases", "logprobs", "prompt_logprobs")
)
"""What version 1 began with. The default, so that a sampler that is older than a feature does not claim it."""

EVERY_SAMPLING_FEATURE: frozenset[SamplingFeature] = frozenset(
    ("random", "filters", "penalties", "biases", "logprobs", "prompt_logprobs", "masks")
)


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
        sampling: what a request may ask of the sampler beyond the likeliest token, by the names of `SampleFeatures`.
            Core refuses a request that asks for more, by the name of its field. The reference ops serve
            `EVERY_SAMPLING_FEATURE`.
        quantizations: names of weight formats that `prepare_linear` takes, of those in `contract.weight_formats`.
        graphs: whether `Runtime.capture` replays a step without the host.
        async_execution: whether work runs on while the host goes on. False makes one-step-ahead pointless.
        step_tokens: tokens of a step that keep the device busy without making running answers wait long; the default of
            the token budget.
        memory_bytes: memory that one rank may use, with what others use of it now; 0 is unknown. Core refuses weights
            and KV caches that cannot fit into it before anything is loaded.
        max_ranks: ranks that this machine has room for: its devices, or processes where they share one. 1 claims no
            communicator between ranks.
        features: further names, for reports only.
    """

    device_name: str
    dtypes: tuple[Dtype, ...]
    kv_dtypes: tuple[KVDtype, ...]
    fp8: Fp8Flavour = "none"
    page_sizes: tuple[int, ...] = (64,)
    attention: frozenset[AttentionFeature] = frozenset()
    max_head_dim: int = 256
    sampling: frozenset[SamplingFeature] = FIRST_SAMPLING_FEATURES
    quantizations: frozenset[str] = frozenset()
    graphs: bool = False
    async_execution: bool = False
    step_tokens: int = 8192
    memory_bytes: int = 0
    max_ranks: int = 1
    features: frozenset[str] = field(default_factory=frozenset[str])
