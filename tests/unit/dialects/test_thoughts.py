"""Reasoning is counted by tokens, however text is cut into tokens and tokens come in deltas."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.completion_text import TextDelta
from drivetrain.dialects.choose import Dialect, choose_dialect
from drivetrain.dialects.reasoning_families import REASONING_FAMILIES
from drivetrain.dialects.turn import Turn

FAMILIES = [name for name, family in REASONING_FAMILIES.items() if not family.channels]


def dialect_of(reasoning: str) -> Dialect:
    return choose_dialect((), {}, {}, tool_parser="none", reasoning_parser=reasoning)


def counted(dialect: Dialect, tokens: Sequence[bytes], deltas: Sequence[int], *, reasons: bool = False) -> int:
    """Reasoning tokens of an answer of these tokens, `deltas` of which come at a time, until all came."""
    turn = Turn(dialect.reader({}, reasons=reasons), dict(enumerate(tokens)))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    at = 0
    for size in [*deltas, len(tokens)]:
        text = decoder.decode(b"".join(tokens[at : at + size]))
        turn.push(TextDelta(index=0, text=text, token_ids=[*range(at, min(at + size, len(tokens)))]))
        at += size
    turn.push(TextDelta(index=0, text="", token_ids=[], finish_reason="stop"))
    return turn.num_reasoning_tokens


def cut(text: str, places: Sequence[int]) -> list[bytes]:
    """The bytes of a text in pieces."""
    raw = text.encode()
    ends = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[start:end] for start, end in pairwise(ends)]


def begun_within(tokens: Sequence[bytes], begin: int, end: int) -> int:
    """Tokens before which from `begin` to less than `end` characters began."""
    before = [sum(byte & 0xC0 != 0x80 for token in tokens[:at] for byte in token) for at in range(len(tokens))]
    return sum(begin <= place < end for place in before)


words = st.text(st.sampled_from("ab é漢\n<>/"), max_size=30)
places = st.lists(st.integers(0, 200), max_size=40)
sizes = st.lists(st.integers(1, 9), max_size=30)


@pytest.mark.parametrize("family", FAMILIES)
@given(thought=words, said=words, places=places, sizes=sizes, begun=st.booleans(), ended=st.booleans())
def test_tokens_between_the_markers_count(
    family: str, thought: str, said: str, places: list[int], sizes: list[int], begun: bool, ended: bool
) -> None:
    marks = REASONING_FAMILIES[family]
    opened = "" if begun else marks.open
    text = opened + thought + (marks.close + said if ended else "")
    tokens = cut(text, places)
    expected = begun_within(tokens, len(opened), len(opened) + len(thought))
    assert counted(dialect_of(family), tokens, sizes, reasons=begun) == expected


@given(thought=words, said=words, places=places, sizes=sizes)
def test_every_analysis_of_harmony_counts(thought: str, said: str, places: list[int], sizes: list[int]) -> None:
    before = "<|channel|>analysis<|message|>"
    middle = "<|end|><|start|>assistant<|channel|>commentary<|message|>so<|end|><|start|>assistant" + before
    text = f"{before}{thought}{middle}{said}<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    tokens = cut(text, places)
    second = len(before) + len(thought) + len(middle)
    expected = begun_within(tokens, len(before), len(before) + len(thought))
    expected += begun_within(tokens, second, second + len(said))
    assert counted(dialect_of("harmony"), tokens, sizes) == expected


def test_markers_of_one_token_are_no_reasoning() -> None:
    tokens = [b"<think>", b"Let", b" me", b" see", b".", b"</think>", b"\n\n", b"Yes"]
    assert counted(dialect_of("think"), tokens, [1] * 8) == counted(dialect_of("think"), tokens, []) == 4
    assert counted(dialect_of("think"), tokens[1:], [1] * 7, reasons=True) == 4


def test_tokens_behind_the_text_do_not_count() -> None:
    """An end token has no text, and a stop string is cut off."""
    turn = Turn(dialect_of("think").reader({}, reasons=True), {0: b"hm", 1: b"STOP", 2: b""})
    turn.push(TextDelta(index=0, text="hm", token_ids=[0, 1, 2], finish_reason="stop"))
    assert turn.num_reasoning_tokens == 1


def test_a_count_can_be_asked_for_at_any_time() -> None:
    tokens = [b"<think>", b"Let", b" me", b"</", b"think>", b"Yes"]
    turn = Turn(dialect_of("think").reader({}, reasons=False), dict(enumerate(tokens)))
    told = []
    for at, token in enumerate(tokens):
        turn.push(TextDelta(index=0, text=token.decode(), token_ids=[at]))
        told.append(turn.num_reasoning_tokens)
    assert told == [0, 1, 2, 3, 2, 2]


def test_long_answers_are_counted_in_bounded_memory() -> None:
    pieces = {0: b"word "}
    turn = Turn(dialect_of("think").reader({}, reasons=True), pieces)
    for text, token_ids in (("word " * 1000, [0] * 1000), ("</think>", []), *[("word " * 1000, [0] * 1000)] * 50):
        turn.push(TextDelta(index=0, text=text, token_ids=token_ids))
    assert turn.num_reasoning_tokens == 1000
    assert turn._reader is not None and len(turn._reader.thoughts._starts) <= 2000
