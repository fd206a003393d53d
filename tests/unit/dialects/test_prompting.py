"""Tools in words: what models are told whose templates know none, and calls written as each family writes them."""

from __future__ import annotations

import json

import pytest

from drivetrain.chat_template import ChatTemplate
from drivetrain.dialects.choose import choose_dialect
from drivetrain.dialects.events import ToolCallArguments, ToolCallBegin
from drivetrain.dialects.forms import Tool
from drivetrain.dialects.prompting import tools_in_words, with_words, without_calls
from drivetrain.dialects.spelling import written_calls
from drivetrain.dialects.tool_families import FENCED, TOOL_FAMILIES

# Roles must alternate and there is no role for systems or tools, as in Gemma's template.
STRICT = (
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}\n{% set messages = messages[1:] %}{% endif -%}"
    "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}"
    "{%- endif %}<{{ m.role }}>{{ m.content }}{%- endfor %}"
)
ARGUMENTS = {"text": 'a "b"\n<c>', "count": -3, "ratio": 0.5, "flags": [True, None], "more": {"x": "y"}, "on": False}
SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "flags": {"type": "array"},
        "more": {"type": "object"},
        "on": {"type": "boolean"},
    },
}


@pytest.mark.parametrize("family", [name for name, each in TOOL_FAMILIES.items() if not each.channels])
def test_written_calls_are_read_as_what_they_were(family: str) -> None:
    tools = {name: Tool(name=name, parameters=SCHEMA) for name in ("first", "second")}
    for form in TOOL_FAMILIES[family].forms:
        text = written_calls(form, [("first", ARGUMENTS), ("second", {})])
        reader = choose_dialect((), {}, {}, tool_parser=family).reader(tools, reasons=False)
        events = reader.push(text) + reader.finish()
        begins = [event.name for event in events if isinstance(event, ToolCallBegin)]
        arguments = "".join(event.text for event in events if isinstance(event, ToolCallArguments) and event.index == 0)
        assert begins == ["first", "second"], text
        assert json.loads(arguments) == ARGUMENTS, text


def test_a_conversation_with_calls_fits_a_template_that_knows_none() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "CET"}'}}
    offers = [{"type": "function", "function": {"name": "now", "description": "Time", "parameters": {}}}]
    words = tools_in_words(offers, FENCED, required=False, parallel=True)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
        {"role": "tool", "tool_call_id": "9", "content": [{"type": "text", "text": "noon"}]},
        {"role": "user", "content": "And now?"},
    ]
    told = without_calls(with_words(messages, words), FENCED)
    assert ChatTemplate({"default": STRICT}).render(told, add_generation_prompt=False) == (
        f"Be brief.\n\n{words}\n<user>What time is it?<assistant>I look.\n"
        '```json\n{"name": "now", "arguments": {"zone": "CET"}}\n```'
        "<user>Result of now:\n12:00\nResult of the function:\nnoon\nAnd now?"
    )
    assert '{"name": "now", "description": "Time", "parameters": {}}' in words


def test_words_say_whether_and_how_often_to_call() -> None:
    required = tools_in_words([{"function": {"name": "f"}}], FENCED, required=True, parallel=False)
    assert "Answer with a call of a function" in required and "one function at a time" in required
    alone = with_words([{"role": "user", "content": "x"}], required)
    assert [message["role"] for message in alone] == ["system", "user"]
