"""The body of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import BeforeValidator, Field, WithJsonSchema

from drivetrain.sampling import MAX_N
from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.sampling import INT32_MAX, SamplingFields
from drivetrain_server.wire.validation import refuse

MAX_PROMPTS = 2048
DEFAULT_MAX_TOKENS = 16
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX}, "minItems": 1}
PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}

Prompts = list[str] | list[list[int]]


def prompts(value: object) -> Prompts:
    """Any of the four shapes as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("expected a string, a list of strings, token ids, or a list of lists of token ids; not empty")
    items = cast("list[object]", value)
    if _all_of(items, int):
        return [_ids(items)]
    if len(items) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts a request; split them")
    if _all_of(items, str):
        return cast("list[str]", items)
    if _all_of(items, list):
        return [_ids(cast("list[object]", item), f"list {at}: ") for at, item in enumerate(items)]
    kinds = list(map(type, items))
    odd = next((at for at, kind in enumerate(kinds) if kind is not kinds[0]), 0)
    raise ValueError(f"expected all strings, all integers, or all lists of integers; item {odd} is {shown(items[odd])}")


def _ids(items: list[object], where: str = "") -> list[int]:
    if not items:
        raise ValueError(f"{where}a list of token ids holds at least one")
    for at, item in enumerate(items):
        if type(item) is not int or not 0 <= item <= INT32_MAX:
            raise ValueError(f"{where}token ids are integers, 0 to {INT32_MAX}; item {at} is {shown(item)}")
    return cast("list[int]", items)


def _all_of(items: list[object], kind: type) -> bool:
    return set(map(type, items)) == {kind}


class CompletionRequest(SamplingFields):
    """Text or tokens to go on from."""

    prompt: Annotated[
        list[str] | list[list[int]], BeforeValidator(prompts), WithJsonSchema(PROMPT_SCHEMA, mode="validation")
    ]
    """At most 2048 prompts."""
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """Tokens to generate at most; 0 only scores, with `echo`. Default: 16."""
    echo: bool | None = None
    """Begin each answer with its prompt; with `logprobs`, of the prompt too. Default: false."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Log-probabilities with so many alternatives."""
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    """Generate so many, return the `n` likeliest a token; not in streams. Default: `n`."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add its begin token to texts. Default: true."""

    @property
    def choices(self) -> tuple[int, int]:
        """(answers to return a prompt, answers to generate for it).

        Raises:
            HttpError: 400, `best_of` below `n` or in a stream.
        """
        n = self.n or 1
        best_of = self.best_of or n
        if best_of < n:
            raise refuse("best_of", f"it is at least n, which is {n}; got {best_of}")
        if best_of > n and self.streams:
            raise refuse("best_of", "the best answers are known only at the end; leave out stream or best_of")
        return n, best_of
