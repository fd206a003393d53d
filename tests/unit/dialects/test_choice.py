"""Which family a chat template or a tokenizer belongs to."""

from __future__ import annotations

import pytest

from drivetrain.config import EngineConfig
from drivetrain.dialects.choose import choose_dialect
from drivetrain.errors import ConfigError
from fakes.text import byte_tokenizer

# What sets the templates of these models apart, cut out of them.
EXCERPTS = {
    "For each function call, return a json object within <tool_call></tool_call> XML tags": ("hermes", None),
    "within <tool_call></tool_call> XML tags ... '<think>\\n\\n</think>\\n\\n'": ("hermes", "think"),
    "<tool_call>\\n<function=example>\\n<parameter=example_1>\\nvalue_1\\n</parameter>": ("qwen3_coder", None),
    "{{ '<tool_call>' + tc.name }}<arg_key>{{ k }}</arg_key> /nothink <think></think>": ("glm45", "think"),
    'Respond in the format {"name": function name, "parameters": dictionary}': ("llama3", None),
    '{{- "<|python_tag|>" + tool_call.name + ".call(" }}': ("llama3", None),
    "[func_name1(params_name1=params_value1, params_name2=params_value2...)]": ("llama4", None),
    "{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments }} [THINK]": ("mistral", "mistral"),
    "{{ '[TOOL_CALLS] [' }} [AVAILABLE_TOOLS]": ("mistral_v3", None),
    "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '```json'": ("deepseek_v3", None),
    "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ name + '<｜tool▁sep｜>'}} </think>": ("deepseek_v31", "think"),
    "<|tool_calls_section_begin|><|tool_call_begin|>": ("kimi_k2", None),
    "<|start|>assistant<|channel|>analysis<|message|>": ("harmony", "harmony"),
    "<|START_ACTION|>[ <|START_THINKING|>": ("command", "command"),
    "<|start_of_role|> <|tool_call|> Here is my thought process: ": ("granite", "granite"),
    "'<|tool|>' + message['tools'] + '<|/tool|>'": ("phi4_mini", None),
    "<|action_start|><|plugin|>": ("internlm", None),
    "]<]minimax[>[<minimax:tool_call> <think>": ("minimax_m2", "think"),
    "<seed:tool_call> <seed:think>": ("seed_oss", "seed_oss"),
    "<start_of_turn>model": ("gemma3", None),
    "<|im_start|>assistant": ("json", None),
}


@pytest.mark.parametrize(("excerpt", "expected"), EXCERPTS.items(), ids=[each[:24] for each in EXCERPTS])
def test_a_template_is_recognised(excerpt: str, expected: tuple[str, str | None]) -> None:
    dialect = choose_dialect([excerpt], {}, {})
    assert (dialect.tool_name, dialect.reasoning_name) == expected


def test_added_tokens_tell_where_the_template_is_silent() -> None:
    dialect = choose_dialect(["{{ messages }}"], {}, {"[TOOL_CALLS]": 1, "[ARGS]": 2, "</think>": 3})
    assert (dialect.tool_name, dialect.reasoning_name) == ("mistral", "think")


def test_names_go_before_signs_and_none_is_none() -> None:
    template = ["<tool_call> <think>"]
    dialect = choose_dialect(template, {}, {}, tool_parser="glm45", reasoning_parser="none")
    assert (dialect.tool_name, dialect.reasoning_name) == ("glm45", None)
    assert choose_dialect(template, {}, {}, tool_parser="none").tools is None


def test_special_tokens_that_are_markers_are_shown_and_no_others() -> None:
    special = {"[TOOL_CALLS]": 5, "[ARGS]": 6, "[CALL_ID]": 7, "</s>": 2, "[THINK]": 8, "[INST]": 3}
    dialect = choose_dialect(["[TOOL_CALLS][ARGS][THINK]"], special, special)
    assert dialect.shown == {5, 6, 7, 8}
    assert dialect.shown_reasoning == {8}


def test_shown_tokens_stay_in_the_text() -> None:
    tokenizer = byte_tokenizer()
    table = tokenizer.pieces_showing(frozenset({257}))
    assert (table[256], table[257], table[65]) == (b"", b"<|begin|>", b"A")


def test_the_end_of_the_prompt_tells_whether_reasoning_began() -> None:
    dialect = choose_dialect(["<think>"], {}, {})
    assert dialect.reasons_after("assistant\n<think>\n")
    assert not dialect.reasons_after("assistant\n<think>\n\n</think>\n\n")
    assert not dialect.reasons_after("assistant\n")


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match='tool_parser: got "herms", expected auto, none, harmony'):
        EngineConfig(model="m", tool_parser="herms")
    with pytest.raises(ConfigError, match="reasoning_parser: got"):
        EngineConfig(model="m", reasoning_parser="hermes")
