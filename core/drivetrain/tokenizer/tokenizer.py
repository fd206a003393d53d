"""The `Tokenizer` that the engine and the server use, whatever files it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.errors import RequestError
from drivetrain.tokenizer.pieces import PieceDecoding, PieceTable

if TYPE_CHECKING:
    import tokenizers

    from drivetrain.weights.gguf_header import GGUFHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """What a tokenizer file holds beside the encoding itself."""

    where: str
    """The file, for messages."""
    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])
    """Role to text: bos_token, eos_token, pad_token, ... as chat templates see them."""
    eos_ids: tuple[int, ...] = ()
    """Ids that end an answer, as far as the tokenizer's files say; a generation configuration may add more."""
    chat_templates: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name to Jinja source; the usual one is called `default`."""
    num_tokens: int = 0
    """At least so many ids exist, even if some have no text of their own."""
    doubles_leading_space: bool = False
    """A space at the start of a text does not stand in for the one that the encoder puts there."""


class Tokenizer:
    """Text to token ids and back. Encoding is safe from several threads at once.

    Args:
        backend: the encoder, with pre-tokenization, special tokens and post-processing set up.
        parts: the rest of what the model's files say.

    Raises:
        TokenizerError: the backend's decoder is of a kind that is not served.
    """

    def __init__(self, backend: tokenizers.Tokenizer, parts: TokenizerParts) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._parts = parts
        self._decoding = PieceDecoding(backend, parts.where)
        self.added_tokens: dict[int, str] = {
            id: token.content for id, token in backend.get_added_tokens_decoder().items()
        }
        """Tokens that are matched in text before anything else, special or not."""
        self.special_ids: frozenset[int] = frozenset(
            id for id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        """Ids that `skip_special_tokens` leaves out of the text."""
        self.pieces = PieceTable(backend, self._decoding, frozenset())
        """Token id to bytes, special tokens as their text."""
        self.visible_pieces = PieceTable(backend, self._decoding, self.special_ids)
        """Token id to bytes, special tokens as nothing."""
        self._showing: dict[frozenset[int], PieceTable] = {frozenset(): self.visible_pieces}
        highest = max(self.added_tokens, default=-1) + 1
        self.vocab_size: int = max(backend.get_vocab_size(with_added_tokens=True), highest, parts.num_tokens)
        """One more than the highest id that has a token; a model's own vocabulary may be padded beyond it."""
        bos = parts.special_tokens.get("bos_token")
        self.bos_id: int | None = None if bos is None else backend.token_to_id(bos)

    def pieces_showing(self, shown: frozenset[int]) -> PieceTable:
        """Token id to bytes, special tokens as nothing but for those of `shown`. Tables are kept: let sets be few."""
        table = self._showing.get(shown)
        if table is None:
            table = PieceTable(self._backend, self._decoding, self.special_ids - shown)
            self._showing[shown] = table
        return table

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """From a Hugging Face model folder.

        Raises:
            TokenizerError: no tokenizer files there, or files that cannot be read.
        """
        from drivetrain.tokenizer.folder import read_folder

        return cls(*read_folder(path))

    @classmethod
    def from_gguf(cls, header: GGUFHeader) -> Tokenizer:
        """From the metadata of a GGUF file.

        Raises:
            TokenizerError: no tokenizer in it, or one of an unknown kind.
        """
        from drivetrain.tokenizer.gguf import read_gguf_tokenizer

        return cls(*read_gguf_tokenizer(header))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, as far as the tokenizer's files say."""
        return self._parts.eos_ids

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Role (`bos_token`, ...) to text, as chat templates see them."""
        return self._parts.special_tokens

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Name to Jinja source of every chat template that the model has."""
        return self._parts.chat_templates

    @property
    def chat_template(self) -> str | None:
        """Source of the default chat template, None where the model has none."""
        return self._parts.chat_templates.get("default")

    @property
    def strips_leading_space(self) -> bool:
        """Decoded text loses one leading space, which encoding had put there."""
        return self._decoding.strips_leading_space

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Special tokens that are spelt out in the text become their ids.

        Args:
            text: any text.
            add_special_tokens: put the tokens around it that the model expects (a begin token, mostly). False for
                text that a chat template rendered, which has them already.

        Raises:
            RequestError: the text holds a lone surrogate, which no encoding of text can carry.
        """
        if self._parts.doubles_leading_space and text.startswith(" "):
            text = " " + text
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise _not_text(text) from error

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for many texts, on all cores. Raises: RequestError: as `encode`."""
        if self._parts.doubles_leading_space:
            texts = [" " + text if text.startswith(" ") else text for text in texts]
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError as error:
            bad = next((text for text in texts if _surrogate_position(text) is not None), "")
            raise _not_text(bad) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD, ids without a token become nothing."""
        table = self.visible_pieces if skip_special_tokens else self.pieces
        text = b"".join([table[id] for id in ids]).decode("utf-8", "replace")
        if self._decoding.strips_leading_space and text.startswith(" "):
            return text[1:]
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that the token adds to the text; a special token gives its spelling."""
        return self.pieces[token_id]

    def token_text(self, token_id: int) -> str:
        """The token as log-probabilities show it: its text, or `\\xNN` escapes where it is part of a character."""
        raw = self.pieces[token_id]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in raw)

    def token_id(self, text: str) -> int | None:
        """Id of the token spelt exactly so in the vocabulary, or None."""
        return self._backend.token_to_id(text)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model folder (or its tokenizer.json, read with what lies beside it) or of a .gguf file.

    Raises:
        TokenizerError: none there, or one that cannot be rebuilt.
        WeightError: a corrupt GGUF header.
    """
    if path.suffix == ".gguf":
        from drivetrain.weights.gguf_header import read_gguf_header

        return Tokenizer.from_gguf(read_gguf_header(path))
    return Tokenizer.from_folder(path.parent if path.name == "tokenizer.json" else path)


def _surrogate_position(text: str) -> int | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _not_text(text: str) -> RequestError:
    position = _surrogate_position(text)
    where = "" if position is None else f" at position {position}: U+{ord(text[position]):04X}"
    return RequestError(f"the text holds half of a surrogate pair{where}; send well-formed Unicode")
