"""What passes between a frontend (HTTP server, `LLM`) and the engine. Plain data: msgspec encodes it as it is."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from drivetrain.sampling import SamplingParams
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, SamplingFeature

FinishReasonName = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One prompt to complete `params.n` times.

    Attributes:
        request_id: unique among live requests.
        prompt_ids: the prompt's token ids, at least one.
        priority: lower runs first.
        bad_word_ids: token sequences that are never completed: the tokenizations of `params.bad_words`.
        salt: separates prefix-cache identities (tenant, adapter, media).
        deadline_s: seconds from arrival after which the request is ended; None is no limit.
        embeds: ends with the prompt's embedding, and generates nothing.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    bad_word_ids: list[list[int]] = field(default_factory=list[list[int]])
    priority: int = 0
    salt: str = ""
    deadline_s: float | None = None
    embeds: bool = False


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probability of one token of the answer or prompt.

    Attributes:
        logprob: natural logarithm, of the model's distribution before temperature, penalties, bias and filters.
        rank: 1 for the likeliest token.
        top: the likeliest tokens with their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class Update(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one completion. `index` tells the completions of a request with n > 1 apart.

    Attributes:
        token_ids: the new tokens, in order. An end token that finished the answer is included and is its last id.
        logprobs: one entry a token, where asked for.
        prompt_logprobs: one entry a prompt token (None for the first), once, in the first update that has tokens.
        finish_reason: None until the last update of this completion.
        stop_token_id: the end or stop token that finished it.
        num_cached_tokens: prompt tokens taken from the prefix cache.
        queued_s: from the request's arrival at the engine to its admission to the batch.
        error: what went wrong, with finish_reason "error".
        embedding: float32 numbers, little-endian, pooled as the engine's `pooling` says and not normalised; in the last
            update of a request that `embeds`.
    """

    request_id: str
    index: int = 0
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReasonName | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    queued_s: float = 0.0
    error: str | None = None
    embedding: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a running engine tells about itself, fixed from start to end.

    Attributes:
        pooling: which tokens' states make an embedding; None where embeddings are not served.
        embedding_size: numbers of an embedding; 0 where they are not served.
        embedding_dimensions: shorter lengths that embeddings may be cut to; None is any.
        weight_bytes: bytes of the weights as they are stored.
        loaded_bytes: bytes of the weights on the devices, of all ranks together.
        num_parameters: numbers that the weights are made of.
        sampling: what the device's sampler serves beside the likeliest token.
        warnings: sentences about settings that have no effect here.
        memory: the plan of the device's memory: what takes how many bytes, in the order of subtraction.
    """

    model: str
    architecture: str
    backend: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    num_pages: int
    page_size: int
    max_num_rows: int
    max_step_tokens: int
    kv_bytes: int
    weight_bytes: int
    pooling: Literal["last", "mean"] | None = None
    embedding_size: int = 0
    embedding_dimensions: tuple[int, ...] | None = ()
    loaded_bytes: int = 0
    num_parameters: int = 0
    sampling: tuple[SamplingFeature, ...] = tuple(sorted(EVERY_SAMPLING_FEATURE))
    warnings: tuple[str, ...] = ()
    memory: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Gauges and counters since the start. Tokens and pages are counts; times are seconds.

    `pages_free + pages_cached + pages_used == pages_total` always holds. `held` and what follows is told in
    `SchedulerStats`.
    """

    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0
    pages_cached: int = 0
    pages_used: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    preemptions: int = 0
    held: int = 0
    awaiting_pages: int = 0
    held_for_masks: int = 0
    held_for_pages: int = 0
    finished: int = 0
    failed: int = 0
    aborted: int = 0
    step_s: float = 0.0
    schedule_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Progress of start-up, as `/ready` and the phase bars show it. `total` of 0 means unknown."""

    name: str
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    elapsed_s: float = 0.0
    finished: bool = False


def token_array(ids: list[int]) -> array[int]:
    """Token ids as the compact int32 array that the scheduler keeps."""
    return array("i", ids)
