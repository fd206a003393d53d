"""What travels between frontends and an engine process: msgspec frames, each after its length in four bytes."""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from drivetrain import errors
from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Phase, Update

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 256 << 20


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A request. Completion `i` is called `line + i` from now on; None asks for `Update`s only."""

    request: GenerateRequest
    line: int | None = None


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    index: int | None = None


class AskStats(msgspec.Struct, frozen=True, tag=True):
    pass


class ResetPrefixCache(msgspec.Struct, frozen=True, tag=True):
    pass


class Sleep(msgspec.Struct, frozen=True, tag=True):
    """Give the memory of the KV pages back, or take it again. Answered by `Slept`."""

    wake: bool = False


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Finish what runs for `drain_s` seconds, abort the rest, end."""

    drain_s: float


ToEngine: TypeAlias = Submit | Abort | AskStats | ResetPrefixCache | Sleep | Shutdown


class Progress(msgspec.Struct, frozen=True, tag=True):
    phase: Phase


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: EngineInfo


class Updates(msgspec.Struct, frozen=True, tag=True):
    """Everything new of one step for one frontend.

    Completions that got one token and nothing else stand in `lines` and `token_ids`, the n-th line with the n-th token.
    """

    updates: list[Update]
    lines: list[int] = []
    token_ids: list[int] = []


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A request that was not taken; `kind` is the name of the error class."""

    request_id: str
    kind: str
    message: str
    param: str | None = None
    retry_after_s: float = 0.0


class Stats(msgspec.Struct, frozen=True, tag=True):
    stats: EngineStats


class Slept(msgspec.Struct, frozen=True, tag=True):
    """The engine did as `Sleep` said, or why it did not: `kind` is the name of the error class, empty if it did."""

    kind: str = ""
    message: str = ""


class Died(msgspec.Struct, frozen=True, tag=True):
    """The engine's last words."""

    kind: str
    message: str


FromEngine: TypeAlias = Progress | Ready | Updates | Refused | Stats | Slept | Died


def refusal(request_id: str, error: errors.DrivetrainError) -> Refused:
    """The frame that tells a frontend why its request was not taken."""
    return Refused(
        request_id=request_id,
        kind=type(error).__name__,
        message=str(error),
        param=error.param if isinstance(error, errors.RequestError) else None,
        retry_after_s=error.retry_after_s if isinstance(error, errors.Overloaded) else 0.0,
    )


def raised(refused: Refused) -> errors.DrivetrainError:
    """The error that a refusal stands for; an exception that is none of ours becomes an `EngineError` that names it."""
    kind: object = getattr(errors, refused.kind, None)
    if not isinstance(kind, type) or not issubclass(kind, errors.DrivetrainError):
        return errors.EngineError(f"{refused.kind}: {refused.message}")
    if issubclass(kind, errors.RequestError):
        return kind(refused.message, param=refused.param)
    if issubclass(kind, errors.Overloaded):
        return kind(refused.message, retry_after_s=refused.retry_after_s)
    return kind(refused.message)


def frame(encoder: msgspec.msgpack.Encoder, message: ToEngine | FromEngine) -> bytes:
    """One message with its length."""
    body = encoder.encode(message)
    return HEADER.pack(len(body)) + body
