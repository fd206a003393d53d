"""Messages to a prompt, by the chat template that comes with the model.

Only templates of the model (or of its operator) are run, never one from a request; a request chooses messages, tools
and those variables that the template itself reads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from drivetrain.errors import TemplateError
from drivetrain.template_habits import TemplateHabits, template_habits

if TYPE_CHECKING:
    import jinja2

    from drivetrain.template_sandbox import TemplateEnvironment
    from drivetrain.tokenizer import Tokenizer

MAX_TEMPLATE_CHARS = 256 << 10
_CONTINUE_MARK = "\ue000continue\ue001 "
"""Put behind the message to be continued and cut away again. Its last space shows whether the template trims."""
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """What one rendering may use."""

    max_steps: int = 5_000_000
    """Expressions evaluated, and 64 characters of text handled, count one each."""
    max_output_chars: int = 16 << 20
    max_cpu_s: float = 2.0
    """Processor time of the rendering thread, which other threads' load does not use up."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    template: jinja2.Template
    variables: frozenset[str]
    """Names that the template reads and does not set itself."""
    habits: TemplateHabits


class ChatTemplate:
    """The chat templates of one model, ready to render. May be used from several threads.

    Args:
        sources: name to Jinja source; `default` is used, or `tool_use` where that exists and tools are given.
        special_tokens: role (`bos_token`, ...) to text, which templates may read.
        limits: what one rendering may use.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens or {})
        self._limits = limits or TemplateLimits()
        self._compiled: dict[str, _Compiled] = {}
        self._environment: TemplateEnvironment | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate:
        """The model's own templates, or `override`, the source of another one from the server's configuration."""
        sources = tokenizer.chat_templates if override is None else {"default": override}
        return cls(sources, tokenizer.special_tokens)

    @property
    def sources(self) -> Mapping[str, str]:
        """Name to Jinja source."""
        return self._sources

    def allowed_kwargs(self, *, with_tools: bool = False) -> frozenset[str]:
        """Variables that a request may set: those that the template reads, less what the server sets.

        Raises:
            TemplateError: there is no template, or it cannot be compiled.
        """
        compiled = self._compile(self._name(with_tools))
        return compiled.variables - _RESERVED - set(self._special_tokens)

    def reads_tools(self) -> bool:
        """Whether the template that is used with tools writes them into the prompt.

        Raises:
            TemplateError: as `allowed_kwargs`.
        """
        return "tools" in self._compile(self._name(True)).variables

    def habits(self, *, with_tools: bool = False) -> TemplateHabits:
        """What the template expects of messages.

        Raises:
            TemplateError: as `allowed_kwargs`.
        """
        return self._compile(self._name(with_tools)).habits

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation. It holds its special tokens as text; encode it without adding any.

        Args:
            messages: OpenAI's message objects, as decoded from JSON.
            tools: OpenAI's tool objects.
            documents: for templates that ground answers in documents.
            add_generation_prompt: end with the opening of an assistant's turn.
            continue_final_message: leave the last message open instead, to be continued.
            kwargs: further variables; see `allowed_kwargs`.

        Raises:
            TemplateError: there is no template, it refused the messages, it used up its limits, or a variable is not
                one that it reads.
        """
        if continue_final_message and add_generation_prompt:
            raise TemplateError(
                "continue_final_message is set together with add_generation_prompt; one of them must be false",
                param="continue_final_message",
            )
        compiled = self._compile(self._name(bool(tools)))
        self._check_kwargs(kwargs or {}, compiled)
        conversation = [_message(message, compiled.habits) for message in messages]
        if continue_final_message:
            _mark_final(conversation)
        prompt = self._run(
            compiled,
            {
                **self._special_tokens,
                **cast("dict[str, Any]", _plain(dict(kwargs or {}))),
                "messages": conversation,
                "tools": _plain(tools) if tools else None,
                "documents": _plain(documents) if documents else None,
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return _cut_at_mark(prompt) if continue_final_message else prompt

    def _name(self, with_tools: bool) -> str:
        if with_tools and "tool_use" in self._sources:
            return "tool_use"
        if "default" not in self._sources:
            known = f" named default (it has {', '.join(self._sources)})" if self._sources else ""
            raise TemplateError(
                f"the model has no chat template{known}; send a prompt to /v1/completions, or start the server "
                f"with --chat-template FILE",
                param="messages",
            )
        return "default"

    def _compile(self, name: str) -> _Compiled:
        compiled = self._compiled.get(name)
        if compiled is not None:
            return compiled
        with self._lock:
            compiled = self._compile_source(self._sources[name])
            self._compiled[name] = compiled
            return compiled

    def _compile_source(self, source: str) -> _Compiled:
        import jinja2
        from jinja2 import meta

        from drivetrain.template_sandbox import TemplateEnvironment

        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(
                f"the model's chat template has {len(source)} characters, more than {MAX_TEMPLATE_CHARS}; "
                f"start the server with --chat-template FILE"
            )
        if self._environment is None:
            self._environment = TemplateEnvironment()
        try:
            tree = self._environment.parse(source)
            template = self._environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
            raise TemplateError(
                f"the model's chat template cannot be compiled ({type(error).__name__}: {str(error)[:300]}); "
                f"start the server with --chat-template FILE"
            ) from error
        variables = frozenset(meta.find_undeclared_variables(tree)) - set(self._environment.globals)
        return _Compiled(template=template, variables=variables, habits=template_habits(tree))

    def _check_kwargs(self, kwargs: Mapping[str, Any], compiled: _Compiled) -> None:
        allowed = compiled.variables - _RESERVED - set(self._special_tokens)
        unknown = sorted(set(kwargs) - allowed)
        if unknown:
            known = ", ".join(sorted(allowed)) or "none"
            raise TemplateError(
                f"chat_template_kwargs has {unknown[0]!r}, which this model's template does not read; it reads {known}",
                param="chat_template_kwargs",
            )

    def _run(self, compiled: _Compiled, variables: dict[str, Any]) -> str:
        import jinja2

        from drivetrain.template_budget import BudgetExceeded, start_budget

        limits = self._limits
        budget = start_budget(max_steps=limits.max_steps, max_chars=limits.max_output_chars, max_cpu_s=limits.max_cpu_s)
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in compiled.template.generate(variables):
                num_chars += len(piece)
                if num_chars > limits.max_output_chars:
                    raise BudgetExceeded(f"put out more than {limits.max_output_chars} characters")
                pieces.append(piece)
        except BudgetExceeded as error:
            raise TemplateError(
                f"the chat template {error} and was stopped; send fewer or shorter messages", param="messages"
            ) from error
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"the chat template tried something that is not allowed: {error}") from error
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"the chat template refused these messages: {str(error)[:2000]}", param="messages"
            ) from error
        except Exception as error:  # a template can fail in any way that Python code can
            raise TemplateError(
                f"the chat template cannot render these messages ({type(error).__name__}: {str(error)[:300]})",
                param="messages",
            ) from error
        finally:
            budget.steps_left = 0
        return "".join(pieces)


