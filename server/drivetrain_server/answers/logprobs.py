"""Log-probabilities in the three shapes that clients know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drivetrain.messages import TokenLogprob
from drivetrain.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class TokenSpeller:
    """Single tokens as text and bytes, kept once made: there are no more than the vocabulary has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spelled: dict[int, tuple[str, list[int]]] = {}

    def __call__(self, token_id: int) -> tuple[str, list[int]]:
        """(text, bytes). Bytes that are no whole characters read `bytes:\\xf0\\x9f`."""
        spelled = self._spelled.get(token_id)
        if spelled is None:
            raw = self._tokenizer.token_bytes(token_id)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
            spelled = self._spelled[token_id] = (text, list(raw))
        return spelled


def chat_logprobs(entries: Iterable[TokenLogprob], num_top: int, spell: TokenSpeller) -> dict[str, object]:
    """`choices[].logprobs` of chat completions."""
    content = [
        {
            **_spelled(entry.token_id, entry.logprob, spell),
            "top_logprobs": [_spelled(token_id, value, spell) for token_id, value in entry.top[:num_top]],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    starts: Sequence[int],
    num_top: int,
    spell: TokenSpeller,
) -> dict[str, object]:
    """`choices[].logprobs` of completions.

    Args:
        entries: one a token; None for the first token of a prompt, which nothing predicted.
        starts: offset of each token in the text of the choice, in characters.
    """
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token_id, value in (*entry.top[:num_top], (entry.token_id, entry.logprob)):
            top.setdefault(spell(token_id)[0], finite(value))
        tops.append(top)
    return {
        "tokens": [spell(token_id)[0] for token_id in token_ids],
        "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
        "top_logprobs": tops,
        "text_offset": list(starts),
    }


def prompt_logprobs(entries: Iterable[TokenLogprob | None], spell: TokenSpeller) -> list[object]:
    """`prompt_logprobs`: for each token of the prompt the likeliest tokens and itself, by token id."""
    listed: list[object] = []
    for entry in entries:
        if entry is None:
            listed.append(None)
            continue
        ranked = {
            str(token_id): {"logprob": finite(value), "rank": rank, "decoded_token": spell(token_id)[0]}
            for rank, (token_id, value) in enumerate(entry.top, start=1)
        }
        own = {"logprob": finite(entry.logprob), "rank": entry.rank, "decoded_token": spell(entry.token_id)[0]}
        listed.append({str(entry.token_id): own} | ranked)
    return listed


def finite(logprob: float) -> float:
    """A number that JSON can say."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def _spelled(token_id: int, logprob: float, spell: TokenSpeller) -> dict[str, object]:
    text, raw = spell(token_id)
    return {"token": text, "logprob": finite(logprob), "bytes": raw}
