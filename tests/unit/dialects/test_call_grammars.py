"""Grammars of required calls: whatever text they allow is read as calls that fit the schemas."""

from __future__ import annotations

import json
import random
import re
from array import array
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from drivetrain.dialects.choose import Dialect, choose_dialect
from drivetrain.dialects.events import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallBegin
from drivetrain.dialects.forms import TaggedForm, Tool
from drivetrain.dialects.grammar import call_grammar, form_of_content
from drivetrain.dialects.reader import marker_texts
from drivetrain.dialects.reasoning_families import REASONING_FAMILIES
from drivetrain.dialects.spelling import written_calls
from drivetrain.dialects.tool_families import TOOL_FAMILIES
from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar, GrammarKind
from drivetrain.grammar.compiler import GrammarCompiler
from drivetrain.grammar.vocabulary import open_vocabulary
from drivetrain.tokenizer import Tokenizer
from drivetrain.tokenizer.pieces import byte_level_alphabet
from drivetrain.tokenizer.tokenizer import TokenizerParts

END = 256
TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            name="book",
            parameters={
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 6},
                    "nights": {"type": "integer", "minimum": 1, "maximum": 9},
                    "room": {"type": "string", "enum": ["single", "double"]},
                    "guests": {"$ref": "#/$defs/guests"},
                },
                "required": ["city", "nights"],
                "$defs": {"guests": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
            },
        ),
        Tool(name="now"),
    )
}
MARKERS = ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<think>", "</think>")


