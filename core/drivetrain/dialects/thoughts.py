"""How many tokens of an answer are reasoning: a reader knows where reasoning begins and ends in the text, the table of
pieces where each token does."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from drivetrain.tokenizer.pieces import num_chars


class Thoughts:
    """Counts the tokens that begin within reasoning; the markers around it are no part of it.

    Places are characters from the beginning of the answer's text.
    """

    __slots__ = ("_closed", "_num_chars", "_num_read", "_since", "_starts")

    def __init__(self) -> None:
        self._closed = 0
        """Tokens of reasoning that has ended."""
        self._since: int | None = None
        """Where the reasoning that goes on began."""
        self._num_chars = 0
        """Of all tokens so far."""
        self._num_read = 0
        """Of the text that the reader has read."""
        self._starts = array("Q")
        """Where tokens begin that may still turn out to be reasoning."""

    @property
    def num_tokens(self) -> int:
        """Tokens of reasoning so far; those of an end marker count until it is complete."""
        return self._closed if self._since is None else self._closed + self._between(self._since, self._num_chars)

    def begin(self, place: int) -> None:
        """Reasoning begins here."""
        self._since = place

    def end(self, place: int) -> None:
        """It ended here, before its end marker."""
        assert self._since is not None, "reasoning ended that had not begun"
        self._closed += self._between(self._since, place)
        self._since = None

    def add(self, token_ids: Sequence[int], pieces: Mapping[int, bytes], text: str) -> None:
        """Take tokens in before the reader is told their text.

        Args:
            pieces: what each token adds to the text.
            text: what the reader is told next; some of it may be of earlier tokens, and some of these may come later.
        """
        if self._since is None:
            del self._starts[: bisect_left(self._starts, self._num_read)]
        self._num_read += len(text)
        for token_id in token_ids:
            self._starts.append(self._num_chars)
            self._num_chars += num_chars(pieces[token_id])

    def _between(self, begin: int, end: int) -> int:
        return bisect_left(self._starts, end) - bisect_left(self._starts, begin)
