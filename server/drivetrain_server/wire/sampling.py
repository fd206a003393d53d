"""The fields that choose tokens, shared by every route that generates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast

from pydantic import BeforeValidator, Field, WithJsonSchema

from drivetrain.errors import RequestError
from drivetrain.sampling import MAX_BAD_WORDS, MAX_BIAS, MAX_N, MAX_STOPS, SamplingParams
from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.structured import GrammarFields
from drivetrain_server.wire.validation import WireModel, refuse

INT32_MAX = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
MAX_STRING = 1024
BadWord = Annotated[str, Field(min_length=1, max_length=MAX_STRING)]
_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": MAX_STRING}
_STOP_SCHEMA = {
    "anyOf": [_STOP_STRING, {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOPS}, {"type": "null"}]
}


def _stops(value: object) -> list[str] | None:
    """One string, or several, as a list."""
    if value is None:
        return None
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    expected = f"expected a string of 1 to {MAX_STRING} characters, or at most {MAX_STOPS} of them"
    if len(items) > MAX_STOPS:
        raise ValueError(expected)
    for at, item in enumerate(items):
        if not isinstance(item, str) or not 1 <= len(item) <= MAX_STRING:
            raise ValueError(f"{expected}; item {at} is {shown(item)}" if isinstance(value, list) else expected)
    return cast("list[str]", items)


class StreamOptions(WireModel):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    """Tell the usage in an event at the end. Default: false."""
    continuous_usage_stats: bool | None = None
    """With `include_usage`: tell it in every event. Default: false."""


class SamplingFields(GrammarFields):
    """Fields of completions and chat completions alike."""

    model: str
    """Must be the name that `/v1/models` lists."""
    stream: bool | None = None
    """Answer as events. Default: false."""
    stream_options: StreamOptions | None = None
    """`include_usage`; extension: `continuous_usage_stats`; only with `stream`."""
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    """Answers to each prompt. Default: 1."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """0 takes the likeliest token. Default: 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the smallest set of tokens with this probability. Default: 1."""
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    """Keep the k likeliest; 0 and -1 keep all. Default: 0."""
    min_p: Probability | None = None
    """Keep tokens at least this likely relative to the likeliest. Default: 0."""
    presence_penalty: Penalty | None = None
    """Subtracted once from tokens that were generated. Default: 0."""
    frequency_penalty: Penalty | None = None
    """Subtracted for each time that a token was generated. Default: 0."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    """Divides the logits of tokens in prompt or answer. Default: 1."""
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIAS)] | None = None
    """Token id (as a string) to -100 to 100; at most 1024."""
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    """Same seed, same draws. Default: drawn."""
    stop: Annotated[list[str] | None, BeforeValidator(_stops), WithJsonSchema(_STOP_SCHEMA, mode="validation")] = None
    """At most 64 strings of 1 to 1024 characters that end the answer."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS)] | None = None
    """At most 64 token ids that end the answer."""
    include_stop_str_in_output: bool | None = None
    """Leave the stop string in the text. Default: false."""
    ignore_eos: bool | None = None
    """Go on past the model's end tokens. Default: false."""
    min_tokens: Count | None = None
    """No end or stop token before so many tokens. Default: 0."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the text. Default: true."""
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)] | None = None
    """At most 256 strings that are never generated."""
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Log-probabilities of the prompt, with so many alternatives."""
    return_token_ids: bool | None = None
    """Add `token_ids` and `prompt_token_ids`. Default: false."""
    priority: Annotated[int, Field(ge=-(2**31), le=INT32_MAX)] | None = None
    """Lower runs first. Default: 0."""
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    """Prefixes are shared only within one salt and key."""
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    """Becomes part of the answer's `id`. Default: made."""

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.stream)

    @property
    def stream_usage(self) -> tuple[bool, bool]:
        """(a last event with usage, usage in every event).

        Raises:
            HttpError: 400, `stream_options` without `stream`.
        """
        options = self.stream_options
        if options is None:
            return False, False
        if not self.streams:
            raise refuse("stream_options", "it is allowed only with stream=true; leave one out or set the other")
        return bool(options.include_usage), bool(options.include_usage and options.continuous_usage_stats)


def sampling_params(
    fields: SamplingFields, defaults: Mapping[str, object], asked: Mapping[str, object]
) -> SamplingParams:
    """What the engine is asked for: the request's own values, else the defaults, else those of `SamplingParams`.

    Args:
        defaults: values for fields of `SamplingParams` that requests leave out.
        asked: what the route makes of its own fields, by the names of `SamplingParams`; None is not asked.

    Raises:
        RequestError: values that are wrong together; names the field.
    """
    chosen: dict[str, object] = {name: getattr(fields, name) for name in _SAME_NAME}
    chosen.update(asked)
    if fields.logit_bias is not None:
        chosen["logit_bias"] = _logit_bias(fields.logit_bias)
    for name in _SEQUENCES:
        value = cast("list[object] | None", getattr(fields, name))
        chosen[name] = None if value is None else tuple(value)
    demanded = fields.demanded()
    if demanded is not None:
        if asked.get("grammar") is not None:
            raise refuse(demanded[0], "the tools demand a form of the answer already; send one of them")
        chosen["grammar"] = demanded[1]
    values = dict(defaults) | {name: value for name, value in chosen.items() if value is not None}
    return SamplingParams(**values)  # pyright: ignore[reportArgumentType]


_SAME_NAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "prompt_logprobs",
)
_SEQUENCES = ("stop", "stop_token_ids", "bad_words")


def _logit_bias(named: dict[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for name, value in named.items():
        if not (name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= INT32_MAX):
            raise RequestError(f'logit_bias: keys are token ids such as "50256", got {name[:40]!r}', param="logit_bias")
        bias[int(name)] = value
    return bias
