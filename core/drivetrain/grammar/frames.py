"""What passes between a frontend and the process that checks its grammars: msgpack frames after their length."""

from __future__ import annotations

import struct
from typing import Protocol, TypeVar

import msgspec

HEADER = struct.Struct("<I")
Message = TypeVar("Message")


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What grammars are checked for, told once: where the tokenizer is, and how many tokens the model has."""

    tokenizer: str
    vocab_size: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Why a grammar is refused, or None.

    Attributes:
        lasting: whether the grammar is the cause, so that the verdict would be the same at any other time.
    """

    error: str | None = None
    lasting: bool = True


class Reader(Protocol):
    """Where frames come from."""

    def read(self, size: int, /) -> bytes | None:
        """At most so many bytes; none at the end."""
        ...


def frame(message: object) -> bytes:
    """One message with its length."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body


def read_frame(stream: Reader, kind: type[Message]) -> Message | None:
    """The next message, or None where the stream ends before it is whole."""
    header = _read(stream, HEADER.size)
    if header is None:
        return None
    body = _read(stream, HEADER.unpack(header)[0])
    return None if body is None else msgspec.msgpack.decode(body, type=kind)


def _read(stream: Reader, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            return None
        data += part
    return data
