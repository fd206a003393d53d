"""A model's tokens as llguidance takes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from drivetrain.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_LONGEST_FORCED = 256
"""Bytes of forced text that are tokenized at once; the rest follows when these tokens are chosen."""


class _Tokens:
    """What `LLTokenizer` reads of a tokenizer: bytes of every token, and how text that is forced is cut into tokens."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        self.eos_token_id = eos_id
        self.bos_token_id: int | None = None
        self.tokens = [tokenizer.pieces[token_id] for token_id in range(vocab_size)]
        self.special_token_ids = sorted(token_id for token_id in tokenizer.special_ids if token_id < vocab_size)
        self._tokenizer = tokenizer
        self._longest = max(map(len, self.tokens))
        self._special = frozenset(self.special_token_ids)
        self._ids: dict[bytes, int] = {}
        for token_id, piece in enumerate(self.tokens):
            if token_id not in self._special:
                self._ids.setdefault(piece, token_id)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of forced text, or of its beginning if it is long.

        The encoder's own choice where that spells the text, byte for byte and without special tokens; else the longest
        tokens that do.
        """
        wanted = text.encode() if isinstance(text, str) else bytes(text)
        if len(wanted) > _LONGEST_FORCED:
            wanted = wanted[:_LONGEST_FORCED].decode("utf-8", "ignore").encode() or wanted[:_LONGEST_FORCED]
        try:
            ids = self._tokenizer.encode(wanted.decode(), add_special_tokens=False)
        except UnicodeDecodeError:
            return self._longest_first(wanted)
        spelt = self._special.isdisjoint(ids) and all(token_id < len(self.tokens) for token_id in ids)
        if spelt and b"".join([self.tokens[token_id] for token_id in ids]) == wanted:
            return ids
        return self._longest_first(wanted)

    def _longest_first(self, text: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                token_id = self._ids.get(text[at:end])
                if token_id is not None:
                    ids.append(token_id)
                    at = end
                    break
            else:
                break  # no token spells this byte; the grammar cannot be followed past here
        return ids


def open_vocabulary(tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> LLTokenizer:
    """The vocabulary that grammars are compiled for. Takes some tenths of a second.

    Args:
        vocab_size: tokens of the model; what the tokenizer knows beyond them is never allowed.
        end_ids: tokens that a grammar allows once it is satisfied. Without any, answers end where nothing can follow.
    """
    from llguidance import LLTokenizer

    ends = sorted(end_id for end_id in end_ids if end_id < vocab_size)
    # The library wants an end token: one that no mask of the model has a bit for.
    tokens = _Tokens(tokenizer, vocab_size + (not ends), ends[0] if ends else vocab_size)
    return LLTokenizer(tokens, n_vocab=len(tokens.tokens), eos_token=ends or vocab_size)  # pyright: ignore[reportArgumentType]
