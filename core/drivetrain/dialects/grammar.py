"""Grammars that hold a model to calls of the offered tools, made from the same tables that its answers are read by.

They are written in llguidance's dialect of Lark. Special tokens, which text cannot spell, stand there by their ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from drivetrain.dialects.choose import Dialect
from drivetrain.dialects.forms import CallForm, HeaderForm, JsonForm, PythonForm, TaggedForm, Tool
from drivetrain.dialects.spelling import tag_lines, wrapping
from drivetrain.grammar import Grammar
from drivetrain.grammar.source import CONTENT, json_schema_of

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
"""Arguments are laid out as templates show them to models, so no answer is filled with spaces."""
_ANY_TEXT = "/(.|\\n)*/"
_BLANKS = "/[ \\n]{0,4}/"
FINAL = "<|channel|>final<|message|>"
MAX_REQUIRED_CALLS = 32
"""More than an answer needs; models that find no end are held to it."""


def call_grammar(
    dialect: Dialect,
    tools: Mapping[str, Tool],
    special: Mapping[str, int],
    *,
    required: bool,
    parallel: bool,
    prompt_end: str,
    reasons: bool,
) -> Grammar:
    """The grammar of answers that call these tools, after free reasoning where the model reasons.

    Args:
        special: special tokens by their text.
        required: there is at least one call and nothing else, and an end to them; otherwise text is free, and calls
            in it fit.
        prompt_end: the last text of the prompt, which may have ended the reasoning.
        reasons: the prompt has begun it.

    Raises:
        RequestError: a schema is none.
    """
    assert dialect.tools is not None, "a model whose calls are not read"
    writer = _Writer(special)
    if dialect.tools.channels:
        _harmony(writer, tools, required=required)
        return _grammar(writer, tools)
    form = dialect.tools.forms[0]
    more = "*" if not required else f"{{0,{MAX_REQUIRED_CALLS - 1}}}"
    calls = _calls(writer, form, tools, more=more if parallel else "")
    if required:
        answer = calls
    else:
        answer = _among_text(writer, form, calls)
    writer.rule("start", f"{_reasoning(writer, dialect, prompt_end, reasons=reasons)} {answer}")
    return _grammar(writer, tools)


def _grammar(writer: _Writer, tools: Mapping[str, Tool]) -> Grammar:
    schemas = tuple((f'parameters of "{tool.name}"', json.dumps(dict(tool.parameters))) for tool in tools.values())
    return Grammar(kind="lark", value=writer.text(), schemas=schemas)


@dataclass(slots=True)
class _Writer:
    """Rules of one grammar."""

    special: Mapping[str, int]
    rules: dict[str, str] = field(default_factory=dict[str, str])
    _cut: re.Pattern[str] | None = None

    def rule(self, name: str, body: str) -> str:
        """Add a rule; its name."""
        self.rules[name] = body
        return name

    def literal(self, text: str) -> str:
        """Exactly this text; nothing for an empty one."""
        if self._cut is None:
            texts = sorted((re.escape(each) for each in self.special if each.strip()), key=len, reverse=True)
            # Line ends stand alone: of two texts that may follow, none must be the beginning of the other.
            self._cut = re.compile(f"({'|'.join([*texts, chr(92) + 'n'])})")
        parts = [part for part in self._cut.split(text) if part]
        return " ".join(
            f"<[{self.special[part]}]>" if part in self.special else json.dumps(part, ensure_ascii=False)
            for part in parts
        )

    def text_until(self, name: str, end: str) -> str:
        """Any text up to the first `end`, with it; the name of the rule."""
        if end in self.special:
            return self.rule(name, f"{_ANY_TEXT} {self.literal(end)}")
        return self.rule(f"{name}[lazy]", f"{_ANY_TEXT} {self.literal(end)}").removesuffix("[lazy]")

    def text(self) -> str:
        """The grammar, `start` first."""
        ordered = {"start": self.rules["start"]} | self.rules
        return "\n".join(f"{name}: {body}" for name, body in ordered.items()) + "\n"


def form_of_content(
    dialect: Dialect, form: Grammar, special: Mapping[str, int], *, prompt_end: str, reasons: bool
) -> Grammar:
    """The form of the content as one of the whole answer: free reasoning may go before it, where the model reasons.

    Args:
        prompt_end: the last text of the prompt, which may have ended the reasoning.
        reasons: the prompt has begun it.
    """
    writer = _Writer(special)
    if dialect.reasoning is None:
        return form
    if dialect.reasoning.channels:
        before = f"{_analysis(writer)} {writer.literal(FINAL)}"
    else:
        before = _reasoning(writer, dialect, prompt_end, reasons=reasons)
    if not before:
        return form
    writer.rule("start", f"{before} {CONTENT}")
    return replace(form, within=writer.text())


def _reasoning(writer: _Writer, dialect: Dialect, prompt_end: str, *, reasons: bool) -> str:
    reasoning = dialect.reasoning
    if reasoning is None or not reasoning.open or (not reasons and prompt_end.rstrip().endswith(reasoning.close)):
        return ""
    body = f"{writer.text_until('reasoning', reasoning.close)} {_BLANKS}"
    if reasons:
        return body
    return f"({writer.literal(reasoning.open)} {body})?"


def _among_text(writer: _Writer, form: CallForm, calls: str) -> str:
    """Free text in which calls fit, where a call begins."""
    around, each = wrapping(form)
    begun = writer.literal(around.opening or each.opening) if form.opens else ""
    if not begun:
        # Without a marker, what begins like a call has to be one.
        return f'({calls} | /[^{{\\[ \\n](.|\\n)*/ | "")'
    assert calls.startswith(begun), "calls begin with their marker"
    before = writer.text_until("before", around.opening or each.opening)
    rest = writer.rule("rest", _ANY_TEXT)
    return f"({before} {calls.removeprefix(begun)})* {rest}"


def _calls(writer: _Writer, form: CallForm, tools: Mapping[str, Tool], *, more: str) -> str:
    """A call, and as many others behind it as `more` says; none where that is empty."""
    around, each = wrapping(form)
    names = [writer.rule(f"call_{at}", _call(writer, form, tool, at)) for at, tool in enumerate(tools.values())]
    body = f"{writer.rule('call', ' | '.join(names))} {writer.literal(each.end)}"
    begin = " ".join(filter(None, map(writer.literal, (each.opening, each.inner))))
    opening = " ".join(filter(None, map(writer.literal, (around.opening, around.inner))))
    others = f"({writer.literal(around.between)} {begin} {body}){more}" if more else ""
    return " ".join(filter(None, (opening, begin, body, others, writer.literal(around.end))))


def _call(writer: _Writer, form: CallForm, tool: Tool, at: int) -> str:
    match form:
        case JsonForm():
            head = f'{{"{form.name_keys[0]}": {json.dumps(tool.name)}, "{form.argument_keys[0]}": '
            return f"{writer.literal(head)} {_arguments(tool)} {writer.literal('}')}"
        case HeaderForm():
            head = form.spelt.replace("%s", tool.name)
            before, numbered, after = head.partition("%d")
            number = "/[0-9]{1,3}/" if numbered else ""
            return f"{writer.literal(before)} {number} {writer.literal(after)} {_arguments(tool)}"
        case TaggedForm():
            return _tagged(writer, form, tool, at)
        case PythonForm():
            return _python(writer, tool, at)


def _arguments(tool: Tool) -> str:
    schema = {"type": "object", **(tool.parameters or {"properties": {}})}
    return _json(schema)


def _json(schema: Mapping[str, object]) -> str:
    checked = cast("dict[str, object]", json.loads(json_schema_of(dict(schema))))
    return "%json " + json.dumps({"x-guidance": _LAYOUT, **checked})


def _properties(tool: Tool) -> tuple[Sequence[tuple[str, Mapping[str, object]]], frozenset[str]]:
    """(name and schema of each argument, names of those that are required)."""
    parameters = tool.parameters
    shared = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    listed = cast("Mapping[str, object]", parameters.get("properties") or {})
    schemas = [
        (name, {**shared, **(cast("Mapping[str, object]", schema) if isinstance(schema, dict) else {})})
        for name, schema in listed.items()
    ]
    required = parameters.get("required")
    names = cast("list[object]", required) if isinstance(required, list) else []
    return schemas, frozenset(str(name) for name in names)


def _tagged(writer: _Writer, form: TaggedForm, tool: Tool, at: int) -> str:
    head, tail = tag_lines(form, tool.name)
    parts = [writer.literal(head)]
    schemas, required = _properties(tool)
    for place, (name, schema) in enumerate(schemas):
        textual = schema.get("type") == "string"
        key_end = form.key_ends[0] if textual or len(form.key_ends) == 1 else form.key_ends[1]
        line = "\n" if form.newlines else ""
        before = writer.literal(form.key + name + key_end + ("\n" if form.value else "") + form.value + line)
        listed = schema.get("enum")
        choices = cast("list[object]", listed) if isinstance(listed, list) else None
        if textual and choices is None:
            value = writer.text_until(f"value_{at}_{place}", line + form.value_end)
            if line and form.value_end in writer.special:
                value = f"{_ANY_TEXT} {writer.literal(line + form.value_end)}"
        else:
            value = f"{_values(writer, schema, choices, textual=textual)} {writer.literal(line + form.value_end)}"
        argument = f"{before} {value} {writer.literal(chr(10))}"
        parts.append(argument if name in required else f"({argument})?")
    return " ".join([*parts, writer.literal(tail)])


def _values(writer: _Writer, schema: Mapping[str, object], choices: list[object] | None, *, textual: bool) -> str:
    if textual and choices is not None:
        texts = [writer.literal(str(choice)) or '""' for choice in choices]
        return f"({' | '.join(texts)})"
    return _json(schema)


def _python(writer: _Writer, tool: Tool, at: int) -> str:
    schemas, required = _properties(tool)
    ordered = sorted(schemas, key=lambda pair: pair[0] not in required)
    keywords = [
        writer.rule(f"keyword_{at}_{place}", f"{writer.literal(name + '=')} {_python_value(schema)}")
        for place, (name, schema) in enumerate(ordered)
    ]
    num_required = sum(name in required for name, _ in ordered)
    body = ""
    if num_required:
        must = ' ", " '.join(keywords[:num_required])
        body = must + _may(keywords[num_required:])
    elif keywords:
        body = "(" + " | ".join(each + _may(keywords[place + 1 :]) for place, each in enumerate(keywords)) + ")?"
    return f'{writer.literal(tool.name + "(")} {body} ")"'


def _python_value(schema: Mapping[str, object]) -> str:
    return '("True" | "False")' if schema.get("type") == "boolean" else _json(schema)


def _may(keywords: Sequence[str]) -> str:
    return "".join(f' (", " {each})?' for each in keywords)


def _harmony(writer: _Writer, tools: Mapping[str, Tool], *, required: bool) -> None:
    """One call in the channel `commentary`, after an analysis; the end token of the call ends the answer."""
    answers: list[str] = []
    for at, tool in enumerate(tools.values()):
        head = f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json<|message|>"
        answers.append(writer.rule(f"call_{at}", f"{writer.literal(head)} {_arguments(tool)}"))
    if not required:
        answers.append(f"{writer.literal(FINAL)} {_ANY_TEXT}")
    writer.rule("start", f"{_analysis(writer)} ({' | '.join(answers)})")


def _analysis(writer: _Writer) -> str:
    message = writer.text_until("message", "<|end|>")
    return f"({writer.literal('<|channel|>analysis<|message|>')} {message} {writer.literal('<|start|>assistant')})?"
