"""The bodies of `/v1/messages` and `/v1/messages/count_tokens`, in Anthropic's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import Field, JsonValue

from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.sampling import INT32_MAX
from drivetrain_server.wire.validation import WireModel, refuse

Json = dict[str, Any]
CHAT_NAMES = {
    "tools[].function": "tools[]",
    "tools[].function.parameters": "tools[].input_schema",
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "thinking",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format",
    "prompt": "messages",
}
"""Fields of chat completions to those of this API."""
EFFORT_BY_BUDGET = ((4096, "low"), (16384, "medium"))
"""Tokens of thinking up to which an effort is meant; more is high."""


class Thinking(WireModel):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    """Whether it thinks; `adaptive` leaves it to the template."""
    budget_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """To 4096 is low effort, to 16384 medium, else high."""


class MessagesFields(WireModel):
    """What becomes a prompt; `/v1/messages/count_tokens` takes the same."""

    model: str
    """Must be the name that `/v1/models` lists."""
    messages: Annotated[list[dict[str, JsonValue]], Field(min_length=1, max_length=4096)]
    """Blocks: `text`, `thinking`, `tool_use`, `tool_result` with text."""
    system: str | list[dict[str, JsonValue]] | None = None
    """The system message."""
    tools: Annotated[list[dict[str, JsonValue]], Field(max_length=128)] | None = None
    """`name`, `description`, `input_schema`; a tool that the server would run is a 400."""
    tool_choice: dict[str, JsonValue] | None = None
    """`auto`, `any`, `tool`, `none`; `disable_parallel_tool_use`. Default: auto."""
    thinking: Thinking | None = None
    """`enabled` (`budget_tokens` to 4096 is low effort, to 16384 medium, else high), `disabled`. Default: the
    template's."""
    output_config: dict[str, JsonValue] | None = None
    """`effort`; `format` of `json_schema`."""

    @property
    def chat_names(self) -> Mapping[str, str]:
        """Fields of chat completions to those that this request used instead."""
        if (self.output_config or {}).get("effort") is None:
            return CHAT_NAMES
        return CHAT_NAMES | {"reasoning_effort": "output_config.effort"}

    def chat_body(self) -> Json:
        """The conversation in the words of chat completions.

        Raises:
            HttpError: 400, with the block at fault.
        """
        messages: list[Json] = []
        if self.system:
            messages.append({"role": "system", "content": _text_of(self.system, "system")})
        for at, message in enumerate(self.messages):
            messages += _turn(message, f"messages[{at}]")
        body: Json = {"model": self.model, "messages": messages}
        if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
            body["continue_final_message"] = True
        if self.tools:
            body["tools"] = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(self.tools)]
            body |= _tool_choice(self.tool_choice)
        elif self.tool_choice is not None and self.tool_choice.get("type") not in ("auto", "none"):
            body |= _tool_choice(self.tool_choice)
        return body | self._thinking() | self._output()

    def _thinking(self) -> Json:
        thinking = self.thinking
        if thinking is None or thinking.type == "adaptive":
            return {}
        if thinking.type == "disabled":
            return {"reasoning_effort": "none"}
        budget = thinking.budget_tokens or INT32_MAX
        return {"reasoning_effort": next((name for most, name in EFFORT_BY_BUDGET if budget <= most), "high")}

    def _output(self) -> Json:
        config = self.output_config or {}
        body: Json = {}
        for name, value in config.items():
            if name == "effort" and value is not None:
                body["reasoning_effort"] = value
            elif name == "format" and isinstance(value, dict) and value.get("type") == "json_schema":
                schema = {"name": "output", "schema": value.get("schema"), "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            elif value is not None:
                raise refuse(f"output_config.{name}", f"it is not served; got {shown(value)}")
        return body


class MessagesRequest(MessagesFields):
    """A conversation to go on with."""

    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)]
    """Tokens to generate at most."""
    stream: bool | None = None
    """Answer as events. Default: false."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """0 takes the likeliest token. Default: 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the smallest set of tokens with this probability. Default: 1."""
    top_k: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """Keep the k likeliest; 0 keeps all. Default: 0."""
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=64)] | None
    ) = None
    """At most 64 strings of 1 to 1024 characters."""
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
        """The usage is part of the last events always."""
        return False, False

    def chat_body(self) -> Json:
        """As in `MessagesFields`, with what chooses tokens."""
        same = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        return super().chat_body() | same | {"max_completion_tokens": self.max_tokens, "stop": self.stop_sequences}


def _turn(message: dict[str, JsonValue], place: str) -> list[Json]:
    """One message as those of chat completions: results of tools stand alone there."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise refuse(f"{place}.role", f'expected "user" or "assistant"; got {shown(role)}')
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not content:
        raise refuse(f"{place}.content", f"expected a string or a list of blocks; got {shown(content)}")
    blocks = [_block(block, f"{place}.content[{at}]") for at, block in enumerate(content)]
    return [_assistant(blocks, place)] if role == "assistant" else _user(blocks, place)


