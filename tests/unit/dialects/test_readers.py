"""What answers of every family are read as, in one piece and in any others."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.dialects.choose import choose_dialect
from drivetrain.dialects.events import (
    ContentDelta,
    ReasoningDelta,
    Spoken,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from drivetrain.dialects.forms import Tool
from drivetrain.dialects.reasoning_families import REASONING_FAMILIES
from drivetrain.dialects.spelling import written_calls
from drivetrain.dialects.tool_families import TOOL_FAMILIES
from fakes.recorded_answers import NOW, RECORDED, TOOLS, Recorded


def read(
    pieces: Sequence[str],
    tools: str,
    reasoning: str = "none",
    *,
    reasons: bool = False,
    offered: dict[str, Tool] = TOOLS,
    max_calls: int = 1000,
    required: bool = False,
    cut: bool = False,
) -> list[tuple[str, ...]]:
    """Events with neighbours of one kind joined.

    Args:
        required: of the reader.
        cut: the answer came to its limit.
    """
    dialect = choose_dialect((), {}, {}, tool_parser=tools, reasoning_parser=reasoning)
    numbers = itertools.count()
    reader = dialect.reader(
        offered, reasons=reasons, max_calls=max_calls, required=required, make_id=lambda: f"made{next(numbers)}"
    )
    events: list[Spoken] = []
    for piece in pieces:
        events += reader.push(piece)
    events += reader.finish(cut=cut)
    joined: list[tuple[str, ...]] = []
    for event in events:
        match event:
            case ToolCallBegin(index=index, id=id, name=name):
                joined.append(("begin", str(index), id, name))
            case ToolCallEnd(index=index):
                joined.append(("end", str(index)))
            case ReasoningDelta(text=text) | ContentDelta(text=text) | ToolCallArguments(text=text):
                assert text, "an event without text"
                kind = type(event).__name__
                if joined and joined[-1][0] == kind:
                    joined[-1] = (kind, joined[-1][1] + text)
                else:
                    joined.append((kind, text))
    return joined


HOW = st.fixed_dictionaries({"required": st.booleans(), "cut": st.booleans(), "max_calls": st.sampled_from((1, 1000))})


def text_of(events: list[tuple[str, ...]], kind: str) -> str:
    return "".join(event[1] for event in events if event[0] == kind)


def calls_of(events: list[tuple[str, ...]]) -> list[tuple[str, object]]:
    calls: list[tuple[str, object]] = []
    name, written = "", ""
    for event in events:
        if event[0] == "begin":
            name, written = event[3], ""
        elif event[0] == "ToolCallArguments":
            written += event[1]
        elif event[0] == "end":
            calls.append((name, json.loads(written)))
    return calls


def read_one(one: Recorded, pieces: Sequence[str], **how: Any) -> list[tuple[str, ...]]:
    return read(pieces, one.tools, one.reasoning_family, reasons=one.reasons, **how)


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: f"{one.tools}-{one.text[:20]}")
def test_a_recorded_answer_says_what_it_says(one: Recorded) -> None:
    events = read_one(one, [one.text])
    assert text_of(events, "ReasoningDelta") == one.reasoning
    assert text_of(events, "ContentDelta") == one.content
    assert calls_of(events) == one.calls


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: f"{one.tools}-{one.text[:20]}")
def test_single_characters_give_the_same(one: Recorded) -> None:
    assert read_one(one, list(one.text)) == read_one(one, [one.text])


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_pieces_of_any_beginning_give_the_same(data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(RECORDED))
    text = one.text[: data.draw(st.integers(0, len(one.text)), label="length")]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=20), label="cuts"))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    how = data.draw(HOW)
    assert read_one(one, pieces, **how) == read_one(one, [text], **how)


def _pieces_of(family: str) -> list[str]:
    texts = [one.text for one in RECORDED if one.tools == family]
    parts: set[str] = {" ", "\n", "a", '"', "\\", "{", "}", "[", "]", ",", ":", "=", "(", ")", "'", "now", "<", "```"}
    for text in texts:
        parts |= {text[start : start + length] for length in (3, 12, 40) for start in range(0, len(text), length)}
    return sorted(parts)


@pytest.mark.parametrize("family", TOOL_FAMILIES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_mixture_of_fragments_gives_the_same_and_never_fails(family: str, data: st.DataObject) -> None:
    reasoning = data.draw(st.sampled_from(["none", "think", "harmony" if family == "harmony" else "command"]))
    parts = data.draw(st.lists(st.sampled_from(_pieces_of(family)), max_size=40))
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=10)))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    how = data.draw(HOW)
    whole = read([text], family, reasoning, **how)
    assert read(pieces, family, reasoning, **how) == whole
    assert read(list(text), family, reasoning, **how) == whole
    begun = [event for event in whole if event[0] == "begin"]
    assert [event[1] for event in begun] == [event[1] for event in whole if event[0] == "end"]
    assert [event[1] for event in begun] == [str(at) for at in range(len(begun))]


@pytest.mark.parametrize("family", [name for name, each in TOOL_FAMILIES.items() if not each.channels])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_no_call_is_content_without_a_letter_lost(family: str, data: st.DataObject) -> None:
    passed = {mark for form in TOOL_FAMILIES[family].forms for mark in getattr(form, "section", ()) if mark}
    text = "".join(data.draw(st.lists(st.sampled_from(_pieces_of(family)), max_size=30)))
    events = read([text], family)
    if any(event[0] == "begin" for event in events):
        return
    said = text_of(events, "ContentDelta")
    for mark in passed:
        text, said = text.replace(mark, ""), said.replace(mark, "")
    assert said == text


def test_every_family_is_recorded() -> None:
    assert {one.tools for one in RECORDED} == set(TOOL_FAMILIES)
    assert {one.reasoning_family for one in RECORDED} - {"none"} == set(REASONING_FAMILIES)


def test_without_tools_calls_are_text() -> None:
    text = 'A.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
    assert read([text], "hermes", offered={}) == [("ContentDelta", text)]


def test_only_the_first_call_is_told_where_one_is_wanted() -> None:
    text = '<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "get_weather"}</tool_call>'
    assert calls_of(read([text], "hermes", max_calls=1)) == [("now", {})]


@pytest.mark.parametrize("one", [one for one in RECORDED if one.calls], ids=lambda one: f"{one.tools}-{one.text[:20]}")
def test_nothing_behind_the_only_call_is_told(one: Recorded) -> None:
    """Whatever else came with its last character, and however the text was cut."""
    dialect = choose_dialect((), {}, {}, tool_parser=one.tools, reasoning_parser=one.reasoning_family)
    reader = dialect.reader(TOOLS, reasons=one.reasons, max_calls=1)
    ended = 0
    while not reader.complete and ended < len(one.text):
        reader.push(one.text[ended])
        ended += 1
    alone = read_one(one, [one.text[:ended]], max_calls=1)
    assert calls_of(alone) == one.calls[:1] and alone[-1][0] == "end"
    more = " And so on. <think>Hm.</think>" if reader.complete else ""
    for pieces in ([one.text], list(one.text), [one.text + more]):
        assert read_one(one, pieces, max_calls=1) == alone


@pytest.mark.parametrize("one", [one for one in RECORDED if one.calls], ids=lambda one: f"{one.tools}-{one.text[:20]}")
def test_an_answer_that_is_cut_anywhere_shows_no_piece_of_a_call(one: Recorded) -> None:
    forms = TOOL_FAMILIES[one.tools].forms
    marks = [mark for form in forms if not getattr(form, "careful", False) for mark in form.opens] or ["<|message|>"]
    for length in range(len(one.text)):
        events = read_one(one, [one.text[:length]], cut=True)
        content = text_of(events, "ContentDelta")
        if any(event[0] == "begin" for event in events):
            assert one.content.startswith(content), length
        assert not any(mark in content for mark in marks), length
        required = read_one(one, [one.text[:length]], cut=True, required=True)
        assert required == [event for event in events if event[0] != "ContentDelta"]


def test_ordinary_text_that_may_have_become_a_call_stays_when_it_is_cut() -> None:
    for family in ("json", "llama3", "gemma3"):
        for text in ('{"name": "Ad', 'Like so:\n```json\n{"na', "a <"):
            assert text_of(read([text], family, cut=True), "ContentDelta") == text


@pytest.mark.parametrize("family", [name for name, each in TOOL_FAMILIES.items() if not each.channels])
def test_a_required_answer_ends_with_a_call_that_is_made_once_more(family: str) -> None:
    first, second = ("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Paris", "days": 2})
    form = TOOL_FAMILIES[family].forms[0]
    several = written_calls(form, [first, NOW, second, first, ("now", {"a": 1})])
    reader = choose_dialect((), {}, {}, tool_parser=family).reader(TOOLS, reasons=False, required=True)
    ended = 0
    while not reader.complete:
        reader.push(several[ended])
        ended += 1
    assert calls_of(read([several[:ended]], family, required=True)) == [first, NOW, second]
    assert len(several) - len(written_calls(form, [first, ("now", {"a": 1})])) < ended < len(several)
    assert read(list(several), family, required=True) == read([several], family, required=True)
    assert read([several], family, required=True) == read([several[:ended]], family, required=True)
    assert len(calls_of(read([several], family))) == 5


def test_ids_of_the_model_are_kept() -> None:
    kimi = read(["<|tool_call_begin|>functions.now:7<|tool_call_argument_begin|>{}"], "kimi_k2")
    assert kimi[0] == ("begin", "0", "functions.now:7", "now")
    mistral = read(["[TOOL_CALLS]now[CALL_ID]aBc123xYz[ARGS]{}"], "mistral")
    assert mistral[0] == ("begin", "0", "aBc123xYz", "now")


def test_made_ids_look_as_the_family_wants_them() -> None:
    for family, pattern in (("hermes", r"call_[A-Za-z0-9]{24}"), ("mistral_v3", r"[A-Za-z0-9]{9}")):
        dialect = choose_dialect((), {}, {}, tool_parser=family, reasoning_parser="none")
        reader = dialect.reader(TOOLS, reasons=False)
        text = {"hermes": '<tool_call>{"name": "now"}', "mistral_v3": '[TOOL_CALLS][{"name": "now"}]'}[family]
        begin = next(event for event in reader.push(text) if isinstance(event, ToolCallBegin))
        assert re.fullmatch(pattern, begin.id)


def test_broken_arguments_are_passed_on_as_they_are() -> None:
    events = read(['<tool_call>{"name": "now", "arguments": {"a": oops, "b": [1, }</tool_call> x'], "hermes")
    assert text_of(events, "ToolCallArguments") == '{"a": oops, "b": [1, }</tool_call> x'


def test_json_that_is_no_call_is_not_held_back() -> None:
    for family in ("json", "llama3"):
        dialect = choose_dialect((), {}, {}, tool_parser=family)
        reader = dialect.reader(TOOLS, reasons=False)
        assert [event.text for event in reader.push('{"data": [') if isinstance(event, ContentDelta)] == ['{"data": [']


HOSTILE = {
    "hermes": ["<tool_call>", "<tool_call>{", "```json", '```json {"name":"now","arguments":{"a":"b"}}```', '"', "\\"],
    "qwen3_coder": [
        "<tool_call><function=now>",
        "<tool_call><function=now><parameter=a>x</parameter></function>",
        "\n",
    ],
    "llama4": ["[now(a=[[[[", "now(", 'now(a="b"),'],
    "kimi_k2": ["<|tool_call_begin|>", "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}"],
    "harmony": ["<|channel|>", "<|channel|>analysis<|message|>a<|end|>", "<|message|>"],
    "glm45": ["<tool_call>", "<tool_call>now\n<arg_key>"],
}


@pytest.mark.parametrize("family", HOSTILE)
def test_time_grows_with_the_text_and_not_faster(family: str) -> None:
    def seconds(unit: str, length: int) -> float:
        text = unit * (length // len(unit))
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        started = time.process_time()
        read(pieces, family)
        read([text], family)
        return time.process_time() - started

    for unit in HOSTILE[family]:
        # A cache that others have emptied may spoil a measurement, not every one.
        assert any(seconds(unit, 32_000) < 8 * seconds(unit, 8_000) + 0.05 for _ in range(5)), unit


def test_a_harmony_call_without_a_body_has_no_arguments() -> None:
    text = "<|channel|>commentary to=functions.get_time<|message|><|call|>"
    (begin, arguments, end) = read([text], "harmony")
    assert (begin[0], begin[3]) == ("begin", "get_time")
    assert arguments == ("ToolCallArguments", "{}")
    assert end[0] == "end"
