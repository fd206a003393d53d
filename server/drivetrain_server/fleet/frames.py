"""What the supervisor and its API processes say to each other: msgspec frames over a socket pair."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from drivetrain.config import EngineConfig
from drivetrain.config.server import ServerConfig
from drivetrain_server.telemetry import Reading


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first message to a member. `late`: the server is up already, so listen only once ready to serve."""

    engine: EngineConfig
    server: ServerConfig
    engine_socket: str
    late: bool


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Refuse new work and end open requests after `limit_s` seconds. Said again, it ends them at once."""

    limit_s: float


class End(msgspec.Struct, frozen=True, tag=True):
    """Stop listening and end."""


class GiveUp(msgspec.Struct, frozen=True, tag=True):
    """There will be no engine any more."""

    reason: str


class AllReady(msgspec.Struct, frozen=True, tag=True):
    """Every member takes requests."""


class Count(msgspec.Struct, frozen=True, tag=True):
    """Answer with `Counted`."""


class Everything(msgspec.Struct, frozen=True, tag=True):
    """The answer to `AskEverything`: one reading a member, and one of those that have ended."""

    readings: list[Reading]


class Entered(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Enter`. `refusal` is the number of requests that the key has open, if it may open no more."""

    refusal: int | None


class Recalled(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Keep`, `Recall` and `Forget`, in order: what was kept before; None for nothing."""

    raw: bytes | None


ToMember: TypeAlias = Begin | Drain | End | GiveUp | AllReady | Count | Everything | Entered | Recalled


class Up(msgspec.Struct, frozen=True, tag=True):
    """This member takes requests."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """This member cannot start; `kind` is the name of the error class."""

    kind: str
    message: str


class Drained(msgspec.Struct, frozen=True, tag=True):
    """Nothing is open any more; `ended` requests were ended before they had finished."""

    ended: int


class Counted(msgspec.Struct, frozen=True, tag=True):
    """What this member has counted until now. Sent unasked too, so that little is lost with a member that dies."""

    reading: Reading


class AskEverything(msgspec.Struct, frozen=True, tag=True):
    """Ask every member what it has counted."""


class Enter(msgspec.Struct, frozen=True, tag=True):
    """Count a request of this key in. Answered by `Entered`, in order."""

    key: str


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Count it out."""

    key: str


class Keep(msgspec.Struct, frozen=True, tag=True):
    """Keep a response of this key for all members. Answered by `Recalled`."""

    key: str
    response_id: str
    raw: bytes


class Recall(msgspec.Struct, frozen=True, tag=True):
    """Tell a response of this key. Answered by `Recalled`."""

    key: str
    response_id: str


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Forget one. Answered by `Recalled`."""

    key: str
    response_id: str


FromMember: TypeAlias = Up | Failed | Drained | Counted | AskEverything | Enter | Leave | Keep | Recall | Forget
