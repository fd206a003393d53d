"""Typed reading of a Hugging Face configuration. A wrong or unserved value is an error that names key and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from drivetrain.errors import UnsupportedModel
from drivetrain_plugins.contract.model import Activation

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu2",
}


class ModelConfig:
    """One model's configuration. A key that is absent or null counts as not given.

    Args:
        architecture: named in errors.
    """

    def __init__(self, values: Mapping[str, object], architecture: str) -> None:
        self._values = values
        self.architecture = architecture

    def given(self, key: str) -> bool:
        """Whether the key has a value."""
        return self._values.get(key) is not None

    def raw(self, key: str) -> object:
        """The value as it stands, or None."""
        return self._values.get(key)

    def integer(self, *keys: str, default: int | None = None) -> int:
        """The first of the keys that is given. Raises: UnsupportedModel: none is, or it is no integer."""
        key, value = self._first(keys, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refuse(key, value, "an integer")
        return value

    def size(self, *keys: str, default: int | None = None) -> int:
        """An integer of at least 1."""
        value = self.integer(*keys, default=default)
        if value < 1:
            raise self.refuse(next((key for key in keys if self.given(key)), keys[0]), value, "at least 1")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """The first of the keys that is given, as a float."""
        key, value = self._first(keys, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refuse(key, value, "a number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A number, or None where the key is not given."""
        return self.number(key) if self.given(key) else None

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def text(self, *keys: str, default: str | None = None) -> str:
        """A string."""
        key, value = self._first(keys, default)
        if not isinstance(value, str):
            raise self.refuse(key, value, "a string")
        return value

    def strings(self, key: str) -> list[str] | None:
        """A list of strings, or None where the key is not given."""
        if not self.given(key):
            return None
        strings: list[str] = []
        for item in self.items(key):
            if not isinstance(item, str):
                raise self.refuse(key, item, "strings only")
            strings.append(item)
        return strings

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        numbers: list[float] = []
        for item in self.items(key):
            if not isinstance(item, int | float) or isinstance(item, bool):
                raise self.refuse(key, item, "numbers only")
            numbers.append(float(item))
        return tuple(numbers)

    def items(self, key: str) -> Sequence[object]:
        """A list of anything."""
        value = self._values.get(key)
        if not isinstance(value, list | tuple):
            raise self.refuse(key, cast(object, value), "a list")
        return cast(Sequence[object], value)

    def section(self, key: str) -> ModelConfig | None:
        """A nested table, or None where the key is not given."""
        if not self.given(key):
            return None
        value = self._values[key]
        if not isinstance(value, Mapping):
            raise self.refuse(key, value, "a table")
        return ModelConfig(cast(Mapping[str, object], value), self.architecture)

    def given_keys(self) -> list[str]:
        """Keys that are given."""
        return [key for key in self._values if self.given(key)]

    def activation(self, *keys: str, default: str | None = None) -> Activation:
        """An activation by its Hugging Face name."""
        name = self.text(*keys, default=default)
        if name not in _ACTIVATIONS:
            key = next((key for key in keys if self.given(key)), keys[0])
            raise self.refuse(key, name, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def require(self, key: str, *served: object) -> None:
        """Refuse a value that would change the mathematics. A key that is not given passes.

        Raises:
            UnsupportedModel: the value is none of `served`.
        """
        value = self._values.get(key)
        if value is not None and value not in served:
            raise self.refuse(key, value, " or ".join(repr(choice) for choice in served) or "no value")

    def refuse(self, key: str, value: object, expected: str) -> UnsupportedModel:
        """The error for a value that is not served."""
        return UnsupportedModel(
            f"{self.architecture}: {key} = {value!r} in the model's configuration is not served; expected {expected}"
        )

    def _first(self, keys: Sequence[str], default: object) -> tuple[str, object]:
        for key in keys:
            if self.given(key):
                return key, self._values[key]
        if default is None:
            raise UnsupportedModel(
                f"{self.architecture}: the model's configuration lacks {' or '.join(keys)}; "
                f"it may be incomplete or of another architecture"
            )
        return keys[0], default
