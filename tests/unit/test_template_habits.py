"""What templates are seen to expect, and that messages come to them so."""

from __future__ import annotations

from typing import Any

import pytest

from drivetrain.chat_template import ChatTemplate

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ASSISTANT: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
DEEPSEEK = (
    "{%- for message in messages %}{%- if message['role'] == 'assistant' and message['content'] is none %}"
    "{%- for tool in message['tool_calls'] %}{{ tool['function']['name'] + '\\n' + tool['function']['arguments'] }}"
    "{%- endfor %}{%- else %}{{ message['content'] }}{%- endif %}{%- endfor %}"
)
QWEN = (
    "{%- for message in messages %}{{ message.content }}{%- for tool_call in message.tool_calls %}"
    "{%- set tool_call = tool_call.function %}{{ tool_call.name }} {{ tool_call.arguments | tojson }}"
    "{%- endfor %}{%- endfor %}"
)
EITHER = (
    "{%- for message in messages %}{%- for call in message.tool_calls %}{%- set args = call.function.arguments %}"
    "{%- if args is string %}{{ args }}{%- else %}{{ args | tojson }}{%- endif %}{%- endfor %}{%- endfor %}"
)


@pytest.mark.parametrize(
    ("source", "null", "text", "rendered"),
    [
        (DEEPSEEK, True, True, 'f\n{"a": 1}'),
        (QWEN, False, False, 'f {"a": 1}'),
        (EITHER, False, False, '{"a": 1}'),
    ],
)
def test_calls_come_as_the_template_takes_them(source: str, null: bool, text: bool, rendered: str) -> None:
    template = ChatTemplate({"default": source})
    habits = template.habits()
    assert (habits.takes_null, habits.takes_argument_text, habits.reads_calls) == (null, text, True)
    assert template.render([ASSISTANT], add_generation_prompt=False) == rendered


def test_tools_and_their_messages_are_noticed() -> None:
    template = ChatTemplate(
        {
            "default": "{{ messages[0].content }}",
            "tool_use": "{% for m in messages %}{% if m.role == 'tool' %}x{% endif %}{% endfor %}{{ tools | tojson }}",
        }
    )
    assert template.reads_tools()
    assert template.habits(with_tools=True).reads_tool_messages
    assert not template.habits().reads_tool_messages
    assert not ChatTemplate({"default": "{{ messages[0].content }}"}).reads_tools()
