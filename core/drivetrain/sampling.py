"""How tokens of one request are chosen."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar
from drivetrain_plugins.contract.capabilities import SamplingFeature

MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_BIAS = 1024
MAX_N = 128
MAX_BAD_WORDS = 256
SEED_LIMIT = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request; defaults are those of OpenAI's completions API.

    Every number is bounded, so that a request cannot ask for more than the engine can promise.

    Raises:
        RequestError: a value lies outside its range; `param` names the field.
    """

    n: int = 1
    """Completions for the prompt, 1 to 128."""
    temperature: float = 1.0
    """0 is greedy; up to 100 (a divisor of the logits)."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this, in (0, 1]."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 (or -1) keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this likely relative to the likeliest, in [0, 1]."""
    presence_penalty: float = 0.0
    """Subtracted once from tokens already generated, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted per occurrence among generated tokens, in [-2, 2]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or answer, in (0, 10]."""
    logit_bias: dict[int, float] = field(default_factory=dict[int, float])
    """Token id to a value in [-100, 100] added to its logit."""
    seed: int | None = None
    """The noise depends only on seed and position: the same in any batch."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the answer, beside the model's own end tokens."""
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    """Go on past the model's end tokens."""
    max_tokens: int | None = None
    """Tokens to generate at most; None is up to the end of the context."""
    min_tokens: int = 0
    """Forbid end and stop tokens before so many were generated."""
    logprobs: int | None = None
    """Number of likeliest tokens to report with each token, 0 to 20; None reports none."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    bad_words: tuple[str, ...] = ()
    """Strings that are never generated (by their tokenizations)."""
    grammar: Grammar | None = None
    """What every answer must look like."""
    skip_special_tokens: bool = True
    detokenize: bool = True
    """False returns ids only, and forbids stop strings."""

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _count("logit_bias", len(self.logit_bias), MAX_BIAS)
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 2**31 - 1)
            _number("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            _integer("seed", self.seed, -SEED_LIMIT, SEED_LIMIT - 1)
        _count("stop", len(self.stop), MAX_STOPS)
        for stop in self.stop:
            if not stop or len(stop) > 1024:
                raise RequestError(f"stop: each string has 1 to 1024 characters, got {len(stop)}", param="stop")
        if self.stop and not self.detokenize:
            raise RequestError("stop: stop strings need detokenize=True; use stop_token_ids instead", param="stop")
        _count("stop_token_ids", len(self.stop_token_ids), MAX_STOPS)
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens: {self.min_tokens} is above max_tokens {self.max_tokens}; lower it", param="min_tokens"
            )
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _integer(name, value, 0, MAX_LOGPROBS)
        _count("bad_words", len(self.bad_words), MAX_BAD_WORDS)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether counts of earlier tokens change the logits."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


def unserved(params: SamplingParams, served: Collection[SamplingFeature]) -> list[str]:
    """Names of the parameters that need more of the sampler than a device has."""
    return [name for feature, name, _ in _needs(params) if feature not in served]


def check_served(params: SamplingParams, served: Collection[SamplingFeature], device: str) -> None:
    """Refuse parameters that need more of the sampler than a device has.

    Raises:
        RequestError: names the first such field and the value that would be served.
    """
    for feature, name, neutral in _needs(params):
        if feature not in served:
            got = getattr(params, name)
            raise RequestError(
                f"{name}: got {got!r}, but {device} samples without {feature.replace('_', ' ')}; "
                f"{f'send {neutral}' if neutral else 'leave it out'}",
                param=name,
            )


def _needs(params: SamplingParams) -> list[tuple[SamplingFeature, str, str]]:
    """(feature, field that asks for it, value that does not)."""
    random = not params.greedy
    asked: list[tuple[bool, SamplingFeature, str, str]] = [
        (random, "random", "temperature", "0"),
        (random and params.top_p < 1.0, "filters", "top_p", "1"),
        (random and params.top_k > 0, "filters", "top_k", "0"),
        (random and params.min_p > 0.0, "filters", "min_p", "0"),
        (params.presence_penalty != 0.0, "penalties", "presence_penalty", "0"),
        (params.frequency_penalty != 0.0, "penalties", "frequency_penalty", "0"),
        (params.repetition_penalty != 1.0, "penalties", "repetition_penalty", "1"),
        (bool(params.logit_bias), "biases", "logit_bias", ""),
        (bool(params.bad_words), "biases", "bad_words", ""),
        (params.min_tokens > 0, "biases", "min_tokens", "0"),
        (params.grammar is not None, "masks", "grammar", ""),
        (params.logprobs is not None, "logprobs", "logprobs", ""),
        (params.prompt_logprobs is not None, "prompt_logprobs", "prompt_logprobs", ""),
    ]
    return [(feature, name, neutral) for needed, feature, name, neutral in asked if needed]


def _number(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
    inside = numeric and math.isfinite(value) and low <= value <= high and not (above and value == low)
    if not inside:
        span = f"{'above' if above else 'from'} {low:g} to {high:g}"
        raise RequestError(f"{name}: expected a number {span}, got {value!r}", param=name)


def _integer(name: str, value: int, low: int, high: int) -> None:
    integral = isinstance(value, int) and not isinstance(value, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not (integral and low <= value <= high):
        raise RequestError(f"{name}: expected an integer from {low} to {high}, got {value!r}", param=name)


def _count(name: str, got: int, limit: int) -> None:
    if got > limit:
        raise RequestError(f"{name}: at most {limit} entries, got {got}", param=name)
