"""Grammars over the small byte-level tokenizer, for engines with random weights."""

from __future__ import annotations

import functools

import tokenizers

from drivetrain.grammar.compiler import GrammarCompiler
from drivetrain.grammar.vocabulary import open_vocabulary
from drivetrain.tokenizer import Tokenizer
from drivetrain.tokenizer.tokenizer import TokenizerParts
from tiny_tokenizers import byte_level_json


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """The tokenizer itself."""
    return Tokenizer(tokenizers.Tokenizer.from_str(byte_level_json()), TokenizerParts(where="tiny"))


@functools.cache
def end_id() -> int:
    """The token that ends an answer."""
    found = tiny_tokenizer().token_id("<|im_end|>")
    assert found is not None
    return found


def tiny_grammars(vocab_size: int | None = None) -> GrammarCompiler:
    """A compiler for a model with this vocabulary, which may be padded."""
    tokenizer = tiny_tokenizer()
    return GrammarCompiler(lambda: open_vocabulary(tokenizer, vocab_size or tokenizer.vocab_size, [end_id()]))