@cache
def tokenizer_with(*special: str) -> Tokenizer:
    """Bytes, an end token and these special tokens."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=byte_level_alphabet(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<eos>", *special)])
    return Tokenizer(backend, TokenizerParts(where="bytes", eos_ids=(END,)))


def special_of(tokenizer: Tokenizer) -> dict[str, int]:
    return {text: id for id, text in tokenizer.added_tokens.items() if id != END}


@cache
def compiler_for(*special: str) -> GrammarCompiler:
    tokenizer = tokenizer_with(*special)
    return GrammarCompiler(lambda: open_vocabulary(tokenizer, tokenizer.vocab_size, (END,)))


def drawn(grammar: Grammar, seed: int, *special: str, ends: tuple[str, ...] = (), limit: int = 3000) -> str:
    """A random text that the grammar allows, to its end; letters are mostly plain.

    Args:
        ends: texts that end free text, which no random letters would spell.
    """
    tokenizer = tokenizer_with(*special)
    chance = random.Random(seed)
    matcher = compiler_for(*special).compile(grammar).matcher()
    tokens = array("i")
    spelling: list[int] = []
    while len(tokens) < limit:
        matcher.follow(tokens, 0)
        if matcher.mask_W is None:
            break
        allowed = np.flatnonzero(
            np.unpackbits(matcher.mask_W.view(np.uint8), bitorder="little")[: tokenizer.vocab_size]
        )
        if END in allowed and (len(allowed) == 1 or chance.random() < 0.5):
            break
        if not spelling and len(allowed) > 100 and ends and chance.random() < 0.3:
            spelling = tokenizer.encode(chance.choice(ends), add_special_tokens=False)
        if spelling and spelling[0] in allowed:
            tokens.append(spelling.pop(0))
            continue
        spelling = []
        marks = [token for token in allowed if token > END]
        others = [token for token in allowed if token != END]
        plain = [token for token in allowed if 32 <= token < 127] or others
        tokens.append(
            int(chance.choice(marks if marks and chance.random() < 0.3 else plain if chance.random() < 0.9 else others))
        )
    assert matcher.failure is None, matcher.failure
    assert len(tokens) < limit, "it found no end"
    return tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


def ends_of(dialect: Dialect) -> tuple[str, ...]:
    ends = [dialect.reasoning.close] if dialect.reasoning is not None and dialect.reasoning.close else []
    forms = dialect.tools.forms if dialect.tools is not None else ()
    return (
        *ends,
        *(("\n" if form.newlines else "") + form.value_end for form in forms if isinstance(form, TaggedForm)),
    )


def read(dialect: Dialect, text: str, *, reasons: bool = False) -> tuple[str, str, list[tuple[str, object]]]:
    """(reasoning, content, calls)."""
    reader = dialect.reader(TOOLS, reasons=reasons)
    events = reader.push(text) + reader.finish()
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, ToolCallBegin):
            calls.append([event.name, ""])
        elif isinstance(event, ToolCallArguments):
            calls[-1][1] += event.text
    return reasoning, content, [(name, json.loads(arguments)) for name, arguments in calls]


def assert_fits(name: str, arguments: object) -> None:
    assert isinstance(arguments, dict)
    if name == "now":
        assert arguments == {}
        return
    assert name == "book"
    assert {"city", "nights"} <= set(arguments) <= {"city", "nights", "room", "guests"}
    assert isinstance(arguments["city"], str)
    assert 1 <= arguments["nights"] <= 9
    assert arguments.get("room", "single") in ("single", "double")
    assert all(isinstance(guest, bool) for guest in arguments.get("guests", []))


def dialect_of(family: str, reasoning: str = "none") -> Dialect:
    return choose_dialect((), {}, {}, tool_parser=family, reasoning_parser=reasoning)


@pytest.mark.parametrize("family", [name for name, each in TOOL_FAMILIES.items() if not each.channels])
def test_a_required_call_is_one_that_fits(family: str) -> None:
    dialect = dialect_of(family)
    assert dialect.tools is not None
    grammar = call_grammar(dialect, TOOLS, {}, required=True, parallel=True, prompt_end="", reasons=False)
    for seed in range(6):
        text = drawn(grammar, seed, ends=ends_of(dialect))
        _, content, calls = read(dialect, text)
        assert calls and not content, text
        for name, arguments in calls:
            assert_fits(name, arguments)
    written = written_calls(dialect.tools.forms[0], [("book", {"city": "a", "nights": 3, "guests": []}), ("now", {})])
    matcher = compiler_for().compile(grammar).matcher()
    matcher.follow(array("i", list(written.encode())), 0)
    assert matcher.ended or (matcher.mask_W is not None and matcher.mask_W.view(np.uint32)[END // 32] & 1), written


@pytest.mark.parametrize("family", [name for name, each in TOOL_FAMILIES.items() if not each.channels])
def test_one_call_is_one_and_a_named_one_is_that(family: str) -> None:
    dialect = dialect_of(family)
    named = {"book": TOOLS["book"]}
    grammar = call_grammar(dialect, named, {}, required=True, parallel=False, prompt_end="", reasons=False)
    for seed in range(3):
        _, content, calls = read(dialect, drawn(grammar, seed, ends=ends_of(dialect)))
        assert [name for name, _ in calls] == ["book"] and not content


@pytest.mark.parametrize(
    ("family", "reasoning"), [("mistral", "mistral"), ("mistral_v3", "mistral"), ("hermes", "think")]
)
@pytest.mark.parametrize("begun", [True, False])
def test_free_reasoning_goes_first_and_markers_may_be_special_tokens(family: str, reasoning: str, begun: bool) -> None:
    special = special_of(tokenizer_with(*MARKERS))
    dialect = choose_dialect((), special, {}, tool_parser=family, reasoning_parser=reasoning)
    assert dialect.reasoning is not None
    end = dialect.reasoning.open if begun else "assistant: "
    grammar = call_grammar(dialect, TOOLS, special, required=True, parallel=False, prompt_end=end, reasons=begun)
    reasoned = 0
    for seed in range(8):
        text = drawn(grammar, seed, *MARKERS, ends=ends_of(dialect))
        _, content, calls = read(dialect, text, reasons=begun)
        assert len(calls) == 1 and not content
        assert_fits(*calls[0])
        reasoned += dialect.reasoning.close in text
    assert reasoned == 8 if begun else 0 < reasoned < 8, reasoned


def test_nothing_is_reasoned_where_the_prompt_has_ended_it() -> None:
    dialect = dialect_of("hermes", "think")
    ended = "<think>\n\n</think>\n\n"
    grammar = call_grammar(dialect, TOOLS, {}, required=True, parallel=False, prompt_end=ended, reasons=False)
    assert drawn(grammar, 0).startswith("<tool_call>")


def test_harmony_calls_in_its_channels() -> None:
    special = special_of(tokenizer_with(*marker_texts(None, None), *HARMONY))
    dialect = choose_dialect((), special, {}, tool_parser="harmony", reasoning_parser="harmony")
    grammar = call_grammar(dialect, TOOLS, special, required=True, parallel=True, prompt_end="", reasons=False)
    seen: set[bool] = set()
    for seed in range(8):
        reasoning, content, calls = read(dialect, drawn(grammar, seed, *HARMONY, ends=("<|end|>",)))
        assert len(calls) == 1 and not content
        assert_fits(*calls[0])
        seen.add(bool(reasoning))
    assert seen == {True, False}


HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")


@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "llama3", "mistral", "kimi_k2", "lfm2", "glm45"])
def test_strict_calls_among_free_text_fit(family: str) -> None:
    marks = tuple(text for text in MARKERS if text in ("[TOOL_CALLS]", "[ARGS]"))
    special = special_of(tokenizer_with(*marks))
    dialect = choose_dialect((), special, {}, tool_parser=family, reasoning_parser="none")
    grammar = call_grammar(dialect, TOOLS, special, required=False, parallel=True, prompt_end="", reasons=False)
    compiler = compiler_for(*marks)
    written = {
        "hermes": 'Ok <tool_call>\n{"name": "book", "arguments": {"city": 5',
        "qwen3_coder": "Ok <tool_call>\n<function=book>\n<parameter=r",
        "llama3": '{"name": "book", "parameters": {"city": 5',
        "mistral": 'Ok [TOOL_CALLS]book[ARGS]{"city": 5',
        "kimi_k2": "Ok <|tool_calls_section_begin|><|tool_call_begin|>functions.book:0<|tool_call_argument_begin|>"
        '{"city": 5',
        "lfm2": "Ok <|tool_call_start|>[book(city=5",
        "glm45": "Ok <tool_call>book\n<arg_key>r",
    }[family]
    tokenizer = tokenizer_with(*marks)
    for text, allowed in ((written[:-1], True), (written, False), ("Just text, <tool", True), ("Fine.", True)):
        matcher = compiler.compile(grammar).matcher()
        followed = array("i")
        fits = True
        for token in tokenizer.encode(text, add_special_tokens=False):
            matcher.follow(followed, 0)
            mask_W = matcher.mask_W
            fits = fits and mask_W is not None and bool(mask_W.view(np.uint32)[token // 32] >> (token % 32) & 1)
            followed.append(token)
        assert fits is allowed, text


def test_a_schema_that_cannot_be_kept_is_refused_by_its_keyword() -> None:
    tool = Tool(name="f", parameters={"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})
    grammar = call_grammar(
        dialect_of("hermes"), {"f": tool}, {}, required=True, parallel=True, prompt_end="", reasons=False
    )
    with pytest.raises(RequestError, match="uniqueItems"):
        compiler_for().compile(grammar)


TAG = {"structures": [{"begin": "<f>", "schema": {"const": [1]}, "end": "</f>"}], "triggers": ["<f"]}
FLAG = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
FORMS: dict[GrammarKind, tuple[str, Callable[[str], object]]] = {
    "regex": ("[a-c]{2,4}/x", re.compile("[a-c]{2,4}/x").fullmatch),
    "choice": (json.dumps(["yes", "no", "no way"]), ["yes", "no", "no way"].__contains__),
    "lark": ('start: before "!" reasoning\nbefore: /[a-z]{1,3}/\nreasoning: "a"', re.compile("[a-z]{1,3}!a").fullmatch),
    "structural_tag": (json.dumps(TAG), lambda text: "<f" not in text.replace("<f>[1]</f>", "")),
    "json_schema": (json.dumps(FLAG), lambda text: isinstance(json.loads(text)["a"], bool)),
}
"""Each kind of form: a value, and what its texts have to be. One has names of rules that are ours too."""


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("family", [name for name, each in REASONING_FAMILIES.items() if not each.channels])
@pytest.mark.parametrize("begun", [True, False])
def test_a_form_of_the_content_stands_behind_free_reasoning(kind: GrammarKind, family: str, begun: bool) -> None:
    dialect = dialect_of("hermes", family)
    assert dialect.reasoning is not None
    value, fits = FORMS[kind]
    for special in ((), (dialect.reasoning.open, dialect.reasoning.close)):
        grammar = form_of_content(
            dialect,
            Grammar(kind=kind, value=value),
            special_of(tokenizer_with(*special)),
            prompt_end=dialect.reasoning.open if begun else "",
            reasons=begun,
        )
        for seed in range(3):
            text = drawn(grammar, seed, *special, ends=(dialect.reasoning.close,))
            if begun:
                assert dialect.reasoning.close in text
            reader = dialect.reader({}, reasons=begun)
            content = "".join(
                event.text for event in reader.push(text) + reader.finish() if isinstance(event, ContentDelta)
            )
            assert fits(content), (text, content)
        # Whatever is thought, the form stands behind it.
        spoken = ("" if begun else dialect.reasoning.open) + 'Hm { "'
        matcher = compiler_for(*special).compile(grammar).matcher()
        tokens = array("i", tokenizer_with(*special).encode(spoken + dialect.reasoning.close + "\n\n"))
        matcher.follow(tokens, 0)
        assert (matcher.failure, matcher.ended) == (None, False)


def test_a_form_is_the_whole_answer_where_nothing_is_reasoned() -> None:
    form = Grammar(kind="regex", value="a")
    assert form_of_content(dialect_of("hermes"), form, {}, prompt_end="", reasons=False) is form
    ended = "<think>\n\n</think>\n\n"
    assert form_of_content(dialect_of("hermes", "think"), form, {}, prompt_end=ended, reasons=False) is form
    # A message that is gone on with, and whose reasoning was left open.
    open_again = form_of_content(dialect_of("hermes", "think"), form, {}, prompt_end=ended + "so", reasons=True)
    matcher = compiler_for().compile(open_again).matcher()
    matcher.follow(array("i", list(b"Hm.</think>a")), 0)
    assert matcher.ended


def test_harmony_puts_a_form_into_its_final_channel() -> None:
    special = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")
    tokenizer = tokenizer_with(*special)
    dialect = dialect_of("harmony", "harmony")
    form = Grammar(kind="choice", value='["yes", "no"]')
    grammar = form_of_content(dialect, form, special_of(tokenizer), prompt_end="", reasons=False)
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>yes"
    matcher = compiler_for(*special).compile(grammar).matcher()
    matcher.follow(array("i", tokenizer.encode(said)), 0)
    assert matcher.ended
    assert read(dialect, said)[:2] == ("Hm.", "yes")