_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


def _plain(value: object) -> Any:
    """A deep copy in JSON's own types, so that a template meets no object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool | int | float):
        return value.real
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): _plain(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    raise TemplateError(
        f"messages and tools must be plain JSON values, got {type(value).__name__}; convert it first", param="messages"
    )


def _message(message: Mapping[str, Any], habits: TemplateHabits) -> dict[str, Any]:
    """One message as templates expect it, from one as OpenAI's API has it."""
    result: dict[str, Any] = _plain(message)
    content = result.get("content")
    if isinstance(content, list) and not habits.takes_parts:
        result["content"] = _joined_parts(cast("list[Any]", content))
    if content is None and not habits.takes_null:
        result["content"] = ""
    reasoning = next((result[key] for key in _REASONING_FIELDS if result.get(key) is not None), None)
    if reasoning is not None:
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    calls = result.get("tool_calls")
    if isinstance(calls, list) and not habits.takes_argument_text:
        for call in cast("list[Any]", calls):
            _parse_arguments(call)
    return result


def _joined_parts(parts: list[Any]) -> str:
    texts: list[str] = []
    for part in parts:
        match part:
            case str(text) | {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise TemplateError(
                    f"this model's template takes text only, got a content part {json.dumps(part)[:80]}",
                    param="messages",
                )
    return "\n".join(texts)


def _parse_arguments(call: Any) -> None:
    """Templates write a call's arguments as JSON themselves, so the API's string becomes an object again."""
    match call:
        case {"function": {"arguments": str(text)} as function}:
            try:
                arguments: Any = json.loads(text)
            except (ValueError, RecursionError):
                return
            if isinstance(arguments, dict):
                function["arguments"] = arguments
        case _:
            pass


def _mark_final(conversation: list[dict[str, Any]]) -> None:
    last = conversation[-1] if conversation else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _CONTINUE_MARK
        return
    if isinstance(content, list):
        for part in reversed(cast("list[Any]", content)):
            match part:
                case {"text": str(text)}:
                    part["text"] = text + _CONTINUE_MARK
                    return
                case _:
                    pass
    raise TemplateError(
        "continue_final_message is set, but the last message has no text to continue", param="continue_final_message"
    )


def _cut_at_mark(prompt: str) -> str:
    bare = _CONTINUE_MARK.strip()
    position = prompt.rfind(bare)
    if position < 0:
        raise TemplateError(
            "continue_final_message is set, but this model's template does not put out the last message as it is",
            param="continue_final_message",
        )
    text = prompt[:position]
    # A template that trims messages would have trimmed this one's end too.
    return text if prompt.startswith(_CONTINUE_MARK, position) else text.rstrip()
