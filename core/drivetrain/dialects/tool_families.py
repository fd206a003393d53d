"""The table of families that call tools. The order is that of the choice: the first whose signs a template has."""

from __future__ import annotations

import re

from drivetrain.dialects.forms import HeaderForm, JsonForm, PythonForm, TaggedForm, ToolFamily

_NAME = r"(?P<name>[\w.:/-]{1,256})"
FENCED = JsonForm(opens=("```json", "```tool_call"), careful=True, closes=("```",))
TAGGED_JSON = JsonForm(opens=("<tool_call>",), closes=("</tool_call>",))

TOOL_FAMILIES: dict[str, ToolFamily] = {
    "harmony": ToolFamily(models="gpt-oss", signs=(("<|channel|>", "<|message|>"),), channels=True),
    "deepseek_v32": ToolFamily(
        models="DeepSeek V3.2",
        signs=(("<｜DSML｜",),),
        forms=(
            TaggedForm(
                opens=("<｜DSML｜function_calls>",),
                function='<｜DSML｜invoke name="',
                name_ends=('">',),
                key='<｜DSML｜parameter name="',
                key_ends=('" string="true">', '" string="false">', '">'),
                text_key_end='" string="true">',
                value_end="</｜DSML｜parameter>",
                function_end="</｜DSML｜invoke>",
                closes=("</｜DSML｜function_calls>",),
            ),
        ),
    ),
    "deepseek_v3": ToolFamily(
        models="DeepSeek V3, R1",
        signs=(("<｜tool▁calls▁begin｜>", "```json"),),
        forms=(
            HeaderForm(
                section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
                opens=("<｜tool▁call▁begin｜>",),
                header=re.compile(r"\s*\w{1,64}<｜tool▁sep｜>\s*" + _NAME + r"\s*(?:```(?:json)?)?\s*"),
                spelt="function<｜tool▁sep｜>%s\n```json\n",
                trail="\n```",
                closes=("<｜tool▁call▁end｜>",),
            ),
        ),
    ),
    "deepseek_v31": ToolFamily(
        models="DeepSeek V3.1",
        signs=(("<｜tool▁calls▁begin｜>",),),
        forms=(
            HeaderForm(
                section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
                opens=("<｜tool▁call▁begin｜>",),
                header=re.compile(r"\s*" + _NAME + r"\s*<｜tool▁sep｜>\s*"),
                spelt="%s<｜tool▁sep｜>",
                closes=("<｜tool▁call▁end｜>",),
            ),
        ),
    ),
    "kimi_k2": ToolFamily(
        models="Kimi K2",
        signs=(("<|tool_calls_section_begin|>",),),
        forms=(
            HeaderForm(
                section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
                opens=("<|tool_call_begin|>",),
                header=re.compile(
                    r"\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]{1,256}?)(?::\d{1,9})?)\s*<\|tool_call_argument_begin\|>\s*"
                ),
                spelt="functions.%s:%d<|tool_call_argument_begin|>",
                closes=("<|tool_call_end|>",),
            ),
        ),
    ),
    "glm45": ToolFamily(
        models="GLM-4.5, GLM-4.6",
        signs=(("<arg_key>",),),
        forms=(
            TaggedForm(
                opens=("<tool_call>",),
                function="",
                name_ends=("\n", "<arg_key>", "</tool_call>"),
                key="<arg_key>",
                key_ends=("</arg_key>",),
                value="<arg_value>",
                value_end="</arg_value>",
                function_end="</tool_call>",
            ),
        ),
    ),
    "minimax_m2": ToolFamily(
        models="MiniMax M2",
        signs=(("minimax:tool_call",),),
        forms=(
            TaggedForm(
                opens=("<minimax:tool_call>",),
                function='<invoke name="',
                name_ends=('">',),
                key='<parameter name="',
                key_ends=('">',),
                value_end="</parameter>",
                function_end="</invoke>",
                closes=("</minimax:tool_call>",),
            ),
        ),
    ),
    "seed_oss": ToolFamily(
        models="Seed-OSS",
        signs=(("<seed:tool_call>",),),
        forms=(
            TaggedForm(
                opens=("<seed:tool_call>",),
                function="<function=",
                name_ends=(">",),
                key="<parameter=",
                key_ends=(">",),
                value_end="</parameter>",
                function_end="</function>",
                closes=("</seed:tool_call>",),
            ),
        ),
    ),
    "qwen3_coder": ToolFamily(
        models="Qwen3-Coder, Qwen3.5",
        signs=(("<function=", "<parameter="),),
        forms=(
            TaggedForm(
                opens=("<tool_call>",),
                function="<function=",
                name_ends=(">",),
                key="<parameter=",
                key_ends=(">",),
                value_end="</parameter>",
                function_end="</function>",
                closes=("</tool_call>",),
                newlines=True,
            ),
        ),
    ),
    "mistral": ToolFamily(
        models="Mistral and Ministral from tokenizer v11 on, Magistral, Devstral",
        signs=(("[TOOL_CALLS]", "[ARGS]"),),
        forms=(
            HeaderForm(
                opens=("[TOOL_CALLS]",),
                header=re.compile(r"\s*" + _NAME + r"\s*(?:\[CALL_ID\](?P<id>\w{1,64}))?(?:\[ARGS\])?\s*"),
                spelt="%s[ARGS]",
            ),
        ),
        ids="nine",
    ),
    "mistral_v3": ToolFamily(
        models="Mistral up to tokenizer v7, Mixtral",
        signs=(("[TOOL_CALLS]",),),
        forms=(JsonForm(opens=("[TOOL_CALLS]",), array=True),),
        ids="nine",
    ),
    "command": ToolFamily(
        models="Command R7B, Command A",
        signs=(("<|START_ACTION|>",),),
        forms=(
            JsonForm(
                opens=("<|START_ACTION|>",),
                closes=("<|END_ACTION|>",),
                array=True,
                name_keys=("tool_name", "name"),
                argument_keys=("parameters", "arguments"),
                id_keys=(),
            ),
        ),
    ),
    "internlm": ToolFamily(
        models="InternLM 2.5, InternLM 3",
        signs=(("<|action_start|>",),),
        forms=(
            JsonForm(
                opens=("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"),
                closes=("<|action_end|>",),
                argument_keys=("parameters", "arguments"),
            ),
        ),
    ),
    "phi4_mini": ToolFamily(
        models="Phi-4-mini",
        signs=(("<|tool|>", "<|/tool|>"), ("functools[",)),
        forms=(
            JsonForm(opens=("<|tool_call|>",), closes=("<|/tool_call|>",), array=True),
            JsonForm(bare=("functools",), array=True),
        ),
    ),
    "granite": ToolFamily(
        models="Granite 3",
        signs=(("<|tool_call|>",),),
        forms=(
            JsonForm(opens=("<|tool_call|>",), array=True),
            JsonForm(opens=("<tool_call>",), closes=("</tool_call>",), array=True),
        ),
    ),
    "lfm2": ToolFamily(
        models="LFM2",
        signs=(("<|tool_call_start|>",),),
        forms=(PythonForm(opens=("<|tool_call_start|>",), closes=("<|tool_call_end|>",)),),
    ),
    "olmo3": ToolFamily(
        models="OLMo 3",
        signs=(("<function_calls>",),),
        forms=(PythonForm(opens=("<function_calls>",), closes=("</function_calls>",), bracketed=False),),
    ),
    "llama4": ToolFamily(
        models="Llama 4, Llama 3.2 in its Python style",
        signs=(("<|python_start|>",), ("[func_name1(params_name1=params_value1",)),
        forms=(
            PythonForm(bare=("[",)),
            PythonForm(opens=("<|python_start|>",), closes=("<|python_end|>",)),
        ),
    ),
    "llama3": ToolFamily(
        models="Llama 3.1, 3.2, 3.3",
        signs=(("<|python_tag|>",), ('{"name": function name',), ("Environment: ipython",)),
        forms=(
            JsonForm(bare=("{",), argument_keys=("parameters", "arguments")),
            JsonForm(opens=("<|python_tag|>",), careful=True, argument_keys=("parameters", "arguments")),
            HeaderForm(
                opens=("<function=",),
                header=re.compile(_NAME + r">\s*"),
                spelt="%s>",
                closes=("</function>",),
            ),
        ),
    ),
    "nemotron": ToolFamily(
        models="Llama Nemotron, Nemotron Nano 2",
        signs=(("<TOOLCALL>",),),
        forms=(JsonForm(opens=("<TOOLCALL>",), closes=("</TOOLCALL>",), array=True),),
    ),
    "tool_calls": ToolFamily(
        models="MiniMax M1, Hunyuan, Jamba",
        signs=(("<tool_calls>",),),
        forms=(JsonForm(opens=("<tool_calls>",), closes=("</tool_calls>",)),),
    ),
    "hermes": ToolFamily(
        models="Hermes 2 and 3, Qwen2.5, Qwen2.5-Coder, Qwen3, QwQ, SmolLM3, Granite 4",
        signs=(("<tool_call>",),),
        forms=(TAGGED_JSON, FENCED),
    ),
    "gemma3": ToolFamily(
        models="Gemma 3",
        signs=(("<start_of_turn>",),),
        forms=(
            FENCED,
            PythonForm(opens=("```tool_code", "```python"), careful=True, closes=("```",), bracketed=False),
        ),
    ),
    "json": ToolFamily(
        models="all others: a JSON object in a fenced block, or alone",
        forms=(FENCED, JsonForm(bare=("{",))),
    ),
}
"""By name, as `tool_parser` takes it."""
