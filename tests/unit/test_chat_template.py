"""Chat templates: what they render equals `transformers`, and what they may do is bounded."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from drivetrain.chat_template import ChatTemplate, TemplateLimits
from drivetrain.errors import TemplateError
from processor_time import slowness

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last == index %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content.split('</think>')[-1].lstrip('\\n') }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
ODDS = """{{ bos_token }}{% macro show(value, depth=0) %}{{ '  ' * depth }}{{ value | tojson(indent=2) }}{% endmacro -%}
{% for message in messages if message.role != 'system' %}
{% if loop.index > 5 %}{% break %}{% endif %}
{% generation %}{{ message['content'] | trim | upper }}{% endgeneration %}
{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.cycle('a', 'b') }} {{ 'x' in message.content }}
{{ "%s is %d" | format(message.role, 3) }} {{ '{}-{}'.format(1, 2) }} {{ message.items() | list | length }}
{% else %}none{% endfor %}
{%- macro wrap() %}[{{ caller(7) }}]{% endmacro %}
{{ show({'b': 1, 'a': ['é', '<&>']}, 2) }}{% call(x) wrap() %}{{ x }}{% endcall %}
{{ messages | map(attribute='role') | unique | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list
 | length }} {{ [3, 1, 2] | sort | reverse | list }} {{ ['a', 'b'] | join('-') }} {{ (1, 2) }} {{ {'k': none} }}
{{ 'a-b-c'.replace('-', '+') }} {{ 'abc'[1:] }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 1.5 * 2 }} {{ [1] + [2] }}
{{ messages[0].content | indent(4) | wordwrap(10) | replace('l', 'L') }} {{ namespace(a=1).a }} {{ dict(a=1) }}
"""
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "hello\nworld x"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi there!"},
    {"role": "user", "content": "  weather in Zürich?  "},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "w", "arguments": {"city": "Zürich"}}}],
    },
    {"role": "tool", "content": '{"t": 3}', "tool_call_id": "1"},
]
WEATHER = [{"type": "function", "function": {"name": "w", "parameters": {"type": "object", "x": "<é>"}}}]


def theirs(source: str, **variables: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = variables.pop("messages")
    rendered, _ = render_jinja_template([conversation], chat_template=source, **variables)
    return rendered[0]


@pytest.mark.parametrize("source", [CHATML, TOOLS, ODDS], ids=["chatml", "tools", "odds"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, WEATHER], ids=["plain", "with tools"])
def test_prompt_equals_transformers(source: str, add_generation_prompt: bool, tools: Any) -> None:
    messages = [message for message in CHAT if source is TOOLS or message["content"]]
    template = ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt) == theirs(
        source,
        messages=messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )


def test_arguments_of_tool_calls_may_be_json_text_as_the_api_has_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "w", "arguments": '{"city": "Zürich"}'}}
    as_text = [*CHAT[:3], {**CHAT[3], "tool_calls": [call]}, CHAT[4]]
    template = ChatTemplate({"default": TOOLS})
    assert template.render(as_text) == template.render(CHAT)
    assert call["function"] == {"name": "w", "arguments": '{"city": "Zürich"}'}


@pytest.mark.parametrize("last", ["Sure, ", "Sure,", "  Sure"])
@pytest.mark.parametrize("source", [CHATML, CHATML.replace("message['content']", "(message['content'] | trim)")])
def test_last_message_is_left_open_to_be_continued(source: str, last: str) -> None:
    messages = [CHAT[0], {"role": "assistant", "content": last}]
    prompt = ChatTemplate({"default": source}).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    assert prompt == theirs(source, messages=messages, add_generation_prompt=False, continue_final_message=True)
    assert prompt.rstrip().endswith("Sure" + ("," if "," in last else ""))


def test_continuing_needs_text_and_no_new_turn() -> None:
    template = ChatTemplate({"default": CHATML})
    with pytest.raises(TemplateError, match="together with add_generation_prompt"):
        template.render(CHAT[:1], continue_final_message=True)
    with pytest.raises(TemplateError, match="no text to continue"):
        template.render([], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(TemplateError, match="does not put out the last message"):
        ChatTemplate({"default": "fixed"}).render(CHAT[:1], add_generation_prompt=False, continue_final_message=True)


def test_parts_become_text_only_where_the_template_wants_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    looping = "{% for m in messages %}{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endfor %}"
    assert ChatTemplate({"default": "{{ messages[0].content }}"}).render(parts) == "a\nb"
    assert ChatTemplate({"default": looping}).render(parts) == "<a><b>"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(TemplateError, match="takes text only, got a content part .*image_url"):
        ChatTemplate({"default": CHATML}).render(image)


def test_template_named_tool_use_serves_requests_with_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"})
    assert template.render(CHAT[:1]) == "plain"
    assert template.render(CHAT[:1], tools=WEATHER) == "tools"


def test_reasoning_is_found_under_any_of_its_names() -> None:
    template = ChatTemplate({"default": "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}"})
    assert template.render([{"role": "assistant", "content": "", "reasoning": "r"}]) == "r|r"


def test_only_variables_that_the_template_reads_are_accepted() -> None:
    template = ChatTemplate({"default": TOOLS}, {"bos_token": "<s>"})
    assert template.allowed_kwargs() == {"enable_thinking", "content"}
    assert "<think>\n\n</think>" in template.render(CHAT[:1], kwargs={"enable_thinking": False})
    for name in ("messages", "bos_token", "raise_exception", "chat_template", "other"):
        with pytest.raises(TemplateError, match=f"'{name}', which this model's template does not read") as caught:
            template.render(CHAT[:1], kwargs={name: "x"})
        assert caught.value.param == "chat_template_kwargs"


def test_model_without_template_says_what_to_do() -> None:
    with pytest.raises(TemplateError, match=r"no chat template; send a prompt to /v1/completions, or .*FILE"):
        ChatTemplate({}).render(CHAT[:1])
    with pytest.raises(TemplateError, match=r"no chat template named default \(it has rag\)"):
        ChatTemplate({"rag": "x"}).render(CHAT[:1])


def test_refusals_and_failures_of_a_template_are_errors_of_the_request() -> None:
    with pytest.raises(TemplateError, match="refused these messages: roles must alternate") as caught:
        ChatTemplate({"default": "{{ raise_exception('roles must alternate') }}"}).render(CHAT[:1])
    assert caught.value.param == "messages"
    with pytest.raises(TemplateError, match="cannot render these messages .*TypeError"):
        ChatTemplate({"default": "{{ messages[0].content + 1 }}"}).render(CHAT[:1])
    with pytest.raises(TemplateError, match="cannot be compiled"):
        ChatTemplate({"default": "{% if %}"}).render(CHAT[:1])
    with pytest.raises(TemplateError, match="must be plain JSON values, got object"):
        ChatTemplate({"default": CHATML}).render([{"role": "user", "content": object()}])


def test_clock_of_templates() -> None:
    from datetime import datetime

    from drivetrain.template_budget import start_budget
    from drivetrain.template_sandbox import TemplateEnvironment

    environment = TemplateEnvironment(now=lambda: datetime(2026, 2, 3))
    start_budget(max_steps=1000, max_chars=1000, max_cpu_s=1)
    assert environment.from_string("{{ strftime_now('%d %b %Y') }}").render() == "03 Feb 2026"


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% set x = namespace() %}{% set x.__class__ = 1 %}",
    "{{ namespace(__init__=1) }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ raise_exception.__globals__.x }}",
    "{{ (messages | attr('__class__')).x }}",
    "{{ (messages | map(attribute='__class__') | first).x }}",
    "{{ self._TemplateReference__context.x }}",
    "{{ joiner.__call__.__func__.__code__ }}",
    "{{ dict.mro() }}",
    "{{ (1).to_bytes(9, 'big') }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_sandbox_cannot_be_left(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate({"default": source}).render(CHAT[:1])


GROW = "{% set ns = namespace(s=SEED, t=SEED) %}{% for i in range(60) %}BODY{% endfor %}"


def grow(seed: str, body: str, end: str = "") -> str:
    return GROW.replace("SEED", seed).replace("BODY", body) + end


PAIRS = "{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}"
TUPLES = "{% set ns.s = (ns.s, ns.s) %}"
HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops in a filter": "{% for a in range(99999) if 'b' in 'a' * 1000000 %}{% endfor %}",
    "macro tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat list": "{{ [1] * 10**10 }}",
    "power": "{{ 2 ** 100000000 }}",
    "squares": grow("3", "{% set ns.s = ns.s * ns.s %}"),
    "double by plus": grow("'aaaaaaaa'", "{% set ns.s = ns.s + ns.s %}"),
    "double by tilde": grow("'aaaaaaaa'", "{% set ns.s = ns.s ~ ns.s %}"),
    "double by block": grow("'aaaaaaaa'", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    "double by format": grow("'aaaaaaaa'", "{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
    "double by method": grow("'aaaaaaaa'", "{% set ns.s = '{0}{0}'.format(ns.s) %}"),
    "double by join": grow("'aaaaaaaa'", "{% set ns.s = [ns.s, ns.s] | join %}"),
    "double by replace": grow("'aaaaaaaa'", "{% set ns.s = ns.s.replace('a', 'aa') %}"),
    "print shared lists": grow("1", PAIRS, "{{ ns.s }}"),
    "dump shared lists": grow("1", PAIRS, "{{ ns.s | tojson }}"),
    "compare shared lists": grow("1", PAIRS, "{{ ns.s == ns.t }}"),
    "test shared lists": grow("1", PAIRS, "{{ ns.s is eq ns.t }}"),
    "join shared lists": grow("1", PAIRS, "{{ ns.s | join }}"),
    "hash shared tuples": grow("1", TUPLES, "{{ {}[ns.s] }}"),
    "key of shared tuples": grow("1", TUPLES, "{{ {ns.s: 1} }}"),
    "get by shared tuples": grow("1", TUPLES, "{{ {}.get(ns.s) }}"),
    "wide filter": "{{ 'a' | center(10**9) }}",
    "wide method": "{{ 'a'.center(10**9) }}",
    "wide format": "{{ '%1000000000d' | format(1) }}",
    "wide operator": "{{ '%*d' % (10**9, 1) }}",
    "wide braces": "{{ '{:>1000000000}'.format(1) }}",
    "nested braces": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "wide indent": "{{ messages | tojson(indent=10**8) }}",
    "wide batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "wide tabs": "{{ '\\t'.expandtabs(10**9) }}",
    "wide date": "{{ strftime_now('%999999999d') }}",
    "many from few": "{{ range(99999) | map('default', range(99999) | list, true) | list | string }}",
    "many texts": "{% set big = 'x' * 1000000 %}{{ range(99999) | map('default', big, true) | join }}",
    "sum of lists": "{{ range(99999) | map('default', [1], true) | sum(start=[]) | length }}",
    "compare long lists": "{% set a = range(99999) | list %}{% set b = range(99999) | list %}{% for i in a %}"
    + "{% if a == b %}{% endif %}" * 50
    + "{% endfor %}",
    "search long texts": "{% set a = 'a' * 9999999 %}{% for i in range(99999) %}{{ 'b' in a }}{% endfor %}",
    "copy long texts": "{% set a = 'a' * 9999999 %}{% for i in range(99999) %}{% set b = a.upper()[1:] %}{% endfor %}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "long source": "x" * 300_000,
    "long output": "{% for a in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_stopped_soon(name: str) -> None:
    limits = TemplateLimits(max_steps=300_000, max_output_chars=2_000_000, max_cpu_s=0.5)
    template = ChatTemplate({"default": HOSTILE[name]}, limits=limits)
    start = time.thread_time()
    with pytest.raises(TemplateError):
        template.render(CHAT[:1])
    assert time.thread_time() - start < 0.5 + slowness()


LOOSE = TemplateLimits(max_steps=10**9, max_output_chars=10**9, max_cpu_s=60)
BLOCKS = "{% for i in range(9999) %}{% set kept %}{{ 'aaaaaaaaaa' }}{% endset %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "limits", "reason"),
    [
        (HOSTILE["nested loops"], replace(LOOSE, max_steps=10_000), "took too many steps"),
        (HOSTILE["nested loops"], replace(LOOSE, max_cpu_s=0.05), "took too long"),
        ("{% for i in range(9999) %}aaaaaaaaaa{% endfor %}", replace(LOOSE, max_output_chars=5_000), "put out more"),
        (BLOCKS, replace(LOOSE, max_output_chars=5_000), "put out more than 5000 characters"),
        ("{{ 'aaaaaaaaaa' * 999 }}", replace(LOOSE, max_output_chars=5_000), "would make a text of 9990 characters"),
    ],
)
def test_each_limit_stops_a_template_by_itself(source: str, limits: TemplateLimits, reason: str) -> None:
    """They stand in for each other in most templates, so one that is gone would not be missed."""
    with pytest.raises(TemplateError, match=f"the chat template {reason}"):
        ChatTemplate({"default": source}, limits=limits).render(CHAT[:1])


def test_other_threads_go_on_while_a_hostile_template_runs() -> None:
    import threading

    friendly = ChatTemplate({"default": CHATML})
    friendly.render(CHAT[:3])
    errors: list[str] = []

    def attack(max_cpu_s: float) -> None:
        limits = TemplateLimits(max_steps=10**9, max_output_chars=10**6, max_cpu_s=max_cpu_s)
        try:
            ChatTemplate({"default": HOSTILE["nested loops"]}, limits=limits).render(CHAT[:1])
        except TemplateError as error:
            errors.append(str(error))

    for max_cpu_s in (0.1, 0.4, 1.6):  # this thread may have no core for a while
        thread = threading.Thread(target=attack, args=(max_cpu_s,))
        thread.start()
        rendered = 0
        while thread.is_alive():
            assert friendly.render(CHAT[:3]).endswith("<|im_start|>assistant\n")
            rendered += 1
        thread.join()
        assert "took too long" in errors[-1]
        if rendered > 5:
            break
    assert rendered > 5


def test_long_conversation_fits_the_budget() -> None:
    messages = CHAT * 400
    assert ChatTemplate({"default": TOOLS}).render(messages, tools=WEATHER).count("<|im_start|>") == 2002
