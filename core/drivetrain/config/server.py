"""What the HTTP server needs to know, as data."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drivetrain.config.schema import suggestion
from drivetrain.config.sections import normalize, placed
from drivetrain.errors import ConfigError, RequestError
from drivetrain.sampling import SamplingParams

MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Address, keys, limits of requests and streams.

    Raises:
        ConfigError: a value is of the wrong type, out of range, or contradicts another.
    """

    host: str = field(default="127.0.0.1", metadata=placed("server"))
    """Address to listen on. Any other than loopback needs an API key."""

    port: int = field(default=8000, metadata=placed("server", least=0, most=65535))
    """TCP port; 0 takes a free one and prints it."""

    api_processes: int = field(default=1, metadata=placed("server", least=1, most=64))
    """Processes that speak HTTP, each on a core of its own, all with the one engine behind them. One streams some
    150,000 tokens a second; more help where many clients stream at once."""

    api_keys: tuple[str, ...] = field(default=(), repr=False, metadata=placed("server"))
    """Keys that clients send as `Authorization: Bearer KEY`; with none, every local client is served. Prefer
    `api_keys_file` or the environment: flags are visible to other users of the machine."""

    api_keys_file: str | None = field(default=None, metadata=placed("server", unset="none"))
    """File with one API key a line (`#` starts a comment), read at start and added to `api_keys`."""

    max_requests_per_key: int | None = field(default=None, metadata=placed("server", least=1, unset="none"))
    """Requests that one API key may have open; more get 429 and a `Retry-After`."""

    metrics_public: bool = field(default=False, metadata=placed("server"))
    """Serve `/metrics` without an API key."""

    max_body_bytes: int = field(default=16 * MIB, metadata=placed("server", least=1024, most=1024 * MIB))
    """Largest request body; larger ones get 413."""

    max_header_bytes: int = field(default=64 * 1024, metadata=placed("server", least=1024, most=MIB))
    """Largest request head (all header lines together); larger ones get 431."""

    request_timeout_s: float | None = field(default=None, metadata=placed("server", least=0.001, unset="none"))
    """End a request that runs longer than this, waiting included."""

    drain_s: float = field(default=30.0, metadata=placed("server", least=0, most=3600))
    """How long running requests may go on after SIGTERM or Ctrl-C."""

    keepalive_s: float = field(default=15.0, metadata=placed("server", least=0.1, most=3600))
    """A stream that has nothing to say for this long sends a comment line, so that proxies keep it open."""

    max_stream_bytes: int = field(default=MIB, metadata=placed("server", least=4096, most=1024 * MIB))
    """Unread output a stream may pile up; a client slower than that is ended."""

    sampling_defaults: Mapping[str, object] = field(default_factory=dict[str, object], metadata=placed("server"))
    """Sampling parameters of requests that do not set them, such as `{ temperature = 0.7 }`; they override the
    model's `generation_config.json`."""

    log_format: Literal["text", "json"] = field(default="text", metadata=placed("server"))
    """`json` writes one object a line, with the request id, for programs that gather logs."""

    otlp_endpoint: str | None = field(default=None, metadata=placed("server", unset="none"))
    """Collector that OpenTelemetry traces are sent to over HTTP, such as `http://localhost:4318`; needs the extra
    `otel`."""

    allowed_hosts: tuple[str, ...] = field(default=(), metadata=placed("server"))
    """Names that clients, or a proxy in front, call a server without API keys by, besides localhost and IP addresses;
    `*` is any. With keys every name is taken."""

    cors_origins: tuple[str, ...] = field(default=(), metadata=placed("server"))
    """Web pages of these origins may call the server; `*` is any."""

    def __post_init__(self) -> None:
        normalize(self)
        keys = (*self.api_keys, *_keys_in(self.api_keys_file))
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("server.api_keys: a key is empty or has spaces or unprintable characters; replace it")
        object.__setattr__(self, "api_keys", tuple(dict.fromkeys(keys)))
        if not is_loopback(self.host) and not self.api_keys:
            raise ConfigError(
                f'server.host: got "{self.host}", which other machines reach, and no API key is set; '
                f"set DRIVETRAIN_API_KEYS or server.api_keys_file, or listen on 127.0.0.1"
            )
        _check_sampling(self.sampling_defaults)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _keys_in(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'server.api_keys_file: cannot read "{path}": {error}') from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f'server.api_keys_file: "{path}" holds no key; write one a line')
    return keys


def _check_sampling(defaults: Mapping[str, object]) -> None:
    known = [parameter.name for parameter in dataclasses.fields(SamplingParams)]
    for name in defaults:
        if name not in known:
            hint = suggestion(name, known, quote="`") or f"; known are {', '.join(known)}"
            raise ConfigError(f"server.sampling_defaults: unknown sampling parameter `{name}`{hint}")
    try:
        SamplingParams(**defaults)  # pyright: ignore[reportArgumentType]
    except (RequestError, TypeError) as error:
        raise ConfigError(f"server.sampling_defaults: {error}") from error
