"""Tokenizers of Hugging Face folders, against `transformers` and SentencePiece's own library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.errors import RequestError, TokenizerError
from drivetrain.tokenizer import Tokenizer, load_tokenizer
from drivetrain.tokenizer.tokenizer import TokenizerParts
from processor_time import slowness
from tiny_tokenizers import (
    CORPUS,
    SAMPLES,
    byte_level_json,
    normalizing_tokenizer,
    sentencepiece_bytes,
    write_byte_level_folder,
)

BEGIN_AND_END = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
}


@pytest.mark.parametrize("post_processor", [None, BEGIN_AND_END])
@pytest.mark.parametrize("flags", [{}, {"bos_token": "<|im_start|>", "add_bos_token": True}])
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_ids_and_text_equal_transformers(
    tmp_path: Path, post_processor: object, flags: dict[str, object], add_special_tokens: bool
) -> None:
    from transformers import PreTrainedTokenizerFast

    write_byte_level_folder(tmp_path, **flags)
    state = json.loads(byte_level_json())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**state, "post_processor": post_processor}), "utf-8")
    ours = Tokenizer.from_folder(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    for text in SAMPLES + CORPUS:
        ids = ours.encode(text, add_special_tokens)
        assert ids == theirs.encode(text, add_special_tokens=add_special_tokens)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids == (theirs.eos_token_id,)
    assert ours.vocab_size == len(theirs)


def test_the_file_itself_may_be_named(tmp_path: Path) -> None:
    write_byte_level_folder(tmp_path, eos_token="<|im_end|>")
    named, folder = load_tokenizer(tmp_path / "tokenizer.json"), load_tokenizer(tmp_path)
    assert named.encode(CORPUS[0]) == folder.encode(CORPUS[0])
    assert named.eos_ids == folder.eos_ids != ()


def test_tokens_declared_in_the_config_are_added_with_their_ids(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    size = len(json.loads(byte_level_json())["model"]["vocab"]) + 1
    flags = {"lstrip": False, "rstrip": True, "single_word": False, "normalized": False}
    write_byte_level_folder(
        tmp_path,
        added_tokens_decoder={
            str(size): {"content": "<think>", "special": False, **flags},
            str(size + 1): {"content": "<pad>", "special": True, **flags},
        },
        pad_token="<pad>",
    )
    ours = Tokenizer.from_folder(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    text = "a<think> b<pad>  c"
    assert ours.encode(text) == theirs.encode(text)
    assert size in ours.encode(text)
    assert ours.special_ids == {0, 1, 2, size + 1}
    assert ours.added_tokens[size] == "<think>"


def test_declared_id_that_differs_is_refused(tmp_path: Path) -> None:
    write_byte_level_folder(tmp_path, added_tokens_decoder={"7": {"content": "<new>", "special": True}})
    with pytest.raises(TokenizerError, match="gives '<new>' the id 7, tokenizer.json gives it"):
        Tokenizer.from_folder(tmp_path)


def test_special_tokens_map_alone_gives_the_roles(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_json(), encoding="utf-8")
    roles = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "bos_token": "<|im_start|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}


def test_chat_templates_are_found_in_every_place(tmp_path: Path) -> None:
    write_byte_level_folder(
        tmp_path, chat_template=[{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    )
    assert Tokenizer.from_folder(tmp_path).chat_templates == {"default": "A", "tool_use": "B"}
    (tmp_path / "chat_template.jinja").write_text("C", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("D", encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).chat_templates == {"default": "C", "tool_use": "B", "rag": "D"}


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("add_dummy_prefix", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_model_gives_the_ids_of_its_own_library(
    tmp_path: Path, algorithm: str, add_dummy_prefix: bool, legacy: bool
) -> None:
    import sentencepiece

    model = sentencepiece_bytes(algorithm, add_dummy_prefix=add_dummy_prefix)
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}), encoding="utf-8")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.vocab_size == theirs.get_piece_size()
    for text in [*SAMPLES, *CORPUS]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == text
    assert ours.encode("fox") == [theirs.bos_id(), *theirs.encode("fox")]
    assert ours.encode_batch([" x", "x"], False) == [theirs.encode(" x"), theirs.encode("x")]
    assert ours.eos_ids == (theirs.eos_id(),)


def test_prefix_space_after_special_tokens_follows_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes("bpe"))
    for legacy, pieces in ((True, ["</s>", " fox"]), (False, ["</s>", "fox"])):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}), encoding="utf-8")
        tokenizer = Tokenizer.from_folder(tmp_path)
        ids = tokenizer.encode("</s>fox", add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == "".join(pieces)


def test_sentencepiece_normalisation_rules_are_followed(tmp_path: Path) -> None:
    import sentencepiece

    model = sentencepiece_bytes("unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    (tmp_path / "tokenizer.model").write_bytes(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer.from_folder(tmp_path)
    for text in ["ﬁne  ①  text", "  cafe\u0301   ", "ＡＢＣ\u3000x"]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)


def test_user_defined_pieces_are_whole(tmp_path: Path) -> None:
    import sentencepiece

    model = sentencepiece_bytes("bpe", user_defined_symbols="<sep>,xyz", add_dummy_prefix=False)
    (tmp_path / "tokenizer.model").write_bytes(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer.from_folder(tmp_path)
    for text in ["a<sep>b", "fox xyzxyz fox", "<sep><sep>"]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)
    assert not {ours.token_id("<sep>"), ours.token_id("xyz")} & ours.special_ids


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "algorithm"])
def test_damaged_sentencepiece_model_is_an_error(tmp_path: Path, damage: str) -> None:
    model = sentencepiece_bytes("word", byte_fallback=False) if damage == "algorithm" else sentencepiece_bytes("bpe")
    broken = {"cut": model[: len(model) // 2 + 1], "noise": b"\xff" * 50, "empty": b"", "algorithm": model}[damage]
    (tmp_path / "tokenizer.model").write_bytes(broken)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_no_bytes_crash_the_sentencepiece_reader(noise: bytes, position: int) -> None:
    from drivetrain.tokenizer.sentencepiece import SentencePieceModel, _parse_model

    model = sentencepiece_bytes("bpe")
    position %= len(model)
    try:
        parsed = _parse_model(model[:position] + noise + model[position + len(noise) :], Path("x"))
    except (TokenizerError, ValueError, TypeError, IndexError):
        return
    except Exception as error:
        import struct

        assert isinstance(error, struct.error)
        return
    assert isinstance(parsed, SentencePieceModel)


def test_gpt2_files_without_tokenizer_json(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(byte_level_json())
    backend.model.save(str(tmp_path))
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "The quick brown fox: café"
    assert tokenizer.encode(text) == backend.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CodeGenTokenizer"}', encoding="utf-8")
    with pytest.raises(TokenizerError, match="belongs to CodeGenTokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_folder_without_tokenizer_says_what_it_expects(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer; expected tokenizer\.json, tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_json_names_the_file(tmp_path: Path, name: str) -> None:
    write_byte_level_folder(tmp_path)
    (tmp_path / name).write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=name.replace(".", r"\.")):
        Tokenizer.from_folder(tmp_path)


def test_unknown_decoder_is_refused() -> None:
    with pytest.raises(TokenizerError, match="decoder step .*CTC"):
        Tokenizer(normalizing_tokenizer(), TokenizerParts(where="here"))


def test_lone_surrogate_is_a_bad_request(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_byte_level_folder(tmp_path))
    with pytest.raises(RequestError, match=r"position 1: U\+D800"):
        tokenizer.encode("a\ud800")
    with pytest.raises(RequestError, match=r"position 2: U\+DFFF"):
        tokenizer.encode_batch(["fine", "ab\udfff"])


def test_token_texts_and_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_byte_level_folder(tmp_path))
    ids = tokenizer.encode("fox 𝄞<|im_end|>")
    assert b"".join(map(tokenizer.token_bytes, ids)) == "fox 𝄞<|im_end|>".encode()
    assert tokenizer.token_text(2) == "<|im_end|>"
    assert tokenizer.token_text(tokenizer.encode("𝄞")[-1]) == r"\x9e"
    for unknown in (tokenizer.vocab_size, 10**9, 2**40, -1):
        assert (tokenizer.token_bytes(unknown), tokenizer.token_text(unknown)) == (b"", "")


def test_batch_encoding_equals_single(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_byte_level_folder(tmp_path, bos_token="<|im_start|>", add_bos_token=True))
    assert tokenizer.encode_batch(SAMPLES) == [tokenizer.encode(text) for text in SAMPLES]


def test_thousands_of_declared_tokens_are_added_at_once(tmp_path: Path) -> None:
    import time

    size = len(json.loads(byte_level_json())["model"]["vocab"]) + 1
    declared = {str(size + i): {"content": f"<unused{i}>", "special": True} for i in range(4000)}
    write_byte_level_folder(tmp_path, added_tokens_decoder=declared)
    start = time.thread_time()
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert time.thread_time() - start < 2 * slowness()
    assert tokenizer.encode("<unused3999>") == [size + 3999]
