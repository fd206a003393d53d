"""Answers as models of each family write them, with what they say.

The texts follow the chat templates and model cards of the families; special tokens are spelt out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from drivetrain.dialects.forms import Tool

TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            name="get_weather",
            description="Weather of a city",
            parameters={
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "units": {"enum": ["celsius", "fahrenheit"]},
                    "places": {"type": "array", "items": {"type": "object"}},
                },
                "required": ["city"],
            },
        ),
        Tool(name="now"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One answer.

    Attributes:
        reasons: the prompt ended with the marker that begins reasoning.
        calls: (name, arguments) of each call.
    """

    tools: str
    reasoning_family: str = "none"
    reasons: bool = False
    text: str
    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, object]] = field(default_factory=list)


PARIS = ("get_weather", {"city": "Paris", "days": 3})
NOW = ("now", {})
PARIS_JSON = json.dumps(PARIS[1])

RECORDED = [
    Recorded(
        tools="hermes",
        reasoning_family="think",
        text='<think>\nMaybe {"name": "now"}? Or <tool_call>?\n</think>\n\nI look it up.\n<tool_call>\n'
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        reasoning='Maybe {"name": "now"}? Or <tool_call>?',
        content="I look it up.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="hermes",
        text='To know it, I call this:\n\n```json\n{"name": "get_weather", "arguments": {"city": "</tool_call> \\"}"}}'
        "\n```\n\nThat is all.",
        content="To know it, I call this:\nThat is all.",
        calls=[("get_weather", {"city": '</tool_call> "}'})],
    ),
    Recorded(
        tools="hermes",
        text='Like so:\n```json\n{"name": "other", "arguments": {}}\n```\nand ```json\n[1, 2]\n``` ',
        content='Like so:\n```json\n{"name": "other", "arguments": {}}\n```\nand ```json\n[1, 2]\n``` ',
    ),
    Recorded(
        tools="hermes",
        text='<tool_call>{"arguments": "{\\"city\\": \\"Rome\\"}", "id": "x1", "name": "get_weather"}</tool_call>',
        calls=[("get_weather", {"city": "Rome"})],
    ),
    Recorded(
        tools="qwen3_coder",
        text='Writing it.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nif a < b:\n\tprint("é")\n'
        "\n</parameter>\n"
        '<parameter=days>\n3\n</parameter>\n<parameter=places>\n[{"a": 1}]\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        content="Writing it.",
        calls=[("get_weather", {"city": 'if a < b:\n\tprint("é")\n', "days": 3, "places": [{"a": 1}]}), NOW],
    ),
    Recorded(
        tools="glm45",
        reasoning_family="think",
        text="<think>They ask for Paris.</think>\nOk.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n"
        "<tool_call>now\n</tool_call>",
        reasoning="They ask for Paris.",
        content="Ok.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="minimax_m2",
        reasoning_family="think",
        reasons=True,
        text='Paris, then.\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n'
        '<parameter name="city">Paris</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n'
        '<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        reasoning="Paris, then.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="seed_oss",
        reasoning_family="seed_oss",
        text="<seed:think>Hm.</seed:think><seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
        "<parameter=days>3</parameter>\n</function>\n</seed:tool_call>",
        reasoning="Hm.",
        calls=[PARIS],
    ),
    Recorded(
        tools="deepseek_v32",
        reasoning_family="think",
        reasons=True,
        text='I need it.</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        reasoning="I need it.",
        calls=[PARIS],
    ),
    Recorded(
        tools="deepseek_v3",
        text="One moment.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        f"{PARIS_JSON}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{{}}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        content="One moment.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="deepseek_v31",
        text=f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS_JSON}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="kimi_k2",
        text="Checking.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        f"<|tool_call_argument_begin|>{PARIS_JSON}<|tool_call_end|><|tool_call_begin|>functions.now:1"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        content="Checking.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="mistral",
        reasoning_family="mistral",
        text=f"[THINK]Weather.[/THINK]Sure.[TOOL_CALLS]get_weather[ARGS]{PARIS_JSON}[TOOL_CALLS]now[ARGS]{{}}",
        reasoning="Weather.",
        content="Sure.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="mistral",
        text=f"[TOOL_CALLS]get_weather[CALL_ID]aBc123xYz[ARGS]{PARIS_JSON}",
        calls=[PARIS],
    ),
    Recorded(
        tools="mistral_v3",
        text=f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS_JSON}, "id": "aBc123xYz"}}, '
        '{"name": "now", "arguments": {}}]',
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="command",
        reasoning_family="command",
        text="<|START_THINKING|>I will look.<|END_THINKING|><|START_ACTION|>[\n"
        f'    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {PARIS_JSON}}},\n'
        '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        reasoning="I will look.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="command",
        reasoning_family="command",
        text="<|START_THINKING|>Easy.<|END_THINKING|><|START_RESPONSE|>It is sunny.<|END_RESPONSE|>",
        reasoning="Easy.",
        content="It is sunny.",
    ),
    Recorded(
        tools="internlm",
        text=f'Ok.<|action_start|><|plugin|>\n{{"name": "get_weather", "parameters": {PARIS_JSON}}}<|action_end|>\n',
        content="Ok.",
        calls=[PARIS],
    ),
    Recorded(
        tools="phi4_mini",
        text=f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS_JSON}}}]<|/tool_call|>',
        calls=[PARIS],
    ),
    Recorded(
        tools="phi4_mini",
        text=f' functools[{{"name": "get_weather", "arguments": {PARIS_JSON}}}, {{"name": "now", "arguments": {{}}}}]',
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="granite",
        reasoning_family="granite",
        text="Here is my thought process:\nThe user asks.\n\nHere is my response:\n\n"
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS_JSON}}}]',
        reasoning="The user asks.",
        calls=[PARIS],
    ),
    Recorded(
        tools="lfm2",
        text='<|tool_call_start|>[get_weather(city="Paris", days=3), now()]<|tool_call_end|>I am checking.',
        content="I am checking.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="olmo3",
        text='<function_calls>\nget_weather(city="Paris", days=3)\nnow()\n</function_calls>',
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="llama4",
        text="[get_weather(city='Par\\'is, (x', places=[{'a': None, 'b': (1, -2.5)}], units=\"celsius\"), now()]",
        calls=[
            ("get_weather", {"city": "Par'is, (x", "places": [{"a": None, "b": [1, -2.5]}], "units": "celsius"}),
            NOW,
        ],
    ),
    Recorded(tools="llama4", text="[1, 2] and [now] are lists.", content="[1, 2] and [now] are lists."),
    Recorded(
        tools="llama4",
        text='<|python_start|>[get_weather(city="Paris", days=3)]<|python_end|>',
        calls=[PARIS],
    ),
    Recorded(
        tools="llama3",
        text=f'{{"name": "get_weather", "parameters": {PARIS_JSON}}}; {{"name": "now", "parameters": {{}}}}',
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="llama3",
        text=f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {PARIS_JSON}}}',
        calls=[PARIS],
    ),
    Recorded(
        tools="llama3",
        text='<|python_tag|>brave_search.call(query="Paris")',
        content='<|python_tag|>brave_search.call(query="Paris")',
    ),
    Recorded(tools="llama3", text=f"<function=get_weather>{PARIS_JSON}</function>", calls=[PARIS]),
    Recorded(tools="llama3", text='{"name": "Ada", "age": 36} is JSON.', content='{"name": "Ada", "age": 36} is JSON.'),
    Recorded(
        tools="nemotron",
        reasoning_family="think",
        text=f'<think></think>\n<TOOLCALL>[{{"name": "get_weather", "arguments": {PARIS_JSON}}}]</TOOLCALL>',
        calls=[PARIS],
    ),
    Recorded(
        tools="tool_calls",
        reasoning_family="hunyuan",
        text="<think>\nTwo calls.\n</think>\n<tool_calls>\n"
        f'{{"name": "get_weather", "arguments": {PARIS_JSON}}}\n{{"name": "now", "arguments": {{}}}}\n</tool_calls>',
        reasoning="Two calls.",
        calls=[PARIS, NOW],
    ),
    Recorded(
        tools="gemma3",
        text='Let me see.\n```tool_code\nget_weather(city="Paris", days=3)\n```\n',
        content="Let me see.",
        calls=[PARIS],
    ),
    Recorded(tools="gemma3", text="```python\nprint(1)\n```", content="```python\nprint(1)\n```"),
    Recorded(tools="json", text=f'{{"name": "get_weather", "arguments": {PARIS_JSON}}}', calls=[PARIS]),
    Recorded(
        tools="hermes", reasoning_family="kimi_vl", text="◁think▷Hm.◁/think▷Yes.", reasoning="Hm.", content="Yes."
    ),
    Recorded(
        tools="harmony",
        reasoning_family="harmony",
        text="<|channel|>analysis<|message|>Need weather.<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "I look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        f"{PARIS_JSON}<|call|>",
        reasoning="Need weather.",
        content="I look.",
        calls=[PARIS],
    ),
    Recorded(
        tools="harmony",
        reasoning_family="harmony",
        text="<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}",
        calls=[NOW],
    ),
    Recorded(
        tools="harmony",
        reasoning_family="harmony",
        text="<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
        reasoning="2+2",
        content="It is 4.",
    ),
]
