"""`drivetrain ls` and `drivetrain pull`: models on this machine."""

from __future__ import annotations

from drivetrain.config import Config


def with_model(config: Config) -> Config:
    return config


def ls() -> None:
    """List local models."""


def pull(name: str) -> None:
    """Get a model."""
