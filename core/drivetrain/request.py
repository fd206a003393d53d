"""One completion that the engine works on, from its arrival to its last token."""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from drivetrain.kv.prefix_index import Block
from drivetrain.sampling import SamplingParams

if TYPE_CHECKING:
    from drivetrain.grammar.matcher import GrammarMatcher

# What a request may ask of the sampler, as bits.
RANDOM, FILTERS, PENALTIES, BIASES, MASKS = 1, 2, 4, 8, 16

MAX_PRIORITY = 100
"""Priorities run from -100 (first) to 100 (last)."""


class Status(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True, eq=False, kw_only=True, repr=False)
class Request:
    """One completion: what was asked for, and how far the scheduler has brought it.

    The caller sets the first group of fields; the scheduler owns the second, and others only read it.
    """

    request_id: str
    prompt_ids: array[int]
    """int32 token ids, one or more; never changed."""
    params: SamplingParams
    arrival_s: float
    """When it arrived, on the scheduler's clock."""
    priority: int = 0
    """Lower goes first, -100 to 100."""
    eos_ids: frozenset[int] = frozenset()
    """Every id that ends the answer: the model's end tokens (unless ignored) and the request's stop ids."""
    salt: bytes = b""
    """What, besides the tokens, the KV depends on or must not be shared across: tenant, adapter, media."""
    max_total: int
    """Prompt and answer together have at most so many tokens."""
    seed: int = 0
    """64 bits; with the position it decides the noise of each draw."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are never completed."""
    matcher: GrammarMatcher | None = None
    """Where the answer stands in its grammar, if it has one."""
    pooling: Literal["last", "mean"] | None = None
    """Ends with its prefill, in an embedding of these tokens' states."""
    parent: Request | None = None
    """The first of n completions of one prompt; this one takes the prompt's KV over from it. A parent computes
    `prompt_logprobs` for all of them."""

    sampler_needs: int = field(init=False)
    """RANDOM, FILTERS, PENALTIES, MASKS, and BIASES if there may be some: what the sampler must do for it."""
    num_logprobs: int = field(init=False)
    """Likeliest tokens to report with each token, -1 for none at all."""
    reports_scores: bool = field(init=False)
    """Whether it asks for log-probabilities, of the answer or of the prompt."""
    tokens: array[int] = field(init=False)
    """Prompt and every output that has landed."""
    num_computed: int = 0
    """Tokens whose KV is computed, or will be by the steps in flight."""
    in_flight: int = 0
    """Tokens sampled by steps in flight: only the device knows them yet."""
    slot: int | None = None
    """Row of the device's state while running."""
    pages: list[int] = field(default_factory=list[int])
    """KV pages in the order of positions."""
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was found in the prefix cache or taken over from the parent at first admission."""
    queued_s: float = 0.0
    """From arrival to first admission."""
    num_preemptions: int = 0

    length_limit: int = 0
    """Tokens, prompt included, at which it ends with LENGTH."""
    stop_above: int = 0
    """Ids in eos_ids end it only when prompt and answer are longer than this (min_tokens)."""
    row_limit: int = 0
    """Decode rows are scheduled only for positions below this; 0 while it does not decode."""
    capacity: int = 0
    """Positions that fit into `pages`."""
    queue_key: tuple[float, int] = (0.0, 0)
    """Its place in every queue, unique: smaller goes first, and the largest is preempted first."""
    last_step: int = -1
    """Newest step with a row of it."""
    prompt_step: int = -1
    """Step that completes the prompt's KV in `pages`; -1 while there is none."""
    awaited: Request | None = None
    """The parent, until this request was admitted or the parent ended."""
    forks: list[Request] = field(default_factory=list["Request"])
    """Requests that wait for this one's prompt to be computed."""
    block_keys: list[bytes] = field(default_factory=list[bytes])
    """Token bytes of each full block, computed once."""
    chain: Block | None = None
    """The last published block of its prefix."""
    num_published: int = 0
    """Blocks up to and with `chain`."""
    event_at: int = 0
    """Length at which a landed token has consequences: it completes a block, or is the last one."""

    def __post_init__(self) -> None:
        self.tokens = array("i", self.prompt_ids)
        params = self.params
        filters = params.top_p < 1.0 or params.top_k > 0 or params.min_p > 0.0
        biases = bool(params.logit_bias or params.min_tokens or self.bad_word_ids)
        self.sampler_needs = (0 if params.greedy else RANDOM | FILTERS * filters) | PENALTIES * params.penalized
        self.sampler_needs |= BIASES * biases | MASKS * (self.matcher is not None)
        self.num_logprobs = -1 if params.logprobs is None else params.logprobs
        self.reports_scores = params.logprobs is not None or params.prompt_logprobs is not None
        self.awaited = self.parent

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.value}, {self.num_prompt} prompt tokens, "
            f"{self.num_outputs} outputs, {self.num_computed} computed, {self.in_flight} in flight)"
        )

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def num_outputs(self) -> int:
        """Outputs that have landed."""
        return len(self.tokens) - len(self.prompt_ids)

    @property
    def output_ids(self) -> array[int]:
        """Outputs that have landed."""
        return self.tokens[len(self.prompt_ids) :]
