"""What the request of a conversation comes down to, for every route that takes messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from drivetrain.chat_template import ChatTemplate
from drivetrain.dialects.choose import Dialect, Reader, prompt_end
from drivetrain.dialects.forms import CallForm, Tool
from drivetrain.dialects.grammar import call_grammar, form_of_content
from drivetrain.dialects.prompting import tools_in_words, with_words, without_calls
from drivetrain.dialects.turn import Turns
from drivetrain.errors import RequestError
from drivetrain.frontend import Chat, Frontend, Json
from drivetrain.grammar import Grammar
from drivetrain_server.wire.chat import ChatFields, ChatRequest, ReasoningEffort
from drivetrain_server.wire.structured import about
from drivetrain_server.wire.tools import ToolUse
from drivetrain_server.wire.validation import refuse

_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates turn reasoning on and off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A prompt, and how its answers are read.

    Attributes:
        sampling: values for fields of `SamplingParams` that the conversation asks for by itself.
        form: what the demanded form of the answer becomes in this conversation; None leaves it as it is.
    """

    prompt_ids: list[int]
    sampling: dict[str, object]
    turns: Turns
    form: Grammar | None = None


async def prepare(frontend: Frontend, fields: ChatRequest, form: Grammar | None = None) -> Conversation:
    """Render, encode and choose how answers are read.

    Args:
        form: the form that the request demands of the answer; reasoning goes before it.

    Raises:
        HttpError: 400, with the field at fault.
        TemplateError: the template refused the messages, or the model has none.
    """
    use, dialect = fields.tool_use, frontend.dialect
    prompt_ids = await frontend.encode_aside(chat_of(frontend, fields), add_special_tokens=False)
    end = prompt_end(frontend.tokenizer, prompt_ids)
    grammar = _grammar(frontend, dialect, use, end)
    sampling: dict[str, object] = {} if grammar is None else {"grammar": grammar}
    reads_calls = bool(use.tools) and dialect.tools is not None
    if not reads_calls and not dialect.reads:
        return Conversation(prompt_ids=prompt_ids, sampling=sampling, turns=Turns())
    tools = use.tools if reads_calls else dict[str, Tool]()
    reasons = dialect.reasons_after(end) or _goes_on_reasoning(dialect, fields)
    if form is not None:
        form = form_of_content(dialect, form, frontend.special_tokens, reasons=reasons)
        reasons = reasons and form is not None
    max_calls = 1 << 20 if use.parallel else 1

    def reader() -> Reader:
        return dialect.reader(tools, reasons=reasons, max_calls=max_calls)

    shown = dialect.shown if reads_calls else dialect.shown_reasoning
    pieces: Mapping[int, bytes] | None = None
    if dialect.reads:
        tokenizer = frontend.tokenizer
        pieces = tokenizer.pieces if fields.skip_special_tokens is False else tokenizer.pieces_showing(shown)
    return Conversation(prompt_ids=prompt_ids, sampling=sampling, turns=Turns(reader, shown, pieces), form=form)


def chat_of(frontend: Frontend, fields: ChatFields) -> Chat:
    """What is rendered: tools and effort as this model's template takes them, else in words.

    Raises:
        HttpError: 400, with the field at fault.
        TemplateError: the model has no template.
    """
    chat, use, template = fields.chat(), fields.tool_use, frontend.chat_template
    if template is None:
        return chat
    if fields.reasoning_effort is not None:
        chat = replace(chat, variables=_with_effort(chat, fields.reasoning_effort, frontend.dialect, template))
    form = _form(frontend.dialect)
    if form is None:
        return chat
    if use.tools and not template.reads_tools():
        words = tools_in_words(use.offers, form, required=use.required, parallel=use.parallel)
        chat = replace(chat, tools=(), messages=with_words(chat.messages, words))
    if any(message.get("tool_calls") or message.get("role") == "tool" for message in chat.messages):
        habits = template.habits(with_tools=bool(chat.tools))
        if not (habits.reads_calls and habits.reads_tool_messages):
            chat = replace(chat, messages=without_calls(chat.messages, form))
    return chat


def _form(dialect: Dialect) -> CallForm | None:
    forms = dialect.tools.forms if dialect.tools is not None else ()
    return forms[0] if forms else None


def _with_effort(chat: Chat, effort: ReasoningEffort, dialect: Dialect, template: ChatTemplate) -> Mapping[str, Json]:
    """The variables of the template with the effort as it takes it."""
    readable = template.allowed_kwargs(with_tools=bool(chat.tools))
    if "reasoning_effort" in readable:
        name, value = "reasoning_effort", effort
    else:
        name = next((name for name in _SWITCHES if name in readable), "")
        value = effort != "none"
    if not name:
        if effort == "none" and dialect.reasoning is None:
            return chat.variables
        raise refuse(
            "reasoning_effort",
            "this model's template has no variable for it; leave it out",
            code="unsupported_parameter",
        )
    if chat.variables.get(name, value) != value:
        raise refuse("reasoning_effort", f"chat_template_kwargs sets {name} to another value; send one of them")
    return {**chat.variables, name: value}


def _grammar(frontend: Frontend, dialect: Dialect, use: ToolUse, end: str) -> Grammar | None:
    strict = any(tool.strict for tool in use.tools.values())
    if not use.tools or not (use.required or strict):
        return None
    if dialect.tools is None:
        raise refuse("tool_choice", 'calls are not read on this server (tool_parser = "none"); send "auto" or "none"')
    try:
        return call_grammar(
            dialect,
            use.tools,
            frontend.special_tokens,
            required=use.required,
            parallel=use.parallel,
            prompt_end=end,
        )
    except RequestError as error:
        raise about("tools", error) from None


def _goes_on_reasoning(dialect: Dialect, fields: ChatFields) -> bool:
    """Whether the message to be continued ends within reasoning."""
    content = fields.messages[-1].content
    reasoning = dialect.reasoning
    if not fields.continue_final_message or reasoning is None or not reasoning.open or not isinstance(content, str):
        return False
    return content.rfind(reasoning.open) > content.rfind(reasoning.close)
