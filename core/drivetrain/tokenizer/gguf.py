"""Tokenizers rebuilt from the metadata of GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from drivetrain.errors import TokenizerError
from drivetrain.tokenizer.pretokenizers import build_normalizer, build_pre_tokenizer, find_pre_tokenization
from drivetrain.tokenizer.sentencepiece import PieceType, SentencePieceModel, build_sentencepiece
from drivetrain.tokenizer.surroundings import surround
from drivetrain.tokenizer.tokenizer import TokenizerParts

if TYPE_CHECKING:
    import tokenizers

    from drivetrain.weights.gguf_header import GGUFHeader, MetadataValue

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelt so in the format
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|eot|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<end_of_turn>",
        "<|end_of_turn|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|END_OF_TURN_TOKEN|>",
        "<EOT>",
        "<｜end▁of▁sentence｜>",  # noqa: RUF001 - spelt so
    }
)
"""Control tokens that end a turn. A file names one or two end ids; models often have more in a configuration that did
not make it into the file."""


def gguf_end_ids(metadata: Mapping[str, MetadataValue]) -> tuple[int, ...]:
    """Ids that end an answer: those that the file names, then control tokens known to end a turn."""
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    ids = [value for value in named if isinstance(value, int)]
    texts, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if isinstance(texts, list) and isinstance(types, list):
        ids += [
            token_id
            for token_id, (text, kind) in enumerate(zip(texts, types, strict=False))
            if kind == PieceType.CONTROL and text in _END_TEXTS
        ]
    return tuple(dict.fromkeys(ids))


def read_gguf_tokenizer(header: GGUFHeader) -> tuple[tokenizers.Tokenizer, TokenizerParts]:
    """Encoder and everything else that a `Tokenizer` is made of.

    Raises:
        TokenizerError: no tokenizer in the metadata, one of an unknown kind, or lists that do not fit together.
    """
    where = str(header.path)
    metadata = header.metadata
    kind = metadata.get("tokenizer.ggml.model")
    texts = _texts(metadata, "tokenizer.ggml.tokens", where)
    types = metadata.get("tokenizer.ggml.token_type", [int(PieceType.NORMAL)] * len(texts))
    if not isinstance(types, list) or len(types) != len(texts):
        raise TokenizerError(
            f"{where}: tokenizer.ggml.token_type does not have one entry for each of {len(texts)} tokens"
        )
    types = cast("list[int]", types)
    if kind == "gpt2":
        encoder, add_bos = _byte_level(metadata, texts, types, where)
    elif kind == "llama":
        encoder, add_bos = _sentencepiece(metadata, texts, types, where), True
    else:
        raise TokenizerError(
            f"{where}: tokenizer.ggml.model is {str(kind)[:40]!r}; gpt2 and llama are served; "
            f"use the model's safetensors folder"
        )
    special = _special_tokens(metadata, texts)
    surround(
        encoder,
        special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", add_bos) else None,
        special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None,
    )
    parts = TokenizerParts(
        where=where,
        special_tokens=special,
        eos_ids=gguf_end_ids(metadata),
        chat_templates=_chat_templates(metadata),
        num_tokens=len(texts),
    )
    return encoder, parts


def _texts(metadata: Mapping[str, MetadataValue], key: str, where: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise TokenizerError(
            f"{where}: no list of strings {key}; the file has no tokenizer, so convert the model again"
        )
    return cast("list[str]", value)


def _byte_level(
    metadata: Mapping[str, MetadataValue], texts: list[str], types: list[int], where: str
) -> tuple[tokenizers.Tokenizer, bool]:
    import tokenizers
    from tokenizers import AddedToken, decoders, models

    name = metadata.get("tokenizer.ggml.pre", "default")
    splits = find_pre_tokenization(str(name), where)
    merges = [tuple(merge.split(" ")) for merge in _texts(metadata, "tokenizer.ggml.merges", where)]
    if not all(len(merge) == 2 for merge in merges):
        raise TokenizerError(f"{where}: tokenizer.ggml.merges holds an entry that is not two pieces; convert again")
    vocab = {text: token_id for token_id, text in reversed(list(enumerate(texts)))}
    try:
        model = models.BPE(vocab, cast("list[tuple[str, str]]", merges), ignore_merges=splits.ignore_merges)
    except Exception as error:  # the library raises plain Exception for a merge of unknown pieces
        raise TokenizerError(f"{where}: vocabulary and merges do not fit together ({error}); convert again") from error
    encoder = tokenizers.Tokenizer(model)
    normalizer = build_normalizer(splits)
    if normalizer is not None:
        encoder.normalizer = normalizer
    encoder.pre_tokenizer = build_pre_tokenizer(splits)
    encoder.decoder = decoders.ByteLevel()
    added = [
        AddedToken(text, normalized=False, special=kind == PieceType.CONTROL)
        for text, kind in zip(texts, types, strict=True)
        if text and kind in (PieceType.CONTROL, PieceType.USER_DEFINED)
    ]
    encoder.add_tokens(added)  # pyright: ignore[reportUnknownMemberType] - untyped there
    return encoder, splits.add_bos


def _sentencepiece(
    metadata: Mapping[str, MetadataValue], texts: list[str], types: list[int], where: str
) -> tokenizers.Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(texts):
        raise TokenizerError(f"{where}: tokenizer.ggml.scores does not have one entry for each of {len(texts)} tokens")
    unk = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    model = SentencePieceModel(
        texts=texts,
        scores=cast("list[float]", scores),
        types=types,
        byte_fallback=PieceType.BYTE in types,
        unk_id=unk if isinstance(unk, int) else 0,
        add_prefix_space=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_spaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
    return build_sentencepiece(model)


def _special_tokens(metadata: Mapping[str, MetadataValue], texts: list[str]) -> dict[str, str]:
    special: dict[str, str] = {}
    for role, key in _ROLES.items():
        token_id = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(token_id, int) and 0 <= token_id < len(texts):
            special[role] = texts[token_id]
    return special


def _chat_templates(metadata: Mapping[str, MetadataValue]) -> dict[str, str]:
    templates: dict[str, str] = {}
    for key, value in metadata.items():
        if isinstance(value, str) and key == "tokenizer.chat_template":
            templates["default"] = value
        elif isinstance(value, str) and key.startswith("tokenizer.chat_template."):
            templates[key.removeprefix("tokenizer.chat_template.")] = value
    return templates
