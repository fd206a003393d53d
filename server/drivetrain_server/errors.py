"""From every error of the engine to a status and an error body in OpenAI's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from drivetrain import errors as core
from drivetrain.errors import DrivetrainError

MAX_RETRY_AFTER_S = 120


class HttpError(Exception):
    """An answer that is an error.

    Args:
        type: OpenAI's class of error, such as `invalid_request_error`.
        param: the field at fault, as the client spells it.
        code: a word that programs can test.
        retry_after_s: seconds until another try makes sense; sent as `Retry-After`, 1 to 120.
        close: end the connection after this answer, because the rest of the request was not read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.extra_headers = headers
        self.close = close

    def body(self) -> bytes:
        """The JSON of the answer, or of an error event."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers beside the content's."""
        headers = list(self.extra_headers)
        if self.retry_after_s is not None:
            seconds = min(max(math.ceil(self.retry_after_s), 1), MAX_RETRY_AFTER_S)
            headers.append((b"retry-after", b"%d" % seconds))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKind:
    """How a class of errors looks over HTTP."""

    status: int
    type: str
    code: str | None
    retry_after_s: float | None = None


def _bad(code: str | None, status: int = 400) -> ErrorKind:
    return ErrorKind(status=status, type="invalid_request_error", code=code)


def _down(code: str, retry_after_s: float | None = None) -> ErrorKind:
    return ErrorKind(status=503, type="service_unavailable", code=code, retry_after_s=retry_after_s)


KINDS: dict[type[DrivetrainError], ErrorKind] = {
    DrivetrainError: _down("engine_error"),
    core.BackendError: _down("backend_error"),
    core.BackendNotReady: _down("backend_not_ready"),
    core.UnknownBackend: _down("unknown_backend"),
    core.NoBackendReady: _down("no_backend_ready"),
    core.HardwareIdle: _down("hardware_idle"),
    core.BackendTie: _down("backend_tie"),
    core.Unsupported: _bad("unsupported"),
    core.OutOfMemory: _down("out_of_memory", 5),
    core.DeviceLost: _down("device_lost", 10),
    core.CommunicatorError: _down("communicator_error", 10),
    core.ConfigError: _down("misconfigured"),
    core.ModelError: _down("model_error"),
    core.ModelNotFound: _down("model_missing"),
    core.UnsupportedModel: _down("unsupported_model"),
    core.WeightError: _down("weight_error"),
    core.TokenizerError: _down("tokenizer_error"),
    core.RequestError: _bad("invalid_value"),
    core.PromptTooLong: _bad("context_length_exceeded"),
    core.UnknownModel: _bad("model_not_found", 404),
    core.TemplateError: _bad("chat_template"),
    core.Overloaded: ErrorKind(status=503, type="overloaded_error", code="overloaded"),
    core.ShareUsed: ErrorKind(status=429, type="rate_limit_error", code="too_many_requests"),
    core.EngineError: _down("engine_error", 5),
    core.EngineDead: _down("engine_dead", 10),
    core.Draining: _down("draining", 10),
    core.Asleep: _down("asleep", 10),
    core.RequestFailed: _down("request_failed", 1),
}
"""One entry for every class of the error tree; a test compares it with the tree."""


def http_error(error: DrivetrainError) -> HttpError:
    """The answer to an error that the engine raised.

    A class that a plugin derives from one of ours is answered like its nearest ancestor.
    """
    kind = next(KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in KINDS)
    retry_after_s = error.retry_after_s if isinstance(error, core.Overloaded) else kind.retry_after_s
    param = error.param if isinstance(error, core.RequestError) else None
    message = str(error) or type(error).__name__
    return HttpError(kind.status, message, type=kind.type, param=param, code=kind.code, retry_after_s=retry_after_s)


ANTHROPIC_HEADER = "anthropic-version"
"""By which Anthropic's clients are known where they share a path with others."""
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
"""Status to Anthropic's class of error; others are `api_error`, and an overloaded engine is `overloaded_error`."""


def anthropic_error(error: HttpError) -> dict[str, object]:
    """The error object of Anthropic's API. `param` and `code` are ours."""
    kind = "overloaded_error" if error.type == "overloaded_error" else ANTHROPIC_TYPES.get(error.status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message, "param": error.param, "code": error.code},
    }


def error_body(path: str, error: HttpError, *, anthropic: bool = False) -> bytes:
    """The body of an error answer, in the shape of the API that `path` belongs to.

    Args:
        anthropic: the request has `ANTHROPIC_HEADER`.
    """
    if anthropic or path == "/v1/messages" or path.startswith("/v1/messages/"):
        return orjson.dumps(anthropic_error(error))
    if path.startswith("/api/"):
        return orjson.dumps({"error": error.message})
    return error.body()


def internal_error(request_id: str) -> HttpError:
    """The answer to a mistake of ours. What went wrong is in the log, under the request id."""
    return HttpError(
        500,
        f"an internal error; the log of the server says more under request id {request_id}",
        type="internal_error",
        code="internal_error",
    )
