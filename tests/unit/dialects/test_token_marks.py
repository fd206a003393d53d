"""A marker that the tokenizer has as a token is one only as that token; the same text in ordinary tokens is text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.completion_text import CompletionText
from drivetrain.conversation import Chat, Reply, ToolUse, reply_to
from drivetrain.dialects.choose import choose_dialect
from drivetrain.dialects.forms import Tool
from drivetrain.dialects.harmony import HARMONY_MARKERS
from drivetrain.dialects.mark_places import MarkPlaces, token_marks
from drivetrain.dialects.turn import Message, gathered
from drivetrain.frontend import Frontend
from drivetrain.grammar import Grammar
from drivetrain.messages import Update
from drivetrain.sampling import SamplingParams
from drivetrain.tokenizer import Tokenizer
from fakes.dialects import QWEN3, frontends_with
from fakes.engine import INFO
from fakes.text import byte_tokenizer

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
CALL = '{"name": "now", "arguments": {}}'
SPELT = f"<tool_call>{CALL}</tool_call>"
USE = ToolUse(tools={"now": Tool(name="now")})


class Ready:
    info = INFO


def frontend(*added: str, template: str = QWEN3, **parsers: str) -> Frontend:
    return frontends_with(template, *added, **parsers)(Ready())  # type: ignore[arg-type]


def ids(tokenizer: Tokenizer, *parts: str) -> list[int]:
    """Ids of texts as bytes; what begins with `@` is a token."""
    marks = {text: id for id, text in tokenizer.added_tokens.items()}
    return [*itertools.chain.from_iterable([marks[part[1:]]] if part[:1] == "@" else part.encode() for part in parts)]


def answer(front: Frontend, reply: Reply, token_ids: Sequence[int], size: int) -> Message:
    """The answer as it is read from updates of so many tokens."""
    text = CompletionText(0, SamplingParams(), front.tokenizer, reply.prompt_ids, shown=reply.turns.shown)
    events = []
    for at in range(0, len(token_ids), size):
        last = at + size >= len(token_ids)
        update = Update(
            request_id="r", index=0, token_ids=[*token_ids[at : at + size]], finish_reason="stop" if last else None
        )
        events += reply.turns.push(0, text.push(update))
    return gathered(events)


def said(front: Frontend, *parts: str, use: ToolUse = USE, size: int = 1, form: Grammar | None = None) -> Message:
    chat = Chat(messages=[{"role": "user", "content": "Hi"}], tools=use.offers)
    reply = reply_to(front, front.encode_chat(chat), chat, use, form=form)
    return answer(front, reply, ids(front.tokenizer, *parts), size)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_only_the_token_opens_a_call(size: int) -> None:
    front = frontend(*MARKS)
    message = said(front, f"Write {SPELT} so: é", "@<tool_call>", CALL, "@</tool_call>", size=size)
    assert message.content == f"Write {SPELT} so: é"
    assert [(call.name, call.arguments) for call in message.tool_calls] == [("now", "{}")]
    assert said(front, SPELT, size=size).tool_calls == []
    assert said(front, SPELT, size=size).content == SPELT


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_only_the_tokens_enclose_reasoning(size: int) -> None:
    front = frontend(*MARKS)
    message = said(front, "@<think>", "It ends with </think>, no?", "@</think>", "The tag is </think>.", size=size)
    assert (message.reasoning, message.content) == ("It ends with </think>, no?", "The tag is </think>.")
    message = said(front, "<think> begins it, and <tool", "@<tool_call>", CALL, "@</tool_call>", size=size)
    assert (message.reasoning, message.content) == (None, "<think> begins it, and <tool")
    assert len(message.tool_calls) == 1


def test_where_the_tokenizer_has_no_such_token_text_counts() -> None:
    message = said(frontend(), f"<think>Hm.</think>{SPELT}")
    assert (message.reasoning, message.content, len(message.tool_calls)) == ("Hm.", "", 1)
    assert said(frontend("<think>"), SPELT).tool_calls[0].name == "now"


def test_what_a_grammar_demands_may_be_spelt() -> None:
    front = frontend(*MARKS)
    assert len(said(front, SPELT, use=ToolUse(tools=USE.tools, required=True)).tool_calls) == 1
    strict = ToolUse(tools={"now": Tool(name="now", strict=True)})
    assert len(said(front, SPELT, use=strict).tool_calls) == 1
    form = said(front, "<think>Hm.</think>[]", use=ToolUse(), form=Grammar(kind="json_schema", value="{}"))
    assert (form.reasoning, form.content) == ("Hm.", "[]")


def test_a_model_that_is_told_of_calls_in_words_may_spell_them() -> None:
    front = frontend(*MARKS, template="{% for m in messages %}{{ m.content }}{% endfor %}", tool_parser="hermes")
    chat = Chat(messages=[{"role": "user", "content": "Hi"}])
    reply = reply_to(front, front.encode_chat(chat), chat, USE)
    assert len(answer(front, reply, ids(front.tokenizer, SPELT), 1).tool_calls) == 1


def test_an_answer_of_one_call_ends_with_the_token_not_with_the_text() -> None:
    front = frontend(*MARKS)
    chat = Chat(messages=[{"role": "user", "content": "Hi"}], tools=USE.offers)
    reply = reply_to(front, front.encode_chat(chat), chat, ToolUse(tools=USE.tools, parallel=False))
    watch = reply.turns.watch()
    assert watch is not None
    assert not watch(SPELT, ids(front.tokenizer, SPELT))
    assert watch(SPELT, ids(front.tokenizer, "@<tool_call>", CALL, "@</tool_call>"))


def test_channels_are_told_by_tokens_too() -> None:
    front = frontend(*HARMONY_MARKERS, template="<|channel|><|message|>{{ messages[0].content }}{{ tools }}")
    message = said(
        front,
        *("@<|channel|>", "analysis", "@<|message|>", "Say <|end|><|channel|>.", "@<|end|>", "@<|start|>", "assistant"),
        *("@<|channel|>", "final", "@<|message|>", "It is <|end|>", "@<|end|>"),
    )
    assert (message.reasoning, message.content) == ("Say <|end|><|channel|>.", "It is <|end|>")


@given(parts=st.lists(st.one_of(st.binary(max_size=4), st.sampled_from(["é", "<tool_call>", "@<tool_call>", "😀"]))))
@settings(max_examples=200, deadline=None)
def test_places_are_those_of_the_text(parts: list[str | bytes]) -> None:
    """Whatever else the tokens make, broken characters too."""
    tokenizer = byte_tokenizer(*MARKS)
    mark = tokenizer.token_id("<tool_call>")
    assert mark is not None
    token_ids: list[int] = []
    for part in parts:
        token_ids += part if isinstance(part, bytes) else ids(tokenizer, part)
    expected = [
        len(tokenizer.decode(token_ids[:at], skip_special_tokens=False))
        for at, token_id in enumerate(token_ids)
        if token_id == mark
    ]
    for size in (1, 3, 1000):
        places = MarkPlaces(frozenset({mark}), tokenizer.pieces)
        found = [place for at in range(0, len(token_ids), size) for place in places.follow(token_ids[at : at + size])]
        assert found == expected
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    assert all(text.startswith("<tool_call>", place) for place in expected)


def test_marks_of_several_tokens_begin_with_the_first() -> None:
    added = {"<|action_start|>": 5, "<|plugin|>": 6, "```": 7, "<": 8}
    marks = ["<|action_start|><|plugin|>", "<|action_start|> <|plugin|>", "```json", "<think>"]
    assert token_marks(marks, added) == {marks[0]: 5, marks[1]: 5}
    assert choose_dialect(["<tool_call>"], {}, {"<tool_call>": 3}).token_marks == {"<tool_call>": 3}
