"""What every route shares."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext, suppress

from drivetrain.config.server import ServerConfig
from drivetrain.errors import UnknownModel
from drivetrain.frontend import Frontend
from drivetrain.messages import EngineInfo, EngineStats
from drivetrain.version import __version__
from drivetrain_server.answers.logprobs import TokenSpeller
from drivetrain_server.event_stream import JsonPieces
from drivetrain_server.exchange import Exchange
from drivetrain_server.keys import KeyRing
from drivetrain_server.lifecycle import Lifecycle, State
from drivetrain_server.peers import Alone, Peers
from drivetrain_server.pulse import STALL_S, Pulse
from drivetrain_server.telemetry import Telemetry
from drivetrain_server.tracing import Tracing
from drivetrain_server.wire.unservable import IGNORED

STATS_TIMEOUT_S = 2.0


class Service:
    """The parts of one server, made once.

    Args:
        stall_s: how long a client may leave its stream unread.
        peers: the other API processes of this server; None where there are none.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        config: ServerConfig,
        *,
        stall_s: float = STALL_S,
        peers: Peers | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.config = config
        self.keys = KeyRing(config.api_keys, max_requests=config.max_requests_per_key)
        self.telemetry = Telemetry()
        self.tracing = Tracing.to(config.otlp_endpoint)
        self.peers = peers or Alone(self.keys, self.telemetry, lifecycle)
        self.pulse = Pulse(keepalive_s=config.keepalive_s, stall_s=stall_s)
        self.started = int(time.time())
        self.serial = (f"{os.getpid():x}.{number}" for number in itertools.count())
        """Ends names of requests, so that the engine can tell those of all processes apart."""
        self._speller: TokenSpeller | None = None
        self._pieces: dict[bool, JsonPieces] = {}

    @property
    def state(self) -> State:
        """Where the server stands: ready only when each of its processes is."""
        state = self.lifecycle.state
        return "starting" if state == "ready" and not self.peers.ready else state

    async def stats(self) -> EngineStats | None:
        """What the engine counts; None where it has ended, or does not say in time."""
        engine = self.lifecycle.engine
        if engine.info is None or engine.failure is not None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(STATS_TIMEOUT_S):
                return await engine.stats()
        return None

    def speller(self, frontend: Frontend) -> TokenSpeller:
        """Spells the tokens of the model that is served."""
        if self._speller is None:
            self._speller = TokenSpeller(frontend.tokenizer)
        return self._speller

    def pieces(self, frontend: Frontend, *, skip_special: bool) -> JsonPieces:
        """The text of single tokens as JSON, with or without that of special ones."""
        found = self._pieces.get(skip_special)
        if found is None:
            tokenizer = frontend.tokenizer
            found = JsonPieces(tokenizer.visible_pieces if skip_special else tokenizer.pieces)
            self._pieces[skip_special] = found
        return found

    def sampling_defaults(self, frontend: Frontend) -> dict[str, object]:
        """Values for sampling parameters that requests leave out: the operator's, else the model's."""
        return frontend.defaults.given() | dict(self.config.sampling_defaults)

    @asynccontextmanager
    async def serving(self, exchange: Exchange, *, streams: bool = False) -> AsyncGenerator[None, None]:
        """While inside, a request counts for its key and for a drain, and its connection is watched.

        Enter it once the body has been read.

        Raises:
            HttpError: 429, its key has too many requests open.
            ClientGone, SlowReader: nobody reads the answer.
        """
        tenant = exchange.tenant
        await self.peers.enter(tenant)
        try:
            with self.lifecycle.serving(exchange), self.pulse.watching(exchange) if streams else nullcontext():
                async with exchange.attended():
                    yield
        finally:
            self.peers.leave(tenant)

    def check_model(self, name: str | None, info: EngineInfo) -> None:
        """Refuse a model that is not served; None (where a route allows it) is the one that is.

        Raises:
            UnknownModel: names the one that is.
        """
        if name is not None and name != info.model:
            raise UnknownModel(
                f'model: "{name[:100]}" is not served here; this server has "{info.model}"', param="model"
            )


def fingerprint(info: EngineInfo) -> str:
    """`system_fingerprint`: changes with whatever may change an answer of the same seed."""
    parts = (__version__, info.model, info.architecture, info.backend, info.device, info.dtype)
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def ignored_fields(unknown: list[str], known: dict[str, object] | None = None) -> list[tuple[bytes, bytes]]:
    """The debug header that lists the fields of a request which nobody knows."""
    names = [name for name in unknown if name not in IGNORED and name not in (known or {})]
    if not names:
        return []
    printable = [name.encode("ascii", "backslashreplace").decode() for name in names[:20]]
    listed = ", ".join("".join(char if char.isprintable() else "?" for char in name)[:60] for name in printable)
    return [(b"x-drivetrain-ignored-fields", listed.encode())]
