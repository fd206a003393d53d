"""The body of `/v1/responses`, and its items as messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field, JsonValue

from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.sampling import INT32_MAX, Probability
from drivetrain_server.wire.validation import WireModel, refuse

Json = dict[str, Any]
MAX_ITEMS = 4096
CHAT_NAMES = {
    "messages": "input",
    "prompt": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "tools[].function": "tools[]",
}
"""Fields of chat completions to those of this API."""
Include = Annotated[list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]], Field(max_length=8)]
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


class Reasoning(WireModel):
    """How much the model reasons. `summary` asks for a summary where one is made; none is made here."""

    effort: str | None = None
    """As `reasoning_effort` of chat completions."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Taken; no summaries are made."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """Taken; no summaries are made."""


class TextOutput(WireModel):
    """The form of the answer."""

    format: dict[str, JsonValue] | None = None
    """`text`, `json_object` or `json_schema`. Default: text."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """Told again, and changes nothing. Default: medium."""


class ResponsesRequest(WireModel):
    """A conversation to go on with, kept by the server if the client wants."""

    model: str
    """Must be the name that `/v1/models` lists."""
    input: str | Annotated[list[dict[str, JsonValue]], Field(min_length=1, max_length=MAX_ITEMS)]
    """`message`, `reasoning`, `function_call`, `function_call_output`."""
    instructions: str | None = None
    """A system message in front, of this response alone."""
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    """Go on from this kept response."""
    store: bool | None = None
    """Keep the response. Default: true."""
    stream: bool | None = None
    """Answer as events. Default: false."""
    max_output_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """Tokens to generate at most, reasoning included. Default: to the end of the context."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """0 takes the likeliest token. Default: 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the smallest set of tokens with this probability. Default: 1."""
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    """Keep the k likeliest; 0 and -1 keep all. Default: 0."""
    min_p: Probability | None = None
    """Keep tokens at least this likely relative to the likeliest. Default: 0."""
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    """Same seed, same draws. Default: drawn."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Alternatives for each token. Default: 0."""
    include: Include | None = None
    """`message.output_text.logprobs`; `reasoning.encrypted_content` is taken and adds nothing."""
    tools: Annotated[list[dict[str, JsonValue]], Field(max_length=128)] | None = None
    """Functions alone; a tool that the server would run is a 400."""
    tool_choice: str | dict[str, JsonValue] | None = None
    """`none`, `auto`, `required`, a function, `allowed_tools`. Default: `auto`."""
    parallel_tool_calls: bool | None = None
    """Several calls in one answer. Default: true."""
    text: TextOutput | None = None
    """`format`: `text`, `json_object` or `json_schema`; `verbosity` is told again, and changes nothing. Default:
    text."""
    reasoning: Reasoning | None = None
    """`effort`; no summaries are made, the reasoning itself is in `content`."""
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` leaves out the oldest messages that do not fit. Default: `disabled`."""
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    """Told again in the answer."""
    priority: Annotated[int, Field(ge=-(2**31), le=INT32_MAX)] | None = None
    """Lower runs first. Default: 0."""
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    """Prefixes are shared only within one salt and key."""
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    """Names the request in the log. Default: made."""

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.stream)

    @property
    def stream_usage(self) -> tuple[bool, bool]:
        """The usage is part of the last event always."""
        return False, False

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives a token, None for no log-probabilities."""
        asked = "message.output_text.logprobs" in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if asked else None

    @property
    def items(self) -> list[Json]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return cast("list[Json]", self.input)

    def chat_body(self, messages: Sequence[Json]) -> Json:
        """Everything but the conversation in the words of chat completions, with these messages.

        Raises:
            HttpError: 400, with the field at fault.
        """
        if not messages:
            raise refuse("input", "it holds nothing but reasoning; add a message")
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        body: Json = {"model": self.model, "messages": [*system, *messages]}
        for name in ("temperature", "top_p", "top_k", "min_p", "seed"):
            body[name] = getattr(self, name)
        body["max_completion_tokens"] = self.max_output_tokens
        if self.num_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.num_logprobs}
        if self.tools:
            body["tools"] = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(self.tools)]
            body |= {"parallel_tool_calls": self.parallel_tool_calls, "tool_choice": _choice(self.tool_choice)}
        elif self.tool_choice not in (None, "auto", "none"):  # which need no tools
            body["tool_choice"] = _choice(self.tool_choice)
        if self.reasoning is not None and self.reasoning.effort is not None:
            body["reasoning_effort"] = self.reasoning.effort
        if self.text is not None and self.text.format is not None:
            body["response_format"] = _format(self.text.format)
        return body


def messages_of(items: Sequence[Json]) -> list[Json]:
    """Items as messages of chat completions: what the model did in one turn is one message there.

    Raises:
        HttpError: 400, with the item at fault.
    """
    messages: list[Json] = []
    thought = ""
    for at, item in enumerate(items):
        place = f"input[{at}]"
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            message = _message(item, place)
            if message["role"] == "assistant" and thought:
                message["reasoning"], thought = thought, ""
            messages.append(message)
        elif kind == "reasoning":
            thought += _thought(item, place)
        elif kind == "function_call":
            function = {"name": _text(item, "name", place), "arguments": _text(item, "arguments", place)}
            call = {"id": _text(item, "call_id", place), "type": "function", "function": function}
            last: Json | None = (
                messages[-1] if messages and messages[-1]["role"] == "assistant" and not thought else None
            )
            if last is None:
                last = {"role": "assistant", "content": None} | ({"reasoning": thought} if thought else {})
                thought = ""
                messages.append(last)
            last.setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = item.get("output")
            content = output if isinstance(output, str) else _parts(output, f"{place}.output")
            messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", place), "content": content})
        else:
            raise refuse(
                f"{place}.type",
                f"served are message, function_call, function_call_output and reasoning; got {shown(kind)}",
                code="unsupported_parameter",
            )
    return messages


def _message(item: Json, place: str) -> Json:
    role, content = item.get("role"), item.get("content")
    if role not in ("user", "assistant", "system", "developer"):
        raise refuse(f"{place}.role", f'expected "user", "assistant", "system" or "developer"; got {shown(role)}')
    if isinstance(content, str):
        return {"role": role, "content": content}
    return {"role": role, "content": _parts(content, f"{place}.content")}


def _parts(content: object, place: str) -> list[Json]:
    if not isinstance(content, list) or not content:
        raise refuse(place, f"expected a string or a list of text parts; got {shown(cast('object', content))}")
    parts: list[Json] = []
    for at, part in enumerate(cast("list[object]", content)):
        where = f"{place}[{at}]"
        if not isinstance(part, dict):
            raise refuse(where, f"expected an object with `type` and `text`; got {shown(part)}")
        kind = cast("Json", part).get("type")
        name = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if name is None:
            raise refuse(f"{where}.type", f"only text is served; got {shown(kind)}", code="unsupported_parameter")
        parts.append({"type": "text", "text": _text(cast("Json", part), name, where)})
    return parts


def _thought(item: Json, place: str) -> str:
    """The text of a reasoning item: the reasoning itself, else its summary."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if not isinstance(parts, list | None):
            raise refuse(f"{place}.{name}", f"expected an array; got {shown(cast('object', parts))}")
        if parts:
            listed = enumerate(cast("list[Json]", parts))
            return "".join(_text(part, "text", f"{place}.{name}[{at}]") for at, part in listed)
    return ""


def _text(item: object, name: str, place: str) -> str:
    value = cast("Json", item).get(name) if isinstance(item, dict) else None
    if not isinstance(value, str):
        raise refuse(f"{place}.{name}", f"expected a string; got {shown(value)}")
    return value


def _tool(tool: dict[str, JsonValue], place: str) -> Json:
    if tool.get("type") != "function":
        kind = shown(tool.get("type"))
        raise refuse(f"{place}.type", f"this server runs no tools of its own; got {kind}", code="unsupported_parameter")
    named = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in named if tool.get(name) is not None}}


def _choice(choice: str | dict[str, JsonValue] | None) -> object:
    match choice:
        case None | "none" | "auto" | "required":
            return choice
        case {"type": "function"}:
            return _named(choice, "tool_choice")
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            listed = [_named(tool, f"tool_choice.tools[{at}]") for at, tool in enumerate(tools)]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": listed}}
        case _:
            raise refuse(
                "tool_choice",
                'expected "none", "auto", "required", {"type": "function", "name": ...} or '
                '{"type": "allowed_tools", "mode": "auto" or "required", "tools": [...]}; '
                f"got {shown(choice)}",
            )


def _named(value: JsonValue, place: str) -> Json:
    match value:
        case {"type": "function", "name": str(name)} if name:
            return {"type": "function", "function": {"name": name}}
        case _:
            raise refuse(place, f'expected {{"type": "function", "name": ...}}; got {shown(value)}')


def _format(given: dict[str, JsonValue]) -> Json:
    if given.get("type") != "json_schema":
        return dict(given)
    named = ("name", "description", "schema", "strict")
    return {"type": "json_schema", "json_schema": {name: given[name] for name in named if given.get(name) is not None}}
