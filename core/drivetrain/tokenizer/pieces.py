"""What each token id contributes to the decoded text, in bytes.

Decoding is the concatenation of these bytes, read as UTF-8, less one leading space where the tokenizer invents one. It
depends on no neighbour, so text can be decoded token by token and never differs from decoding it whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from drivetrain.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def num_chars(piece: bytes) -> int:
    """Characters that begin in a token's bytes."""
    return len(piece) if piece.isascii() else sum(byte & 0xC0 != 0x80 for byte in piece)


class PieceTable(dict[int, bytes]):
    """Token id to bytes, filled as ids are met. Ids beyond the vocabulary (padding rows of a model) give b""."""

    def __init__(self, backend: tokenizers.Tokenizer, decoding: PieceDecoding, hidden: frozenset[int]) -> None:
        super().__init__()
        self._backend = backend
        self._decoding = decoding
        self._added = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
        self.update(dict.fromkeys(hidden, b""))

    def __missing__(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            piece = added.replace("▁", " ") if self._decoding.spaces_marked else added
            value = piece.encode()
        else:
            token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
            value = b"" if token is None else self._decoding.to_bytes(token)
        self[token_id] = value
        return value


class PieceDecoding:
    """How a vocabulary's pieces spell bytes, read from the decoder of a tokenizer.

    Raises:
        TokenizerError: a decoder that is not byte-level and not SentencePiece's.
    """

    def __init__(self, backend: tokenizers.Tokenizer, where: str) -> None:
        self.to_bytes: Callable[[str], bytes]
        self.strips_leading_space = False
        """Decoded text loses one leading space, which encoding had put there."""
        self.spaces_marked = False
        """Spaces are spelt U+2581 in pieces."""
        self._replacements: list[tuple[str, str]] = []
        self._byte_fallback = False
        steps = _decoder_steps(backend)
        kinds = [str(step.get("type")) for step in steps]
        if "ByteLevel" in kinds:
            self.to_bytes = byte_level_bytes
            return
        if not steps:
            raise TokenizerError(f"{where}: the tokenizer has no decoder, so its tokens cannot become text")
        for step in steps:
            self._add_step(step, where)
        self.spaces_marked = ("▁", " ") in self._replacements
        self.to_bytes = self._sentencepiece_bytes

    def _add_step(self, step: dict[str, Any], where: str) -> None:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._replacements.append((old, new))
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                self.strips_leading_space = start > 0
            case {"type": "Metaspace", "replacement": str(old)}:
                self._replacements.append((old, " "))
                self.strips_leading_space = step.get("prepend_scheme", "always") != "never"
            case _:
                raise TokenizerError(
                    f"{where}: the decoder step {json.dumps(step)[:120]} is not served; "
                    f"byte-level and SentencePiece tokenizers are"
                )

    def _sentencepiece_bytes(self, token: str) -> bytes:
        if self._byte_fallback and (match := _BYTE_PIECE.fullmatch(token)):
            return bytes((int(match.group(1), 16),))
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()


def _decoder_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    decoder: Any = backend.decoder
    if decoder is None:
        return []
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    if state.get("type") == "Sequence":
        return cast("list[dict[str, Any]]", state["decoders"])
    return [state]


@cache
def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones are themselves, the others take the code points from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; a token that uses other letters is taken as plain text."""
    alphabet = byte_level_alphabet()
    try:
        return bytes([alphabet[letter] for letter in token])
    except KeyError:
        return token.encode()
