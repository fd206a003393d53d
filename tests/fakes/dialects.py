"""Chat templates as short as can be that still have what real ones are recognised by, and servers that use them."""

from __future__ import annotations

from collections.abc import Callable

from drivetrain.chat_template import ChatTemplate
from drivetrain.client import EngineClient
from drivetrain.frontend import Frontend
from fakes.text import byte_tokenizer

QWEN3 = """
{%- if tools %}TOOLS {% for tool in tools %}{{ tool | tojson }}
{% endfor %}<tool_call>{"name": <function-name>, "arguments": <args-json-object>}</tool_call>
{% endif -%}
{%- for message in messages -%}
{{ message.role }}: {{ message.content }}
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif -%}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function %}<tool_call>{"name": "{{ call.name }}",
{{- " " }}"arguments": {{ call.arguments | tojson }}}</tool_call>{% endfor -%}
{%- if message.role == "tool" %} ({{ message.tool_call_id }}){% endif %}
{% endfor -%}
{%- if add_generation_prompt %}assistant: {% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif -%}
"""
OPENS_THINKING = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: <think>\n"
EFFORT = "effort={{ reasoning_effort }} {% for m in messages %}{{ m.content }}{% endfor %}<think></think>"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def frontends_with(template: str, *added: str, **parsers: str) -> Callable[[EngineClient], Frontend]:
    """Makes the text layer of a server with this chat template, and these added tokens."""

    def make(engine: EngineClient) -> Frontend:
        return Frontend(engine, byte_tokenizer(*added), chat_template=ChatTemplate({"default": template}), **parsers)

    return make
