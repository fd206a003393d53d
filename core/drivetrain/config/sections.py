"""Metadata that places a field in its section of the file and bounds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from drivetrain.config.schema import settings_of

SECTIONS = {
    "": "What is served, and on what.",
    "limits": "How much at once.",
    "scheduler": "How requests share the device.",
    "parallel": "How one model is spread over devices.",
    "server": "The HTTP server.",
}


def placed(
    section: str, *, least: float | None = None, most: float | None = None, unset: str = "auto"
) -> Mapping[str, object]:
    """Metadata of a field in `section`; `unset` is the word for None."""
    return {"section": section, "least": least, "most": most, "unset": unset}


def normalize(config: object) -> None:
    """Check each field of a configuration that is being built and store it in its final form.

    For `__post_init__` of frozen dataclasses: sizes given as text become bytes, lists become tuples.

    Raises:
        ConfigError: a value is of the wrong type or out of range; the message names the field.
    """
    settings = {setting.name: setting for setting in settings_of(type(config))}
    for field in fields(config):  # pyright: ignore[reportArgumentType]
        setting = settings[field.name]
        object.__setattr__(config, field.name, setting.read(getattr(config, field.name), setting.key))
