"""Incremental decoding: whatever the grouping of tokens, the text is that of decoding them at once."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.detokenizer import Detokenizer, StopAutomaton
from drivetrain.tokenizer import Tokenizer
from tiny_tokenizers import SAMPLES, sentencepiece_bytes, write_byte_level_folder


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "byte_level":
            return Tokenizer.from_folder(write_byte_level_folder(folder))
        (folder / "tokenizer.model").write_bytes(sentencepiece_bytes("bpe"))
        return Tokenizer.from_folder(folder)


KINDS = st.sampled_from(["byte_level", "sentencepiece"])
SETTINGS = settings(max_examples=150, deadline=None)


def chunks(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    borders = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[start:stop] for start, stop in itertools.pairwise(borders)]


def naive_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """End and string of the first stop string to be completed, the longest of those that end together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


@SETTINGS
@given(KINDS, st.data(), st.booleans(), st.lists(st.integers(0, 1000), max_size=8))
def test_any_chunking_gives_the_whole_text(kind: str, data: st.DataObject, skip_special: bool, cuts: list[int]) -> None:
    tok = tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size + 3), max_size=40))
    detokenizer = Detokenizer(tok, pieces=tok.visible_pieces if skip_special else tok.pieces)
    text = "".join(detokenizer.push(chunk).text for chunk in chunks(ids, cuts)) + detokenizer.finish()
    assert text == tok.decode(ids, skip_special)


@SETTINGS
@given(KINDS, st.text(max_size=30))
def test_no_broken_character_appears_while_streaming(kind: str, text: str) -> None:
    text = text.replace("\ufffd", "")
    tok = tokenizer(kind)
    detokenizer = Detokenizer(tok, pieces=tok.pieces)
    deltas = [detokenizer.push([token]).text for token in tok.encode(text, add_special_tokens=False)]
    assert not any("\ufffd" in delta for delta in deltas)
    assert "".join(deltas) == text
    assert detokenizer.finish() == ""


@SETTINGS
@given(
    KINDS,
    st.text(alphabet="abx 日é", max_size=40),
    st.lists(st.text(alphabet="abx 日é", max_size=5), max_size=4),
    st.booleans(),
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_stop_strings_equal_a_naive_search_of_the_final_text(
    kind: str, text: str, stops: list[str], include_stop: bool, cuts: list[int]
) -> None:
    tok = tokenizer(kind)
    ids = tok.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tok, (), stops, include_stop)
    produced, used, stopped = "", 0, None
    for chunk in chunks(ids, cuts):
        delta = detokenizer.push(chunk)
        produced += delta.text
        used += delta.num_tokens_used
        stopped = delta.stopped
    produced += detokenizer.finish()
    expected = naive_stop(text, stops)
    if expected is None:
        assert (produced, stopped, used) == (text, None, len(ids))
        return
    end, stop = expected
    assert stopped == stop
    assert produced == (text[:end] if include_stop else text[: end - len(stop)])
    assert len(tok.decode(ids[:used])) >= end > len(tok.decode(ids[: used - 1]).rstrip("\ufffd"))


@SETTINGS
@given(st.text(alphabet="ab", max_size=60), st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=5))
def test_automaton_holds_back_exactly_the_longest_possible_beginning(text: str, stops: list[str]) -> None:
    automaton = StopAutomaton(stops)
    state, num_read, found = automaton.scan(0, text)
    read = text[:num_read]
    expected = naive_stop(text, stops)
    assert (num_read, found) == ((len(text), None) if expected is None else expected)
    longest = max((n for stop in stops for n in range(len(stop) + 1) if read.endswith(stop[:n])), default=0)
    assert automaton.depth[state] == longest


def test_text_that_cannot_be_a_stop_string_is_not_held() -> None:
    tok = tokenizer("byte_level")
    detokenizer = Detokenizer(tok, stop=["STOP"])
    texts = [detokenizer.push([token]).text for token in tok.encode("abc STO")]
    assert "".join(texts) == "abc "
    assert detokenizer.push(tok.encode("x")).text == "STOx"
    delta = detokenizer.push(tok.encode("STOP and more"))
    assert (delta.text, delta.stopped) == ("", "STOP")
    assert detokenizer.push(tok.encode("more")).num_tokens_used == 0
    assert detokenizer.finish() == ""


def test_held_text_comes_out_at_the_end() -> None:
    tok = tokenizer("byte_level")
    detokenizer = Detokenizer(tok, stop=["END."])
    assert detokenizer.push(tok.encode("the EN")).text == "the "
    assert detokenizer.finish() == "EN"


def test_answer_keeps_the_space_that_follows_its_prompt() -> None:
    tok = tokenizer("sentencepiece")
    prompt, answer = tok.encode("The quick"), tok.encode("brown", add_special_tokens=False)
    assert Detokenizer(tok, prompt).push(answer).text == " brown"
    assert Detokenizer(tok, [tok.bos_id or 0]).push(answer).text == "brown"
    assert Detokenizer(tok).push(answer).text == "brown"


@pytest.mark.parametrize("text", [*SAMPLES, "x🎉"])
def test_prompt_and_answer_join_at_every_token(text: str) -> None:
    tok = tokenizer("byte_level")
    ids = tok.encode(text)
    for cut in range(len(ids)):
        complete = tok.decode(ids[:cut], False).rstrip("\ufffd")
        answer = Detokenizer(tok, ids[:cut], pieces=tok.pieces)
        assert complete + answer.push(ids[cut:]).text + answer.finish() == text


def test_broken_character_at_the_end_becomes_one_replacement() -> None:
    tok = tokenizer("byte_level")
    detokenizer = Detokenizer(tok)
    assert detokenizer.push(tok.encode("𝄞")[:-1]).text == ""
    assert detokenizer.finish() == "\ufffd"


def test_work_for_a_token_does_not_grow_with_the_text() -> None:
    import time

    tok = tokenizer("byte_level")
    ids = tok.encode("abab ") * 4000

    def seconds(num_tokens: int) -> float:
        detokenizer = Detokenizer(tok, stop=["abab abab abab c" * 20])
        start = time.thread_time()
        for token in ids[:num_tokens]:
            detokenizer.push([token])
        return time.thread_time() - start

    seconds(500)
    # Fourfold would be in proportion. A cache that others have emptied may spoil a measurement, not every one.
    assert any(seconds(8000) < 8 * seconds(2000) + 0.02 for _ in range(5))
