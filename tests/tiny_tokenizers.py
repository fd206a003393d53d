"""Small tokenizers made on the spot, so that text is tested without any model."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 1234567890 times, isn't it? They've said: “no”!",
    "def fibonacci(n):\n    if n <= 1:\n\treturn n\n    return fibonacci(n - 1) + fibonacci(n - 2)  # recursion\r\n",
    "Café, naïve, señor, Ångström, Žluťoučký kůň; 日本語のテキスト и немного русского, 🎉👩‍👩‍👧 emoji.",
    "In 1984 there were 12345 pages; 3.14159 is not 2.71828.   Three   spaces.\n\n\nNew paragraph.",
] * 4
SAMPLES = [
    "Hello world",
    " leading and trailing ",
    "Numbers 1234567 and 3.14, 2024-01-01",
    "isn't they've I'LL",
    "café cafe\u0301 Å A\u030a ñ",
    "def f(x):\n\treturn x ** 2  # ok\r\n\r\n    pass",
    "日本語テキスト, русский, عربى، हिन्दी",
    "🎉👩‍👩‍👧 \U0001f1e9\U0001f1ea",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|im_end|>b <|im_start|> c",
    "   \n\n \t x",
    "",
]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@functools.cache
def byte_level_json() -> str:
    """tokenizer.json of a small byte-level BPE with a begin token that its post-processor does not add."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return backend.to_str()


def write_byte_level_folder(folder: Path, **config: Any) -> Path:
    """A model folder with the byte-level tokenizer; `config` goes into tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(byte_level_json(), encoding="utf-8")
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    return folder


@functools.cache
def sentencepiece_bytes(algorithm: str, **options: Any) -> bytes:
    """A trained tokenizer.model, by SentencePiece's own trainer: `algorithm` is bpe or unigram."""
    import sentencepiece

    model = io.BytesIO()
    arguments = {
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 1,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type=algorithm, **arguments
    )
    return model.getvalue()


def normalizing_tokenizer() -> tokenizers.Tokenizer:
    """A backend whose decoder is of a kind that is not served."""
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.normalizer = normalizers.Lowercase()
    backend.decoder = decoders.CTC()
    return backend
