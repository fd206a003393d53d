"""Where in an answer's text tokens begin that are markers.

A marker that the tokenizer knows as one token is a marker only as that token: the same text, spelt in ordinary tokens,
is text, such as a model writes that is asked about markers.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Mapping, Sequence


class MarkPlaces:
    """Follows the tokens of one answer. The prompt must end with a whole character.

    Args:
        token_ids: tokens that markers begin with.
        pieces: what each token adds to the text.
    """

    __slots__ = ("_decoder", "_num_chars", "_pieces", "_token_ids")

    def __init__(self, token_ids: frozenset[int], pieces: Mapping[int, bytes]) -> None:
        self._token_ids = token_ids
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def follow(self, token_ids: Sequence[int]) -> list[int]:
        """Take the next tokens in. Returns where markers may begin among them, in characters of the answer's text."""
        if self._token_ids.isdisjoint(token_ids):
            self._num_chars += len(self._decoder.decode(b"".join([self._pieces[id] for id in token_ids])))
            return []
        places: list[int] = []
        for token_id in token_ids:
            piece = self._pieces[token_id]
            self._num_chars += len(self._decoder.decode(piece))
            if token_id in self._token_ids:
                places.append(self._num_chars - len(piece.decode()))
        return places


def token_marks(marks: Iterable[str], added: Mapping[str, int]) -> dict[str, int]:
    """Markers that consist of added tokens alone, with the token that each begins with.

    Args:
        added: added tokens by their text.
    """
    by_length = sorted(filter(str.strip, added), key=len, reverse=True)
    first = ((mark, _first_token(mark, by_length)) for mark in marks)
    return {mark: added[text] for mark, text in first if text is not None}


def _first_token(mark: str, texts: Collection[str]) -> str | None:
    for text in texts:
        if mark.startswith(text):
            rest = mark[len(text) :].lstrip()
            if not rest or _first_token(rest, texts) is not None:
                return text
    return None
