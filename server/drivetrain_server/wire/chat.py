"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

from pydantic import Field, JsonValue, WithJsonSchema

from drivetrain.conversation import Chat, Json, Message
from drivetrain_server.wire.faults import shown
from drivetrain_server.wire.sampling import INT32_MAX, SamplingFields
from drivetrain_server.wire.tools import MAX_TOOLS, ToolChoice, ToolOffer, ToolUse, deeper_than, tool_use
from drivetrain_server.wire.validation import WireModel, refuse

MAX_MESSAGES = 4096
MAX_VARIABLE_DEPTH = 8
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
_TEXT_PART = {
    "title": "TextPart",
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART, "minItems": 1}, {"type": "null"}]
}


class FunctionCall(WireModel):
    """A function that the assistant called, with its arguments as JSON text."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the function."""
    arguments: str
    """A JSON object, as text."""


class ToolCall(WireModel):
    """A tool call of an earlier turn."""

    id: str
    """By which the tool's answer names the call."""
    type: Literal["function"]
    """There is one type."""
    function: FunctionCall
    """What was called."""


class ChatMessage(WireModel):
    """One turn. `content` is text or a list of text parts."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    """`developer` (rendered as `system`), `system`, `user`, `assistant` or `tool`."""
    content: Annotated[JsonValue, WithJsonSchema(_CONTENT_SCHEMA)] = None
    """A text, or a list of `{"type": "text", "text": ...}`; null only beside `tool_calls` or `refusal`."""
    name: str | None = None
    """Text, for templates that read it."""
    tool_calls: list[ToolCall] | None = None
    """Calls of an earlier turn of the assistant: `id`, `type` of `function`, `function`."""
    tool_call_id: str | None = None
    """Required in a message of role `tool`."""
    reasoning: str | None = None
    """Text of an earlier turn, for templates that read it."""
    reasoning_content: str | None = None
    """The same as `reasoning`."""
    refusal: str | None = None
    """Text; stands for `content` where that is null."""


class ChatFields(WireModel):
    """What becomes a prompt through the chat template; `/tokenize` takes the same."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    """The turns of the conversation so far."""
    add_generation_prompt: bool | None = None
    """End the prompt with the beginning of an answer. Default: true."""
    continue_final_message: bool | None = None
    """Go on with the last message, which is the assistant's. Default: false."""
    chat_template_kwargs: dict[str, JsonValue] | None = None
    """Variables of the model's template; one that it does not read is a 400, unless it asks for nothing."""
    tools: Annotated[list[ToolOffer], Field(max_length=MAX_TOOLS)] | None = None
    """Functions that the model may call."""
    tool_choice: ToolChoice = None
    """Whether it may, must not or must call, and which. Default: `"auto"`."""
    parallel_tool_calls: bool | None = None
    """False: one call an answer. Default: true."""
    reasoning_effort: ReasoningEffort | None = None
    """A 400 where the model's template has no variable for it. Default: the template's."""

    @property
    def tool_use(self) -> ToolUse:
        """What the request wants of tools.

        Raises:
            HttpError: 400, with the field at fault.
        """
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    def chat(self) -> Chat:
        """The messages as the template takes them.

        Raises:
            HttpError: 400, with the message or variable at fault.
        """
        goes_on = bool(self.continue_final_message)
        if goes_on and self.add_generation_prompt:
            raise refuse("continue_final_message", "it excludes add_generation_prompt=true; choose one")
        if goes_on and self.messages[-1].role != "assistant":
            raise refuse("continue_final_message", "the last message is not from the assistant; add its beginning")
        messages = [_message(message, f"messages[{at}]") for at, message in enumerate(self.messages)]
        prompted = not goes_on if self.add_generation_prompt is None else self.add_generation_prompt
        return Chat(
            messages=messages,
            add_generation_prompt=prompted,
            continue_final_message=goes_on,
            variables=_variables(self.chat_template_kwargs or {}),
            tools=self.tool_use.offers,
        )


class ChatRequest(SamplingFields, ChatFields):
    """A conversation to go on with."""

    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """Tokens to generate at most. Default: to the end of the context."""
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """The older name; both must agree where both are sent. Default: to the end of the context."""
    logprobs: bool | None = None
    """Log-probabilities of the answer's tokens. Default: false."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Alternatives for each token; needs `logprobs`. Default: 0."""
    include_reasoning: bool | None = None
    """False: leave the reasoning out of the answer. Default: true."""

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives a token, None for no log-probabilities.

        Raises:
            HttpError: 400, `top_logprobs` without `logprobs`.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs", "it is allowed only with logprobs=true; set it or leave this out")
        return (self.top_logprobs or 0) if self.logprobs else None


def _message(message: ChatMessage, place: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = _content(message, place)
    rendered: dict[str, Json] = {"role": role, "content": content}
    for name in ("name", "tool_call_id", "reasoning", "reasoning_content"):
        value = cast("str | None", getattr(message, name))
        if value is not None:
            rendered[name] = value
    if "audio" in message.unknown and (message.model_extra or {})["audio"] is not None:
        raise refuse(f"{place}.audio", "only text is served; leave it out", code="unsupported_parameter")
    if message.tool_calls:
        if role != "assistant":
            raise refuse(f"{place}.tool_calls", "only messages of the assistant have tool calls; remove them")
        rendered["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if role == "tool" and message.tool_call_id is None:
        raise refuse(f"{place}.tool_call_id", "a tool message names the call that it answers; add it")
    return rendered


def _content(message: ChatMessage, place: str) -> Json:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant" and (message.tool_calls or message.refusal is not None):
            return message.refusal
        raise refuse(f"{place}.content", "expected a string or a list of text parts; got null")
    if not isinstance(content, list) or not content:
        raise refuse(f"{place}.content", f"expected a string or a list of text parts; got {shown(content)}")
    return [_part(part, f"{place}.content[{at}]") for at, part in enumerate(content)]


def _part(part: JsonValue, place: str) -> Json:
    if not isinstance(part, dict):
        raise refuse(place, f"expected an object with `type` and `text`; got {shown(part)}")
    kind = part.get("type")
    field = {"text": "text", "refusal": "refusal"}.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise refuse(f"{place}.type", f'only "text" parts are served; got {shown(kind)}', code="unsupported_parameter")
    text = part.get(field)
    if not isinstance(text, str):
        raise refuse(f"{place}.{field}", f"expected a string; got {shown(text)}")
    return {"type": "text", "text": text}


def _tool_call(call: ToolCall) -> Json:
    function: dict[str, Json] = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": call.type, "function": function}


def _variables(named: Mapping[str, JsonValue]) -> dict[str, Json]:
    for name, value in named.items():
        if deeper_than(value, MAX_VARIABLE_DEPTH):
            raise refuse(f"chat_template_kwargs.{name[:60]}", f"it is nested deeper than {MAX_VARIABLE_DEPTH} levels")
    return cast("dict[str, Json]", dict(named))
