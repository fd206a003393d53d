"""Compiling: what is kept, what is refused and why, and what one answer may not do to another."""

from __future__ import annotations

import json
import threading
from array import array

import numpy as np
import pytest

from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar, GrammarKind, compiler
from drivetrain.grammar.compiler import GrammarCompiler
from drivetrain.grammar.matcher import GrammarMatcher
from fakes.tiny_grammars import end_id, tiny_grammars, tiny_tokenizer


def allowed(matcher: GrammarMatcher) -> list[str]:
    """Texts of the tokens that may come next, the end as nothing."""
    if matcher.mask_W is None:
        return []
    ids = np.flatnonzero(np.unpackbits(matcher.mask_W.view(np.uint8), bitorder="little")[: tiny_tokenizer().vocab_size])
    return sorted("" if token == end_id() else tiny_tokenizer().token_text(int(token)) for token in ids)


def ids_of(text: str) -> array[int]:
    return array("i", tiny_tokenizer().encode(text, add_special_tokens=False))


def test_a_grammar_is_compiled_once_and_a_refusal_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(grammar: Grammar) -> str:
        made.append(grammar.value)
        return source_of(grammar)

    source_of = compiler.source_of
    monkeypatch.setattr(compiler, "source_of", counted)
    grammars = tiny_grammars()
    good, bad = Grammar(kind="regex", value="a+"), Grammar(kind="regex", value="(a")
    assert not grammars.has(good)
    first = grammars.compile(good)
    assert grammars.has(good) and grammars.compile(Grammar(kind="regex", value="a+")) is first
    for _ in range(2):
        with pytest.raises(RequestError, match="unclosed group"):
            grammars.compile(bad)
    assert made == ["a+", "(a"]


def test_threads_that_ask_at_once_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars, found = tiny_grammars(), []
    threads = [
        threading.Thread(target=lambda: found.append(grammars.compile(Grammar(kind="regex", value="[a-z]{3}"))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_MAX_KEPT", 2)
    grammars = tiny_grammars()
    asked = [Grammar(kind="regex", value="a" * count) for count in (1, 2, 3)]
    for each in asked:
        grammars.compile(each)
    assert [grammars.has(each) for each in asked] == [False, True, True]


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("json_schema", "{", "JSON cannot be read"),
        ("json_schema", "[" * 100_000, "nested too deeply"),
        ("json_schema", "NaN", "NaN is no number"),
        ("json_schema", "false", "is an object"),
        ("json_schema", '{"type": "nothing"}', "Invalid type"),
        ("json_schema", '{"type": "string", "minLength": 3, "maxLength": 2}', "Unsatisfiable"),
        ("json_schema", '{"$ref": "http://example.com/x"}', "does not fetch"),
        ("json_schema", '{"x-guidance": {}}', "x-guidance"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"[^\s\S]", "no text matches it"),
        ("choice", '"a"', "list of strings"),
        ("choice", '["a", 1]', "list of strings"),
        ("choice", json.dumps(["a"] * 5000), "at most 4096"),
        ("choice", '["\\ud800"]', "surrogate"),
        ("lark", 'start: "a', "grammar:"),
        ("lark", '{"grammars": []}', "begins with a bracket"),
        ("lark", 'start: a\na: "x" a', "Too many items"),
        ("structural_tag", '{"format": {}}', "not supported"),
        ("structural_tag", '{"triggers": ["<"], "structures": [{"begin": "[", "end": ""}]}', "none of the triggers"),
    ],
)
def test_refusals_say_why(kind: GrammarKind, value: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        tiny_grammars().compile(Grammar(kind=kind, value=value))
    assert str(caught.value).startswith("grammar: ") and words in str(caught.value)
    assert caught.value.param == "grammar"


def test_choices_are_taken_letter_by_letter() -> None:
    texts = ["a.b", "(c|d)*", 'quo"te\n', "é/\\", "$^"]
    grammars = tiny_grammars()
    for text in texts:
        matcher = grammars.compile(Grammar(kind="choice", value=json.dumps(texts))).matcher()
        matcher.follow(ids_of(text), 0)
        assert matcher.failure is None and (matcher.ended or "" in allowed(matcher)), text
    matcher = grammars.compile(Grammar(kind="choice", value=json.dumps(texts))).matcher()
    matcher.follow(ids_of("axb"), 0)
    assert matcher.failure is not None


def test_a_token_that_is_void_is_taken_back() -> None:
    matcher = tiny_grammars().compile(Grammar(kind="regex", value="1(2|3)4")).matcher()
    one, two, three = (ids_of(sign)[0] for sign in "123")
    tokens = array("i", [9, one])
    matcher.follow(tokens, 1, ahead=two)
    assert allowed(matcher) == ["4"]
    matcher.follow(tokens, 1)
    assert allowed(matcher) == ["2", "3"]
    tokens.append(three)
    matcher.follow(tokens, 1)
    assert allowed(matcher) == ["4"]
    assert not matcher.ended


def test_an_answer_that_fills_the_shared_tables_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers to one grammar share the library's automaton, and the limit on its states."""
    monkeypatch.setitem(compiler._LIMITS, "max_lexer_states", 400)
    compiled = tiny_grammars().compile(Grammar(kind="regex", value=".*a.{200}b"))
    rng = np.random.default_rng(1)
    letters = [ids_of(sign)[0] for sign in "abcdef1234567890"]
    greedy = compiled.matcher()
    tokens = array("i")
    while greedy.failure is None and len(tokens) < 2000:
        tokens.append(int(rng.choice(letters)))
        greedy.follow(tokens, 0)
        allowed(greedy)
    assert greedy.failure is not None and "too many states" in greedy.failure
    other = compiled.matcher()
    other.follow(ids_of("hello"), 0)
    assert "a" in allowed(other) and other.failure is None


def test_special_tokens_are_no_text() -> None:
    """A form that spells one takes it letter by letter, so that a client cannot make the model end its turn."""
    matcher = tiny_grammars().compile(Grammar(kind="regex", value=r"<\|im_end\|>")).matcher()
    next_texts = allowed(matcher)
    assert next_texts and "<|im_end|>" not in next_texts and "" not in next_texts


def test_without_end_tokens_an_answer_ends_where_nothing_can_follow() -> None:
    from drivetrain.grammar.vocabulary import open_vocabulary

    tokenizer = tiny_tokenizer()
    grammars = GrammarCompiler(lambda: open_vocabulary(tokenizer, tokenizer.vocab_size, ()))
    matcher = grammars.compile(Grammar(kind="regex", value="[0-9]{3}")).matcher()
    matcher.follow(ids_of("123"), 0)
    assert matcher.ended


def test_padding_of_the_vocabulary_is_never_allowed() -> None:
    size = tiny_tokenizer().vocab_size
    padded = size + 100
    matcher = tiny_grammars(padded).compile(Grammar(kind="regex", value="(.|\n)*")).matcher()
    assert matcher.mask_W is not None and matcher.mask_W.shape == (-(-padded // 32),)
    bits = np.unpackbits(matcher.mask_W.view(np.uint8), bitorder="little")
    assert bits[:size].sum() > size / 2 and not bits[size:].any()
