"""Random schemas: none is refused, and whatever tokens are drawn from the masks, the answer is valid."""

from __future__ import annotations

import json
import random
import re
from array import array
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar
from drivetrain.grammar.compiler import GrammarCompiler
from drivetrain.grammar.vocabulary import open_vocabulary
from drivetrain.tokenizer import Tokenizer, load_tokenizer
from fakes.tiny_grammars import end_id, tiny_grammars, tiny_tokenizer
from random_schemas import FORMATS, SchemaMaker

HTTP = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
MAX_TOKENS = 3000
CHECKER = jsonschema.FormatChecker(formats=("email", "ipv4", "ipv6", "date", "uuid"))
"""Formats that jsonschema judges by the standard without further packages."""


def part(mark: str) -> str:
    """What follows a mark in the page, to the next empty line."""
    return HTTP.split(f"<!-- {mark} -->\n", 1)[1].split("\n\n", 1)[0]


def listed(mark: str) -> set[str]:
    """Names in code of a table's first column, or of a paragraph."""
    text = part(mark)
    rows = [line.split("|")[1] for line in text.splitlines()[2:]] if text.startswith("|") else [text]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


class Chooser:
    """Draws tokens from masks: any that is allowed, and rather such as end something once the answer is long."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end: int) -> None:
        pieces = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self._end = end
        self._spaces = np.array([piece.isspace() for piece in pieces])
        self._closing = np.array([piece in (b'"', b"]", b"}", b"@") for piece in pieces])

    def answer(self, compiler: GrammarCompiler, schema: Any, rng: random.Random) -> list[int] | None:
        """An answer's tokens, None if it did not come to its end."""
        matcher = compiler.compile(Grammar(kind="json_schema", value=json.dumps(schema))).matcher()
        tokens = array("i")
        while not matcher.ended and len(tokens) < MAX_TOKENS:
            assert matcher.mask_W is not None, matcher.failure
            allowed = np.unpackbits(matcher.mask_W.view(np.uint8), bitorder="little")[: len(self._spaces)].astype(bool)
            if allowed[self._end] and rng.random() < 0.5:
                break
            allowed[self._end] = False
            for rather, chance in ((~self._spaces, 0.95), (self._closing, 0.02 if len(tokens) < 60 else 0.9)):
                if (allowed & rather).any() and rng.random() < chance:
                    allowed &= rather
            if not allowed.any():
                break
            tokens.append(int(rng.choice(np.flatnonzero(allowed))))
            matcher.follow(tokens, 0)
            assert matcher.failure is None, matcher.failure
        return tokens.tolist() if len(tokens) < MAX_TOKENS else None


def judge(compiler: GrammarCompiler, tokenizer: Tokenizer, chooser: Chooser, seed: int, count: int) -> set[str]:
    """Answer so many schemas; the keywords that they used."""
    maker, rng = SchemaMaker(seed), random.Random(seed)
    unfinished = 0
    for at in range(count):
        schema = maker.schema()
        tokens = chooser.answer(compiler, schema, rng)
        if tokens is None:
            unfinished += 1
            continue
        text = tokenizer.decode(tokens)
        try:
            validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
            validator(schema, format_checker=CHECKER).validate(json.loads(text))
        except (ValueError, jsonschema.ValidationError) as error:
            pytest.fail(f"schema {at} of seed {seed}: {json.dumps(schema)}\nallowed {text!r}\n{error}")
    assert unfinished <= count / 50
    return maker.used


def test_answers_are_valid_over_a_small_vocabulary() -> None:
    tokenizer = tiny_tokenizer()
    chooser = Chooser(tokenizer, tokenizer.vocab_size, end_id())
    used = judge(tiny_grammars(), tokenizer, chooser, seed=1, count=120)
    assert used == listed("schema keywords"), "the page lists what the test draws"


@pytest.mark.real_model
def test_answers_to_a_thousand_schemas_are_valid_over_the_vocabulary_of_a_real_model(smollm2_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_path)
    size, end = tokenizer.vocab_size, tokenizer.eos_ids[0]
    compiler = GrammarCompiler(lambda: open_vocabulary(tokenizer, size, [end]))
    used = judge(compiler, tokenizer, Chooser(tokenizer, size, end), seed=3, count=1000)
    assert used == listed("schema keywords")


REFUSED: dict[str, Any] = {
    "not": {"type": "null"},
    "if": {"type": "string"},
    "then": {"type": "string"},
    "else": {"type": "string"},
    "contains": {"type": "string"},
    "minContains": 1,
    "maxContains": 2,
    "uniqueItems": True,
    "propertyNames": {"pattern": "^a"},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}},
    "dependencies": {"a": ["b"]},
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "$dynamicRef": "#a",
    "$recursiveRef": "#",
}


def test_formats_are_those_of_the_page() -> None:
    assert set(FORMATS) == listed("schema formats")
    with pytest.raises(RequestError, match="Unknown format: zip"):
        tiny_grammars().compile(Grammar(kind="json_schema", value='{"type": "string", "format": "zip"}'))


@pytest.mark.parametrize("place", ["whole", "in a property", "in items"])
def test_what_is_not_enforced_is_refused_by_name(place: str) -> None:
    assert REFUSED.keys() == listed("schema refused")
    compiler = tiny_grammars()
    for name, value in REFUSED.items():
        schema: Any = {name: value}
        if place == "in a property":
            schema = {"type": "object", "properties": {"a": schema}}
        if place == "in items":
            schema = {"type": "array", "items": {"type": "array", "items": schema}}
        with pytest.raises(RequestError, match=rf'keywords? .*"{re.escape(name)}".* not supported') as caught:
            compiler.compile(Grammar(kind="json_schema", value=json.dumps(schema)))
        assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    "harmless",
    [
        {"uniqueItems": False},
        {"unevaluatedProperties": True},
        {"dependentRequired": {}},
        {"title": "T", "description": "D", "default": 1, "examples": [], "$comment": "c", "x-mine": 1},
    ],
)
def test_what_asks_for_nothing_changes_nothing(harmless: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"uniqueItems": {"const": True} | harmless}, "required": ["uniqueItems"]}
    schema |= {"additionalProperties": False} | harmless
    compiler = tiny_grammars()
    chooser = Chooser(tiny_tokenizer(), tiny_tokenizer().vocab_size, end_id())
    tokens = chooser.answer(compiler, schema, random.Random(1))
    assert tokens is not None and json.loads(tiny_tokenizer().decode(tokens)) == {"uniqueItems": True}
