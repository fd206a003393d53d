"""Tokenizers rebuilt from GGUF metadata give the ids of the model's own tokenizer."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType as Kind
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from drivetrain.chat_template import ChatTemplate
from drivetrain.config_files import load_generation_config
from drivetrain.errors import TokenizerError
from drivetrain.tokenizer import Tokenizer, load_tokenizer
from drivetrain.tokenizer.pieces import byte_level_bytes
from drivetrain.tokenizer.pretokenizers import PRE_TOKENIZATIONS, build_normalizer, build_pre_tokenizer
from tiny_gguf import decoder_metadata, write_gguf
from tiny_tokenizers import CORPUS, SAMPLES, byte_level_json, sentencepiece_bytes

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def byte_level_metadata(backend: tokenizers.Tokenizer, **changes: Any) -> dict[str, Any]:
    """What a converter writes for a byte-level tokenizer."""
    state = json.loads(backend.to_str())
    added = backend.get_added_tokens_decoder()
    texts = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    types = [NORMAL if i not in added else CONTROL if added[i].special else USER_DEFINED for i in range(len(texts))]
    return decoder_metadata(
        **{
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            **changes,
        }
    )


def gguf_tokenizer(folder: Path, metadata: dict[str, Any]) -> Tokenizer:
    present = {key: value for key, value in metadata.items() if value is not None}
    return load_tokenizer(
        write_gguf(folder / "m.gguf", "llama", present, {"output_norm.weight": (np.ones(4), Kind.F32)})
    )


def assert_same(ours: Tokenizer, theirs: tokenizers.Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)


def test_byte_level_round_trip_through_a_file(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    ours = gguf_tokenizer(tmp_path, byte_level_metadata(backend))
    assert_same(ours, backend, [*SAMPLES, *CORPUS, "a<tool>b"])
    assert (ours.bos_id, ours.eos_ids, ours.special_ids) == (1, (2, 0), {0, 1, 2})
    assert ours.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert ours.vocab_size == backend.get_vocab_size()


TRAP = "In 1984, 12345 cafés (cafe\u0301) don't cost $3.50!! \r\n\r\n\tWHY?'LL  日本語テキスト…… ﬁx x=-1; ---- "
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def reference_splits(name: str) -> tuple[Any, Any]:
    """Normalizer and pre-tokenizer of a family's own tokenizer."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match name:
        case "qwen2":
            split = pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), "isolated")
            return normalizers.NFC(), pre_tokenizers.Sequence([split, byte_level])
        case "llama-bpe":
            split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated")
            return None, pre_tokenizers.Sequence([split, byte_level])
        case "gpt-2":
            return None, gpt2
        case _:
            return None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "gpt-2", "smollm", "starcoder"])
def test_splits_are_those_of_the_family(tmp_path: Path, name: str) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    normalizer, pre_tokenizer = reference_splits(name)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*CORPUS, TRAP * 4, "1984 12345 " * 4], trainer)
    ours = gguf_tokenizer(tmp_path, byte_level_metadata(backend, **{"tokenizer.ggml.pre": name}))
    assert_same(ours, backend, [*SAMPLES, *CORPUS, TRAP])


