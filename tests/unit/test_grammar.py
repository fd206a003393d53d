"""The form that a request demands, as plain data: bounded, and carried to the engine unchanged."""

from __future__ import annotations

import msgspec
import pytest

from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar
from drivetrain.grammar.grammar import MAX_GRAMMAR_CHARS
from drivetrain.messages import GenerateRequest
from drivetrain.sampling import SamplingParams


def test_it_travels_to_the_engine_unchanged():
    asked = Grammar(kind="json_schema", value='{"type": "integer"}')
    request = GenerateRequest(request_id="a", prompt_ids=[1], params=SamplingParams(grammar=asked))
    packed = msgspec.msgpack.encode(request)
    assert msgspec.msgpack.decode(packed, type=GenerateRequest) == request


def test_unknown_kind_is_refused_by_name():
    with pytest.raises(RequestError, match=r"^grammar: its kind is one of json_schema, .*; got 'xml'") as caught:
        Grammar(kind="xml")
    assert caught.value.param == "grammar"


def test_longest_value_is_taken_and_one_character_more_is_not():
    Grammar(kind="regex", value="a" * MAX_GRAMMAR_CHARS)
    with pytest.raises(RequestError, match=f"at most {MAX_GRAMMAR_CHARS} characters"):
        Grammar(kind="regex", value="a" * (MAX_GRAMMAR_CHARS + 1))
