"""Reading one value: from text (flags, environment), from TOML, from Python."""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Literal, TypeVar, cast

from drivetrain.errors import ConfigError

T = TypeVar("T")
Kind = Literal["flag", "count", "number", "text", "choice", "size", "memory", "list", "table"]

UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
}
TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})
UNSET = frozenset({"auto", "none"})

EXPECTED: dict[Kind, str] = {
    "flag": "true or false",
    "count": "a whole number",
    "number": "a number",
    "text": "text",
    "choice": "one of",
    "size": 'a size such as 65536 or "4MiB"',
    "memory": 'a size of at least 1MiB such as "4GiB", or a share such as "70%"',
    "list": "a list of texts",
    "table": "a table such as { name = 1 }, or a JSON object",
}


class MalformedError(ValueError):
    """The text or object is not of the kind that is expected. Carries nothing: the caller knows the place."""


def parse_size(text: str) -> int:
    """Bytes of `4GiB`, `1.5 MB`, `65536`.

    Raises:
        ConfigError: no number, or an unknown unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise ConfigError(f'got "{text}", expected {EXPECTED["size"]}; units are {", ".join(u for u in UNITS if u)}')
    return round(float(match[1]) * units[match[2].lower()])


def format_size(num_bytes: int) -> str:
    """`4GiB`, `1.5MiB`, `1000B`: what `parse_size` reads back, to two decimals."""
    for letter in "TGMK":
        factor = UNITS[f"{letter}iB"]
        if num_bytes >= factor:
            return f"{num_bytes / factor:.2f}".rstrip("0").rstrip(".") + f"{letter}iB"
    return f"{num_bytes}B"


def parse_text(text: str, kind: Kind) -> object:
    """The value that a flag or environment variable spells, not yet checked.

    Raises:
        MalformedError: the text does not spell a value of this kind.
    """
    match kind:
        case "flag":
            word = text.strip().lower()
            if word not in TRUE | FALSE:
                raise MalformedError
            return word in TRUE
        case "count":
            return _integer(text)
        case "number":
            return _number(text)
        case "list":
            return [part.strip() for part in text.split(",") if part.strip()]
        case "table":
            return _table(text)
        case "size" | "memory" | "text" | "choice":
            return text


def coerce(value: object, kind: Kind) -> object:
    """`value` as the dataclass stores it: sizes become bytes, shares become floats, lists become tuples.

    Raises:
        MalformedError: `value` is not of this kind.
    """
    match kind:
        case "flag":
            return _typed(value, bool)
        case "count":
            return _typed(value, int)
        case "number":
            return _finite(value)
        case "text" | "choice":
            return _typed(value, str)
        case "size":
            return _size(value)
        case "memory":
            return _memory(value)
        case "list":
            if not isinstance(value, (list, tuple)):
                raise MalformedError
            return tuple(_typed(part, str) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case "table":
            return cast("dict[str, object]", _typed(value, dict))


def _table(text: str) -> object:
    """A JSON object, or a table as the file spells it: `{ temperature = 0.7 }`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return tomllib.loads(f"table = {text.strip()}")["table"]
    except tomllib.TOMLDecodeError:
        raise MalformedError from None


def _typed(value: object, wanted: type[T]) -> T:
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise MalformedError
    return value


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MalformedError
    return float(value)


def _size(value: object) -> int:
    if isinstance(value, str):
        try:
            return parse_size(value)
        except ConfigError:
            raise MalformedError from None
    return _typed(value, int)


def _memory(value: object) -> int | float:
    if isinstance(value, str) and value.strip().endswith("%"):
        return _number(value.strip()[:-1]) / 100
    if isinstance(value, str) and re.fullmatch(r"[01]?\.\d+", value.strip()):
        return float(value)
    if isinstance(value, float):
        return _finite(value)
    return _size(value)


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+(_\d+)*", text.strip(), re.ASCII):
        raise MalformedError
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MalformedError from None
