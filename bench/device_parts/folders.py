"""Model folders for random weights: a configuration, and a tokenizer that stands in for the model's own."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path
from typing import Any

from device_parts.settings import Settings, model_config

BEGIN, END = "<|begin|>", "<|end|>"


def dummy_folder(settings: Settings, name: str) -> Path:
    """A folder with everything but weights that `load_format="dummy"` needs; made once."""
    folder = settings.folder("models") / name
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = model_config(name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_tokenizer(folder, config["vocab_size"])
    return folder


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer of exactly `vocab_size` tokens, so that text costs what it costs with a real one.

    After 256 bytes come pairs and then triples of printable characters, each with its merge: every id is a text, so a
    stream of random ids has an event for every token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = string.ascii_letters + string.digits + string.punctuation
    pairs = [(first, second) for first, second in itertools.product(letters, repeat=2)]
    triples = ((first + second, third) for first, second in pairs for third in letters)
    merges: list[tuple[str, str]] = []
    for left, right in itertools.chain(pairs, triples):
        if len(vocab) == vocab_size - 2:
            break
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    encoder = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    encoder.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    encoder.add_special_tokens([BEGIN, END])
    assert encoder.get_vocab_size() == vocab_size, (encoder.get_vocab_size(), vocab_size)
    encoder.save(str(folder / "tokenizer.json"))
    described: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
