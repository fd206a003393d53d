"""A conversation as a model takes it: how it is written for the template, what its answer is held to, how that is read.

Whoever answers conversations goes three steps: `worded`, `Frontend.encode_chat`, `reply_to`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from drivetrain.dialects.choose import Dialect, Reader, prompt_end
from drivetrain.dialects.forms import Tool
from drivetrain.dialects.grammar import call_grammar, form_of_content
from drivetrain.dialects.mark_places import MarkPlaces
from drivetrain.dialects.prompting import tools_in_words, with_words, without_calls
from drivetrain.dialects.turn import Turns
from drivetrain.errors import RequestError

if TYPE_CHECKING:
    from drivetrain.frontend import Frontend
    from drivetrain.grammar import Grammar

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Message = Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Messages to be rendered by the model's chat template.

    Attributes:
        variables: further variables of the template, such as `enable_thinking`; it takes only those that it reads.
        tools: OpenAI's tool objects, for templates that write them into the prompt.
    """

    messages: Sequence[Message]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Json] = field(default_factory=dict[str, Json])
    tools: Sequence[Mapping[str, Json]] = ()

    @property
    def num_chars(self) -> int:
        """Characters to be tokenized, roughly."""
        return sum(_text_size(each) for each in (*self.messages, *self.tools))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What a request wants of tools.

    Attributes:
        tools: those that the model may call, by name; empty if it may call none.
        required: it must call one.
        parallel: it may call several. A function that is named is called once.
    """

    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    required: bool = False
    parallel: bool = True

    @property
    def offers(self) -> list[dict[str, Json]]:
        """The tools as templates take them."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": cast("dict[str, Json]", dict(tool.parameters)),
                },
            }
            for tool in self.tools.values()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A prompt, how its answers are read, and what they are held to.

    Attributes:
        calls: the grammar that the tools demand; None leaves the answer free.
        form: the demanded form, with the reasoning that may go before it; None where none was demanded.
    """

    prompt_ids: list[int]
    turns: Turns
    calls: Grammar | None = None
    form: Grammar | None = None


def offered(tools: Sequence[Mapping[str, object]], choice: str = "auto") -> ToolUse:
    """What is wanted of tools that come as OpenAI's objects.

    Args:
        choice: `auto`, `none`, `required`, or the name of the function that has to be called.

    Raises:
        RequestError: a tool is none, or the choice is not among them.
    """
    found: dict[str, Tool] = {}
    for at, offer in enumerate(tools):
        match offer:
            case {"type": "function", "function": {"name": str(name)} as function} if name not in found:
                found[name] = _tool(name, cast("Mapping[str, object]", function), f"tools[{at}].function")
            case _:
                raise RequestError(
                    f'tools[{at}]: expected {{"type": "function", "function": {{"name": ...}}}} with a name of its '
                    f"own; got {str(offer)[:100]}",
                    param="tools",
                )
    if choice in ("auto", "none"):
        return ToolUse(tools=found if choice == "auto" else {})
    if not found or choice not in ("required", *found):
        names = ", ".join(found) or "none"
        raise RequestError(
            f'tool_choice: expected "auto", "none", "required" or a function of tools ({names}); got "{choice[:64]}"',
            param="tool_choice",
        )
    if choice == "required":
        return ToolUse(tools=found, required=True)
    return ToolUse(tools={choice: found[choice]}, required=True, parallel=False)


def _tool(name: str, function: Mapping[str, object], place: str) -> Tool:
    parameters: object = function.get("parameters") or {"properties": {}}
    if not isinstance(parameters, Mapping):
        raise RequestError(f"{place}.parameters: expected a JSON schema; got {str(parameters)[:100]}", param="tools")
    return Tool(
        name=name,
        description=str(function.get("description") or ""),
        parameters={"type": "object", **cast("Mapping[str, object]", parameters)},
        strict=bool(function.get("strict")),
    )


def worded(frontend: Frontend, chat: Chat, use: ToolUse) -> Chat:
    """The chat with tools, calls and results as the model's template takes them, else in words."""
    template, tools = frontend.chat_template, frontend.dialect.tools
    if template is None or tools is None or not tools.forms:
        return chat
    form = tools.forms[0]
    if use.tools and not template.reads_tools():
        words = tools_in_words(use.offers, form, required=use.required, parallel=use.parallel)
        chat = replace(chat, tools=(), messages=with_words(chat.messages, words))
    if any(message.get("tool_calls") or message.get("role") == "tool" for message in chat.messages):
        habits = template.habits(with_tools=bool(chat.tools))
        if not (habits.reads_calls and habits.reads_tool_messages):
            chat = replace(chat, messages=without_calls(chat.messages, form))
    return chat


