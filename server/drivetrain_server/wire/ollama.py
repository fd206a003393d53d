"""The bodies of Ollama's native routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import BeforeValidator, Field, JsonValue, WithJsonSchema

from drivetrain_server.wire.completions import MAX_PROMPTS
from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.sampling import INT32_MAX
from drivetrain_server.wire.unservable import OLLAMA_OPTIONS, refuse_unservable
from drivetrain_server.wire.validation import WireModel, refuse

Json = dict[str, Any]
CHAT_NAMES = {
    "max_completion_tokens": "options.num_predict",
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "reasoning_effort": "think",
    "response_format": "format",
} | {
    name: f"options.{name}"
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
}
"""Fields of chat completions to those of this API."""
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repetition_penalty",
}
PLACEMENT_OPTIONS = (
    "num_ctx",
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "use_mmap",
    "use_mlock",
    "low_vram",
    "numa",
)
"""Options that say how a model is loaded, which is the operator's matter: they are taken and change nothing."""


def _latest(value: object) -> object:
    """A model's name without the tag that Ollama adds to names without one."""
    return value.removesuffix(":latest") if isinstance(value, str) else value


ModelName = Annotated[str, BeforeValidator(_latest), Field(min_length=1)]
KeepAlive = str | int | float


class OllamaModel(WireModel):
    """A request that names a model, and nothing else that changes anything."""

    model: ModelName
    """The name that `/api/tags` lists; may end in `:latest`."""
    keep_alive: KeepAlive | None = None
    """Taken; the model stays while the server runs."""


