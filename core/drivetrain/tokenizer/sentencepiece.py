"""SentencePiece models, read and rebuilt without their library.

A `tokenizer.model` is a protobuf message of pieces with scores, how it was trained and how text is normalised. The same
vocabulary stands in GGUF files of the older Llama and the Gemma families.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

MAX_MODEL_BYTES = 64 << 20
SPACE_MARK = "▁"


class PieceType(enum.IntEnum):
    """Kinds of pieces; GGUF's `tokenizer.ggml.token_type` uses the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Algorithm(enum.IntEnum):
    """How pieces were chosen, as `TrainerSpec.model_type` numbers it."""

    UNIGRAM = 1
    BPE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """A vocabulary and what it takes to encode with it. `texts`, `scores`, `types` have one entry a token id."""

    texts: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    algorithm: Algorithm = Algorithm.BPE
    byte_fallback: bool = True
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    add_prefix_space: bool = True
    remove_extra_spaces: bool = False
    character_map: bytes = field(default=b"", repr=False)
    """SentencePiece's precompiled normalisation rules; empty for none."""

    def piece(self, token_id: int) -> str | None:
        """Text of an id, None where the model has no such role."""
        return self.texts[token_id] if 0 <= token_id < len(self.texts) else None


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Parse a `tokenizer.model` file.

    Raises:
        TokenizerError: the file cannot be read, is no such message, or was trained by another algorithm than
            unigram or byte-pair encoding.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error}); check its permissions") from error
    if len(data) > MAX_MODEL_BYTES:
        raise TokenizerError(f"{path}: larger than {MAX_MODEL_BYTES} bytes, which no SentencePiece model is")
    try:
        return _parse_model(data, path)
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise TokenizerError(
            f"{path}: not a SentencePiece model ({error}); a folder with tokenizer.json needs none"
        ) from error


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message; fixed-width values come as their bytes."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if length > end - position:
            raise ValueError(f"field {number} ends past byte {end}")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number runs past 64 bits at byte {position}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError(f"expected bytes, got the number {value}")
    return value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise TypeError("expected a number, got bytes")
    return value - (1 << 64) if value >> 63 else value


def _parse_model(data: bytes, path: Path) -> SentencePieceModel:
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            texts.append(_bytes(piece.get(1, b"")).decode("utf-8"))
            scores.append(struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))[0])
            types.append(_int(piece.get(3, PieceType.NORMAL)))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not texts:
        raise ValueError("it holds no pieces")
    kind = _int(trainer.get(3, Algorithm.UNIGRAM))
    if kind not in (Algorithm.UNIGRAM, Algorithm.BPE):
        raise TokenizerError(f"{path}: a SentencePiece model of type {kind}; unigram (1) and BPE (2) are served")
    return SentencePieceModel(
        texts=texts,
        scores=scores,
        types=types,
        algorithm=Algorithm(kind),
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=_int(trainer.get(40, 0)),
        bos_id=_int(trainer.get(41, 1)),
        eos_id=_int(trainer.get(42, 2)),
        pad_id=_int(trainer.get(43, -1 & (2**64 - 1))),
        add_prefix_space=bool(normalizer.get(3, 1)),
        remove_extra_spaces=bool(normalizer.get(4, 1)),
        character_map=_bytes(normalizer.get(2, b"")),
    )


def build_sentencepiece(model: SentencePieceModel, *, prefix_every_segment: bool = True) -> tokenizers.Tokenizer:
    """An encoder of the tokenizers library that splits text as SentencePiece does.

    Args:
        model: vocabulary and rules.
        prefix_every_segment: put the prefix space after each special token too, as most models were trained, and not
            only at the start of the text. Without it, a text that begins with a space must be given one more.
    """
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

    unk = model.piece(model.unk_id)
    if model.algorithm is Algorithm.UNIGRAM:
        scored = list(zip(model.texts, model.scores, strict=True))
        core: models.Model = models.Unigram(
            scored, unk_id=model.unk_id if unk is not None else None, byte_fallback=model.byte_fallback
        )
    else:
        vocab = {text: token_id for token_id, text in reversed(list(enumerate(model.texts)))}
        core = models.BPE(vocab, ranked_merges(model), unk_token=unk, fuse_unk=True, byte_fallback=model.byte_fallback)
    encoder = tokenizers.Tokenizer(core)
    steps: list[normalizers.Normalizer] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.remove_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    decoding: list[decoders.Decoder] = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_prefix_space:
        decoding.append(decoders.Strip(" ", 1, 0))
    if model.add_prefix_space and not prefix_every_segment:
        encoder.pre_tokenizer = pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme="first", split=False)
    else:
        steps += [normalizers.Prepend(SPACE_MARK)] if model.add_prefix_space else []
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    if steps:
        encoder.normalizer = normalizers.Sequence(steps)
    encoder.decoder = decoders.Sequence(decoding)
    special = (PieceType.CONTROL, PieceType.UNKNOWN)
    added = [
        AddedToken(text, normalized=_matches_marked_text(text, kind), special=kind in special)
        for text, kind in zip(model.texts, model.types, strict=True)
        if text and (kind in special or kind == PieceType.USER_DEFINED)
        if not (_matches_marked_text(text, kind) and model.add_prefix_space)
    ]
    encoder.add_tokens(added)  # pyright: ignore[reportUnknownMemberType] - untyped there
    return encoder


def _matches_marked_text(text: str, kind: int) -> bool:
    """User-defined pieces that spell a space match after spaces were marked, all other tokens before."""
    return kind == PieceType.USER_DEFINED and SPACE_MARK in text


def ranked_merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Merges that give what SentencePiece's BPE gives: of all neighbours, join those whose union scores highest.

    Every split of a piece into two pieces is a merge; merges rank by the score of their union.
    """
    mergeable = (PieceType.NORMAL, PieceType.UNUSED, PieceType.USER_DEFINED)
    known = {
        text: token_id
        for token_id, (text, kind) in enumerate(zip(model.texts, model.types, strict=True))
        if kind in mergeable
    }
    scores = model.scores
    # A comprehension, for this is the slowest step of loading: a quarter of a million pieces in Gemma's vocabulary.
    splits = [
        (-scores[token_id], known[text[:cut]], known[text[cut:]], text, cut)
        for text, token_id in known.items()
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    splits.sort()
    return [(text[:cut], text[cut:]) for _, _, _, text, cut in splits]