def reply_to(
    frontend: Frontend,
    prompt_ids: list[int],
    chat: Chat,
    use: ToolUse,
    *,
    form: Grammar | None = None,
    skip_special_tokens: bool = True,
) -> Reply:
    """How answers to a prompt are read.

    Args:
        prompt_ids: of the chat.
        form: the form that is demanded of the answer; reasoning goes before it.
        skip_special_tokens: as the answer is detokenized.

    Raises:
        RequestError: the tools cannot be held to; `param` is `tools` or `tool_choice`.
    """
    dialect = frontend.dialect
    end = prompt_end(frontend.tokenizer, prompt_ids)
    reasons = dialect.reasons_after(end) or _goes_on_reasoning(dialect, chat)
    calls = _calls(frontend, use, end, reasons=reasons)
    reads_calls = bool(use.tools) and dialect.tools is not None
    if not reads_calls and not dialect.reads:
        return Reply(prompt_ids=prompt_ids, turns=Turns(), calls=calls, form=form)
    tools = use.tools if reads_calls else dict[str, Tool]()
    if form is not None and (reasons or not chat.continue_final_message):
        form = form_of_content(dialect, form, frontend.special_tokens, prompt_end=end, reasons=reasons)
    max_calls = 1 << 20 if use.parallel else 1
    # What is held to a grammar may spell its markers, and a model that is told of calls in words must.
    spelt = calls is not None or form is not None or bool(use.tools and not chat.tools)
    marks = dict[str, int]() if spelt else dialect.token_marks

    def reader() -> Reader:
        return dialect.reader(tools, reasons=reasons, max_calls=max_calls, required=use.required, bound=marks.keys())

    shown = dialect.shown if reads_calls else dialect.shown_reasoning
    tokenizer = frontend.tokenizer
    pieces = tokenizer.pieces_showing(shown) if skip_special_tokens else tokenizer.pieces
    token_ids = frozenset(marks.values())

    def places() -> MarkPlaces | None:
        return MarkPlaces(token_ids, pieces) if token_ids else None

    counted = pieces if dialect.reads else None
    turns = Turns(reader, shown, counted, make_places=places, ends=reads_calls and (use.required or not use.parallel))
    return Reply(prompt_ids=prompt_ids, turns=turns, calls=calls, form=form)


def _calls(frontend: Frontend, use: ToolUse, end: str, *, reasons: bool) -> Grammar | None:
    strict = any(tool.strict for tool in use.tools.values())
    if not use.tools or not (use.required or strict):
        return None
    if frontend.dialect.tools is None:
        raise RequestError(
            'tool_choice: calls are not read here (tool_parser = "none"); send "auto" or "none"', param="tool_choice"
        )
    try:
        return call_grammar(
            frontend.dialect,
            use.tools,
            frontend.special_tokens,
            required=use.required,
            parallel=use.parallel,
            prompt_end=end,
            reasons=reasons,
        )
    except RequestError as error:
        raise RequestError(f"tools: {str(error).removeprefix('grammar: ')}", param="tools") from None


def _goes_on_reasoning(dialect: Dialect, chat: Chat) -> bool:
    """Whether the message to be continued ends within reasoning."""
    reasoning = dialect.reasoning
    if not chat.continue_final_message or reasoning is None or not reasoning.open:
        return False
    content = chat.messages[-1].get("content")
    return isinstance(content, str) and content.rfind(reasoning.open) > content.rfind(reasoning.close)


def _text_size(value: Json | Message) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_text_size(part) for part in value.values())
    return sum(_text_size(part) for part in value) if isinstance(value, list) else 0
