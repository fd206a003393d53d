from __future__ import annotations

from collections.abc import Iterator

import pytest

from drivetrain.completion_text import CompletionText, TextDelta
from drivetrain.messages import FinishReasonName, TokenLogprob, Update
from drivetrain.sampling import SamplingParams
from fakes.text import BEGIN, END, byte_tokenizer


def _update(ids: list[int], reason: FinishReasonName | None = None, *, logprobs: bool = False) -> Update:
    entries = [TokenLogprob(token_id=i, logprob=-1.0, rank=1, top=[]) for i in ids] if logprobs else None
    stop = ids[-1] if reason == "stop" else None
    return Update(request_id="r", token_ids=ids, finish_reason=reason, stop_token_id=stop, logprobs=entries)


def _text(params: SamplingParams, prompt: bytes = b"p") -> CompletionText:
    return CompletionText(0, params, byte_tokenizer(), list(prompt))


def _deltas(text: CompletionText, ids: list[int], size: int) -> Iterator[TextDelta]:
    for at in range(0, len(ids), size):
        delta = text.push(_update(ids[at : at + size], "stop" if at + size >= len(ids) else None))
        yield delta
        if delta.finish_reason is not None:
            return


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("params", "expected", "num_tokens", "reason"),
    [
        (SamplingParams(), "héllo 👩‍🚀 END x", 25, None),
        (SamplingParams(stop=("END",)), "héllo 👩‍🚀 ", 22, "END"),
        (SamplingParams(stop=("END",), include_stop_str_in_output=True), "héllo 👩‍🚀 END", 22, "END"),
        (SamplingParams(stop=("o", "END"), min_tokens=6), "héllo 👩‍🚀 ", 22, "END"),
        (SamplingParams(stop=("l",), min_tokens=2), "hé", 4, "l"),
        (SamplingParams(stop=("absent",), min_tokens=9), "héllo 👩‍🚀 END x", 25, None),
        (
            SamplingParams(skip_special_tokens=False, include_stop_str_in_output=True),
            "héllo 👩‍🚀 END x<|end|>",
            25,
            None,
        ),
        (SamplingParams(stop_token_ids=(END,)), "héllo 👩‍🚀 END x", 25, END),
    ],
)
def test_text_does_not_depend_on_how_tokens_are_grouped(
    size: int, params: SamplingParams, expected: str, num_tokens: int, reason: int | str | None
) -> None:
    ids = [*"héllo 👩‍🚀 END x".encode(), END]
    text = _text(params)
    deltas = list(_deltas(text, ids, size))
    assert "".join(delta.text for delta in deltas) == expected
    assert [token for delta in deltas for token in delta.token_ids] == ids[:num_tokens]
    assert (text.num_tokens, text.finish_reason, text.stop_reason) == (num_tokens, "stop", reason)


def test_length_end_gives_what_was_held_back() -> None:
    text = _text(SamplingParams(stop=("END",)))
    assert text.push(_update(list(b"ab EN"))).text == "ab "
    assert text.push(_update([0xC3], "length")).text == "EN\ufffd"


def test_character_cut_by_the_end_of_the_prompt_is_put_together() -> None:
    first, second = "é".encode()
    assert _text(SamplingParams(), bytes([first])).push(_update([second, 33])).text == "é!"


def test_starts_count_characters_however_text_is_held_back() -> None:
    text = _text(SamplingParams(stop=("\n\nX",), logprobs=0))
    first = text.push(_update(list("aé\n".encode()), logprobs=True))
    second = text.push(_update([BEGIN, *b"\nb"], "length", logprobs=True))
    assert (first.text, first.token_starts) == ("aé", [0, 1, 2, 2])
    assert (second.text, second.token_starts) == ("\n\nb", [3, 3, 4])


def test_without_detokenizing_there_are_ids_only() -> None:
    delta = _text(SamplingParams(detokenize=False)).push(_update([97, END], "stop"))
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", [97, END], "stop")


def test_logprobs_end_where_the_tokens_end() -> None:
    text = _text(SamplingParams(stop=("b",), logprobs=0))
    delta = text.push(_update(list(b"abcd"), logprobs=True))
    assert delta.logprobs is not None
    assert [entry.token_id for entry in delta.logprobs] == delta.token_ids == [97, 98]


def test_joined_deltas_keep_everything() -> None:
    text = _text(SamplingParams(logprobs=0))
    first = text.push(_update([97], logprobs=True))
    joined = first.followed_by(text.push(_update([98, END], "stop", logprobs=True)))
    assert (joined.text, joined.token_ids, joined.token_starts) == ("ab", [97, 98, END], [0, 1, 2])
    assert joined.logprobs is not None and len(joined.logprobs) == 3
    assert joined.finish_reason == "stop"


def test_update_after_the_end_is_a_mistake_of_ours() -> None:
    text = _text(SamplingParams())
    text.push(_update([END], "stop"))
    with pytest.raises(AssertionError, match="after the end"):
        text.push(_update([97]))