def _block(block: JsonValue, place: str) -> tuple[str, Json, str]:
    if not isinstance(block, dict):
        raise refuse(place, f"expected an object with `type`; got {shown(block)}")
    kind = block.get("type")
    if not isinstance(kind, str):
        raise refuse(f"{place}.type", f"expected a string; got {shown(kind)}")
    return kind, cast("Json", block), place


def _user(blocks: list[tuple[str, Json, str]], place: str) -> list[Json]:
    turns: list[Json] = []
    for kind, block, where in blocks:
        if kind == "tool_result":
            content = block.get("content")
            text = "" if content is None else _text_of(content, f"{where}.content")
            turns.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": text})
        elif kind == "text":
            part = {"type": "text", "text": _string(block, "text", where)}
            if turns and turns[-1]["role"] == "user":
                turns[-1]["content"].append(part)
            else:
                turns.append({"role": "user", "content": [part]})
        else:
            raise _unserved(kind, where, "text", "tool_result")
    return turns


def _assistant(blocks: list[tuple[str, Json, str]], place: str) -> Json:
    text, thinking, calls = "", "", list[Json]()
    for kind, block, where in blocks:
        if kind == "text":
            text += _string(block, "text", where)
        elif kind == "thinking":
            thinking += _string(block, "thinking", where)
        elif kind == "tool_use":
            given = block.get("input")
            if not isinstance(given, dict):
                raise refuse(f"{where}.input", f"expected an object; got {shown(given)}")
            function = {"name": _string(block, "name", where), "arguments": orjson.dumps(given).decode()}
            calls.append({"id": _string(block, "id", where), "type": "function", "function": function})
        else:
            raise _unserved(kind, where, "text", "thinking", "tool_use")
    turn: Json = {"role": "assistant", "content": text if text or not calls else None}
    if thinking:
        turn["reasoning"] = thinking
    return turn | ({"tool_calls": calls} if calls else {})


def _text_of(content: object, place: str) -> str:
    """A string, or the texts of a list of text blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refuse(place, f"expected a string or a list of text blocks; got {shown(content)}")
    texts: list[str] = []
    for at, item in enumerate(cast("list[JsonValue]", content)):
        kind, block, where = _block(item, f"{place}[{at}]")
        if kind != "text":
            raise _unserved(kind, where, "text")
        texts.append(_string(block, "text", where))
    return "\n\n".join(texts) if place == "system" else "\n".join(texts)


def _tool(tool: dict[str, JsonValue], place: str) -> Json:
    kind = tool.get("type", "custom")
    if kind not in ("custom", None):
        raise refuse(
            f"{place}.type", f"this server runs no tools of its own; got {shown(kind)}", code="unsupported_parameter"
        )
    name = _string(cast("Json", tool), "name", place)
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise refuse(f"{place}.input_schema", f"expected a JSON schema; got {shown(schema)}")
    function: Json = {"name": name, "parameters": schema}
    for field in ("description", "strict"):
        if tool.get(field) is not None:
            function[field] = tool[field]
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, JsonValue] | None) -> Json:
    if choice is None:
        return {}
    kind = choice.get("type")
    body: Json = {}
    if choice.get("disable_parallel_tool_use") is True:
        body["parallel_tool_calls"] = False
    if kind == "tool":
        name = _string(cast("Json", choice), "name", "tool_choice")
        return body | {"tool_choice": {"type": "function", "function": {"name": name}}}
    words = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(kind, str) or kind not in words:
        raise refuse("tool_choice.type", f'expected "auto", "any", "tool" or "none"; got {shown(kind)}')
    return body | {"tool_choice": words[kind]}


def _string(block: Json, name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise refuse(f"{place}.{name}", f"expected a string; got {shown(value)}")
    return value


def _unserved(kind: str, place: str, *served: str) -> Exception:
    listed = ", ".join(f'"{each}"' for each in served)
    return refuse(f"{place}.type", f"served here: {listed}; got {shown(kind)}", code="unsupported_parameter")
