"""The errors that discovery, selection and devices raise.

DrivetrainError
└── BackendError
    ├── BackendNotReady       the backend asked for is unavailable, broken, incompatible or blocked
    │   └── UnknownBackend    nothing that is installed or known has the name asked for
    ├── NoBackendReady        nothing was asked for and nothing is ready
    ├── HardwareIdle          hardware is here that its backend cannot serve on, and nothing was asked for
    ├── BackendTie            two ready backends share the highest priority
    ├── Unsupported           the backend cannot serve this configuration or request
    ├── OutOfMemory           an allocation failed; one request fails, the engine goes on
    ├── DeviceLost            the device is gone; the worker ends and is restarted
    └── CommunicatorError     a collective failed or timed out
"""

from __future__ import annotations


class DrivetrainError(Exception):
    """Root of every error that Drivetrain raises on purpose."""


class BackendError(DrivetrainError):
    """Something about a device backend."""


class BackendNotReady(BackendError):
    """The backend that was asked for cannot run here."""


class UnknownBackend(BackendNotReady):
    """The configuration asks for a backend by a name that none has."""


class NoBackendReady(BackendError):
    """No installed backend can run here."""


class HardwareIdle(BackendError):
    """Nothing was asked for, and the best that is ready would leave faster hardware of this machine idle."""


class BackendTie(BackendError):
    """Several ready backends share the highest priority."""


class Unsupported(BackendError):
    """The backend says, before work begins, that it cannot serve a configuration or request."""


class OutOfMemory(BackendError):
    """A device allocation failed. Fails one request, never the engine."""


class DeviceLost(BackendError):
    """The device no longer answers. The worker ends; the supervisor restarts it."""


class CommunicatorError(BackendError):
    """A collective failed or ran past its time limit."""
