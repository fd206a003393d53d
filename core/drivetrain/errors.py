"""Every error that Drivetrain raises on purpose.

DrivetrainError                   (drivetrain_plugins.errors)
├── BackendError                  discovery, selection, devices: see drivetrain_plugins.errors
├── ConfigError                   a key or value of the configuration is wrong
├── ModelError
│   ├── ModelNotFound             no model at this path, and no known name
│   ├── UnsupportedModel          an architecture, option or file format that is not served
│   ├── WeightError               a weight file or tensor is missing, corrupt or of the wrong shape
│   └── TokenizerError            no tokenizer, or one that cannot be rebuilt
├── RequestError                  this one request is wrong; names the field
│   ├── PromptTooLong
│   ├── UnknownModel
│   └── TemplateError             the chat template refused these messages, or there is none
├── Overloaded                    a bounded queue is full; carries retry_after_s
│   └── ShareUsed                 this caller's part of it is; others are still taken
└── EngineError
    ├── EngineDead                the engine process ended; carries the reason
    ├── Draining                  the server is shutting down and takes no new work
    ├── Asleep                    the engine has given its KV memory back and takes no work until it wakes
    └── RequestFailed             the engine failed this request; others go on
"""

from __future__ import annotations

from drivetrain_plugins.errors import (
    BackendError,
    BackendNotReady,
    BackendTie,
    CommunicatorError,
    DeviceLost,
    DrivetrainError,
    HardwareIdle,
    NoBackendReady,
    OutOfMemory,
    UnknownBackend,
    Unsupported,
)

__all__ = [
    "Asleep",
    "BackendError",
    "BackendNotReady",
    "BackendTie",
    "CommunicatorError",
    "ConfigError",
    "DeviceLost",
    "Draining",
    "DrivetrainError",
    "EngineDead",
    "EngineError",
    "HardwareIdle",
    "ModelError",
    "ModelNotFound",
    "NoBackendReady",
    "OutOfMemory",
    "Overloaded",
    "PromptTooLong",
    "RequestError",
    "RequestFailed",
    "ShareUsed",
    "TemplateError",
    "TokenizerError",
    "UnknownBackend",
    "UnknownModel",
    "Unsupported",
    "UnsupportedModel",
    "WeightError",
]


class ConfigError(DrivetrainError):
    """A key or value of the configuration is wrong."""


class ModelError(DrivetrainError):
    """Something about a model's files."""


class ModelNotFound(ModelError):
    """No model at this path, and no known name."""


class UnsupportedModel(ModelError):
    """An architecture, option or file format that is not served."""


class WeightError(ModelError):
    """A weight file or tensor is missing, corrupt or of the wrong shape."""


class TokenizerError(ModelError):
    """The model has no tokenizer, or one that cannot be rebuilt."""


class RequestError(DrivetrainError):
    """One request is wrong. `param` is the field at fault, as the client spells it."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(RequestError):
    """Prompt and answer do not fit into the context."""


class UnknownModel(RequestError):
    """The request names a model that is not served."""


class TemplateError(RequestError):
    """The chat template refused these messages, or the model has none."""


class Overloaded(DrivetrainError):
    """A bounded queue is full. `retry_after_s` is an estimate from the measured drain rate."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShareUsed(Overloaded):
    """One caller takes up as much of a bounded queue as one may."""


class EngineError(DrivetrainError):
    """The engine could not do its work."""


class EngineDead(EngineError):
    """The engine process ended."""


class Draining(EngineError):
    """The server is shutting down and takes no new work."""


class Asleep(EngineError):
    """The engine has given its KV memory back and takes no work until it wakes."""


class RequestFailed(EngineError):
    """The engine failed this request; others go on."""