def pieces(name: str, text: str) -> list[str]:
    splits = PRE_TOKENIZATIONS[name]
    normalizer = build_normalizer(splits)
    text = normalizer.normalize_str(text) if normalizer else text
    found = build_pre_tokenizer(splits).pre_tokenize_str(text)
    return [text[start:stop] for _, (start, stop) in found]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("smollm", "a 123", ["a", " ", "1", "2", "3"]),
        ("qwen2", "a 123", ["a", " ", "1", "2", "3"]),
        ("llama-bpe", "a 12345", ["a", " ", "123", "45"]),
        ("gpt-2", "a 123", ["a", " 123"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("falcon", "a 12345", ["a", "Ġ".replace("Ġ", " "), "123", "45"]),
        ("deepseek-v3", "日本 1234 x", ["日本", " ", "123", "4", " x"]),
        ("deepseek-coder", "ab, 12", ["ab", ",", " ", "1", "2"]),
        ("command-r", "a 12", ["a", " ", "1", "2"]),
        ("bloom", "a b,c", ["a", " b", ",", "c"]),
    ],
)
def test_pieces_of_numbers_and_words(name: str, text: str, expected: list[str]) -> None:
    assert pieces(name, text) == expected


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZATIONS))
def test_every_split_keeps_the_whole_text(name: str) -> None:
    for text in [TRAP, *SAMPLES]:
        normalizer = build_normalizer(PRE_TOKENIZATIONS[name])
        spelt = build_pre_tokenizer(PRE_TOKENIZATIONS[name]).pre_tokenize_str(text)
        assert b"".join(byte_level_bytes(piece) for piece, _ in spelt).decode() == text
        assert normalizer is None or normalizer.normalize_str(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabulary_gives_the_ids_of_its_library(tmp_path: Path, prefix: bool) -> None:
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bytes("bpe", add_dummy_prefix=prefix))
    ids = range(theirs.get_piece_size())
    kinds = [
        2 if theirs.is_unknown(i) else CONTROL if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in ids
    ]
    metadata = decoder_metadata(
        **{
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
            "tokenizer.ggml.scores": [theirs.get_score(i) for i in ids],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": prefix,
        }
    )
    ours = gguf_tokenizer(tmp_path, metadata)
    for text in [*SAMPLES, *CORPUS]:
        assert ours.encode(text) == [1, *theirs.encode(text)]
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "begin", "end"),
    [
        ({}, [], []),
        ({"tokenizer.ggml.add_bos_token": True}, [1], []),
        ({"tokenizer.ggml.add_eos_token": True}, [], [2]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, [1], []),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, [], []),
    ],
)
def test_begin_and_end_tokens_follow_the_file(
    tmp_path: Path, changes: dict[str, Any], begin: list[int], end: list[int]
) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    ours = gguf_tokenizer(tmp_path, byte_level_metadata(backend, **changes))
    assert ours.encode("fox") == [*begin, *ours.encode("fox", add_special_tokens=False), *end]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "martian"}, "tokenizer.ggml.pre is 'martian', which is not known"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; gpt2 and llama are served"),
        ({"tokenizer.ggml.tokens": None}, "no list of strings tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "token_type does not have one entry for each"),
        ({"tokenizer.ggml.merges": ["abc"]}, "entry that is not two pieces"),
        ({"tokenizer.ggml.merges": ["zzz yyy"]}, "do not fit together"),
        ({"tokenizer.ggml.model": "llama"}, "scores does not have one entry for each"),
    ],
)
def test_files_that_cannot_be_rebuilt_say_why(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    with pytest.raises(TokenizerError, match=message):
        gguf_tokenizer(tmp_path, byte_level_metadata(backend, **changes))


@pytest.mark.real_model
def test_golden_prompts_are_encoded_as_by_transformers(
    smollm2_path: Path, golden_outputs: list[dict[str, Any]]
) -> None:
    tokenizer = load_tokenizer(smollm2_path)
    template = ChatTemplate.from_tokenizer(tokenizer)
    for golden in golden_outputs:
        prompt = template.render([{"role": "user", "content": golden["prompt"]}])
        assert tokenizer.encode(prompt, add_special_tokens=False) == golden["prompt_ids"]
        assert tokenizer.decode(golden["output_ids"], skip_special_tokens=False) == golden["text"]


@pytest.mark.real_model
def test_real_tokenizer_on_digits_accents_and_code(smollm2_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_path)
    for text in [*SAMPLES, *CORPUS, TRAP]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert [tokenizer.token_text(i) for i in tokenizer.encode("x 2024")] == ["x", " ", "2", "0", "2", "4"]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids[0]) == (49152, 1, 2)
    assert load_generation_config(smollm2_path).eos_token_ids == tokenizer.eos_ids
