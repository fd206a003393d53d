"""What the request of a conversation comes down to, for every route that takes messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from drivetrain.chat_template import ChatTemplate
from drivetrain.conversation import Chat, Json, Reply, reply_to, worded
from drivetrain.dialects.choose import Dialect
from drivetrain.frontend import Frontend
from drivetrain.grammar import Grammar
from drivetrain_server.wire.chat import ChatFields, ChatRequest, ReasoningEffort
from drivetrain_server.wire.validation import refuse

_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates turn reasoning on and off."""


async def prepare(frontend: Frontend, fields: ChatRequest, form: Grammar | None = None) -> Reply:
    """Render, encode and choose how answers are read.

    Args:
        form: the form that the request demands of the answer; reasoning goes before it.

    Raises:
        HttpError, RequestError: 400, with the field at fault.
        TemplateError: the template refused the messages, or the model has none.
    """
    chat = chat_of(frontend, fields)
    prompt_ids = await frontend.encode_aside(chat, add_special_tokens=False)
    skip = fields.skip_special_tokens is not False
    return reply_to(frontend, prompt_ids, chat, fields.tool_use, form=form, skip_special_tokens=skip)


def chat_of(frontend: Frontend, fields: ChatFields) -> Chat:
    """What is rendered: tools and effort as this model's template takes them, else in words.

    Raises:
        HttpError: 400, with the field at fault.
    """
    chat, template = fields.chat(), frontend.chat_template
    if chat.variables and template is not None:
        readable = template.allowed_kwargs(with_tools=bool(chat.tools))
        chat = replace(chat, variables=_without_idle(chat.variables, readable, frontend.dialect))
    if fields.reasoning_effort is not None and template is not None:
        chat = replace(chat, variables=_with_effort(chat, fields.reasoning_effort, frontend.dialect, template))
    return worded(frontend, chat, fields.tool_use)


def _without_idle(variables: Mapping[str, Json], readable: Collection[str], dialect: Dialect) -> Mapping[str, Json]:
    """Without those that switch off what the template does not have. A model that reasons has something to switch
    off, template or not."""

    def idle(name: str, value: Json) -> bool:
        return value is None or (value is False and (dialect.reasoning is None or name not in _SWITCHES))

    return {name: value for name, value in variables.items() if name in readable or not idle(name, value)}


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