class OllamaFields(OllamaModel):
    """Fields of `/api/chat` and `/api/generate` alike."""

    stream: bool | None = None
    """True by default."""
    format: str | dict[str, JsonValue] | None = None
    """Any JSON object, or JSON that the schema allows."""
    options: dict[str, JsonValue] | None = None
    """How tokens are chosen, by Ollama's names."""
    think: bool | Literal["low", "medium", "high"] | None = None
    """As `reasoning_effort`; true leaves the template's own default, and is a 400 where the model does not reason."""
    logprobs: bool | None = None
    """Log-probabilities."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Alternatives for each token."""

    @property
    def streams(self) -> bool:
        """Whether the answer comes line by line: Ollama's own default."""
        return self.stream is not False

    @property
    def stream_usage(self) -> tuple[bool, bool]:
        """The counts are part of the last line always."""
        return False, False

    @property
    def request_id(self) -> str | None:
        """Ollama's clients name no requests."""
        return None

    @property
    def priority(self) -> int | None:
        """Ollama's clients know no priorities."""
        return None

    @property
    def cache_salt(self) -> str | None:
        """Ollama's clients know no salts."""
        return None

    def asked(self) -> Json:
        """What chooses tokens, in the words of chat completions.

        Raises:
            HttpError: 400, an option that cannot be served.
        """
        options = self.options or {}
        refuse_unservable({f"options.{name}": value for name, value in options.items()}, OLLAMA_OPTIONS)
        body: Json = {"model": self.model}
        for name, ours in _SAMPLING.items():
            value = options.get(name)
            if value is not None:
                body[ours] = float(value) if type(value) is int and name in _FRACTIONS else value
        limit = options.get("num_predict")
        if limit is not None and not (type(limit) is int and -2 <= limit <= INT32_MAX and limit != 0):
            raise refuse("options.num_predict", f"expected 1 and up, or -1 or -2 for no limit; got {shown(limit)}")
        if type(limit) is int and limit > 0:
            body["max_completion_tokens"] = limit
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return body | self._format() | self._think()

    @property
    def unknown(self) -> list[str]:
        """Names of fields and options that nobody knows."""
        known = {*_SAMPLING, *PLACEMENT_OPTIONS, "num_predict"}
        listed = {name.removeprefix("options.") for name in OLLAMA_OPTIONS}
        odd = [f"options.{name}" for name in self.options or {} if name not in known and name not in listed]
        return [*super().unknown, *odd]

    def _format(self) -> Json:
        if not self.format:
            return {}
        if isinstance(self.format, dict):
            schema = {"name": "format", "schema": self.format, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        if self.format != "json":
            raise refuse("format", f'expected "json" or a JSON schema; got {shown(self.format)}')
        return {"response_format": {"type": "json_object"}}

    def _think(self) -> Json:
        if self.think is None or self.think is True:
            return {}
        return {"reasoning_effort": self.think or "none"}


_FRACTIONS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty")


class OllamaChat(OllamaFields):
    """A conversation to go on with. Without messages it asks only whether the model is loaded."""

    messages: Annotated[list[dict[str, JsonValue]], Field(max_length=4096)] = Field(
        default_factory=list[dict[str, JsonValue]]
    )
    """`role`, `content`, `thinking`, `tool_calls`, `tool_name`; none asks only whether the model is there."""
    tools: Annotated[list[dict[str, JsonValue]], Field(max_length=128)] | None = None
    """Functions that the model may call, as OpenAI's objects."""

    def chat_body(self) -> Json:
        """The conversation in the words of chat completions.

        Raises:
            HttpError: 400, with the message at fault.
        """
        messages: list[Json] = []
        calls: list[tuple[str, str]] = []
        for at, message in enumerate(self.messages):
            messages.append(_turn(message, f"messages[{at}]", calls))
        return self.asked() | {"messages": messages} | ({"tools": self.tools} if self.tools else {})


class OllamaGenerate(OllamaFields):
    """Text to go on from: through the chat template, or with `raw` as it is."""

    prompt: str = ""
    """None asks only whether the model is there."""
    system: str | None = None
    """The system message."""
    raw: bool | None = None
    """Without the chat template; then `system` and `think` are a 400."""

    def chat_body(self) -> Json:
        """The prompt as a conversation of one turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.asked() | {"messages": [*system, {"role": "user", "content": self.prompt}]}

    def completion_body(self) -> Json:
        """The prompt as it is, in the words of completions."""
        for name in ("system", "think"):
            if getattr(self, name):
                raise refuse(name, "with raw no template takes it; leave one of them out")
        body = self.asked()
        if "max_completion_tokens" in body:
            body["max_tokens"] = body.pop("max_completion_tokens")
        else:
            body["max_tokens"] = None
        for name in ("logprobs", "top_logprobs", "reasoning_effort"):
            body.pop(name, None)
        return body | {"prompt": self.prompt}


def _inputs(value: object) -> list[str]:
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    expected = f"expected a string, or 1 to {MAX_PROMPTS} of them"
    if not 1 <= len(items) <= MAX_PROMPTS:
        raise ValueError(expected)
    for at, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(f"{expected}; item {at} is {shown(item)}" if isinstance(value, list) else expected)
    return cast("list[str]", items)


_INPUT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}


class OllamaEmbed(OllamaModel):
    """Texts whose embeddings are wanted."""

    input: Annotated[list[str], BeforeValidator(_inputs), WithJsonSchema(_INPUT_SCHEMA, mode="validation")]
    """One text or several."""
    dimensions: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """First numbers of the vector alone, brought to length 1 again. Default: the model's own."""
    truncate: bool | None = None
    """Taken, and changes nothing: inputs are never cut."""
    options: dict[str, JsonValue] | None = None
    """Taken, and changes nothing."""


class OllamaEmbedding(OllamaModel):
    """The older form: one text, whose vector is not normalised."""

    prompt: str
    """The text."""
    options: dict[str, JsonValue] | None = None
    """Taken, and changes nothing."""


def _turn(message: Mapping[str, JsonValue], place: str, calls: list[tuple[str, str]]) -> Json:
    """One message; `calls` are those (id, name) of the assistant that no result has come for yet."""
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant", "tool"):
        raise refuse(f"{place}.role", f'expected "system", "user", "assistant" or "tool"; got {shown(role)}')
    if message.get("images"):
        raise refuse(f"{place}.images", "only text is served; leave it out", code="unsupported_parameter")
    if not isinstance(content, str | None):
        raise refuse(f"{place}.content", f"expected a string; got {shown(content)}")
    turn: Json = {"role": role, "content": content or ""}
    thinking = message.get("thinking")
    if not isinstance(thinking, str | None):
        raise refuse(f"{place}.thinking", f"expected a string; got {shown(thinking)}")
    if thinking:
        turn["reasoning"] = thinking
    made = message.get("tool_calls")
    if made:
        turn["tool_calls"] = _calls(made, f"{place}.tool_calls", calls)
    if role == "tool":
        name = message.get("tool_name") or message.get("name")
        known = next((call for call in calls if call[1] == name), calls[0] if calls else None)
        given = message.get("tool_call_id")
        turn["tool_call_id"] = given if isinstance(given, str) else known[0] if known else "call_0"
        if known in calls:
            calls.remove(known)
        if isinstance(name, str):
            turn["name"] = name
    return turn


def _calls(made: JsonValue, place: str, calls: list[tuple[str, str]]) -> list[Json]:
    """Calls with ids, which Ollama's messages have none of."""
    if not isinstance(made, list):
        raise refuse(place, f"expected an array; got {shown(made)}")
    listed: list[Json] = []
    for at, call in enumerate(made):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        given = function.get("arguments", {}) if isinstance(function, dict) else None
        if not isinstance(call, dict) or not isinstance(name, str) or not isinstance(given, dict):
            raise refuse(
                f"{place}[{at}]", "expected a `function` with `name` and an object of `arguments`; got {shown(call)}"
            )
        known = call.get("id")
        call_id = known if isinstance(known, str) else f"call_{len(calls)}_{at}"
        calls.append((call_id, name))
        rendered = {"name": name, "arguments": orjson.dumps(given).decode()}
        listed.append({"id": call_id, "type": "function", "function": rendered})
    return listed
